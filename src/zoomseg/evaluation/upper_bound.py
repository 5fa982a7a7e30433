"""The upper bound of Dice that a recipe permits on a data set, and the losses by cause, without any training.

An oracle replaces every network: it returns the reference on the grid that a stage requests. What a perfect
network would still lose is lost by the recipe itself:

- ``grid``: the reference, resampled to the grid of the predicting stage and back, changes;
- ``region``: voxels lie outside the stage's region. Earlier stages are oracles, too: real ones give worse
  regions, never systematically better ones;
- ``other``: tiles, aggregation, fusion with other stages' predictions, the largest component. Below zero if
  an earlier stage's prediction fills voxels outside the last one's region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import numpy.typing as npt

from zoomseg.atlas.library import atlas_grid
from zoomseg.backends.device import Device
from zoomseg.core.arrays import Array, array_like, to_numpy
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.errors import DatasetError
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Mask, Region, bounding_box, class_counts, overlap_counts
from zoomseg.core.tiling import Tile
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.layouts import Dataset
from zoomseg.io import markdown
from zoomseg.io.files import writable_directory, write_text_atomic
from zoomseg.io.tables import csv_text
from zoomseg.pipeline import fusion
from zoomseg.pipeline.cascade import AtlasPriorOf, Cascade, Prediction
from zoomseg.pipeline.grid import label_blocks, stage_grid
from zoomseg.pipeline.inputs import input_channels
from zoomseg.pipeline.reference import one_hot_labels
from zoomseg.pipeline.sliding_window import StageNetwork, StageNetworkOf
from zoomseg.pipeline.stage_input import PreparedScan, StageView, orientation_of
from zoomseg.recipe import graph
from zoomseg.recipe.network_shapes import check_tile
from zoomseg.recipe.spec import ATLAS, AtlasSpec, FixedShape, Recipe, RoiSpec, Stage

Classes = npt.NDArray[np.uint8]
Place = Literal["", "candidate region", "box"]


@dataclass(frozen=True)
class UpperBound:
    """One organ of one case. ``dice + grid + region + other`` is 1."""

    case: str
    organ: str
    stage: str
    """The stage that predicts the organ last."""
    place: Place
    """Kind of that stage's region; empty if it is the whole scan."""
    dice: float
    """Highest possible."""
    grid: float
    """Dice lost by sampling alone."""
    region: float
    """Further Dice lost by voxels outside the region."""
    other: float
    """Further Dice lost by tiles, aggregation, fusion, largest component."""
    outside: float
    """Share of the reference's voxels outside the region."""


def oracle(reference: LabelMap) -> StageNetworkOf:
    """Networks that predict the reference (canonical orientation) with certainty, as trained for the tile;
    beyond the scan its edge is repeated, like the image's."""

    def network_of(view: StageView) -> StageNetwork:
        labels = graph.resolve_labels(view.stage, reference.schema)

        def compute(x_BCIJK: Array, tiles: tuple[Tile, ...]) -> Array:
            grids, blocks = [view.grid.crop(tile.inner) for tile in tiles], label_blocks(view.stage.grid)
            certain = [one_hot_labels(reference, labels, grid, blocks) for grid in grids]
            return array_like(np.stack(certain), x_BCIJK)

        return compute

    return network_of


def atlas_oracle(spec: AtlasSpec) -> AtlasPriorOf:
    """The reference as the atlas prior, on the atlas's grid."""

    def atlas_of(scan: PreparedScan) -> StagePrediction:
        assert scan.labels is not None
        grid = atlas_grid(scan.grid, spec)
        names = scan.labels.schema.names
        return StagePrediction(
            one_hot_labels(scan.labels, names, grid, (1, 1, 1)), grid, names, Region.whole(grid), ATLAS
        )

    return atlas_of


def last_stage_by_organ(recipe: Recipe, schema: LabelSchema) -> dict[str, Stage]:
    """By organ, the stage that predicts it last, also of stages that vote together; organs that no stage
    predicts are omitted."""
    last = graph.deciding_stages(recipe, schema)
    return {organ: graph.stage_of(recipe, last[organ][-1]) for organ in schema.names if organ in last}


def place_of(roi: RoiSpec) -> Place:
    """The name of a kind of region."""
    match roi.kind:
        case "whole_volume":
            return ""
        case "body_mask" | "dilated_foreground":
            return "candidate region"
        case "box" | "probability_times_atlas":
            return "box"


def check(recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
    """The data set's organs that no stage predicts.

    Raises:
        RecipeError: a stage needs an image channel that the scans do not have, or its network does not accept
            its tiles.
    """
    for stage in recipe.stages:
        check_tile(stage)
        input_channels(stage, recipe, dataset.schema, len(dataset.channel_names))
    predicted = last_stage_by_organ(recipe, dataset.schema)
    return tuple(organ for organ in dataset.schema.names if organ not in predicted)


def best(case: Case, recipe: Recipe, device: Device) -> Prediction:
    """The prediction of an expanded recipe for a labelled case if all its networks, and the atlas, are
    correct.

    Raises:
        DatasetError: the case has no labels.
    """
    if case.labels is None:
        raise DatasetError(f"case {case.id} has no labels, so there is no upper bound")
    reference = case.labels.reoriented(Orientation.to_canonical(case.image.grid))
    atlas_of = None if recipe.atlas is None else atlas_oracle(recipe.atlas)
    return Cascade(recipe, reference.schema, oracle(reference), device, atlas_of).run(case)


def measure(case: Case, recipe: Recipe, device: Device) -> tuple[UpperBound, ...]:
    """The upper bound of an expanded recipe for a labelled case. Organs missing in the case's reference, or
    not annotated in it, are omitted.

    Raises:
        DatasetError: the case has no labels.
    """
    result = best(case, recipe, device)
    assert case.labels is not None
    turn = orientation_of(recipe, case.image.grid)
    reference, schema = case.labels.reoriented(turn), case.labels.schema
    reached = dice(result.labels.reoriented(turn).data, reference)
    last = last_stage_by_organ(recipe, schema)
    shown = [o for o in last if o in reached and (case.annotated is None or o in case.annotated)]
    stages = {last[organ].name: last[organ] for organ in shown}
    parts = {name: _part(stage, result.stages.get(name), reference) for name, stage in stages.items()}
    rows: list[UpperBound] = []
    for organ in shown:
        stage, part = last[organ], parts[last[organ].name]
        on_grid, in_region = part.on_grid[organ], part.in_region[organ]
        rows.append(
            UpperBound(
                case.id,
                organ,
                stage.name,
                place_of(stage.roi),
                reached[organ],
                1 - on_grid,
                on_grid - in_region,
                in_region - reached[organ],
                part.outside[organ],
            )
        )
    return tuple(rows)


@dataclass(frozen=True)
class _Part:
    """One stage's losses, by organ of the reference."""

    on_grid: Mapping[str, float]
    """Dice that its grid permits."""
    in_region: Mapping[str, float]
    """Dice that its grid permits inside its region."""
    outside: Mapping[str, float]


def _part(stage: Stage, prediction: StagePrediction | None, reference: LabelMap) -> _Part:
    sampled = through_grid(reference, stage, prediction)
    inside = _inside(reference.grid, stage, prediction)
    total, kept = (_voxels(x, reference.schema) for x in (reference.data, reference.data * inside))
    return _Part(
        dice(sampled, reference),
        dice(sampled * inside, reference),
        {organ: 1 - kept[organ] / count for organ, count in total.items() if count},
    )


def _voxels(classes: Classes, schema: LabelSchema) -> dict[str, int]:
    counts = class_counts(classes)[1 : schema.classes].tolist()
    return dict(zip(schema.names, counts, strict=True))


def dice(found: Classes, reference: LabelMap) -> dict[str, float]:
    """Dice of class indices ``[I, J, K]`` for every organ of the reference."""
    counts = overlap_counts(found, reference.data, reference.schema.classes).T.tolist()
    named = zip(reference.schema.names, counts, strict=True)
    return {name: 2 * both / (ours + theirs) for name, (ours, theirs, both) in named if theirs}


def through_grid(reference: LabelMap, stage: Stage, prediction: StagePrediction | None) -> Classes:
    """Class indices of the stage's labels, from the scan to the stage's grid and back, ignoring the region. A
    grid of a fixed shape is extended beyond its region with the same voxels."""
    scan = reference.grid
    fused = fusion.FusedLabelMap.blank(scan, reference.schema, to_numpy(reference.data))
    labels = graph.resolve_labels(stage, reference.schema)
    wanted = [reference.schema.class_of(name) for name in labels]
    organs = bounding_box(np.isin(reference.data, wanted))
    if organs is None:
        return to_numpy(fused.labels)
    grid = stage_grid(stage.grid, scan) if prediction is None else prediction.region.grid
    # A ring of background around the organs: a prediction's edge is repeated beyond its grid.
    box = grid.box_of(scan, organs).expand((2, 2, 2)).intersect(_reach(grid, stage, scan))
    near = grid.crop(box)
    hot = one_hot_labels(reference, labels, near, label_blocks(stage.grid))
    certain = StagePrediction(hot, near, labels, Region.whole(near), stage.name)
    fusion.write_stage_labels(stage, certain, fused)
    return to_numpy(fused.labels)


def _reach(grid: Grid, stage: Stage, scan: Grid) -> Box:
    """The scan in a stage grid's voxels; grids without a fixed shape already span it."""
    if isinstance(stage.grid, FixedShape):
        return grid.box_of(scan, scan.box).union(grid.box)
    return grid.box


def _inside(scan: Grid, stage: Stage, prediction: StagePrediction | None) -> Mask:
    """Bool ``[I, J, K]``: the scan's voxels in the stage's region."""
    if prediction is None:  # its region was empty
        return np.zeros(scan.shape, dtype=np.bool_)
    return prediction.region.on(scan).mask_in(scan.box)


# --- tables ---------------------------------------------------------------------------------------


def table(rows: Sequence[UpperBound]) -> list[list[str]]:
    """Heading, a line per organ (means over cases) and the mean of the organs. Each kind of region that
    occurs has its column; an organ's Dice and losses sum to one."""
    groups = {organ: [r for r in rows if r.organ == organ] for organ in dict.fromkeys(r.organ for r in rows)}
    places = [place for place in ("candidate region", "box") if any(r.place == place for r in rows)]
    losses = ("grid", *places, "other")
    heading = ["organ", "cases", "best Dice", *(f"lost: {loss}" for loss in losses)]
    lines = [[organ, str(len(group)), *_figures(group, places)] for organ, group in groups.items()]
    mean = _figures([_mean(group) for group in groups.values()], places)
    return [[*heading, "outside"], *lines, ["mean of organs", "", *mean]]


def _figures(rows: Sequence[UpperBound], places: Sequence[str]) -> list[str]:
    mean = _mean(rows)
    regions: list[float | None] = []
    for place in places:
        there = [row.region if row.place == place else 0.0 for row in rows]
        regions.append(fmean(there) if any(row.place == place for row in rows) else None)
    figures = (mean.dice, mean.grid, *regions, mean.other)
    # Adding 0.0 makes a negative zero a zero.
    return [*("-" if f is None else f"{round(f, 3) + 0.0:.3f}" for f in figures), f"{mean.outside:.2%}"]


def _mean(rows: Sequence[UpperBound]) -> UpperBound:
    return replace(
        rows[0],
        dice=fmean(row.dice for row in rows),
        grid=fmean(row.grid for row in rows),
        region=fmean(row.region for row in rows),
        other=fmean(row.other for row in rows),
        outside=fmean(row.outside for row in rows),
    )


def write(rows: Sequence[UpperBound], out: Path, title: str) -> None:
    """``ceiling.csv``, a line per case and organ, and ``ceiling.md``, the table of means under ``title``.

    Raises:
        OutputError: ``out`` cannot be written.
    """
    writable_directory(out)
    lines = ([round(v, 5) if isinstance(v, float) else v for v in asdict(row).values()] for row in rows)
    write_text_atomic(out / "ceiling.csv", csv_text([field.name for field in fields(UpperBound)], lines))
    heading, *body = table(rows)
    write_text_atomic(out / "ceiling.md", f"# {markdown.plain(title)}\n\n{markdown.table(heading, body)}")
