"""What a package holds: ``pipeline.json`` as values, and the networks beside it."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Index3
from zoomseg.core.labels import LabelSchema
from zoomseg.io.files import parse_json
from zoomseg.io.training_domain import TrainingDomain, domain_from_json

FORMAT = 1
MOST_CHARACTERS = 300
"""Of what a library says is wrong."""

MANIFEST = "pipeline.json"
CHECKSUM = "pipeline.sha256"
"""SHA-256 of the manifest, as ``sha256sum`` writes and checks it. What has it is as it was exported, and its
numbers need no further check."""


@dataclass(frozen=True)
class Network:
    """A stage's ONNX file in the package; the answer is ``halo`` voxels smaller on each side."""

    file: str
    sha256: str
    halo: Index3


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of the recipe, every label by name. ``roi`` and ``grid`` are as in the recipe; ``channels``
    are those of the scan, ``priors`` (stage and labels of it) come after them in the network's input."""

    name: str
    labels: tuple[str, ...]
    roi: Mapping[str, Any]
    grid: Mapping[str, Any]
    channels: tuple[int, ...]
    priors: tuple[tuple[str, tuple[str, ...]], ...]
    fusion: str
    argmax_on: str
    network: Network

    @property
    def tile(self) -> Index3:
        i, j, k = self.grid["tile"]
        return (i, j, k)

    @property
    def blended(self) -> bool:
        """Whether overlapping tiles count more in their middle."""
        return bool(self.grid["overlap"] > 0 and self.grid["padding"] == "same")


@dataclass(frozen=True, eq=False)
class Pipeline:
    """``intensity`` and ``on_missing`` are as in the recipe; ``largest`` are the labels of which only the
    largest component is kept."""

    schema: LabelSchema
    channel_names: tuple[str, ...]
    intensity: Mapping[str, Any]
    stages: tuple[Stage, ...]
    on_missing: str
    largest: tuple[str, ...]
    """Labels of which only the largest connected component stays."""
    islands: tuple[str, ...]
    """Labels whose components of fewer than ``below`` times the largest one's voxels go."""
    below: float
    domain: TrainingDomain | None
    """What the training scans were like, where the model says it."""

    @property
    def window(self) -> tuple[float, float] | None:
        """The intensities that the networks tell apart; None: they are scaled by the scan's own moments."""
        if self.intensity["kind"] != "window":
            return None
        return self.intensity["lower"], self.intensity["upper"]


def read(archive: Path) -> tuple[Pipeline, Mapping[str, bytes]]:
    """The pipeline of a package, and every stage's network.

    Raises:
        ModelError: not a package, damaged, or written by a later version than this runner.
    """
    try:
        with zipfile.ZipFile(archive) as files:
            text = files.read(MANIFEST)
            _check(MANIFEST, text, files.read(CHECKSUM).decode().partition(" ")[0])
            pipeline = parse(parse_json(text))
            networks = {stage.name: files.read(stage.network.file) for stage in pipeline.stages}
        for stage in pipeline.stages:
            _check(stage.network.file, networks[stage.name], stage.network.sha256)
    except MemoryError:
        raise
    except Exception as error:  # zipfile and json fail in many ways on hostile bytes
        line = " ".join(str(error).split())[:MOST_CHARACTERS]
        raise ModelError(f"package {archive} is damaged ({line}); export it again") from error
    return pipeline, networks


def _check(file: str, content: bytes, sha256: str) -> None:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ModelError(f"{file} differs from what was exported")


def parse(data: Mapping[str, Any]) -> Pipeline:
    """``pipeline.json`` as values."""
    if data["format"] != FORMAT:
        raise ModelError(f"format {data['format']}, this runner reads {FORMAT}")
    recipe, labels = data["recipe"], data["labels"]
    channels = len(data["channel_names"])
    islands = recipe.get("islands") or {"labels": (), "below": 1.0}
    return Pipeline(
        LabelSchema(tuple(labels["names"]), tuple(labels["values"])),
        tuple(data["channel_names"]),
        recipe["intensity"],
        tuple(_stage(stage, channels, data["networks"][stage["name"]]) for stage in recipe["stages"]),
        recipe["on_missing"],
        tuple(recipe["largest_component"]),
        tuple(islands["labels"]),
        islands["below"],
        None if data["training_domain"] is None else domain_from_json(data["training_domain"]),
    )


def _stage(data: Mapping[str, Any], channels: int, network: Mapping[str, Any]) -> Stage:
    seen: list[int] = []
    for source in data["inputs"]:
        if source["kind"] == "image":
            seen.extend(range(channels) if source["channel"] == "all" else [source["channel"]])
    priors = [(s["of"], tuple(s["labels"])) for s in data["inputs"] if s["kind"] == "prior"]
    i, j, k = network["halo"]
    return Stage(
        data["name"],
        tuple(data["labels"]),
        data["roi"],
        data["grid"],
        tuple(seen),
        tuple(priors),
        data["fusion"],
        data["argmax_on"],
        Network(network["file"], network["sha256"], (i, j, k)),
    )
