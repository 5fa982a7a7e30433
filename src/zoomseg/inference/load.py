"""Load predictors from models on disk, for every command, server and notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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


def load_predictor(
    models: Sequence[str | Path],
    device: str | Device = "auto",
    *,
    max_ram: int | Literal["free"] = "free",
    max_vram: int | None = None,
    any_scan: bool = False,
    backend: str = "auto",
    overlap: float | None = None,
    mirror: bool = False,
    on_warning: Callable[[str], None] = atlas_priors.warn,
    on_registration: OnRegistration = atlas_priors.ignore_progress,
) -> Predictor:
    """A predictor for one model, or for an ensemble of several.

    Args:
        models: folders, names of included models, or folders of a cross-validation, whose folds are all used.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_ram: bytes that the process may use; by default the free memory.
        max_vram: the same for GPU memory.
        any_scan: whether scans that are plainly unlike those of the training are segmented, too.
        backend: the library that computes the networks: ``auto``, or one of ``backends.choice.BACKENDS``.
        overlap: maximum share of overlap of neighbouring tiles, if the model's is larger.
        mirror: whether predictions are averaged over mirrored tiles, as far as the recipe allows.
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
                others,
                max_ram=max_ram,
                max_vram=max_vram,
                any_scan=any_scan,
                backend=backend,
                overlap=overlap,
                mirror=mirror,
                on_warning=on_warning,
                on_registration=on_registration,
            )
        except (ModelError, BackendError):  # a training may have replaced a model before its graphs were read
            if all(model.graphs_are_there for model in (first, *others)):
                raise


def ready_predictor(
    model: Bundle,
    device: str | Device = "auto",
    others: Sequence[Bundle] = (),
    *,
    max_ram: int | Literal["free"] = "free",
    max_vram: int | None = None,
    any_scan: bool = False,
    backend: str = "auto",
    overlap: float | None = None,
    mirror: bool = False,
    on_warning: Callable[[str], None] = atlas_priors.warn,
    on_registration: OnRegistration = atlas_priors.ignore_progress,
) -> Predictor:
    """As ``load_predictor``, for models in memory."""
    model, *others = (as_asked(one, overlap, mirror) for one in (model, *others))
    name = device if isinstance(device, str) else device.kind
    chosen = choose(backend, name, (model, *others))
    if chosen.note:
        on_warning(chosen.note)
    if isinstance(device, str):
        device = devices.resolve(device if chosen.backend == "torch" else "cpu")
    if max_vram is not None and not device.is_gpu:
        on_warning("no GPU is used, so that its memory limit (--max-vram) has no effect")
    atlas_of = atlas_priors.of_model(model, on_warning, on_registration)
    limits = MemoryLimits(device, max_ram, max_vram)
    return Predictor(model, device, atlas_of, limits, others, any_scan, chosen.backend, mirror)


def as_asked(model: Bundle, overlap: float | None, mirror: bool) -> Bundle:
    """A model with its recipe changed by the options; ``overlap`` and ``mirror`` as in ``load_predictor``.

    Raises:
        RecipeError: an overlap that is not below the model's, or a recipe that allows no mirroring.
    """
    recipe = model.recipe if overlap is None else graph.with_less_overlap(model.recipe, overlap)
    return replace(model, recipe=graph.with_mirroring(recipe, mirror))
