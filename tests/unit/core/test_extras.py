"""Missing packages are named, with the command that installs them."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

from zoomseg.core import extras
from zoomseg.core.extras import (
    EXTRAS,
    MissingPackageError,
    explained,
    how_to_install,
    how_to_reinstall,
    installed,
    require,
)

OTHER_NAMES = {
    "ants": "antspyx",
    "dicomweb_client": "dicomweb-client",
    "gdcm": "python-gdcm",
    "prometheus_client": "prometheus-client",
    "tensorboardX": "tensorboardx",
}
"""Packages whose names differ from those of their modules."""


def test_the_extras_are_those_of_the_package() -> None:
    found: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("zoomseg") or ():
        match = re.fullmatch(r"([\w-]+)\S*; extra == '([\w-]+)'", line)
        if match:
            found.setdefault(match[2], set()).add(match[1].lower())
    expected = {extra: {OTHER_NAMES.get(m, m) for m in modules} for extra, modules in EXTRAS.items()}
    assert found == expected


def test_what_is_there_is_not_refused() -> None:
    assert installed("numpy")
    require("numpy", "everything")


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: False)
    with pytest.raises(MissingPackageError) as refused:
        require("torch", "training")
    todo = "pip install '.[train]' in a clone of ZoomSeg"
    assert str(refused.value) == f"training needs torch, which is not installed: {todo}"


def test_an_environment_of_uv_keeps_the_extras_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uv-receipt.toml").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    there = {*EXTRAS["pacs"], *EXTRAS["train"]} - {"torch"}
    monkeypatch.setattr(extras, "installed", there.__contains__)
    assert how_to_install("torch") == "uv tool install '.[train,dicom-extra,pacs]' in a clone of ZoomSeg"
    assert how_to_reinstall() == "uv tool install --reinstall . in a clone of ZoomSeg"


def test_another_environment_installs_with_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert how_to_install("distributed") == "pip install '.[cluster]' in a clone of ZoomSeg"
    assert how_to_reinstall() == "pip install --force-reinstall . in a clone of ZoomSeg"


def test_a_failed_import_is_explained_where_an_extra_brings_the_module() -> None:
    found = explained(ModuleNotFoundError(name="torch.nn"), "zoomseg train")
    assert str(found) == f"zoomseg train needs torch, which is not installed: {how_to_install('torch')}"
    assert explained(ModuleNotFoundError(name="nowhere"), "zoomseg train") is None
    assert explained(ModuleNotFoundError("without a name"), "zoomseg train") is None
