"""Predictions of every stage of a cascade, stored beside a scan's label map so that errors can be traced.

```
OUT/stages/<case>-<stage>.nii.gz          the label map of the stage's prediction alone
OUT/stages/<case>-<stage>-region.nii.gz   1 inside the stage's region; no file if that is everything
OUT/stages/<case>.json                    the stages, and which of them predict which organ; written last
```

Both maps are on the scan's own grid. Incomplete outputs cannot be mistaken for complete ones, as they have no
JSON file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from zoomseg.core.arrays import AnyNumpy, to_numpy
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Grid, Orientation, Vector3
from zoomseg.core.labels import MAX_VALUE, LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io.files import read_file, writable_directory, write_json_atomic, writing
from zoomseg.io.manifests import first_problem
from zoomseg.io.scans import ScanInput, write_array, write_labels
from zoomseg.pipeline import fusion, stage_input
from zoomseg.pipeline.cascade import Prediction
from zoomseg.recipe import graph
from zoomseg.recipe.quantities import Name, Spacing
from zoomseg.recipe.spec import Recipe, Stage, WholeVolume

FOLDER = "stages"

MAX_JSON_BYTES = 4 * 1024**2
"""A larger file was not written by ZoomSeg."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StageOutput(_Record):
    """One stage. The pattern of its name keeps its files inside the folder."""

    name: Name
    labels: dict[str, Annotated[int, Field(ge=1, le=MAX_VALUE)]]
    """What the stage predicts, and the values in its label map."""
    everywhere: bool
    """Whether its region is the whole scan, so that there is no file of its region."""
    placed_by: str | None
    """The stage whose prediction determined the region."""
    spacing_mm: Spacing | None
    """Voxels of the stage's grid along R, A and S; None if it had no region."""


class CaseStageOutputs(_Record):
    """``<case>.json``: stages in their order, and by organ those whose prediction can reach the label map."""

    format: Literal[1] = 1
    stages: tuple[StageOutput, ...]
    deciding: dict[str, tuple[str, ...]] = Field(
        validation_alias=AliasChoices("deciding", "answering")  # its name in earlier versions
    )

    @model_validator(mode="after")
    def _names_are_stages(self) -> CaseStageOutputs:
        names = [stage.name for stage in self.stages]
        named = set(itertools.chain.from_iterable(self.deciding.values()))
        named |= {stage.placed_by for stage in self.stages if stage.placed_by is not None}
        if len(set(names)) != len(names) or not named <= set(names):
            raise ValueError(f"stages must be distinct and named among {names}, got {sorted(named)}")
        return self

    def stage(self, name: str) -> StageOutput:
        return next(stage for stage in self.stages if stage.name == name)


# --- where ----------------------------------------------------------------------------------------


def labels_path(folder: Path, case: str, stage: str) -> Path:
    return folder / f"{case}-{stage}.nii.gz"


def region_path(folder: Path, case: str, stage: str) -> Path:
    return folder / f"{case}-{stage}-region.nii.gz"


def json_path(folder: Path, case: str) -> Path:
    return folder / f"{case}.json"


def paths(out: Path, case: str, recipe: Recipe) -> Iterator[Path]:
    """Every file that ``write`` creates for a case."""
    folder = out / FOLDER
    for stage in recipe.stages:
        yield labels_path(folder, case, stage.name)
        if not isinstance(stage.roi, WholeVolume):
            yield region_path(folder, case, stage.name)
    yield json_path(folder, case)


# --- writing --------------------------------------------------------------------------------------


def forget(out: Path, case: str) -> None:
    """Remove outputs of an earlier run, which do not belong to the label map that is written now.

    Raises:
        OutputError: no permission.
    """
    path = json_path(out / FOLDER, case)
    with writing(path):
        path.unlink(missing_ok=True)


def write(out: Path, scan: ScanInput, grid: Grid, recipe: Recipe, result: Prediction) -> None:
    """Write the predictions of the stages of an expanded recipe in ``result``; ``grid`` is the scan's. One
    stage after the other is resampled to it, so that at most two maps are held.

    Raises:
        OutputError: no permission, full disk.
    """
    folder = writable_directory(out / FOLDER)
    orientation = stage_input.orientation_of(recipe, grid)
    turned, back = orientation.grid(grid), orientation.inverse
    for stage in recipe.stages:
        prediction = result.stages.get(stage.name)
        labels = label_map(stage, prediction, turned, result.schema).reoriented(back)
        write_labels(labels_path(folder, scan.id, stage.name), labels, like=scan.paths[0])
        if not isinstance(stage.roi, WholeVolume):
            region = Volume(region_of(prediction, turned)[None], turned).reoriented(back)
            path = region_path(folder, scan.id, stage.name)
            write_array(path, region.data[0], region.grid, scan.paths[0])
    kept = describe(recipe, result.schema, result.stages)
    write_json_atomic(json_path(folder, scan.id), kept.model_dump(mode="json"))


def label_map(stage: Stage, prediction: StagePrediction | None, grid: Grid, schema: LabelSchema) -> LabelMap:
    """The label map of one stage alone on the scan's ``grid``, in the recipe's orientation: what it decides
    inside its region, regardless of its ``fusion``. None: it had no region."""
    like = np.empty(0) if prediction is None else prediction.probabilities
    fused = fusion.FusedLabelMap.blank(grid, schema, like)
    if prediction is not None:
        fusion.write_stage_labels(stage, prediction, fused)
    return LabelMap(to_numpy(fused.labels), grid, schema)


def region_of(prediction: StagePrediction | None, grid: Grid) -> AnyNumpy:
    """``[I, J, K]`` uint8: 1 where the stage's prediction covers voxels of the scan's ``grid``."""
    out = np.zeros(grid.shape[::-1], dtype=np.uint8).transpose()
    if prediction is None:
        return out
    for block in fusion.blocks(prediction.region.box_on(grid)):
        part = grid.crop(block)
        out[block.slices] = prediction.region.on(part).mask_in(part.box)
    return out


def describe(
    recipe: Recipe, schema: LabelSchema, predictions: Mapping[str, StagePrediction]
) -> CaseStageOutputs:
    values = schema.value_of
    stages = tuple(
        StageOutput(
            name=stage.name,
            labels={name: values[name] for name in graph.resolve_labels(stage, schema)},
            everywhere=isinstance(stage.roi, WholeVolume),
            placed_by=graph.region_source(stage),
            spacing_mm=_spacing_mm(predictions[stage.name].grid) if stage.name in predictions else None,
        )
        for stage in recipe.stages
    )
    return CaseStageOutputs(stages=stages, deciding=graph.deciding_stages(recipe, schema))


def _spacing_mm(grid: Grid) -> Vector3:
    """Along R, A and S: of a recipe that reads scans as stored, axes have any order."""
    return Orientation.to_canonical(grid).grid(grid).spacing_mm


# --- reading --------------------------------------------------------------------------------------


def read(folder: Path, case: str) -> CaseStageOutputs:
    """The outputs of a case in a ``stages`` folder.

    Raises:
        ScanError: the JSON file is missing, damaged, or not written by ``write``.
    """
    path = json_path(folder, case)
    try:
        return CaseStageOutputs.model_validate_json(read_file(path, MAX_JSON_BYTES))
    except ValidationError as error:
        raise ScanError(f"{path}: {first_problem(error)}; predict again with --keep-stages") from error
    except OSError as error:
        raise ScanError(f"{path}: cannot be read ({error.strerror}); predict again") from error
