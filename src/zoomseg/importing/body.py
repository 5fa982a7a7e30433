"""Restrict imported models to the body: nnU-Net also computes the air around it and the table."""

from __future__ import annotations

from dataclasses import replace

from zoomseg.core.errors import ModelError
from zoomseg.core.modality import named
from zoomseg.io.bundle import Bundle
from zoomseg.recipe.spec import BodyMask, WholeVolume


def within_body(model: Bundle) -> Bundle:
    """The model with a body mask as the region of every stage whose region was the whole scan: voxels outside
    are background, and tiles without a voxel of the body are not computed.

    Raises:
        ModelError: its first channel is not CT, whose intensities distinguish body and air.
    """
    if "CT" not in named(model.channel_names[0]):
        raise ModelError(
            f"--body needs CT, where a threshold finds the body; the model's first channel is "
            f"'{model.channel_names[0]}': leave --body out"
        )
    stages = tuple(
        stage.model_copy(update={"roi": BodyMask()}) if isinstance(stage.roi, WholeVolume) else stage
        for stage in model.recipe.stages
    )
    return replace(model, recipe=model.recipe.model_copy(update={"stages": stages}))
