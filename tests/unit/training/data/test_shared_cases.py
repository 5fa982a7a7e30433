"""Cases prepared by one process equal, bit for bit, those that the others are trained on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from zoomseg.core.errors import OutputError, TrainingError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.core.labels import IGNORE
from zoomseg.io.cache import ChunkedArray, write_array
from zoomseg.training.data import shared_cases
from zoomseg.training.data.packed_cases import PackedCase, ReferenceBox, StoredPrior
from zoomseg.training.data.preprocessing import PackedCases
from zoomseg.training.data.sampler import Candidates
from zoomseg.training.distributed import SINGLE_PROCESS, Processes

BOX = Box((1, 0, 2), (4, 3, 5))
STOP = threading.Event()


def turned(shape: tuple[int, int, int], spacing: float) -> Grid:
    """Numbers without a short decimal form."""
    c, s = np.cos(0.3) * spacing, np.sin(0.3) * spacing
    return Grid(
        shape, np.array([[c, -s, 0, 1 / 3], [s, c, 0, -2 / 7], [0, 0, spacing, 0.1 + 0.2], [0, 0, 0, 1]])
    )


def stored(path: Path, values: np.ndarray) -> ChunkedArray:  # type: ignore[type-arg]
    write_array(path, values)
    return ChunkedArray.open(path)


def packed(folder: Path, case: str, seed: int = 0, prior: bool = True) -> PackedCase:
    """A case of two labels, the second of which is not annotated."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, *BOX.shape)).astype(np.float16)
    labels = rng.choice(np.array([0, 1, IGNORE], dtype=np.uint8), BOX.shape)
    answer = rng.random((3, 2, 2, 2)).astype(np.float16)
    priors = {}
    if prior:
        path = folder / f"fine-{case}-prior-coarse.b2nd"
        priors["coarse"] = StoredPrior(stored(path, answer), turned((2, 2, 2), 2.9), ("a", "b"))
    return PackedCase(
        case,
        turned((5, 4, 6), 1.1),
        BOX,
        stored(folder / f"fine-{case}-image.b2nd", image),
        stored(folder / f"fine-{case}-labels.b2nd", labels),
        Candidates(
            rng.integers(0, 4, (7, 3)).astype(np.int16),
            {10: rng.integers(0, 4, (2, 3)).astype(np.int32), 0: np.zeros((0, 3), dtype=np.int32)},
        ),
        np.array([2**40 + seed, 3, 0]),
        np.array([True, True, False]),
        priors,
        ReferenceBox(turned((9, 8, 7), 0.7), Box((0, 2, 1), (4, 5, 6))) if prior else None,
    )


def same_array(a: np.ndarray, b: np.ndarray) -> bool:  # type: ignore[type-arg]
    return a.dtype == b.dtype and np.array_equal(a, b)


def same_stored(a: ChunkedArray, b: ChunkedArray) -> bool:
    whole = Box((0, 0, 0), (a.shape[-3], a.shape[-2], a.shape[-1]))
    return a.path == b.path and same_array(a.read(whole), b.read(whole))


def assert_same(a: PackedCase, b: PackedCase) -> None:
    assert (a.case, a.grid, a.box, a.reference) == (b.case, b.grid, b.box, b.reference)
    assert same_stored(a.image, b.image)
    assert same_stored(a.labels, b.labels)
    assert same_array(a.candidates.region, b.candidates.region)
    assert a.candidates.classes.keys() == b.candidates.classes.keys()
    assert all(same_array(a.candidates.classes[c], b.candidates.classes[c]) for c in a.candidates.classes)
    assert same_array(a.counts, b.counts)
    assert same_array(a.annotated, b.annotated)
    assert a.priors.keys() == b.priors.keys()
    for name, prior in a.priors.items():
        assert (prior.grid, prior.labels) == (b.priors[name].grid, b.priors[name].labels)
        assert same_stored(prior.data, b.priors[name].data)


@dataclass(frozen=True)
class Waiting(Processes):
    """One of several processes, whose waiting the test implements."""

    waited: Callable[[], None] = lambda: None

    def wait_for_first(self, stop: threading.Event) -> None:
        assert stop is STOP
        self.waited()


def never(stop: threading.Event) -> PackedCases:
    raise AssertionError("only the first process prepares")


@pytest.mark.parametrize("prior", [True, False])
def test_what_is_written_is_read(prior: bool, tmp_path: Path) -> None:
    case = packed(tmp_path, "Case 1.5 ö", prior=prior)
    shared_cases.write(case, tmp_path / "case.safetensors")
    found = shared_cases.read(tmp_path / "case.safetensors")
    assert_same(found, case)
    assert all(type(n) is int for n in (*found.box.start, *found.box.stop))


def test_views_into_larger_arrays_are_written_as_they_look(tmp_path: Path) -> None:
    case = packed(tmp_path, "a")
    region = np.arange(42, dtype=np.int32).reshape(3, 14).T[::2]  # safetensors ignores strides
    seen = Candidates(region, {1: region[:, ::-1]})
    shared_cases.write(
        PackedCase(**{**vars(case), "candidates": seen}),
        tmp_path / "case.safetensors",
    )
    found = shared_cases.read(tmp_path / "case.safetensors").candidates
    assert found.region.tolist() == [[r, 14 + r, 28 + r] for r in range(0, 14, 2)]
    assert found.classes[1].tolist() == [[28 + r, 14 + r, r] for r in range(0, 14, 2)]


def test_others_get_the_training_cases_of_each_stage_in_order(tmp_path: Path) -> None:
    # One stem is a prefix of the other.
    cases = [packed(tmp_path, name, seed) for seed, name in enumerate(("b.1", "b", "a"))]
    made = PackedCases(
        {"fine": cases[:2], "finest": cases[2:], "none": []}, {"fine": cases[2:], "finest": [], "none": []}
    )
    log: list[str] = []

    def prepare(stop: threading.Event) -> PackedCases:
        assert stop is STOP
        log.append("prepared")
        return made

    def told() -> None:
        assert (tmp_path / "group-3.json").is_file(), "the others would go on with nothing to read"
        log.append("told")

    assert (
        shared_cases.shared_between_processes(prepare, 3, tmp_path, Waiting(0, 2, waited=told), STOP) is made
    )
    assert log == ["prepared", "told"]
    found = shared_cases.shared_between_processes(never, 3, tmp_path, Waiting(1, 2), STOP)
    assert list(found.train) == ["fine", "finest", "none"]
    for stage, expected in made.train.items():
        assert len(found.train[stage]) == len(expected)
        for a, b in zip(found.train[stage], expected, strict=True):
            assert_same(a, b)
    assert found.validation == {"fine": (), "finest": (), "none": ()}


def test_others_read_nothing_before_the_first_is_there(tmp_path: Path) -> None:
    case = packed(tmp_path, "a")

    def first_writes() -> None:
        shared_cases.shared_between_processes(
            lambda stop: PackedCases({"fine": [case]}, {"fine": []}), 0, tmp_path, Waiting(0, 2), STOP
        )

    found = shared_cases.shared_between_processes(
        never, 0, tmp_path, Waiting(1, 2, waited=first_writes), STOP
    )
    assert_same(found.train["fine"][0], case)


def test_alone_nothing_is_written(tmp_path: Path) -> None:
    made = PackedCases({"fine": [packed(tmp_path, "a")]}, {"fine": []})
    before = sorted(tmp_path.iterdir())
    assert shared_cases.shared_between_processes(lambda stop: made, 0, tmp_path, SINGLE_PROCESS, STOP) is made
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("error", [TrainingError("the first ended"), InterruptedTrainingError("stopped")])
@pytest.mark.parametrize("rank", [0, 1])
def test_waiting_in_vain_ends_it(rank: int, error: Exception, tmp_path: Path) -> None:
    (tmp_path / "group-0.json").write_text(json.dumps({"fine": []}))  # of an earlier start

    def fail() -> None:
        raise error

    made = PackedCases({"fine": []}, {"fine": []})
    with pytest.raises(type(error), match=str(error)):
        shared_cases.shared_between_processes(
            lambda stop: made, 0, tmp_path, Waiting(rank, 2, waited=fail), STOP
        )


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    case = packed(tmp_path, "a")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/case\.safetensors: cannot be written"):
        shared_cases.write(case, tmp_path / "file" / "case.safetensors")
