"""Reviews of a result are stored, and returned as JSON and as a table."""

from __future__ import annotations

import csv
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from zoomseg.core.errors import DatasetError
from zoomseg.serve import review
from zoomseg.serve.organs import Organ
from zoomseg.serve.review import OrganReview, Verdict, keep, organ_reviews, review_csv, review_of

LIVER = Organ(name="liver", value=6, colour=(1, 2, 3), volume_ml=1500.25, confidence=0.9)
SPLEEN = Organ(name="spleen", value=1, colour=(1, 2, 3))


def test_what_is_said_last_of_an_organ_counts(tmp_path: Path) -> None:
    file = tmp_path / "review.json"
    assert organ_reviews(file) == {}
    before = time.time()
    keep(file, 6, OrganReview(verdict=Verdict.REJECTED, comment="cut"))
    keep(file, 1, OrganReview(comment="large"))
    keep(file, 6, OrganReview(verdict=Verdict.ACCEPTED))
    said = organ_reviews(file)
    assert {value: (o.verdict, o.comment) for value, o in said.items()} == {
        6: ("accepted", ""),
        1: (None, "large"),
    }
    assert all(before <= o.changed <= time.time() for o in said.values())


def test_two_people_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "review.json"
    threads = [
        threading.Thread(target=keep, args=(file, value, OrganReview(comment=str(value))))
        for value in range(1, 17)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {value: o.comment for value, o in organ_reviews(file).items()} == {n: str(n) for n in range(1, 17)}


def test_a_comment_is_one_line_of_text(tmp_path: Path) -> None:
    assert OrganReview(comment=" a\n\u202eb\x00 ").comment == "a  b"
    with pytest.raises(ValidationError):
        OrganReview(comment="x" * (review.MAX_COMMENT + 1))
    with pytest.raises(ValidationError):
        OrganReview.model_validate({"verdict": "perhaps"})
    with pytest.raises(ValidationError):
        OrganReview.model_validate({"verdict": None, "changed": 3})


@pytest.mark.parametrize("content", ["", "[]", '{"organs": {"6": {"verdict": "accepted"}}}', "[" * 10_000])
def test_a_damaged_file_is_told_and_not_written_over(tmp_path: Path, content: str) -> None:
    file = tmp_path / "review.json"
    file.write_text(content)
    with pytest.raises(DatasetError, match="damaged"):
        keep(file, 6, OrganReview())
    assert file.read_text() == content


def test_every_organ_has_a_row(tmp_path: Path) -> None:
    file = tmp_path / "review.json"
    keep(file, 6, OrganReview(verdict=Verdict.REJECTED, comment="=HYPERLINK(1)"))
    found = review_of("a", "abdomen", [LIVER, SPLEEN], organ_reviews(file))
    rows = list(csv.DictReader(review_csv(found).splitlines()))
    changed = rows[0].pop("changed")
    assert float(changed) == pytest.approx(time.time(), abs=60)
    assert rows[0] == {
        "case": "a",
        "model": "abdomen",
        "organ": "liver",
        "value": "6",
        "volume_ml": "1500.25",
        "confidence": "0.9",
        "verdict": "rejected",
        "comment": "'=HYPERLINK(1)",
    }
    assert (rows[1]["organ"], rows[1]["verdict"], rows[1]["comment"], rows[1]["changed"]) == (
        "spleen",
        "",
        "",
        "",
    )
