from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from zoomseg.core.errors import OutputError, TrainingError
from zoomseg.training import checkpoint

PROGRESS = checkpoint.TrainingProgress(group=1, step=42, elapsed=3.5, spent=10.25, fingerprint="abc")


State = tuple[dict[str, nn.Module], dict[str, dict[str, Tensor]], torch.optim.AdamW]


def trained(seed: int, steps: int = 3) -> State:
    """A network with batch norm and channels last after some steps, its averaged weights and optimiser."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 3, 2))
    module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    averaged = {key: value.clone() for key, value in module.state_dict().items()}
    for _ in range(steps):
        optimiser.zero_grad()
        module(torch.rand(2, 2, 4, 4, 4)).square().sum().backward()
        optimiser.step()
    return {"coarse": module}, {"coarse": averaged}, optimiser


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_progress_comes_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.safetensors", PROGRESS, *trained(0))
    assert checkpoint.read_progress(tmp_path / "c.safetensors") == PROGRESS


def test_restored_state_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    modules, averaged, optimiser = trained(0)
    checkpoint.save(path, PROGRESS, modules, averaged, optimiser)
    others, other_averaged, other_optimiser = trained(1, steps=1)
    checkpoint.restore(path, others, other_averaged, other_optimiser)
    assert equal(modules["coarse"].state_dict(), others["coarse"].state_dict())
    assert equal(averaged["coarse"], other_averaged["coarse"])
    for module, stepper in ((modules["coarse"], optimiser), (others["coarse"], other_optimiser)):
        torch.manual_seed(5)
        stepper.zero_grad()
        module(torch.rand(2, 2, 4, 4, 4)).square().sum().backward()
        stepper.step()
    assert equal(modules["coarse"].state_dict(), others["coarse"].state_dict())


def test_a_failed_save_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, PROGRESS, *trained(0))
    before = path.read_bytes()

    write = Path.write_bytes

    def half(file: Path, data: bytes) -> None:
        write(file, data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, PROGRESS, *trained(1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_state_that_is_not_finite_does_not_replace_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    modules, averaged, optimiser = trained(0)
    checkpoint.save(path, PROGRESS, modules, averaged, optimiser)
    before = path.read_bytes()
    averaged["coarse"]["1.running_var"][2] = float("nan")
    with pytest.raises(
        TrainingError, match=r"diverged \(averaged/coarse/1\.running_var is not finite\); .*c\.saf"
    ):
        checkpoint.save(path, PROGRESS, modules, averaged, optimiser)
    assert path.read_bytes() == before


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"gone\.safetensors cannot be read .* without --resume"):
        checkpoint.read_progress(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"\xff" * 8 + b[8:], lambda b: b""])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, PROGRESS, *trained(0))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(TrainingError, match="cannot be read"):
        checkpoint.read_progress(path)
    with pytest.raises(TrainingError, match="does not fit this recipe"):
        checkpoint.restore(path, *trained(0))


def test_weights_without_progress_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.safetensors.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(TrainingError, match="cannot be read"):
        checkpoint.read_progress(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, PROGRESS, *trained(0))
    module = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(module.parameters())
    with pytest.raises(TrainingError, match="does not fit this recipe") as refusal:
        checkpoint.restore(path, {"coarse": module}, {"coarse": dict(module.state_dict())}, optimiser)
    assert "\n" not in str(refusal.value)


def test_a_full_disk_is_named_and_the_earlier_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, PROGRESS, *trained(0))
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"c\.safetensors: cannot be written \(No space left on device\)"):
        checkpoint.save(path, PROGRESS, *trained(1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"group": -1}, "group: Input should be greater than or equal to 0"),
        ({"group": 10**400}, "group: Input should be less"),
        ({"group": 1.5}, "group: Input should be a valid integer"),
        ({"step": -5}, "step: Input should be greater"),
        ({"step": 10**30}, "step: Input should be less"),
        ({"elapsed": float("nan")}, "elapsed: Input should be"),
        ({"spent": float("inf")}, "spent: Input should be"),
        ({"spent": "3"}, "spent: Input should be a valid number"),
        ({"fingerprint": 3}, "fingerprint: Input should be a valid string"),
    ],
)
def test_progress_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, object], line: str) -> None:
    path = tmp_path / "c.safetensors"
    meta = json.dumps(asdict(PROGRESS) | change)
    checkpoint.safetensors.save_file({"x": torch.zeros(1)}, path, {"training": meta})
    with pytest.raises(TrainingError, match=line) as refusal:
        checkpoint.read_progress(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda key, tensor: (key, tensor * float("nan")), "is not finite"),
        (lambda key, tensor: (key, -tensor if key.endswith("/step") else tensor), "step is negative"),
        (
            lambda key, tensor: (key, -tensor if key.endswith("exp_avg_sq") else tensor),
            "exp_avg_sq is negative",
        ),
        (
            lambda key, tensor: (key.replace("optimiser/0", "optimiser/99"), tensor),
            "optimiser/99 is not of this",
        ),
        (lambda key, tensor: (key.replace("exp_avg_sq", "square"), tensor), "is not of this optimiser"),
        (lambda key, tensor: (key, tensor[:1] if "exp_avg" in key else tensor), r"exp_avg.* has shape \[1"),
    ],
)
def test_state_in_which_the_next_step_would_fail_is_refused(
    tmp_path: Path, change: Callable[[str, Tensor], tuple[str, Tensor]], line: str
) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, PROGRESS, *trained(0))
    tensors = dict(change(key, tensor) for key, tensor in checkpoint.safetensors.load_file(path).items())
    checkpoint.safetensors.save_file({k: t.contiguous() for k, t in tensors.items()}, path)
    with pytest.raises(TrainingError, match=f"does not fit this recipe .*{line}"):
        checkpoint.restore(path, *trained(0))
