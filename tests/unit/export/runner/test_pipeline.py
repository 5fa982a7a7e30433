"""What a package holds comes back as it was written; damaged packages are refused."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.export_packages import untrained
from helpers.tiny_dataset import SCHEMA, tiny_recipe
from zoomseg.core.errors import ModelError
from zoomseg.export.package import manifest
from zoomseg.export.runner import pipeline

MODELS = {"coarse": b"first", "fine": b"second"}


def whole() -> dict[str, Any]:
    data = manifest(untrained(tiny_recipe(together=True), SCHEMA, ("CT", "PET")), MODELS)
    out: dict[str, Any] = json.loads(json.dumps(data))
    return out


def write(path: Path, data: object, models: Mapping[str, bytes] = MODELS) -> Path:
    text = json.dumps(data)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(pipeline.MANIFEST, text)
        archive.writestr(pipeline.CHECKSUM, f"{hashlib.sha256(text.encode()).hexdigest()}  pipeline.json\n")
        for stage, model in models.items():
            archive.writestr(f"networks/{stage}.onnx", model)
    return path


def test_every_label_and_channel_by_name(tmp_path: Path) -> None:
    found, models = pipeline.read(write(tmp_path / "a.zip", whole()))
    assert models == MODELS
    assert (found.schema.names, found.schema.values) == (SCHEMA.names, SCHEMA.values)
    coarse, fine = found.stages
    assert (coarse.name, coarse.tile, coarse.channels, coarse.priors) == ("coarse", (12, 12, 12), (0, 1), ())
    assert (fine.labels, fine.priors) == (SCHEMA.names, (("coarse", SCHEMA.names),))
    assert fine.roi == {
        "kind": "dilated_foreground",
        "of": "coarse",
        "radius_vox": 2.0,
        "threshold": None,
    }
    assert (coarse.blended, fine.blended) == (False, True)
    assert fine.network.sha256 == hashlib.sha256(b"second").hexdigest()
    assert (found.on_missing, found.largest) == ("whole_volume", ())


def test_damaged_packages_are_refused(tmp_path: Path) -> None:
    less, newer = whole(), whole() | {"format": 2}
    del less["recipe"]["stages"][1]["roi"]
    (tmp_path / "text.zip").write_text("hello")
    cases = {
        "text.zip": "not a zip file",
        "none.zip": "No such file",
        write(tmp_path / "less.zip", less).name: "'roi'",
        write(tmp_path / "list.zip", [1]).name: "damaged",
        write(tmp_path / "newer.zip", newer).name: "format 2, this runner reads 1",
        write(tmp_path / "lost.zip", whole(), {"coarse": b"first"}).name: "networks/fine.onnx",
        write(tmp_path / "other.zip", whole(), MODELS | {"fine": b"?"}).name: "networks/fine.onnx differs",
    }
    for name, reason in cases.items():
        with pytest.raises(ModelError, match=reason) as error:
            pipeline.read(tmp_path / name)
        assert str(error.value).startswith(f"package {tmp_path / name} is damaged")
        assert "\n" not in str(error.value)


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    """Whatever it says now: its numbers are not checked one by one."""
    path = write(tmp_path / "a.zip", whole())
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for changed in (files[pipeline.MANIFEST].replace(b"-150", b"1e99"), b"[" * 100_000, b"\xff"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (files | {pipeline.MANIFEST: changed}).items():
                archive.writestr(name, content)
        with pytest.raises(ModelError, match=r"damaged \(pipeline.json differs from what was exported\)"):
            pipeline.read(path)


@pytest.mark.parametrize(
    ("local", "central", "value"), [(8, 10, b"\x63\0"), (6, 8, b"\1\0"), (14, 16, b"abcd")]
)
def test_a_zip_that_cannot_be_unpacked_is_refused(
    tmp_path: Path, local: int, central: int, value: bytes
) -> None:
    """A method that zipfile does not know, encryption, a wrong checksum: each fails in its own way."""
    path = write(tmp_path / "a.zip", whole())
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2")
    data[local : local + len(value)] = value
    data[entry + central : entry + central + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"is damaged .*; export it again"):
        pipeline.read(path)
