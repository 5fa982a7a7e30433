"""Training cases prepared once per stage: sampled on the stage's grid, compressed, on disk.

A random crop then reads only the blocks it touches. The input of a stage is determined by
``pipeline.stage_input``, as in prediction.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoomseg.core.arrays import to_numpy
from zoomseg.core.case import StagePrediction
from zoomseg.core.geometry import Box, Grid, Vector3
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.core.region import Region, bounding_box
from zoomseg.core.resample import coordinates_box, resample_data, sample_nearest
from zoomseg.core.volume import LabelMap
from zoomseg.io.cache import ChunkedArray, write_array
from zoomseg.pipeline import grid as grids
from zoomseg.pipeline import inputs, roi, stage_input
from zoomseg.pipeline.reference import one_hot_labels, stage_labels
from zoomseg.recipe import graph
from zoomseg.recipe.spec import (
    BoxAround,
    FixedShape,
    IntensitySpec,
    PerChannel,
    Recipe,
    Stage,
    Unchanged,
    WholeVolume,
)
from zoomseg.training.data import sampler
from zoomseg.training.data.warp import sample_linear

OnDevice = Mapping[Path, Tensor]
"""Complete arrays on the training's device, by the file in which they are stored."""
NOTHING_HELD: OnDevice = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class StoredPrior:
    """An earlier stage's prediction for a training case, for stages trained separately: background and
    ``labels``, see ``stored_labels``."""

    data: ChunkedArray
    grid: Grid
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ReferenceBox:
    """The box, on the scan's grid, of the reference labels around which a stage is trained."""

    grid: Grid
    box: Box

    def with_margin(self, margin_mm: Vector3) -> Grid:
        """The part of the scan that prediction would show with this margin."""
        return self.grid.crop(roi.widened(self.box, self.grid, margin_mm))


@dataclass(frozen=True, eq=False)
class PackedCase:
    """One case on one stage's grid. Arrays cover ``box`` of ``grid``; labels are class indices of the stage,
    IGNORE for voxels that do not count."""

    case: str
    grid: Grid
    box: Box
    image: ChunkedArray
    labels: ChunkedArray
    candidates: sampler.Candidates
    counts: npt.NDArray[np.int64]
    """Voxels of each class in the region (``[1 + labels]``)."""
    annotated: npt.NDArray[np.bool_]
    """The classes annotated in this case (``[1 + labels]``, background always). Voxels of the others are
    background in ``labels`` and in ``counts``."""
    priors: Mapping[str, StoredPrior]
    reference: ReferenceBox | None = None
    """For a stage trained in boxes around the reference, of which ``grid`` is the widest."""

    @property
    def spacing_mm(self) -> Vector3:
        return self.grid.spacing_mm

    @property
    def arrays(self) -> tuple[ChunkedArray, ...]:
        return (self.image, self.labels, *(prior.data for prior in self.priors.values()))

    def image_at(self, coordinates: Tensor, held: OnDevice = NOTHING_HELD) -> Tensor:
        """Normalised image channels ``[C, A, B, D]`` at indices ``[A, B, D, 3]`` of ``grid``.

        Args:
            coordinates: on the device of the result.
            held: arrays already on this device; others are read from disk.
        """
        return _read_at(self.image, self.box, coordinates, held)

    def labels_at(self, coordinates: Tensor, held: OnDevice = NOTHING_HELD) -> Tensor:
        """Class indices ``[A, B, D]`` (uint8), IGNORE outside the stored box."""
        local = coordinates - torch.tensor(self.box.start, dtype=torch.float32, device=coordinates.device)
        data, local = _around(self.labels, local, held)
        labels: Tensor = sample_nearest(data[None], local, IGNORE)[0]
        return labels

    def prior_at(self, name: str, coordinates: Tensor, held: OnDevice = NOTHING_HELD) -> Tensor:
        """Probabilities ``[1 + labels, A, B, D]`` of an earlier stage at indices of ``grid``."""
        prior = self.priors[name]
        matrix = torch.from_numpy(self.grid.to_index_of(prior.grid).astype(np.float32))
        matrix = matrix.to(coordinates.device)
        there = coordinates @ matrix[:3, :3].T + matrix[:3, 3]
        return _read_at(prior.data, prior.grid.box, there, held)

    def within(self, coordinates: Tensor) -> Tensor:
        """Bool ``[A, B, D]``: whether indices of ``grid`` lie in a voxel of it, and not beyond the scan."""
        end = torch.tensor(self.grid.shape, dtype=coordinates.dtype, device=coordinates.device) - 0.5
        inside: Tensor = ((coordinates >= -0.5) & (coordinates < end)).all(dim=-1)
        return inside


def _read_at(array: ChunkedArray, box: Box, coordinates: Tensor, held: OnDevice) -> Tensor:
    local = coordinates - torch.tensor(box.start, dtype=torch.float32, device=coordinates.device)
    data, local = _around(array, local, held)
    return sample_linear(data, local)


def _around(array: ChunkedArray, local: Tensor, held: OnDevice) -> tuple[Tensor, Tensor]:
    """The voxels read by sampling at these indices of an array, and the indices in them: the whole array if
    it is held on the device, so that the indices need not be known before a GPU has computed them."""
    if (whole := held.get(array.path)) is not None:
        return whole, local
    i, j, k = array.shape[-3:]
    window = coordinates_box(local, (i, j, k))
    data = torch.from_numpy(array.read(window)).to(local.device)
    return data, local - torch.tensor(window.start, device=local.device)


def load_to_device(packs: Iterable[PackedCase], device: torch.device, room_bytes: int) -> OnDevice:
    """Load as many complete arrays of these cases as fit to a device. An array that takes a tenth of the
    space is read in windows instead, as each patch converts a whole array to float32."""
    held: dict[Path, Tensor] = {}
    largest = room_bytes / 10
    for array in (array for packed in packs for array in packed.arrays):
        size = array.dtype.itemsize * math.prod(array.shape)
        if size > min(largest, room_bytes):
            continue
        room_bytes -= size
        i, j, k = array.shape[-3:]
        held[array.path] = torch.from_numpy(array.read(Box((0, 0, 0), (i, j, k)))).to(device)
    return held


def pack(
    stage: Stage,
    recipe: Recipe,
    scan: stage_input.PreparedScan,
    priors: Mapping[str, StagePrediction],
    labels: tuple[str, ...],
    folder: Path,
    rng: np.random.Generator,
) -> PackedCase | None:
    """Sample a labelled case for one stage and write it to ``folder``; None if the stage's region is
    empty."""
    assert scan.labels is not None
    around = None if stage.reference_margin_mm is None else _reference_box(stage, recipe, scan, scan.labels)
    seen = _view(stage, recipe, scan, around, priors)
    if seen is None:
        return None
    if stage.includes_reference:
        seen = _with_reference(seen, scan.labels, labels)
    patch = stage.training.patch
    box = seen.region.box.expand(patch).intersect(seen.grid.box)
    grid = seen.grid.crop(box)
    image = to_numpy(stage_input.image_in(seen, scan, box))
    image = image.astype(_stored_type(graph.intensity_of(recipe, stage)), copy=False)
    target = stage_labels(scan.labels, labels, grid, grids.label_blocks(stage.grid))
    inside = seen.region.mask_in(box)
    if stage.training.mask_loss:
        target[~inside] = IGNORE
    stem = f"{stage.name}.{scan.id}"  # names of stages have no dot: different pairs never have one stem
    write_array(folder / f"{stem}.image.b2nd", image)
    write_array(folder / f"{stem}.labels.b2nd", target)
    return PackedCase(
        scan.id,
        seen.grid,
        box,
        ChunkedArray.open(folder / f"{stem}.image.b2nd"),
        ChunkedArray.open(folder / f"{stem}.labels.b2nd"),
        sampler.list_candidates(target, inside, box.start, rng),
        np.bincount(target[inside & (target != IGNORE)], minlength=1 + len(labels)),
        np.array([True, *(scan.annotated is None or name in scan.annotated for name in labels)]),
        _store_priors(seen, priors, stem, folder),
        around,
    )


def _stored_type(intensity: IntensitySpec) -> type[np.float16 | np.float32]:
    """Half precision for normalised values; not for unchanged ones, of which those above 65504 would become
    infinite."""
    specs = intensity.channels if isinstance(intensity, PerChannel) else (intensity,)
    return np.float32 if any(isinstance(spec, Unchanged) for spec in specs) else np.float16


def _with_reference(
    seen: stage_input.StageView, reference: LabelMap, labels: tuple[str, ...]
) -> stage_input.StageView:
    """The view with a region that also contains all voxels of the stage's labels."""
    target = stage_labels(reference, labels, seen.grid, grids.label_blocks(seen.stage.grid))
    region = Region.of_mask(seen.grid, seen.region.mask_in(seen.grid.box) | (target > 0))
    assert region is not None  # a region has at least one voxel
    return replace(seen, region=region)


def _view(
    stage: Stage,
    recipe: Recipe,
    scan: stage_input.PreparedScan,
    around: ReferenceBox | None,
    priors: Mapping[str, StagePrediction],
) -> stage_input.StageView | None:
    """A stage's region in training: its widest reference box, or as in prediction."""
    margins, spec = stage.reference_margin_mm, stage.grid
    if margins is None or not isinstance(spec, FixedShape):
        return stage_input.view(stage, recipe, scan, priors)
    if around is None:
        return None
    _, high = margins
    grid = grids.stage_grid(spec, around.with_margin((high, high, high)))
    return stage_input.StageView(stage, grid, Region.whole(grid))


def _reference_box(
    stage: Stage, recipe: Recipe, scan: stage_input.PreparedScan, reference: LabelMap
) -> ReferenceBox | None:
    """None if the reference has none of the labels."""
    look = stage.roi
    assert isinstance(look, BoxAround)  # no other region has reference boxes
    source = stage if look.labels == "own" else graph.stage_of(recipe, look.of)
    schema = reference.schema
    names = graph.resolve_labels(source, schema) if isinstance(look.labels, str) else look.labels
    box = bounding_box(np.isin(reference.data, [schema.class_of(name) for name in names]))
    return None if box is None else ReferenceBox(scan.grid, scan.grid.box_of(reference.grid, box))


def _store_priors(
    seen: stage_input.StageView, priors: Mapping[str, StagePrediction], stem: str, folder: Path
) -> dict[str, StoredPrior]:
    out: dict[str, StoredPrior] = {}
    for name in dict.fromkeys(spec.of for spec in inputs.prior_specs(seen.stage.inputs)):
        prior = priors[name]
        labels = stored_labels(seen.stage, name, prior.labels)
        channels = [0, *(prior.channel(label) for label in labels)]
        grid = _no_finer(prior.grid, seen.grid)
        values = resample_data(prior.probabilities[channels], prior.grid, grid)
        path = folder / f"{stem}.prior-{name}.b2nd"
        write_array(path, to_numpy(values).astype(np.float16))
        out[name] = StoredPrior(ChunkedArray.open(path), grid, labels)
    return out


def _no_finer(prior: Grid, stage: Grid) -> Grid:
    """A prior's grid, with the stage's voxel size along axes along which it is finer: prediction reads such
    a prior antialiased, patches interpolate what is stored."""
    if all(own >= wanted * 0.99 for own, wanted in zip(prior.spacing_mm, stage.spacing_mm, strict=True)):
        return prior
    i, j, k = (max(pair) for pair in zip(prior.spacing_mm, stage.spacing_mm, strict=True))
    return prior.with_spacing((i, j, k))


def stored_labels(stage: Stage, prior: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels of a prior that are stored for a stage: those that it reads, and their counterparts on the
    other side, which become these in mirrored patches.

    Args:
        labels: all that the prior has.
    """
    specs = [spec for spec in inputs.prior_specs(stage.inputs) if spec.of == prior]
    return _with_counterparts(
        frozenset(label for spec in specs for label in inputs.prior_names(spec, labels)), labels
    )


@functools.cache  # asked in every step
def _with_counterparts(read: frozenset[str], labels: tuple[str, ...]) -> tuple[str, ...]:
    pairs = LabelSchema.consecutive(labels).pairs
    kept = read.union(*(pair for pair in pairs if not read.isdisjoint(pair)))
    return tuple(label for label in labels if label in kept)


def reference_priors(
    recipe: Recipe, names: tuple[str, ...], scan: stage_input.PreparedScan
) -> dict[str, StagePrediction]:
    """Perfect predictions of stages: the reference on their grids, as probabilities.

    Stages that are trained together get their regions from these, as the earlier stages have not learned
    anything yet. No network reads them. In a partially annotated case, only annotated labels are known:
    regions contain these, and are empty (see the recipe's ``on_missing``) if they would contain only other
    labels.
    """
    assert scan.labels is not None
    out: dict[str, StagePrediction] = {}
    for stage in recipe.stages:
        if stage.name not in names:
            continue
        labels = graph.resolve_labels(stage, scan.labels.schema)
        whole = stage.model_copy(update={"roi": WholeVolume()})
        seen = stage_input.view(whole, recipe, scan, out)
        assert seen is not None  # a whole volume is never empty
        hot = one_hot_labels(scan.labels, labels, seen.grid, grids.label_blocks(stage.grid))
        out[stage.name] = StagePrediction(hot, seen.grid, labels, Region.whole(seen.grid), stage.name)
    return out
