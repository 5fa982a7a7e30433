"""``study.json``: the settings of a study, which all of its trainings share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from zoomseg.core.errors import TrainingError
from zoomseg.io.files import read_file, reason_of, write_json_atomic
from zoomseg.io.manifests import first_problem


def _as_words(field: str) -> str:
    return field.replace("_", " ")


class StudyRecord(BaseModel):
    """The settings, in the file and in messages under the names of the fields in words. Of files that were
    given, it has their content, as trainings that are still to come read them again; None is the default."""

    model_config = ConfigDict(
        frozen=True, strict=True, allow_inf_nan=False, alias_generator=_as_words, populate_by_name=True
    )

    ablation: str
    data_set: str
    cases: tuple[str, ...]
    time_budget_in_seconds: float | None
    folds: int
    seed: int
    coarser: float
    narrower: float
    init: str | None
    """Digest of the model."""
    recipe: dict[str, Any] | None = None
    small_organs: tuple[str, ...] | None = None
    atlases: int | None = None
    splits: tuple[tuple[tuple[str, ...], ...], ...] | None = None
    """Training, held-out and test cases of each."""
    test_set: tuple[str, ...] | None = None
    """Its name, then its cases."""
    unlabelled_scans: tuple[str, ...] | None = None

    def require_same(self, file: Path) -> None:
        """Refuse a study other than the one whose record is in ``file``.

        Raises:
            TrainingError: names the first setting that differs; or the record is damaged.
        """
        before = _read(file)
        for field in type(self).model_fields:
            old, new = getattr(before, field), getattr(self, field)
            if old != new:
                was, now = _short(old), _short(new)
                other = "which has changed since then" if was == now else f"this one has {now}"
                raise TrainingError(
                    f"{file.parent} holds a study with {_as_words(field)} {was}, {other}; "
                    "give the same options to continue it, or choose another folder"
                )

    def write(self, file: Path) -> None:
        """
        Raises:
            OutputError: it cannot be written.
        """
        write_json_atomic(file, self.model_dump(mode="json", by_alias=True))


def _read(file: Path) -> StudyRecord:
    try:
        return StudyRecord.model_validate_json(read_file(file))
    except (ValidationError, OSError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else reason_of(error)
        raise TrainingError(f"{file} is damaged ({reason}); choose another folder") from error


def _short(value: object) -> str:
    """A setting for a message; of a recipe, its name."""
    text = json.dumps(value.get("name") if isinstance(value, dict) else value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
