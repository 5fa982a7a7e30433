"""The review of a result: every organ accepted or rejected, with a comment. Stored with the job, in
``review.json``, which is replaced at every change."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from zoomseg.core.errors import DatasetError
from zoomseg.io.files import parse_json, read_file, write_json_atomic
from zoomseg.io.tables import csv_text
from zoomseg.serve.organs import Organ

MAX_COMMENT = 1000
"""Maximum number of characters."""


class Verdict(StrEnum):
    """The verdict on an organ."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


class OrganReview(BaseModel):
    """A review of one organ; ``verdict``: None if undecided."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    verdict: Verdict | None = None
    comment: Annotated[str, Field(max_length=MAX_COMMENT)] = ""

    @field_validator("comment")
    @classmethod
    def _one_line(cls, comment: str) -> str:
        return "".join(c if c.isprintable() else " " for c in comment).strip()


class StoredOrganReview(OrganReview):
    """A review of one organ, and its time: seconds since 1970."""

    changed: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]


class ReviewRow(BaseModel):
    """An organ and its review; None: not reviewed."""

    organ: str
    value: int
    volume_ml: float | None
    confidence: float | None
    verdict: Verdict | None
    comment: str
    changed: float | None


class Review(BaseModel):
    """The review of a job's result."""

    scan: str
    model: str
    organs: list[ReviewRow]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    organs: dict[int, StoredOrganReview] = {}
    """By value in the label map."""


_guard = threading.Lock()
"""Two users may review one result at the same time."""


def organ_reviews(file: Path) -> dict[int, StoredOrganReview]:
    """The reviews, by an organ's value; empty if there is no file.

    Raises:
        DatasetError: it is damaged.
    """
    try:
        return _File.model_validate(parse_json(read_file(file))).organs
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, ValidationError) as error:
        raise DatasetError(f"{file}: damaged") from error


def keep(file: Path, value: int, organ_review: OrganReview) -> None:
    """Store the review of the organ with this value; replaces an earlier one.

    Raises:
        DatasetError: the file is damaged.
        OutputError: the disk refuses it.
    """
    with _guard:
        kept = organ_reviews(file)
        kept[value] = StoredOrganReview(
            verdict=organ_review.verdict, comment=organ_review.comment, changed=time.time()
        )
        write_json_atomic(file, _File(organs=kept).model_dump(mode="json"))


def review_of(scan: str, model: str, organs: Sequence[Organ], kept: dict[int, StoredOrganReview]) -> Review:
    """Every organ of a result with its review."""
    rows = [_row(organ, kept.get(organ.value)) for organ in organs]
    return Review(scan=scan, model=model, organs=rows)


def _row(organ: Organ, organ_review: StoredOrganReview | None) -> ReviewRow:
    return ReviewRow(
        organ=organ.name,
        value=organ.value,
        volume_ml=organ.volume_ml,
        confidence=organ.confidence,
        verdict=organ_review.verdict if organ_review else None,
        comment=organ_review.comment if organ_review else "",
        changed=organ_review.changed if organ_review else None,
    )


def review_csv(review: Review) -> str:
    """As a table: a row for every organ."""
    return csv_text(
        ["case", "model", *ReviewRow.model_fields],
        [[review.scan, review.model, *row.model_dump(mode="json").values()] for row in review.organs],
    )
