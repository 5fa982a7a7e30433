"""Checkpoints are read including numpy's numbers; nothing in them is executed."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import nnunet_models
from zoomseg.core.errors import MemoryLimitError, ModelError
from zoomseg.importing.nnunet import checkpoint


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def test_a_checkpoint_as_nnunet_writes_it_is_read(tmp_path: Path) -> None:
    network = nnunet_models.random_network(False)
    found = checkpoint.read(saved(tmp_path / "a.pth", nnunet_models.checkpoint(network)))
    assert found.configuration == "3d_fullres"
    assert found.trainer == "nnUNetTrainerOfSomebody"
    assert found.mirror_axes == (0, 1, 2)
    name = "decoder.seg_layers.1.bias"
    assert torch.equal(found.weights[name], network.state_dict()[name])


class _Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    content = nnunet_models.checkpoint(nnunet_models.random_network(False))
    path = saved(tmp_path / "a.pth", content | {"logging": _Hostile(tmp_path / "executed")})
    with pytest.raises(ModelError, match=r"an object of \w+\.system, which could execute anything"):
        checkpoint.read(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"state_dict": {}}, "no checkpoint of nnU-Net v2: it has no network_weights"),
        ({"network_weights": {"a": 1}}, "hold more than tensors"),
        ({"network_weights": {}, "init_args": {}}, "names no configuration"),
    ],
)
def test_what_is_no_checkpoint_of_nnunet_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        checkpoint.read(saved(tmp_path / "a.pth", value))


def test_a_half_copied_checkpoint_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", nnunet_models.checkpoint(nnunet_models.random_network(False)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="damaged or no checkpoint"):
        checkpoint.read(path)


def test_a_compressed_checkpoint_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    content = nnunet_models.checkpoint(nnunet_models.random_network(False))
    path, small = saved(tmp_path / "a.pth", content | {"blank": torch.zeros(1_000_000)}), tmp_path / "b.pth"
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    assert small.stat().st_size < path.stat().st_size / 4
    with pytest.raises(ModelError, match="is compressed, and torch never does that to a checkpoint"):
        checkpoint.read(small)


def test_records_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A thousand entries of one record are a thousand times the file."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/0", bytes(1000))
        for number in range(1, 20):
            copy = zipfile.ZipInfo(f"a/data/{number}")
            shown = archive.getinfo("a/data/0")
            for key in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, key, getattr(shown, key))
            archive.filelist.append(copy)
    with pytest.raises(ModelError, match="is compressed"):
        checkpoint.read(path)


def test_a_checkpoint_that_does_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.pth", nnunet_models.checkpoint(nnunet_models.random_network(False)))
    monkeypatch.setattr("zoomseg.core.memory.free_ram", lambda: 0)
    with pytest.raises(MemoryLimitError, match=r"a\.pth: loading .* of memory"):
        checkpoint.read(path)


@pytest.mark.parametrize("axes", [5, True, "xy", [None], [[1]], [float("inf")], [3], [-1], torch.zeros(2)])
def test_axes_of_mirroring_are_numbers_of_axes(tmp_path: Path, axes: Any) -> None:
    content = nnunet_models.checkpoint(nnunet_models.random_network(False))
    path = saved(tmp_path / "a.pth", content | {"inference_allowed_mirroring_axes": axes})
    with pytest.raises(ModelError, match=r"allows mirroring along axes .*; expected some of 0, 1 and 2"):
        checkpoint.read(path)


def test_a_trainer_that_does_not_mirror_has_no_axes(tmp_path: Path) -> None:
    content = nnunet_models.checkpoint(nnunet_models.random_network(False))
    path = saved(tmp_path / "a.pth", content | {"inference_allowed_mirroring_axes": None})
    assert checkpoint.read(path).mirror_axes == ()


@pytest.mark.parametrize("pickled", [b"\x80", b"\x80\x02R.", b"\x80\x02(e.", b"\x80\x02K", b"\x80\x02X\xff"])
@pytest.mark.parametrize("in_zip", [False, True])
def test_a_damaged_pickle_is_refused(tmp_path: Path, pickled: bytes, in_zip: bool) -> None:
    path = tmp_path / "a.pth"
    if in_zip:
        saved(path, {"network_weights": {}})
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, pickled if name.endswith("data.pkl") else data)
    else:
        path.write_bytes(pickled)
    with pytest.raises(ModelError, match=r"damaged or no checkpoint|not loaded"):
        checkpoint.read(path)
