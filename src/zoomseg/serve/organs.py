"""The organs of a label map as listed on the page: names, colours, and their rows of the summary."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from zoomseg.anatomy.colours import RGB, organ_colour
from zoomseg.core.errors import DatasetError, ScanError
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import labelling_beside, read_json, read_labelling, read_labels_by_case
from zoomseg.io.files import RUN_JSON, SUMMARY
from zoomseg.io.scans import read_label_values
from zoomseg.io.tables import csv_text, read_rows


class Organ(BaseModel):
    """One organ: its value in the label map and its properties (None: not known)."""

    name: str
    value: int
    colour: RGB
    volume_ml: float | None = None
    mean_intensity: float | None = None
    confidence: float | None = None
    flags: list[str] = []


def organs_of_result(out: Path, case: str) -> list[Organ]:
    """The organs of a case in a folder that `zoomseg predict` wrote, from its ``run.json`` and
    ``summary.csv``.

    Raises:
        DatasetError: they are not there, or damaged.
    """
    return _organs(schema_of_result(out), _summary(out / SUMMARY, case))


def schema_of_result(out: Path) -> LabelSchema:
    """Names and values of the labels in a folder that `zoomseg predict` wrote.

    Raises:
        DatasetError: its ``run.json`` is not there, damaged, or names none.
    """
    found = read_labelling(out / RUN_JSON)
    if found is None:
        raise DatasetError(f"{out / RUN_JSON} names no labels")
    return found[0]


def organs_of_corrected(labels: Path, schema: LabelSchema) -> list[Organ]:
    """The organs of a corrected label map, with their volumes and without confidence.

    Raises:
        DatasetError: there is none, or it cannot be read.
    """
    try:
        values, grid = read_label_values(labels)
    except ScanError as error:
        raise DatasetError(str(error)) from error
    found, voxels = np.unique(values, return_counts=True)
    counts = dict(zip(found.tolist(), voxels.tolist(), strict=True))
    return [
        organ.model_copy(update={"volume_ml": counts.get(organ.value, 0) * grid.voxel_volume_ml})
        for organ in _organs(schema, {})
    ]


def notes_of_result(out: Path, case: str) -> list[str]:
    """What the user should know about a case in a folder that `zoomseg predict` wrote: the notes of the
    folder and of the case."""
    run = read_json(out / RUN_JSON)
    cases = run.get("cases")
    own = cases.get(case) if isinstance(cases, dict) else None
    found = [run.get("notes"), own.get("notes") if isinstance(own, dict) else None]
    return [note for notes in found if isinstance(notes, list) for note in notes if isinstance(note, str)]


def summary_of_result(out: Path, case: str, name: str) -> str:
    """``summary.csv`` of a case in a folder that `zoomseg predict` wrote, as text, the case called ``name``.

    Raises:
        DatasetError: it is not there, or damaged.
    """
    rows = list(_summary(out / SUMMARY, case).values())
    if not rows:
        raise DatasetError(f"{out / SUMMARY}: no row of this case")
    return csv_text(list(rows[0]), [{**row, "case": name}.values() for row in rows])


def organs_of_file(labels: Path, case: str) -> list[Organ]:
    """The organs present in a label map, with their volumes, named by files beside it if there are any (see
    ``labelling_beside``).

    Raises:
        ScanError: it cannot be read, or contains no organ.
        DatasetError: a file beside it that should name its labels is damaged.
    """
    values, grid = read_label_values(labels)
    found, voxels = np.unique(values, return_counts=True)
    counts = {int(v): int(n) for v, n in zip(found, voxels, strict=True) if v != 0}
    if not counts:
        raise ScanError(f"{labels}: holds no label; every voxel is 0")
    if min(counts) < 0:
        raise ScanError(f"{labels}: holds the value {min(counts)}; label maps hold whole numbers from 0 up")
    summary = labels.parent / SUMMARY
    rows = _summary(summary, case) if summary.is_file() else {}
    known = {organ.value: organ for organ in _named(labels, case, rows)}
    return [
        (known.get(value) or _unnamed(value)).model_copy(update={"volume_ml": n * grid.voxel_volume_ml})
        for value, n in counts.items()
    ]


def _unnamed(value: int) -> Organ:
    name = f"label {value}"
    return Organ(name=name, value=value, colour=organ_colour(name))


def _named(labels: Path, case: str, rows: Mapping[str, Mapping[str, str]]) -> list[Organ]:
    folder = labels.resolve().parent
    run = folder / RUN_JSON
    other = read_labels_by_case(run).get(case) if run.is_file() else None
    if other is not None:
        return _organs(other, rows)
    found = labelling_beside(folder)
    return [] if found is None else _organs(found[0], rows)


def _organs(schema: LabelSchema, rows: Mapping[str, Mapping[str, str]]) -> list[Organ]:
    organs = []
    for name, value in zip(schema.names, schema.values, strict=True):
        row = rows.get(name, {})
        numbers = {key: _number(row.get(key)) for key in ("volume_ml", "mean_intensity", "confidence")}
        flags = list(dict.fromkeys(flag for flag in (row.get("flags") or "").split(";") if flag))
        organs.append(Organ(name=name, value=value, colour=organ_colour(name), flags=flags, **numbers))
    return organs


def _summary(path: Path, case: str) -> dict[str, dict[str, str]]:
    """Rows of a case by organ."""
    try:
        return {row["organ"]: row for row in read_rows(path) if row["case"] == case}
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except (KeyError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path}: not a summary that `zoomseg predict` wrote") from error


def _number(text: str | None) -> float | None:
    """A number; None if the text is empty or not a number."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
