"""Every shipped recipe with its own kinds, but few channels and small patches, for the tiny data set."""

from __future__ import annotations

from helpers.tiny_dataset import CPU
from zoomseg.core.geometry import Index3
from zoomseg.datasets.layouts import Dataset
from zoomseg.planning import fingerprint, plan
from zoomseg.recipe import graph, spec
from zoomseg.recipe.load import load
from zoomseg.recipe.network_shapes import FLAT_AXIS


def shrunk(name: str, data: Dataset, iterations: int) -> spec.Recipe:
    """The shipped recipe with fewer channels, voxels and steps, fitted to the data set's labels."""
    recipe = load(name)
    if isinstance(recipe, spec.PlannedRecipe):
        small = {
            "coarse_voxels": 300,
            "fine_voxels": 3000,
            "fine_patch_voxels": 1000,
            "base_channels": (4, 4),
            "max_channels": 8,
            "iterations": iterations,
        }
        planned = recipe.model_copy(update=small)
        return plan.plan(planned, fingerprint.compute_fingerprint(data, data.ids), data.schema, CPU).recipe
    stages = tuple(_stage(stage, iterations) for stage in recipe.stages)
    update: dict[str, object] = {"stages": stages}
    if recipe.atlas is not None:
        update["atlas"] = recipe.atlas.model_copy(update={"number": 2})
    fitted, _ = graph.fit(recipe.model_copy(update=update), data.schema)
    return graph.expand(fitted, data.schema)


def _stage(stage: spec.Stage, iterations: int) -> spec.Stage:
    network, patch, tile = _network(stage)
    grid: dict[str, object] = {"tile": tile}
    if isinstance(stage.grid, spec.FixedShape):
        grid["shape"] = tile
    roi = stage.roi
    if isinstance(roi, spec.BodyMask):
        roi = roi.model_copy(update={"threshold": -30.0})  # the tiny data set contains nothing but body
    # 20 voxels would move every patch off a scan of 12x10x8.
    shift = min(2.0, stage.training.augmentation.translation_vox)
    change = stage.training.augmentation.model_copy(update={"translation_vox": shift})
    training = {
        "patch": patch,
        "batch": min(stage.training.batch, 3),
        "iterations": iterations,
        "augmentation": change,
    }
    return stage.model_copy(
        update={
            "grid": stage.grid.model_copy(update=grid),
            "training": stage.training.model_copy(update=training),
            "network": network,
            "roi": roi,
        }
    )


def _network(stage: spec.Stage) -> tuple[spec.NetworkSpec, Index3, Index3]:
    """A network of the same kind, with a patch and a tile that fit it."""
    match stage.network:
        case spec.UNet3D() if stage.grid.padding == "valid":
            return spec.UNet3D(channels=(8, 16)), (24, 24, 24), (24, 24, 24)
        case spec.UNet3D():
            return spec.UNet3D(channels=(8, 16)), (8, 8, 8), (16, 16, 16)
        case spec.UNet2D(plane=plane):
            thin, slab = [16, 16, 16], [16, 16, 16]
            thin[FLAT_AXIS[plane]], slab[FLAT_AXIS[plane]] = 1, 4
            return (
                spec.UNet2D(plane=plane, channels=(4, 8)),
                (thin[0], thin[1], thin[2]),
                (slab[0], slab[1], slab[2]),
            )
        case spec.ResidualFCN(activation=activation):
            strides = ((1, 1, 1), (2, 2, 2))
            side = 8 if stage.roi.kind == "whole_volume" else 4
            small = spec.ResidualFCN(channels=(4, 8), strides=strides, activation=activation)
            return small, (side,) * 3, (8, 8, 8)
        case spec.ResUNetASPP():
            network = spec.ResUNetASPP(channels=(4, 4, 4, 4), dilations=(1, 2))
            return network, (32, 32, 32), (32, 32, 32)
        case spec.ResEncUNet() | spec.PlainConvUNet():
            raise AssertionError("no shipped recipe has this network as it is")


def shrunk_with_atlas(data: Dataset) -> spec.Recipe:
    """The small-organ recipe's coarse stage, which also reads the atlas prior."""
    whole = shrunk("valindria2018-small-organs", data, iterations=2)
    coarse = whole.stages[0].model_copy(
        update={"inputs": (spec.ImageInput(), spec.AtlasInput(labels=data.schema.names))}
    )
    return whole.model_copy(update={"stages": (coarse,)})
