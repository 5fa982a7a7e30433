"""Load predictors from models on disk, for every command, server and notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zoomseg.backends import device as devices
from zoomseg.backends.choice import choose
from zoomseg.backends.compilers import BackendError
from zoomseg.backends.device import Device
from zoomseg.core.errors import ModelError
from zoomseg.inference import atlas_priors
from zoomseg.inference.atlas_priors import OnRegistration
from zoomseg.inference.memory_limits import MemoryLimits
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.recipe import graph


@dataclass(frozen=True)
class PredictionSettings:
    """How a model predicts, on any device."""

    backend: str = "auto"
    """The library that computes the networks: ``auto``, or one of ``backends.choice.BACKENDS``."""
    max_ram: int | Literal["free"] = "free"
    """Bytes that the process may use; by default the free memory."""
    max_vram: int | None = None
    """The same for GPU memory."""
    any_scan: bool = False
    """Whether scans that are plainly unlike those of the training are segmented, too."""
    overlap: float | None = None
    """Maximum share of overlap of neighbouring tiles, if the model's is larger."""
    mirror: bool = False
    """Whether predictions are averaged over mirrored tiles, as far as the recipe allows."""


DEFAULT_SETTINGS = PredictionSettings()


def load_predictor(
    models: Sequence[str | Path],
    device: str | Device = "auto",
    settings: PredictionSettings = DEFAULT_SETTINGS,
    *,
    on_warning: Callable[[str], None] = atlas_priors.warn,
    on_registration: OnRegistration = atlas_priors.ignore_progress,
) -> Predictor:
    """A predictor for one model, or for an ensemble of several.

    Args:
        models: folders, names of included models, or folders of a cross-validation, whose folds are all used.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        on_warning: called for every atlas that is dropped, for an unused GPU, and for a limit without one.
        on_registration: registration takes many seconds per atlas.

    Raises:
        ModelError: no such model, a damaged one, or models that cannot form an ensemble.
        BackendError: no such backend, it is not installed, or it refuses a network.
        RecipeError: an overlap that is not below the models', or a recipe that allows no mirroring.
        ZoomSegError: no such device.
    """
    parts = [part for model in models for part in bundle.models_in(model)]
    while True:
        first, *others = (bundle.load(part) for part in parts)
        try:
            return ready_predictor(
                first,
                device,
                settings,
                others,
                on_warning=on_warning,
                on_registration=on_registration,
            )
        except (ModelError, BackendError):  # a training may have replaced a model before its graphs were read
            if all(model.graphs_are_there for model in (first, *others)):
                raise


def ready_predictor(
    model: Bundle,
    device: str | Device = "auto",
    settings: PredictionSettings = DEFAULT_SETTINGS,
    others: Sequence[Bundle] = (),
    *,
    on_warning: Callable[[str], None] = atlas_priors.warn,
    on_registration: OnRegistration = atlas_priors.ignore_progress,
) -> Predictor:
    """As ``load_predictor``, for models in memory."""
    model, *others = (apply_settings(one, settings) for one in (model, *others))
    name = device if isinstance(device, str) else device.kind
    chosen = choose(settings.backend, name, (model, *others))
    if chosen.note:
        on_warning(chosen.note)
    if isinstance(device, str):
        device = devices.resolve(device if chosen.backend == "torch" else "cpu")
    if settings.max_vram is not None and not device.is_gpu:
        on_warning("no GPU is used, so that its memory limit (--max-vram) has no effect")
    atlas_of = atlas_priors.of_model(model, on_warning, on_registration)
    limits = MemoryLimits(device, settings.max_ram, settings.max_vram)
    return Predictor(
        model, device, atlas_of, limits, others, settings.any_scan, chosen.backend, settings.mirror
    )


def apply_settings(model: Bundle, settings: PredictionSettings) -> Bundle:
    """A model with its recipe changed by the settings.

    Raises:
        RecipeError: an overlap that is not below the model's, or a recipe that allows no mirroring.
    """
    recipe, overlap = model.recipe, settings.overlap
    if overlap is not None:
        recipe = graph.with_less_overlap(recipe, overlap)
    return replace(model, recipe=graph.with_mirroring(recipe, settings.mirror))
