"""The container's files are consistent, and the packages that it installs are small enough. No builder is
needed: their size is measured in the environment of the tests."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from zoomseg.node.run import found_models
from zoomseg.node.settings import DimseDestination, read_settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = (ROOT / "Dockerfile", ROOT / "deploy" / "orthanc" / "Dockerfile")
LIMIT_MB = 700
BASE_MB = 150
"""Size of its base image, unpacked (about 120 when this was written)."""


def instructions(path: Path) -> list[tuple[str, str]]:
    text = path.read_text().replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and line[0] != "#"]


def required(names: Iterable[str]) -> set[str]:
    """Distributions required by these, including their own requirements."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        one = waiting.pop()
        if one.name in found and not one.extras:
            continue
        found.add(one.name)
        for text in importlib.metadata.requires(one.name) or ():
            needed = Requirement(text)
            extras = one.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found


def installed_mb(name: str) -> float:
    files = importlib.metadata.distribution(name).files or ()
    places = (Path(str(file.locate())) for file in files if "__pycache__" not in str(file))
    return sum(place.stat().st_size for place in places if place.is_file()) / 1e6


def test_the_image_is_small_and_without_torch() -> None:
    names = required(["zoomseg[pacs]"])
    assert {"pynetdicom", "openvino", "dicomweb-client", "numpy"} <= names
    assert not {"torch", "matplotlib", "scipy", "onnx"} & names
    own = sum(path.stat().st_size for path in (ROOT / "src").rglob("*") if path.is_file()) / 1e6
    assert BASE_MB + own + sum(map(installed_mb, names)) < LIMIT_MB


def test_nothing_is_taken_from_a_named_registry() -> None:
    for path in DOCKERFILES:
        images = [rest.split()[0] for word, rest in instructions(path) if word == "FROM"]
        assert images
        assert set(images) == {"python:3.12-slim"}
    assert "image" not in {key for one in compose()["services"].values() for key in one}


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for word, rest in instructions(ROOT / "Dockerfile")
        if word == "COPY" and not rest.startswith("--from")
        for source in shlex.split(rest)[:-1]
    ]
    assert {"src", "pyproject.toml", "hatch_build.py"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists()
        assert source in kept


def test_it_does_not_run_as_root() -> None:
    for path in DOCKERFILES:
        (user,) = [rest for word, rest in instructions(path) if word == "USER"]
        assert user not in ("root", "0")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def test_the_parts_know_each_other() -> None:
    settings = read_settings(ROOT / "deploy" / "node.yaml")
    orthanc = json.loads((ROOT / "deploy" / "orthanc.json").read_text())
    assert orthanc["DicomModalities"]["zoomseg"] == [settings.ae_title, "node", settings.port]
    place = settings.destinations["orthanc"]
    assert isinstance(place, DimseDestination)
    assert (place.ae_title, place.host, place.port) == (orthanc["DicomAet"], "orthanc", orthanc["DicomPort"])
    services = compose()["services"]
    assert set(services) == {"orthanc", "node"}
    (subnet,) = (one["subnet"] for one in compose()["networks"]["dicom"]["ipam"]["config"])
    assert settings.peers[0].is_at(subnet.replace("0/24", "7"))
    exposed = dict(instructions(ROOT / "Dockerfile"))["EXPOSE"].split()
    assert exposed == [str(settings.port), str(settings.page.port)]
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose()["volumes"]
        # Nothing that is not encrypted is open to other machines.
        assert all(re.match(r"127\.0\.0\.1:", port) for port in service["ports"])
    assert list(found_models(settings)[0]) == ["abdomen-ct"]
