"""From packed cases to a batch: one draw of case, centre and change, applied identically to all stages that
are trained (or evaluated) together.

Shapes: B batch, C channels, I J K voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoomseg.core.geometry import FloatArray, Grid, Index3, Vector3
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.pipeline.inputs import limits_of, prior_names, prior_specs
from zoomseg.recipe import graph
from zoomseg.recipe.spec import Augmentation, BoxAround, PriorInput, Recipe, Stage
from zoomseg.training.data import augmentation
from zoomseg.training.data.packed_cases import NOTHING_HELD, OnDevice, PackedCase, ReferenceBox
from zoomseg.training.data.sampler import Draw, Sampler


@dataclass(frozen=True, eq=False)
class StageBatch:
    """``grids`` are the patches' positions in local coordinates, one per case: equal positions of two stages
    show the same tissue. ``within`` (bool) tells which voxels lie in the scan, if channels are zero beyond
    it; None: edge voxels are repeated. ``stored`` are priors read from disk, by stage name. ``shown`` are,
    for each prior input of the stage, the channels ``[B, C]`` (bool) that are not dropped; empty: none
    are."""

    image_BCIJK: Tensor
    target_BIJK: Tensor
    counts_BC: Tensor
    """Voxels of each class in the cases' regions."""
    grids: tuple[Grid, ...]
    within_BIJK: Tensor | None
    stored: Mapping[str, Tensor]
    shown: tuple[Tensor, ...]
    annotated_BC: Tensor | None
    """The classes annotated in the cases of the patches; None: all of them in every case."""


@dataclass(frozen=True, eq=False)
class Batch:
    """``cases`` are those of the whole batch, even if only a share of its patches is here."""

    cases: tuple[str, ...]
    stages: Mapping[str, StageBatch]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the size of patches."""
        of_stages = (
            (s.image_BCIJK, s.target_BIJK, s.within_BIJK, *s.stored.values()) for s in self.stages.values()
        )
        return tuple(t for t in itertools.chain.from_iterable(of_stages) if t is not None)


@dataclass(frozen=True, eq=False)
class _Patch:
    image_CIJK: Tensor
    target_IJK: Tensor
    counts_C: Tensor
    annotated_C: Tensor
    grid: Grid
    within_IJK: Tensor | None
    stored: Mapping[str, Tensor]
    shown: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class _Changes:
    """The changes drawn for one patch. ``extent`` is the first and last mm of the scan, if it is
    truncated; ``shown`` as in ``StageBatch``, for one patch, by stage."""

    spatial: augmentation.Spatial
    tone: augmentation.Intensity
    extent: tuple[float, float] | None
    shown: Mapping[str, tuple[Tensor, ...]]


class PatchSource:
    """Draws batches for stages that run together; the last stage determines sampling and augmentation.

    Args:
        stages: in the recipe's order.
        packs: for each stage, the same cases in the same order.
        schemas: for each stage, the labels it predicts.
        device: on which patches are computed.
        held: arrays of the packs that are already there.
    """

    def __init__(
        self,
        recipe: Recipe,
        stages: Sequence[Stage],
        packs: Mapping[str, Sequence[PackedCase]],
        schemas: Mapping[str, LabelSchema],
        augmented: bool = True,
        device: torch.device = augmentation.CPU,
        held: OnDevice = NOTHING_HELD,
    ) -> None:
        self._device, self._held = device, held
        self._stages = stages
        self._packs = packs
        self._last_stage = stages[-1]
        self._tables = {name: augmentation.mirror_table(schema) for name, schema in schemas.items()}
        self._names = {name: schema.names for name, schema in schemas.items()}
        lead, training = packs[self._last_stage.name], self._last_stage.training
        self._sampler = Sampler(training.sampler, [p.candidates for p in lead], [p.counts for p in lead])
        self._augmented = augmented
        self._augmentation = training.augmentation if augmented else Augmentation()
        self._limits = {s.name: limits_of(graph.intensity_of(recipe, s)) for s in stages}

    def draw(self, size: int, rng: np.random.Generator, share: slice = slice(None)) -> Batch:
        """Draw ``size`` patches and compute those of ``share``. All randomness comes from ``rng``: equal
        generators give equal batches, for any share."""
        if self._last_stage.training.distinct_cases:
            draws = self._sampler.draw_distinct(size, rng)
        else:
            draws = tuple(self._sampler.draw(rng) for _ in range(size))
        changes = [self._changes(draw, rng) for draw in draws]
        examples = [self._example(*drawn) for drawn in list(zip(draws, changes, strict=True))[share]]
        lead = self._packs[self._last_stage.name]
        stages = {s.name: _stack([e[s.name] for e in examples]) for s in self._stages}
        return Batch(tuple(lead[d.case].case for d in draws), stages)

    def _packs_of(self, draw: Draw) -> dict[str, PackedCase]:
        return {s.name: self._packs[s.name][draw.case] for s in self._stages}

    def _changes(self, draw: Draw, rng: np.random.Generator) -> _Changes:
        packs = self._packs_of(draw)
        lead, frame = packs[self._last_stage.name], packs[self._stages[0].name].grid
        spatial = augmentation.draw_spatial(self._augmentation, lead.spacing_mm, self._reach(packs), rng)
        if lead.reference is not None:
            spatial = spatial.stretched(*self._box_share(lead, lead.reference, rng))
        tone = augmentation.draw_intensity(self._augmentation, rng)
        extent = augmentation.draw_extent(
            self._augmentation,
            frame.extent_mm[2],
            float(_mm(frame, lead.grid, np.array(draw.centre))[2]),
            rng,
        )
        return _Changes(spatial, tone, extent, {s.name: self._shown(s, packs, rng) for s in self._stages})

    def _shown(
        self, stage: Stage, packs: Mapping[str, PackedCase], rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """For each prior input of a stage, the channels ``[C]`` that are not dropped; empty: none are."""
        specs = prior_specs(stage.inputs)
        shares = [spec.dropout if isinstance(spec, PriorInput) and self._augmented else 0.0 for spec in specs]
        if not any(shares):
            return ()
        stored = packs[stage.name].priors
        labels = [stored[spec.of].labels if spec.of in stored else self._names[spec.of] for spec in specs]
        counts = [len(prior_names(spec, own)) for spec, own in zip(specs, labels, strict=True)]
        return tuple(
            torch.from_numpy(rng.random(count) >= share) for count, share in zip(counts, shares, strict=True)
        )

    def _box_share(
        self, lead: PackedCase, around: ReferenceBox, rng: np.random.Generator
    ) -> tuple[FloatArray, FloatArray]:
        """The part of the widest reference box, along each axis, that this patch shows, and the distance (mm)
        of its middle from the box's: near the scan's border, the box is not as wide on one side. Without
        augmentation, the part with the margin of prediction."""
        roi = self._last_stage.roi
        assert isinstance(roi, BoxAround)  # no other region has reference boxes
        assert roi.reference_margin_mm is not None
        low, high = roi.reference_margin_mm
        i, j, k = rng.uniform(low, high, 3) if self._augmented else (roi.margin_mm,) * 3
        shown, whole = around.with_margin((i, j, k)), lead.grid
        middle_mm = _mm(whole, shown, (np.array(shown.shape) - 1) / 2)
        extent_mm = np.array(whole.extent_mm)
        return np.array(shown.extent_mm) / extent_mm, middle_mm - extent_mm / 2

    def _example(self, draw: Draw, changes: _Changes) -> dict[str, _Patch]:
        packs = self._packs_of(draw)
        lead, frame = packs[self._last_stage.name], packs[self._stages[0].name].grid
        drawn = lead.grid.world(draw.centre)
        centres = {
            s.name: _centre(s.training.patch, packs[s.name].grid, frame, drawn, self._stays_inside(s))
            for s in self._stages
        }
        pivot = centres[self._stages[0].name]
        change = changes.spatial
        out: dict[str, _Patch] = {}
        for s in self._stages:
            packed = packs[s.name]
            local = _local_grid(s, packed.spacing_mm, change.local(centres[s.name] - pivot))
            at = packed.grid.index(frame.world(pivot / np.array(frame.spacing_mm) - 0.5))
            slices = None if changes.extent is None else _slices(frame, packed.grid, changes.extent)
            out[s.name] = self._patch(s, packed, local, at, changes, slices)
        return out

    def _stays_inside(self, stage: Stage) -> bool:
        """Whether patches stay inside the scan, as the part of a patch beyond it would be wasted. A valid
        network's input may extend beyond it, as its output is smaller: the voxel drawn for a stage is then in
        the middle of the output."""
        return stage is not self._last_stage or stage.grid.padding == "same"

    def _reach(self, packs: Mapping[str, PackedCase]) -> Vector3:
        """Half of all patches side by side: no patch centre lies outside another stage's patch."""
        x, y, z = (
            sum(s.training.patch[a] * packs[s.name].spacing_mm[a] / 2 for s in self._stages) for a in range(3)
        )
        return (x, y, z)

    def _patch(
        self,
        stage: Stage,
        packed: PackedCase,
        grid: Grid,
        pivot: FloatArray,
        changes: _Changes,
        slices: tuple[int, int] | None,
    ) -> _Patch:
        """``grid`` is the patch's position in local coordinates, ``pivot`` the index of their origin,
        ``slices`` the first and last slices, if the scan is truncated."""
        change, tone = changes.spatial, changes.tone
        coordinates = change.coordinates(grid, packed.spacing_mm, pivot, self._device)
        beyond = None
        if slices is not None:
            coordinates, beyond = augmentation.cut_coordinates(coordinates, *slices)
        image, target = packed.image_at(coordinates, self._held), packed.labels_at(coordinates, self._held)
        within = None
        if stage.grid.beyond == "zero":  # before intensities are changed, as in a scan padded with zeros
            within = packed.within(coordinates)
            within = within if beyond is None else within & ~beyond
            image *= within
        if tone.organs > 0:
            image = augmentation.brighten_organs(image, target, tone.organ_factors(self._names[stage.name]))
        image = augmentation.apply_intensity(image, tone, self._limits[stage.name])
        if beyond is not None:
            target.masked_fill_(beyond, IGNORE)
        if change.mirrored:
            target = torch.from_numpy(self._tables[stage.name]).to(self._device)[target.long()]
        stored = {name: packed.prior_at(name, coordinates, self._held) for name in packed.priors}
        if change.mirrored:
            stored = {n: _swap_sides(data, packed.priors[n].labels) for n, data in stored.items()}
        counts, annotated = torch.from_numpy(packed.counts), torch.from_numpy(packed.annotated)
        if change.mirrored:
            swapped = torch.from_numpy(self._tables[stage.name][: len(counts)]).long()
            counts, annotated = counts[swapped], annotated[swapped]
        return _Patch(image, target, counts, annotated, grid, within, stored, changes.shown[stage.name])


def _mm(frame: Grid, grid: Grid, index: FloatArray) -> FloatArray:
    """Position of an index of ``grid``: distance (mm) from ``frame``'s first corner, along the axes that all
    grids of a scan share."""
    out: FloatArray = (frame.index(grid.world(index)) + 0.5) * np.array(frame.spacing_mm)
    return out


def _slices(frame: Grid, grid: Grid, extent_mm: tuple[float, float]) -> tuple[int, int]:
    """First and last slice of ``grid`` whose centres lie in ``extent_mm`` along the frame's third axis; the
    nearest one if there is none."""
    low, high = (
        float(grid.index(frame.world(np.array([0.0, 0.0, mm / frame.spacing_mm[2] - 0.5])))[2])
        for mm in extent_mm
    )
    first, last = int(np.ceil(low)), int(np.floor(high))
    return (first, last) if first <= last else (round((low + high) / 2),) * 2


def _centre(patch: Index3, grid: Grid, frame: Grid, drawn_mm: FloatArray, inside: bool) -> FloatArray:
    """The centre of a stage's patch for a point of the patient, in mm from ``frame``'s first corner.

    Patches begin at a voxel of the stage's grid, as tiles do: unless it is rotated or deformed, a patch shows
    the scan's own voxels without interpolation. The point is in the middle (voxel ``n // 2``) or, if the
    patch must stay ``inside`` its grid, as near to it as possible.
    """
    size, span = np.array(patch), np.array(grid.shape)
    start = np.floor(grid.index(drawn_mm) + 0.5) - size // 2
    if inside:
        start = np.where(span <= size, -((size - span) // 2), np.clip(start, 0, span - size))
    return _mm(frame, grid, start + (size - 1) / 2)


def _local_grid(stage: Stage, spacing_mm: Vector3, middle_mm: FloatArray) -> Grid:
    shape = stage.training.patch
    first = middle_mm - (np.array(shape) - 1) / 2 * np.array(spacing_mm)
    return Grid.from_spacing(shape, spacing_mm, (float(first[0]), float(first[1]), float(first[2])))


def _swap_sides(probabilities_CIJK: Tensor, labels: tuple[str, ...]) -> Tensor:
    table = augmentation.mirror_table(LabelSchema.consecutive(labels))[: 1 + len(labels)]
    return probabilities_CIJK[torch.from_numpy(table).long().to(probabilities_CIJK.device)]


def _stack_known(masks: Sequence[Tensor | None]) -> Tensor | None:
    """None if the stage of these patches has no such masks."""
    known = [mask for mask in masks if mask is not None]
    return torch.stack(known) if known else None


def _stack(patches: Sequence[_Patch]) -> StageBatch:
    annotated_BC = torch.stack([p.annotated_C for p in patches])
    return StageBatch(
        torch.stack([p.image_CIJK for p in patches]),
        torch.stack([p.target_IJK for p in patches]),
        torch.stack([p.counts_C for p in patches]),
        tuple(p.grid for p in patches),
        _stack_known([p.within_IJK for p in patches]),
        {name: torch.stack([p.stored[name] for p in patches]) for name in patches[0].stored},
        tuple(torch.stack(channels) for channels in zip(*(p.shown for p in patches), strict=True)),
        None if bool(annotated_BC.all()) else annotated_BC,
    )
