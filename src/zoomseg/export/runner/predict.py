"""One scan through an exported cascade: look, compute the tiles that touch the region, stitch, fuse."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np

from zoomseg.anatomy.positions import misplaced
from zoomseg.backends.cpu import Network
from zoomseg.core.errors import ModelError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.tiling import importance_map
from zoomseg.export.runner import fusion, inputs, roi, widen
from zoomseg.export.runner.fusion import Canvas, Classes, Voice
from zoomseg.export.runner.inputs import Scan
from zoomseg.export.runner.pipeline import Pipeline, Stage
from zoomseg.export.runner.region import Answer, Region
from zoomseg.export.runner.resample import AnyArray, FloatArray
from zoomseg.export.runner.roi import CORNERS, components, largest_component, without_islands
from zoomseg.export.runner.tiling import Stitcher, cover
from zoomseg.io.training_domain import compare


def segment(
    pipeline: Pipeline,
    networks: Mapping[str, Network],
    voxels: AnyArray,
    grid: Grid,
    tell: Callable[[str], None] = lambda note: None,
) -> Classes:
    """Class indices ``[I, J, K]`` of a scan ``[C, I, J, K]`` on its own grid and in its own orientation.

    Args:
        tell: gets what the user should know of the scan and the result.

    Raises:
        ScanError: the scan has not as many channels as the model, needs more memory than there is, the
            model's window shows nothing of it, or it is plainly unlike the scans that the model was trained
            on.
    """
    if len(voxels) != len(pipeline.channel_names):
        raise ScanError(
            f"the scan has {len(voxels)} channel(s), the model needs {len(pipeline.channel_names)}: "
            f"{', '.join(pipeline.channel_names)}; give one file per channel, in this order"
        )
    if pipeline.domain is not None:
        for warning in compare(pipeline.domain, voxels[0], grid, pipeline.window, None).warnings:
            tell(warning)
    _require(voxels.size * (voxels.itemsize + 4), f"a scan of {grid.shape} voxels")
    scan = inputs.prepare(voxels, grid, pipeline.intensity)
    answers: dict[str, Answer] = {}
    answered: list[Stage] = []
    for stage in pipeline.stages:
        region = _look(stage, scan, answers, pipeline.on_missing)
        if region is None:
            answers[stage.name] = _nothing(stage, scan.grid)
            continue
        answers[stage.name] = run_stage(stage, region, scan, answers, networks[stage.name])
        answered.append(stage)
    canvas = _fused(pipeline, answered, answers, Canvas.blank(scan.grid, pipeline.schema))
    _put_in_place(canvas, pipeline, tell)
    return inputs.reorient(canvas.labels, scan.orientation.inverse)


def _put_in_place(canvas: Canvas, pipeline: Pipeline, tell: Callable[[str], None]) -> None:
    """Take out parts of organs that lie where training never had them."""
    if pipeline.domain is None:
        return
    names = pipeline.schema.names
    found = misplaced(canvas.labels, canvas.grid, names, pipeline.domain.organs, components)
    for c, own in found.items():
        tell(own.note(names[c - 1]))


def _require(need_bytes: int, what: str) -> None:
    """Refuse what cannot fit: a wrong spacing in a header makes a stage's grid as large as it likes."""
    have_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    if have_bytes is not None and need_bytes > have_bytes:
        need, have = (f"{n / 1e9:.1f} GB" for n in (need_bytes, have_bytes))
        raise ScanError(
            f"{what} needs {need} of memory, this machine has {have}; is the scan's spacing right?"
        )


def _look(stage: Stage, scan: Scan, answers: Mapping[str, Answer], on_missing: str) -> Region | None:
    """The stage's region on its grid; None where there is nothing to look at."""
    fixed = stage.grid["kind"] == "shape"
    grid = scan.grid if fixed else inputs.stage_grid(stage, scan.grid, scan.grid.box)
    if stage.roi["kind"] == "body_mask":  # is made on all of the grid: float32, components, masks
        _require(10 * grid.box.voxels, f"the body mask of stage '{stage.name}' on {grid.shape} voxels")
    region = roi.find(stage.roi, grid, scan.raw, scan.grid, answers)
    if region is None and on_missing == "whole_volume":
        region = Region.whole(grid)
    if region is None or not fixed:
        return region
    return Region.whole(inputs.stage_grid(stage, scan.grid, region.box))


def _nothing(stage: Stage, scan: Grid) -> Answer:
    """What a stage says that has nowhere to look: background, everywhere."""
    grid = scan.with_shape((1, 1, 1))
    probabilities = np.zeros((1 + len(stage.labels), 1, 1, 1), dtype=np.float32)
    probabilities[0] = 1.0
    return Answer(probabilities, grid, stage.labels, Region.whole(grid))


def run_stage(
    stage: Stage, region: Region, scan: Scan, answers: Mapping[str, Answer], network: Network
) -> Answer:
    """Compute a stage; where its region may have cut an organ, once more with a wider one."""
    probabilities = _compute(stage, region, scan, answers, network)
    wider = widen.widened(stage, region, probabilities, scan.grid)
    if wider is not None:
        del probabilities  # need not be held beside those of the wider one
        region, probabilities = wider, _compute(stage, wider, scan, answers, network)
    return _with_background_rim(probabilities, region, stage.labels)


def _compute(
    stage: Stage, region: Region, scan: Scan, answers: Mapping[str, Answer], network: Network
) -> FloatArray:
    """Probabilities in the region's box. The inputs are sampled once, over the box that the tiles read."""
    held = 2 + len(stage.labels) + len(stage.channels) + sum(len(labels) for _, labels in stage.priors)
    _require(4 * held * region.box.voxels, f"stage '{stage.name}' on {region.box.shape} voxels")
    tiles = cover(region, stage.tile, stage.network.halo, stage.grid["overlap"])
    outer = tiles[0].outer
    for tile in tiles:
        outer = outer.union(tile.outer)
    data = inputs.assemble(stage, scan, answers, region.grid.crop(outer))
    shape = tiles[0].inner.shape
    weights = importance_map(shape) if stage.blended else np.ones(shape, dtype=np.float32)
    stitcher = Stitcher(1 + len(stage.labels), region.box, weights)
    for tile in tiles:
        window = data[(slice(None), *tile.outer.relative_to(outer.start).slices)]
        stitcher.add(tile, network(np.ascontiguousarray(window[None]))[0])
    answer = stitcher.result()
    if not np.isfinite(answer[0]).all():  # softmax spreads NaN over all classes of a voxel
        raise ModelError(
            f"stage '{stage.name}' answered with numbers that are not finite; export the model again, or try "
            "the other --engine"
        )
    return answer


def _with_background_rim(probabilities: FloatArray, region: Region, labels: tuple[str, ...]) -> Answer:
    """Where the region ends inside the scan, one voxel of certain background is added: an answer's edge goes
    on beyond its grid, and beyond the region the stage said nothing."""
    box = region.box.expand((1, 1, 1)).intersect(region.grid.box)
    if box != region.box:
        wide = np.zeros((len(probabilities), *box.shape), dtype=np.float32)
        wide[0] = 1.0
        wide[(slice(None), *region.box.relative_to(box.start).slices)] = probabilities
        probabilities = wide
    return Answer(probabilities, region.grid.crop(box), labels, region)


def _fused(
    pipeline: Pipeline, answered: Iterable[Stage], answers: Mapping[str, Answer], canvas: Canvas
) -> Canvas:
    """The canvas after every stage that answered; neighbours of one kind enter together."""
    names = {stage.name for stage in answered}
    for kind, stages in itertools.groupby(_entering(pipeline.stages), key=lambda s: s.fusion):
        voices = [Voice.of(canvas, answers[s.name], s.argmax_on) for s in stages if s.name in names]
        if voices:
            fusion.fuse(kind, canvas, voices)
    fusion.keep_parts(canvas, pipeline.largest, partial(largest_component, neighbours=CORNERS))
    fusion.keep_parts(canvas, pipeline.islands, partial(without_islands, below=pipeline.below))
    return canvas


def _entering(stages: tuple[Stage, ...]) -> Iterator[Stage]:
    """Stages whose answer enters the label map. First ones of which no trace is left, as a later stage looks
    at all that they found and replaces it, are left out."""
    shells = [s for s in stages if s.fusion == "replace_in_roi" and s.roi["kind"] == "dilated_foreground"]
    replaced = {s.roi["of"] for s in shells}
    silent = {s.name for s in stages if s.fusion == "none"}
    gone = {s.name for s in stages if s.fusion in ("replace_in_roi", "paste") and s.name in replaced}
    kept = itertools.dropwhile(lambda s: s.name in silent | gone, stages)
    return (stage for stage in kept if stage.name not in silent)
