"""Atlas priors in prediction: the atlases are the training cases, stored in the model's folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import ModelError
from zoomseg.io.bundle import ATLASES, Bundle
from zoomseg.pipeline import stage_input
from zoomseg.pipeline.cascade import AtlasPriorOf
from zoomseg.recipe import graph
from zoomseg.recipe.spec import Recipe

FOLDER = ATLASES
"""Name of the folder in the model's folder."""

OnRegistration = Callable[[str, int, int], None]
"""Called with (case id, steps done, total steps): one step per atlas, and one for fusion."""


def uses_atlas(recipe: Recipe) -> bool:
    """Whether any stage uses the atlas prior."""
    return any(graph.uses_atlas(stage) for stage in recipe.stages)


def warn(message: str) -> None:
    """Issue a Python warning; commands report warnings in their own way."""
    warnings.warn(message, stacklevel=2)


def ignore_progress(case: str, done: int, total: int) -> None:
    pass


def of_model(
    model: Bundle, warn: Callable[[str], None] = warn, on_progress: OnRegistration = ignore_progress
) -> AtlasPriorOf | None:
    """Computes priors from a model's own atlases; None if it uses none.

    Args:
        warn: called for every atlas that is dropped, with the case.
        on_progress: registration takes many seconds per atlas.

    Raises:
        ModelError: the model's atlases are not in its folder, or damaged.
    """
    if not uses_atlas(model.recipe):
        return None
    if model.folder is None:
        raise ModelError("the model uses an atlas prior, but was not read from a folder with its atlases")
    from zoomseg.atlas.library import AtlasLibrary  # not needed by models without atlases

    library = AtlasLibrary.load(model.folder / FOLDER)
    if library.schema.names != model.schema.names:
        raise ModelError(f"{model.folder / FOLDER} has other labels than the model; copy the whole folder")

    def prior(scan: stage_input.PreparedScan) -> StagePrediction:
        return library.prior(
            scan.image,
            on_warning=lambda message: warn(f"{scan.id}: {message}"),
            on_progress=lambda done, total: on_progress(scan.id, done, total),
        )

    return prior
