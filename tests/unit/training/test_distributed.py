"""Two processes that share every batch give the same result as one with the whole batch."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers import distributed_tasks
from helpers.tiny_dataset import tiny_dataset
from zoomseg.core.errors import TrainingError
from zoomseg.training.distributed import SINGLE_PROCESS, Processes, process_group

STEPS, BATCH, WORLD = distributed_tasks.STEPS, distributed_tasks.BATCH, distributed_tasks.WORLD


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "tiny"
    tiny_dataset(root)
    return root


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of two processes."""
    out = tmp_path_factory.mktemp("two")
    codes = distributed_tasks.start(data, out)
    assert codes == [2, 3], "the last task ends both"
    return out


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    with distributed_tasks.without_graphs():
        for apart in (True, False):
            distributed_tasks.training(data, out / f"run-{apart}", apart)
    return out


def per_rank(folder: Path, name: str) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(WORLD)]


def last_weights(run: Path) -> dict[str, Tensor]:
    """Of every group, the last weights and the averaged ones."""
    files = sorted((run / "training").glob("group-*.safetensors"))
    assert files
    found = {f"{file.stem}/{key}": value for file in files for key, value in load_file(file).items()}
    return {key: value for key, value in found.items() if "/optimiser/" not in key}


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.mark.slow
def test_numbers_are_exchanged(two: Path) -> None:
    for rank, found in enumerate(per_rank(two, "exchanged")):
        assert found["sum"].tolist() == [[3.0] * 3] * 2
        assert found["counted"].tolist() == [14]
        assert found["mean"].tolist() == [[1.5] * 3] * 2
        assert found["first"].tolist() == [[1.0] * 3] * 2
        assert found["gradient"].tolist() == [2 * 3.0, 2 * 4.0], rank
        assert float(found["agreed"]) == 1.0
        assert found["anywhere"].tolist() == [True, False]


@pytest.mark.parametrize("index", range(len(distributed_tasks.LOSSES)))
def test_losses_and_their_gradients_are_those_of_the_whole_batch(two: Path, index: int) -> None:
    whole = distributed_tasks.loss_gradients(SINGLE_PROCESS)
    for rank, found in enumerate(per_rank(two, "losses")):
        assert float(found[f"{index}"]) == pytest.approx(float(whole[f"{index}"]), rel=1e-6)
        expected = whole[f"{index}/gradient"][rank::WORLD]
        torch.testing.assert_close(found[f"{index}/gradient"], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("live", [True, False], ids=["together", "apart"])
def test_the_same_patches_are_drawn(one: Path, two: Path, live: bool) -> None:
    cases = json.loads((one / f"run-{live}-0-of-1.json").read_text())
    images = load_file(one / f"run-{live}-0-of-1.safetensors")
    assert len(cases) == STEPS * (1 if live else 2)
    for rank in range(WORLD):
        record = two / f"run-{live}-{rank}-of-{WORLD}"
        assert json.loads(record.with_suffix(".json").read_text()) == cases
        shares = load_file(record.with_suffix(".safetensors"))
        assert shares.keys() == images.keys()
        assert all(torch.equal(shares[key], images[key][rank::WORLD]) for key in images)


@pytest.mark.parametrize("live", [True, False], ids=["together", "apart"])
def test_the_same_weights_are_learned(one: Path, two: Path, live: bool) -> None:
    """Up to rounding in float64."""
    alone, shared = last_weights(one / f"run-{live}"), last_weights(two / f"run-{live}")
    assert farthest(alone, shared) < 1e-14
    assert sum(torch.equal(alone[k], shared[k]) for k in alone) < len(alone), "not shared at all"


def test_the_log_tells_of_the_whole_batch(one: Path, two: Path) -> None:
    def rows(folder: Path) -> list[list[str]]:
        with (folder / "run-False" / "training" / "metrics.csv").open(newline="") as file:
            return [[v for k, v in row.items() if k != "seconds"] for row in csv.DictReader(file)]

    assert rows(one) == rows(two)
    assert [row[4] for row in rows(two)] == ["train", "validation"] * 2 * STEPS


def test_one_asked_to_stop_stops_both_and_both_go_on(one: Path, two: Path) -> None:
    messages = {(two / f"stop-{rank}.txt").read_text() for rank in range(WORLD)}
    assert messages == {"stopped at step 2; continue with --resume"}
    assert farthest(last_weights(one / "run-True"), last_weights(two / "stopped")) < 1e-14


def test_a_time_budget_ends_both_at_the_same_step(two: Path) -> None:
    steps = [json.loads((two / f"timed-{rank}-of-{WORLD}.json").read_text()) for rank in range(WORLD)]
    assert steps[0] == steps[1] != []


def test_the_first_process_decides_and_all_have_the_model(two: Path) -> None:
    record = json.loads((two / "job" / "training" / "job.json").read_text())
    assert (record["seed"], len(record["train"]), len(record["validation"])) == (5, 3, 1)
    weights = per_rank(two, "job")
    assert farthest(*weights) == 0
    (written,) = (two / "job" / "weights").glob("fine-*.safetensors")
    assert farthest(weights[0], load_file(written)) == 0
    with (two / "job" / "training" / "metrics.csv").open(newline="") as file:
        assert {row["step"] for row in csv.DictReader(file)} == {"1", "2", "3", "4", "5"}


def test_a_batch_smaller_than_the_processes_is_refused(two: Path) -> None:
    for rank in range(WORLD):
        text = (two / f"refused-{rank}.txt").read_text()
        assert text.startswith("RecipeError: stage 'coarse', training: a batch of 1 cannot be shared by 2 ")


def test_a_process_that_is_left_says_so(two: Path) -> None:
    text = (two / "deserted.txt").read_text()
    assert text.startswith("another process of this training ended or does not respond (")
    assert "\n" not in text


def test_started_by_itself_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # as batch systems set it, without torchrun
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with process_group() as processes:
        assert processes is SINGLE_PROCESS


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    third = Processes(6, 8, 2)
    assert [third.device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:2", "cuda:2", "cpu"]
    assert SINGLE_PROCESS.device("cuda:1") == "cuda:1"
    with pytest.raises(TrainingError, match="'cuda:1' cannot be shared by 8 processes; allowed: auto, cpu, "):
        third.device("cuda:1")
