"""Properties of a model's training cases (see ``io.training_domain``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.anatomy.positions import Bounds, Offsets, OrganPosition, TypicalPosition, learn, organ_positions
from zoomseg.core.case import Case
from zoomseg.core.modality import modality_of
from zoomseg.datasets.layouts import Dataset
from zoomseg.io import training_domain
from zoomseg.io.training_domain import MAX_CASES, TrainingDomain
from zoomseg.pipeline.inputs import window_of
from zoomseg.planning.fingerprint import cases_of, spread
from zoomseg.recipe.spec import IntensitySpec


@dataclass(frozen=True)
class CaseSample:
    """The data kept of a training case until its recipe is known."""

    voxels: npt.NDArray[np.float32]
    """``[I, J, K]`` of the first channel, RAS+, subsampled."""
    cell_cm2: float
    """Area of one of these voxels in an axial plane."""
    organs: dict[str, OrganPosition]


def sample(case: Case) -> CaseSample:
    """The properties of a training case."""
    voxels, cell_cm2 = training_domain.thinned(case.image.data[0], case.image.grid)
    organs: dict[str, OrganPosition] = {}
    if case.labels is not None:
        found = organ_positions(case.labels.data, case.labels.grid)
        names = case.labels.schema.names
        annotated = frozenset(names) if case.annotated is None else case.annotated
        organs = {names[c - 1]: position for c, position in found.items() if names[c - 1] in annotated}
    return CaseSample(voxels, cell_cm2, organs)


def samples(
    dataset: Dataset, ids: Sequence[str], on_progress: Callable[[int, int], None] | None = None
) -> list[CaseSample]:
    """Samples of evenly spread training cases.

    Raises:
        ScanError: one of them cannot be used.
    """
    chosen, found = spread(ids, MAX_CASES), []
    for done, case in enumerate(cases_of(dataset, chosen)):
        if on_progress is not None:
            on_progress(done, len(chosen))
        found.append(sample(case))
    return found


def describe(
    cases: Sequence[CaseSample], intensity: IntensitySpec, channel_names: Iterable[str], organs: Iterable[str]
) -> TrainingDomain:
    """Common properties of training cases (at least one), for a model with this intensity normalisation."""
    features = [training_domain.features(case.voxels, case.cell_cm2, window_of(intensity)) for case in cases]
    known = learn([case.organs for case in cases], tuple(organs))
    return TrainingDomain(
        modality=modality_of(channel_names),
        intensities=tuple(tuple(_short(value) for value in f.quantiles) for f in features),
        darkest=_span(f.darkest for f in features),
        cross_section_cm2=_span(f.cross_section_cm2 for f in features),
        organs={
            name: TypicalPosition(
                None if own.volume_ml is None else _span(own.volume_ml),
                {other: _offsets(found) for other, found in own.offsets_mm.items()},
            )
            for name, own in known.items()
        },
    )


def _span(values: Iterable[float]) -> tuple[float, float]:
    known = [_short(value) for value in values]
    return min(known), max(known)


def _offsets(offsets: Offsets) -> Offsets:
    x, y, z = (_bounds(*ends) for ends in offsets)
    return x, y, z


def _bounds(low: float | None, high: float | None) -> Bounds:
    return None if low is None else _short(low), None if high is None else _short(high)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
