"""Manifests are read whole or refused in one line, and content is named after itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from zoomseg.core.errors import ModelError
from zoomseg.io.manifests import first_problem, read_manifest, write_content


class Listing(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    files: dict[str, int]


def read(file: Path) -> Listing:
    return read_manifest(file, Listing, 2, "box b has", lambda reason: ModelError(f"box b: {reason}"))


def test_a_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "box.json").write_text('{"format": 2, "files": {"a": 1}}')
    assert read(tmp_path / "box.json") == Listing(format=2, files={"a": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"box b: box\.json: Expecting property name"),
        ("[]", r"box b: box\.json: top level: Input should be a valid dict"),
        (json.dumps({"format": 2, "files": {"a": "1"}}), r"box b: box\.json: files\.a: Input should be"),
        (json.dumps({"format": 3, "more": []}), r"box b has format 3, this ZoomSeg reads up to 2; update"),
        (json.dumps({"format": 10**250}), r"box b has format 10{60,70}\.\.\.0+, this ZoomSeg"),
    ],
)
def test_what_is_none_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "box.json").write_text(content)
    with pytest.raises(ModelError, match=message) as refusal:
        read(tmp_path / "box.json")
    assert len(str(refusal.value)) < 250
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_opened_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "box.json").mkdir()
    with pytest.raises(ModelError, match=r"^box b: box\.json: Is a directory$"):
        read(tmp_path / "box.json")


def test_content_is_named_after_itself(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"abc").hexdigest()
    name = f"weights/fine-{digest[:12]}.bin"
    assert write_content(tmp_path, "weights/fine", ".bin", b"abc") == (name, digest)
    assert (tmp_path / name).read_bytes() == b"abc"


def test_the_first_of_several_problems_is_told() -> None:
    with pytest.raises(ValidationError) as refusal:
        Listing.model_validate({"format": "1", "files": 3})
    assert first_problem(refusal.value) == "format: Input should be a valid integer"
