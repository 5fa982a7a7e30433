"""The input of a stage: the same code in training and in prediction.

``prepare`` determines a scan's normalisation and orientation; ``view`` determines a stage's region and grid;
``read`` gives the network's input for a box of that grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from zoomseg.core.arrays import AnyNumpy, Array, array_like, namespace
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.memory import require_ram_of
from zoomseg.core.region import Region
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.pipeline import grid as grids
from zoomseg.pipeline import inputs, roi
from zoomseg.pipeline.inputs import Normalisation
from zoomseg.recipe.spec import BodyMask, FixedShape, Recipe, Stage, WholeVolume

AS_STORED = Orientation((0, 1, 2), (False, False, False))

_CHANNEL_BYTES = 4
"""Minimum number of bytes that a stage reads per voxel: one channel of float32."""


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A prepared case. ``raw`` is unchanged, in the scan's own unit and orientation: nothing as large as a
    scan is reoriented or converted to float, only the parts that a stage reads. ``grid`` and ``labels`` are
    canonical."""

    id: str
    raw: Volume
    normalisation: Normalisation
    grid: Grid
    labels: LabelMap | None
    orientation: Orientation
    """Maps the scan's own axes to canonical ones; its inverse maps labels back. If the recipe's orientation
    is another one (for ``stored``, this is the identity), "canonical" means that one."""
    box: Box
    """Box of the case's own grid that ``raw`` covers."""
    of_stages: Mapping[str, Normalisation] = field(default_factory=dict)
    """By name, of the stages with a normalisation of their own."""
    annotated: frozenset[str] | None = None
    """The labels annotated in it; None means all of them. ``labels`` contains no others."""

    @property
    def image(self) -> Volume:
        """The whole scan, normalised and canonical."""
        own = self.normalisation
        normal = Volume(own.apply(own.filled(self.raw.data, self.raw.grid.box)), self.raw.grid)
        return normal.reoriented(self.orientation)

    def normalisation_of(self, stage: Stage) -> Normalisation:
        """The scan's normalisation for a stage, without the mean that may still have to be subtracted."""
        return self.of_stages.get(stage.name, self.normalisation)

    def image_on(self, grid: Grid, stage: Stage) -> Array:
        """The image channels ``[C, *grid.shape]`` of a stage, normalised; see ``normalisation_of``."""
        kernels = grids.image_kernels(stage.grid, self.grid)
        return inputs.image_on(stage.inputs, self.raw, self.normalisation_of(stage), grid, kernels)


@dataclass(frozen=True, eq=False)
class StageView:
    """The region of a stage in one scan. ``grid`` spans the scan; nothing is sampled yet."""

    stage: Stage
    grid: Grid
    region: Region


def as_it_is(values: AnyNumpy) -> Array:
    """``put`` for a CPU, which computes with arrays where they are."""
    return values


def prepare(case: Case, recipe: Recipe, put: Callable[[AnyNumpy], Array] = as_it_is) -> PreparedScan:
    """Prepare a case.

    Args:
        put: moves voxels to the device that computes with them.

    Raises:
        ScanError: the scan shows nothing within one of the model's windows.
    """
    box = inputs.nonzero_box(case.image) if recipe.crop == "nonzero" else case.image.grid.box
    if box != case.image.grid.box:
        labels = None if case.labels is None else case.labels.crop(box)
        case = replace(case, image=case.image.crop(box), labels=labels)
    orientation = orientation_of(recipe, case.image.grid)
    labels = (
        None
        if case.labels is None
        else _annotated_labels(case.labels, case.annotated).reoriented(orientation)
    )
    own = {stage.name: stage.intensity for stage in recipe.stages if stage.intensity is not None}
    for spec in (recipe.intensity, *own.values()):
        inputs.check_seen(spec, case.image, case.id)
    normalisation = inputs.normalisation(recipe.intensity, case.image)
    of_stages = {name: inputs.normalisation(spec, case.image) for name, spec in own.items()}
    raw = Volume(put(case.image.data), case.image.grid)
    grid = orientation.grid(case.image.grid)
    return PreparedScan(
        case.id, raw, normalisation, grid, labels, orientation, box, of_stages, case.annotated
    )


def orientation_of(recipe: Recipe, grid: Grid) -> Orientation:
    """The orientation in which a recipe's networks read a scan on this grid."""
    match recipe.orientation:
        case "stored":
            return AS_STORED
        case "canonical":
            return Orientation.to_canonical(grid)
        case axes:
            return Orientation.towards(axes, grid)


def orientation_notes(recipe: Recipe, case: Case) -> tuple[str, ...]:
    """A warning if a recipe's networks read a DICOM series as stored: their training files (nnU-Net reads no
    DICOM) may have other axes."""
    if recipe.orientation != "stored" or case.modality is None:
        return ()
    return (
        f"the model reads scans as stored, and this DICOM series has the axes {case.image.grid.axes}: unless "
        "its training files have the same, it sees the patient mirrored or turned, and sides may be wrong; "
        "import it with --orientation and the axes of these files, or convert the series as they were",
    )


def _annotated_labels(labels: LabelMap, annotated: frozenset[str] | None) -> LabelMap:
    """The labels without voxels of labels that are declared not annotated: sketches or mistakes are not a
    reference. They become background, which in such a case means background or any of these labels."""
    if annotated is None or annotated.issuperset(labels.schema.names):
        return labels
    left_out = [labels.schema.class_of(name) for name in labels.schema.names if name not in annotated]
    return LabelMap(
        np.where(np.isin(labels.data, left_out), np.uint8(0), labels.data), labels.grid, labels.schema
    )


def view(
    stage: Stage, recipe: Recipe, scan: PreparedScan, priors: Mapping[str, StagePrediction]
) -> StageView | None:
    """The stage's grid and region; None if the region is empty (see ``on_missing``).

    Raises:
        MemoryLimitError: the region has more voxels than fit into memory.
    """
    if isinstance(stage.grid, FixedShape):  # at most a few thousand voxels per side
        found = roi.find_region(stage.roi, scan.grid, scan.raw, priors, recipe.on_missing)
        if found is None:
            return None
        grid = grids.stage_grid(stage.grid, scan.grid, found.box)
        return StageView(stage, grid, Region.whole(grid))
    grid = grids.stage_grid(stage.grid, scan.grid)
    what = f"stage '{stage.name}': a region"
    if isinstance(stage.roi, WholeVolume | BodyMask):
        require_ram_of(grid.shape, _CHANNEL_BYTES, what)
    region = roi.find_region(stage.roi, grid, scan.raw, priors, recipe.on_missing)
    if region is None:
        return None
    require_ram_of(region.box.shape, _CHANNEL_BYTES, what)
    return StageView(stage, grid, region)


def background_prediction(stage: Stage, scan: PreparedScan, labels: tuple[str, ...]) -> StagePrediction:
    """The prediction of a stage without a region: background everywhere."""
    grid = scan.grid.with_shape((1, 1, 1))
    probabilities = np.zeros((1 + len(labels), 1, 1, 1), dtype=np.float32)
    probabilities[0] = 1.0
    return StagePrediction(probabilities, grid, labels, Region.whole(grid), stage.name)


def image_in(view: StageView, scan: PreparedScan, box: Box) -> Array:
    """The image channels ``[C, *box.shape]`` as read by the stage's network."""
    image = scan.image_on(view.grid.crop(box), view.stage)
    if scan.normalisation_of(view.stage).zero_mean:
        image -= _mean_in_region(view, scan)
    _clear_beyond(image, view, box)
    return image


def _clear_beyond(channels: Array, view: StageView, box: Box) -> None:
    """Set channels ``[C, *box.shape]`` to zero, in place, beyond the scan, if the stage's grid says so."""
    if view.stage.grid.beyond == "edge" or view.grid.box.intersect(box) == box:
        return
    inside = np.zeros(box.shape, dtype=np.float32)
    inside[view.grid.box.intersect(box).relative_to(box.start).slices] = 1
    channels *= array_like(inside, channels)


def _mean_in_region(view: StageView, scan: PreparedScan) -> Array:
    """``[C, 1, 1, 1]``, over the voxels of the stage's grid that lie in its region."""
    region = view.region
    image = scan.image_on(view.grid.crop(region.box), view.stage)
    xp = namespace(image)
    inside = xp.astype(array_like(region.mask_in(region.box), image), image.dtype)
    total = xp.sum(image * inside, axis=(1, 2, 3), keepdims=True)
    mean: Array = total / xp.sum(inside)
    return mean


class InputReader:
    """The network's input for boxes inside a given one: the image is sampled once, priors, of which there may
    be a hundred, box by box."""

    def __init__(
        self, view: StageView, scan: PreparedScan, priors: Mapping[str, StagePrediction], box: Box
    ) -> None:
        self._view = view
        self._start = box.start
        self._image = image_in(view, scan, box)
        kernels = grids.label_kernels(view.stage.grid, scan.grid)
        self._label_maps = inputs.label_maps_on(view.stage.inputs, priors, view.grid, box, kernels)
        read = {spec.of for spec in inputs.prior_specs(view.stage.inputs)}
        self._priors = {name: priors[name].on_device_of(self._image) for name in read}

    def read(self, box: Box) -> Array:
        """The network's input ``[C, *box.shape]``; beyond the scan edge voxels are repeated, or all channels
        are zero, as the stage's grid says."""
        own = box.relative_to(self._start).slices
        image = self._image[(slice(None), *own)]
        label_maps = {n: numbers[own] for n, numbers in self._label_maps.items()}
        grid = self._view.grid.crop(box)
        priors = inputs.priors_on(self._view.stage.inputs, self._priors, grid, label_maps)
        for prior in priors:
            _clear_beyond(prior, self._view, box)
        return namespace(image).concat([image, *priors])
