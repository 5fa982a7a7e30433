"""Sliding window over one scan: tiles that touch the stage's region, computed row by row and aggregated."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from zoomseg.core.arrays import AnyNumpy, Array, namespace, to_numpy
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.tiling import (
    LOWEST_LOG,
    Float32Array,
    PointwiseHead,
    Tile,
    TileAggregator,
    cover,
    gaussian_importance_map,
    importance_map,
    normalised,
)
from zoomseg.pipeline import fusion, roi_expansion, stage_input
from zoomseg.pipeline.argmax import LabelDecision
from zoomseg.pipeline.uncertainty import UncertaintyEstimator
from zoomseg.recipe import network_shapes
from zoomseg.recipe.spec import GridSpec

StageNetwork = Callable[[Array, tuple[Tile, ...]], Array]
"""Input ``[B, C, *outer]`` and its B tiles -> probabilities ``[B, classes, *inner]``, to be used before
the next call, which may overwrite them. The tiles are for oracles."""


@dataclass(frozen=True)
class SplitNetwork:
    """A ``StageNetwork`` in two parts, for a geometric mean over tiles: features are averaged before the
    head, which saves memory and time if there are fewer features than classes."""

    body: StageNetwork
    """Outputs features ``[B, head.features, *inner]``."""
    head: PointwiseHead

    def __call__(self, x_BCIJK: Array, tiles: tuple[Tile, ...]) -> Array:
        features = self.body(x_BCIJK, tiles)
        return namespace(features).stack([normalised(self.head.logits(one)) for one in features])


def before_head(network: StageNetwork) -> StageNetwork:
    """The part that computes tiles: the body of a ``SplitNetwork``, or the whole network."""
    return network.body if isinstance(network, SplitNetwork) else network


StageNetworkOf = Callable[[stage_input.StageView], StageNetwork]
"""The network for a view: the stage's trained one, or an oracle on the view's grid."""


class ComputeDevice(Protocol):
    """The device on which networks compute (see ``backends.device``)."""

    def put(self, values: AnyNumpy) -> Array:
        """Values as an array on the device."""

    def tiles_at_once(self, voxels: int) -> int:
        """Number of tiles of this many voxels that keep the device busy."""


@dataclass(frozen=True)
class StageRecord:
    """Record of one stage on one scan, for ``run.json``."""

    stage: str
    tile: Index3
    """As computed: a memory limit may have required smaller tiles than the recipe's."""
    seconds: float
    network_seconds: float
    """The part of ``seconds`` in the network."""
    tiles: int
    tiles_skipped: int
    region_share: float
    """Voxels of the region over voxels of the stage's grid."""
    flops: int = 0
    """Floating-point operations in the network's convolutions: two for every multiplication."""
    widened: tuple[str, ...] = ()
    """Organs that reached the end of the region, which was then widened there and computed again. Seconds,
    tiles and operations include both computations."""
    overlap: float | tuple[float, float, float] = 0.0
    """Minimum share of a tile in common with its neighbours, as computed."""

    def and_then(self, again: StageRecord, widened: tuple[str, ...]) -> StageRecord:
        """The record of both computations, if the region was widened."""
        return replace(
            again,
            seconds=self.seconds + again.seconds,
            network_seconds=self.network_seconds + again.network_seconds,
            tiles=self.tiles + again.tiles,
            tiles_skipped=self.tiles_skipped + again.tiles_skipped,
            widened=widened,
        )


@dataclass(frozen=True)
class TileProgress:
    """Progress of a scan: ``done`` of ``tiles`` of a stage."""

    stage: str
    done: int
    tiles: int


OnProgress = Callable[[TileProgress], None]


def ignore_progress(progress: TileProgress) -> None:
    pass


def _weights(spec: GridSpec, shape: Index3) -> Float32Array:
    return gaussian_importance_map(shape) if spec.importance == "gaussian" else importance_map(shape)


class SlidingWindow:
    """Sliding window of a stage over one scan: only tiles that touch the region are computed, row by row, and
    the prediction is returned in slabs of finished planes."""

    def __init__(
        self,
        view: stage_input.StageView,
        scan: stage_input.PreparedScan,
        priors: Mapping[str, StagePrediction],
        labels: tuple[str, ...],
        network: StageNetwork,
        device: ComputeDevice,
        together: int | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        """``together``: number of tiles computed at once; None: as many as keep the device busy."""
        self.view = view
        self.labels = labels
        self._started = time.perf_counter()
        self._network_seconds = 0.0
        self._head = network.head if isinstance(network, SplitNetwork) else None
        self._network = before_head(network)
        self._device = device
        self._together = together or device.tiles_at_once(math.prod(view.stage.grid.tile))
        self._on_progress = on_progress
        self._geometric = view.stage.mean == "geometric"
        spec = view.stage.grid
        halo = network_shapes.halo(view.stage.network, spec.padding)
        self.tiling = cover(view.region, spec.tile, halo, spec.overlap, spec.placement)
        self._reader = stage_input.InputReader(view, scan, priors, self.tiling.outer)
        # Where the region's box ends inside the scan, one voxel of certain background is added: a prior's
        # edge is repeated beyond its grid, and beyond the box the stage predicts nothing.
        self.box = view.region.box.expand((1, 1, 1)).intersect(view.grid.box)
        self.grid = view.grid.crop(self.box)
        """Grid of the whole prediction."""

    def slabs(self) -> Iterator[Array]:
        """Probabilities ``[C, I, J, planes]``, or for geometric means their logarithms, up to a constant per
        voxel; slab by slab, together on ``grid``. Each is to be used before the next is requested."""
        spec, inner = self.view.stage.grid, self.tiling.tiles[0].inner.shape
        shared = spec.overlap not in (0, (0, 0, 0)) and spec.padding == "same"
        weights = _weights(spec, inner) if shared else np.ones(inner, dtype=np.float32)
        head, asked = self._head, self.view.region.box
        channels = 1 + len(self.labels) if head is None else head.features
        background = -LOWEST_LOG if self._geometric else 1.0
        stitcher = TileAggregator(channels, self.box, self._device.put(weights), asked, background, head)
        done, size = 0, self._together
        for k, row in self.tiling.rows:
            yield from stitcher.take(k)
            for n in range(0, len(row), size):
                self._compute(row[n : n + size], stitcher)
                done += len(row[n : n + size])
                self._on_progress(TileProgress(self.view.stage.name, done, len(self.tiling.tiles)))
        yield from stitcher.take()

    def _compute(self, tiles: tuple[Tile, ...], stitcher: TileAggregator) -> None:
        read = [self._reader.read(tile.outer) for tile in tiles]
        # In training, scans are in this machine's memory; in prediction, they are on the device already.
        data = self._device.put(namespace(read[0]).stack(read))
        started = time.perf_counter()
        outputs = self._network(data, tiles)
        self._network_seconds += time.perf_counter() - started
        for tile, output in zip(tiles, outputs, strict=True):
            stitcher.add(tile, output, self._geometric and self._head is None)

    def predict(self, estimator: UncertaintyEstimator | None = None) -> StagePrediction:
        """The prediction as a whole; ``estimator`` accumulates from it. Overlapping labels have odds relative
        to background."""
        parts = []
        for slab, planes in self._placed():
            if estimator is not None:
                estimator.add(slab, planes, self._geometric)
            slab = normalised(slab) if self._geometric else slab
            parts.append(namespace(slab).asarray(slab, copy=True))
        whole = to_numpy(namespace(parts[0]).concat(parts, axis=3))
        return StagePrediction(whole, self.grid, self.labels, self.view.region, self.view.stage.name)

    def fuse_into(self, fused: fusion.FusedLabelMap, estimator: UncertaintyEstimator) -> None:
        """Write the prediction to the label map slab by slab; ``estimator`` accumulates from it."""
        stage = self.view.stage
        how, pasted = LabelDecision.of(stage, fused.grid), stage.fusion == "paste"
        slabs = fusion.SlabFusion(fused, self.grid, self.labels, self.view.region, how, pasted)
        for slab, planes in self._placed():
            estimator.add(slab, planes, self._geometric)
            slabs.add(slab)

    def _placed(self) -> Iterator[tuple[Array, Box]]:
        """Slabs, and the boxes of the view's grid that they fill.

        Raises:
            ModelError: the network's output contains NaN, which has no argmax.
        """
        at = self.box.start[2]
        for slab in self.slabs():
            if not bool(
                namespace(slab).isfinite(slab[0, ...]).all()
            ):  # softmax spreads NaN over all classes of a voxel
                raise ModelError(
                    f"stage '{self.view.stage.name}' produced values that are not finite: its weights "
                    "are damaged, or too large for this device; copy or train the model again"
                )
            planes = Box((*self.box.start[:2], at), (*self.box.stop[:2], at + slab.shape[3]))
            yield slab, planes
            at = planes.stop[2]

    @property
    def record(self) -> StageRecord:
        """The record, after all slabs were taken."""
        share = self.view.region.voxels / self.view.grid.box.voxels
        seconds = time.perf_counter() - self._started
        tiles, skipped = len(self.tiling.tiles), self.tiling.skipped
        stage, spec = self.view.stage.name, self.view.stage.grid
        return StageRecord(
            stage, spec.tile, seconds, self._network_seconds, tiles, skipped, share, overlap=spec.overlap
        )


def as_prior(prediction: StagePrediction, scan: Grid) -> StagePrediction:
    """A stage's prediction as later stages read it: with a voxel of certain background wherever its region's
    grid ends inside the scan, as that of a fixed shape does; a prior's edge is repeated beyond its grid."""
    ends = roi_expansion.open_sides(prediction.region.grid, scan)
    if not any(itertools.chain(*ends)):
        return prediction
    (i, j, k), shape = ends, prediction.grid.shape
    box = Box((-i[0], -j[0], -k[0]), (shape[0] + i[1], shape[1] + j[1], shape[2] + k[1]))
    inside = prediction.grid.box.relative_to(box.start).slices
    probabilities = np.zeros((1 + len(prediction.labels), *box.shape), dtype=np.float32)
    probabilities[0] = 1
    probabilities[(slice(None), *inside)] = to_numpy(prediction.probabilities)
    return replace(prediction, probabilities=probabilities, grid=prediction.grid.crop(box))
