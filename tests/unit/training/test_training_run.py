"""A training decides once, records its decisions, and is resumed from them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest

from helpers.tiny_dataset import CPU, small_plan, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.core.errors import DatasetError, ModelError, OutputError, RecipeError, ScanError, TrainingError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.core.volume import Volume
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.io import bundle
from zoomseg.io.scans import read_image, write_image
from zoomseg.planning import training_domain
from zoomseg.recipe.load import dump, from_dict, load
from zoomseg.training import cross_validation, record, requested_recipe, training_run, validation
from zoomseg.training.distributed import Processes
from zoomseg.training.log import LogRow, NullObserver
from zoomseg.training.requested_recipe import TrainingRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("job"))


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(dump(tiny_recipe(together=True, iterations=2)))
    return str(path)


def test_what_was_decided_is_written_down(data: Dataset, recipe: str, tmp_path: Path) -> None:
    training_run.start(
        data, tmp_path / "m", TrainingRequest(recipe, folds=2, fold=1, seed=3), CPU, NullObserver()
    )
    record = json.loads((tmp_path / "m" / "training" / "job.json").read_text())
    assert from_dict(record["recipe"]) == tiny_recipe(together=True, iterations=2)
    assert sorted(record["train"] + record["validation"]) == [f"case_{n}" for n in range(4)]
    assert len(record["validation"]) == 2
    assert (record["seed"], record["seconds"], record["epochs"]) == (3, None, None)


def test_a_model_knows_what_its_training_cases_were_like(data: Dataset, recipe: str, tmp_path: Path) -> None:
    """For published and planned recipes alike, without the held-out cases; also when resumed."""
    for name, wanted in (("published", recipe), ("planned", small_plan(tmp_path / "plan.yaml"))):
        request = TrainingRequest(wanted, folds=2, fold=1)
        model = training_run.start(data, tmp_path / name, request, CPU, NullObserver())
        known = bundle.load(tmp_path / name).domain
        assert known is not None
        assert known == model.domain
        cases = [case for case in data.cases if case.id in requested_recipe.choose_split(data, request).train]
        samples = [training_domain.sample(data.load(case)) for case in cases]
        expected = training_domain.describe(samples, model.recipe.intensity, ["CT"], data.schema.names)
        assert known == expected
        assert training_run.resume(data, tmp_path / name, CPU, NullObserver()).domain == known


def test_how_ambiguous_headers_are_read_is_told_once(recipe: str, tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "d")
    for file in (tmp_path / "d" / "imagesTr" / f"case_{n}_0000.nii.gz" for n in (1, 3)):
        image = nib.load(file)
        image.header["sform_code"] = image.header["qform_code"] = 0
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), file)

    class Listening(NullObserver):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def message(self, text: str) -> None:
            self.heard.append(text)

    observer = Listening()
    with contextlib.suppress(ScanError):  # the labels lie elsewhere
        training_run.start(data, tmp_path / "m", TrainingRequest(recipe), CPU, observer)
    notes = [text for text in observer.heard if "no orientation is stored" in text]
    assert len(notes) == 1
    assert notes[0].endswith("(case case_1, case_3)")


def test_pseudo_labelled_cases_are_in_no_fold_and_nothing_is_planned_from_them(
    data: Dataset, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = tuple(replace(case, pseudo=case.id == "case_2") for case in data.cases)
    mixed = replace(data, cases=cases)
    for fold in range(3):
        split = requested_recipe.choose_split(mixed, TrainingRequest(folds=3, fold=fold))
        assert "case_2" not in split.validation
        assert split.train[-1] == "case_2"
    assert requested_recipe.choose_split(mixed, TrainingRequest()).train == (
        "case_0",
        "case_1",
        "case_3",
        "case_2",
    )
    looked: list[str] = []
    samples = training_domain.samples

    def spied(dataset: Dataset, ids: tuple[str, ...], on_progress: object) -> object:
        looked.extend(ids)
        return samples(dataset, ids, on_progress)  # type: ignore[arg-type]

    monkeypatch.setattr(training_run.training_domain, "samples", spied)
    training_run.start(mixed, tmp_path / "m", TrainingRequest(recipe), CPU, NullObserver())
    assert looked == ["case_0", "case_1", "case_3"]


def test_start_does_not_overwrite_resume_needs_a_start(data: Dataset, recipe: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training to resume"):
        training_run.resume(data, tmp_path / "m", CPU, NullObserver())
    training_run.start(data, tmp_path / "m", TrainingRequest(recipe), CPU, NullObserver())
    with pytest.raises(ModelError, match=r"already holds a training \(model.json\)"):
        training_run.start(data, tmp_path / "m", TrainingRequest(recipe), CPU, NullObserver())


class _Beside(NullObserver):
    """Does something once, during a training."""

    def __init__(self, do: Callable[[], None]) -> None:
        self.do, self.done = do, 0

    def row(self, row: LogRow, remaining: float | None) -> None:
        self.done += 1
        if self.done == 1:
            self.do()


@pytest.mark.parametrize("resumed", [False, True])
def test_one_training_at_a_time_writes_to_a_folder(
    data: Dataset, recipe: str, tmp_path: Path, resumed: bool
) -> None:
    out, other = tmp_path / "m", TrainingRequest(recipe, seed=7)
    used = re.escape(f"{out}: a training uses this folder") + f".*process {os.getpid()} on"

    def refused() -> None:
        with pytest.raises(OutputError, match=used):
            training_run.resume(data, out, CPU, NullObserver())
        with pytest.raises(OutputError, match=used):
            validation.validate(data, out, ("case_0",), CPU)
        for begun in (True, False):  # False: both start at the same time
            if not begun:
                (out / "training" / "job.json").rename(tmp_path / "job.json")
            with pytest.raises(OutputError, match=used):
                training_run.start(data, out, other, CPU, NullObserver())
            with pytest.raises(OutputError, match=used):
                cross_validation.begin(data, out, 2, other, CPU, NullObserver())
        (tmp_path / "job.json").rename(out / "training" / "job.json")

    if resumed:
        training_run.start(data, out, TrainingRequest(recipe), CPU, NullObserver())
        (out / "training" / "checkpoint.safetensors").unlink()
        (out / "model.json").unlink()
    beside = _Beside(refused)
    if resumed:
        model = training_run.resume(data, out, CPU, beside)
    else:
        model = training_run.start(data, out, TrainingRequest(recipe), CPU, beside)
    assert beside.done
    assert (model.provenance["seed"], bundle.load(out).provenance["seed"]) == (0, 0)
    assert record.read_training(out).seed == 0


def test_what_another_began_before_the_lock_was_had_is_not_replaced(
    data: Dataset, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        (folder / "training").mkdir(parents=True)
        (folder / "training" / "job.json").write_text("theirs")
        yield

    monkeypatch.setattr(record, "locked_folder", late)
    with pytest.raises(ModelError, match=r"already holds a training \(job.json\)"):
        training_run.start(data, out, TrainingRequest(recipe), CPU, NullObserver())
    assert (out / "training" / "job.json").read_text() == "theirs"


@pytest.mark.parametrize("of", [record.UNLABELLED, record.ACCELERATION, bundle.FOLDS])
def test_a_folder_of_a_larger_training_is_taken_by_its_own_parts_alone(
    data: Dataset, recipe: str, tmp_path: Path, of: str
) -> None:
    (tmp_path / of).write_text("{}")
    for other in (None, "another.json"):
        request = TrainingRequest(recipe, epochs=1, part_of=other)
        with pytest.raises(ModelError, match=re.escape(f"already holds a training ({of})")):
            training_run.start(data, tmp_path, request, CPU, NullObserver())
    training_run.start(data, tmp_path, TrainingRequest(recipe, part_of=of), CPU, NullObserver())


def seconds_and_epochs(model: Path) -> tuple[float | None, int | None]:
    known = record.read_training(model)
    return known.seconds, known.epochs


def test_a_resumed_training_keeps_the_last_length_given(
    data: Dataset, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    asked: list[tuple[float | None, int | None]] = []

    def spied(*given: Any) -> bundle.Bundle:
        asked.append((given[4].seconds, given[4].epochs))
        given[4].accepted()
        raise InterruptedTrainingError("stopped")

    training_run.start(data, out, TrainingRequest(recipe), CPU, NullObserver())
    monkeypatch.setattr(training_run.loop, "train", spied)
    for length in ({"epochs": 3}, {}, {"epochs": 2}, {}, {"seconds": 50.0}, {}):
        with pytest.raises(InterruptedTrainingError):
            training_run.resume(data, out, CPU, NullObserver(), **length)
        assert bundle.load(out).provenance["complete"] is False  # also before its first checkpoint
    planning = record.read_training(out).planning_seconds
    budget = pytest.approx(50 - planning)
    assert asked == [(None, 3), (None, 3), (None, 2), (None, 2), (budget, None), (budget, None)]
    assert seconds_and_epochs(out) == (50.0, None)
    with pytest.raises(TrainingError, match="epochs must be"):
        training_run.resume(data, out, CPU, NullObserver(), epochs=0)
    assert seconds_and_epochs(out) == (50.0, None)


def test_planning_also_counts_in_a_resumed_training(
    data: Dataset, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[float | None] = []

    def spied(*given: Any) -> None:
        budgets.append(given[4].seconds)

    monkeypatch.setattr(training_run.loop, "train", spied)
    out, request = tmp_path / "m", TrainingRequest(recipe, seconds=500, began=time.monotonic() - 100)
    training_run.start(data, out, request, CPU, NullObserver())
    training_run.resume(data, out, CPU, NullObserver())
    training_run.resume(data, out, CPU, NullObserver(), seconds=600)
    training_run.resume(data, out, CPU, NullObserver(), seconds=60)
    first, again, longer, shorter = budgets
    assert first is not None
    assert 300 < first < 400
    assert again == first
    assert longer == pytest.approx(first + 100)
    assert shorter == 0  # planning took more


def test_a_training_is_resumed_by_the_recipe_as_it_was_recorded(
    data: Dataset, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version knew fewer keys."""
    recorded: list[object] = []

    def spied(*given: Any) -> None:
        recorded.append(given[4].recorded)

    monkeypatch.setattr(training_run.loop, "train", spied)
    training_run.start(data, tmp_path, TrainingRequest(recipe), CPU, NullObserver())
    file = tmp_path / record.FILE
    known = json.loads(file.read_text())
    first = dict(known["recipe"])
    del known["recipe"]["description"]
    file.write_text(json.dumps(known))
    training_run.resume(data, tmp_path, CPU, NullObserver())
    assert recorded == [first, known["recipe"]]


def test_a_finished_training_is_resumed_to_its_model(
    data: Dataset, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is prepared or written again, and the calibration stays."""
    out = tmp_path / "m"
    model = training_run.start(data, out, TrainingRequest(recipe, epochs=1, folds=2), CPU, NullObserver())
    held_out = [str(case) for case in model.provenance["validation_cases"]]  # type: ignore[union-attr]
    validation.validate(data, out, held_out, CPU)
    before = (out / "model.json").read_bytes()
    known = bundle.load(out)
    assert known.calibration is not None

    def never(*given: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(training_run.loop, "train", never)
        for length in ({}, {"epochs": 1}):
            same = training_run.resume(data, out, CPU, NullObserver(), **length)
            assert (same.calibration, same.provenance) == (known.calibration, known.provenance)
        assert (out / "model.json").read_bytes() == before
        file = json.loads(before)
        del file["graphs"]  # stopped before they were written
        (out / "model.json").write_text(json.dumps(file))
        training_run.resume(data, out, CPU, NullObserver())
        assert set(bundle.load(out).graphs) == {"coarse", "fine"}
    (out / "model.json").write_text("{")
    assert training_run.resume(data, out, CPU, NullObserver()).provenance["complete"] is True
    assert training_run.resume(data, out, CPU, NullObserver(), epochs=2).calibration is None


def test_resume_refuses_a_data_set_that_lacks_a_case(data: Dataset, recipe: str, tmp_path: Path) -> None:
    training_run.start(data, tmp_path / "m", TrainingRequest(recipe), CPU, NullObserver())
    with pytest.raises(TrainingError, match=r"has other cases than .* was trained with \(case_3\)"):
        training_run.resume(data.subset(["case_0", "case_1", "case_2"]), tmp_path / "m", CPU, NullObserver())


def test_resume_refuses_a_data_set_in_which_a_case_lost_its_labels(recipe: str, tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "d")
    training_run.start(data, tmp_path / "m", TrainingRequest(recipe, folds=2), CPU, NullObserver())
    training_run.start(data, tmp_path / "all", TrainingRequest(recipe), CPU, NullObserver())
    for case in requested_recipe.choose_split(data, TrainingRequest(folds=2)).validation:
        (tmp_path / "d" / "labelsTr" / f"{case}.nii.gz").rename(tmp_path / f"{case}.nii.gz")
        fewer = open_dataset(tmp_path / "d")
        for out in (tmp_path / "m", tmp_path / "all"):
            with pytest.raises(TrainingError, match=f"{case} has no labels any more, but {out} was"):
                training_run.resume(fewer, out, CPU, NullObserver(), epochs=1)
        (tmp_path / f"{case}.nii.gz").rename(tmp_path / "d" / "labelsTr" / f"{case}.nii.gz")


def test_a_folder_with_a_model_alone_cannot_be_resumed_and_says_so(
    data: Dataset, recipe: str, tmp_path: Path
) -> None:
    """It was downloaded or imported."""
    bundle.save(untrained_bundle(), tmp_path)
    with pytest.raises(
        ModelError, match=f"^{re.escape(str(tmp_path))} already holds a model; choose another"
    ):
        training_run.start(data, tmp_path, TrainingRequest(recipe), CPU, NullObserver())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": {}}', '{"recipe": 3, "train": 5}'])
def test_damaged_job_file(data: Dataset, recipe: str, tmp_path: Path, text: str) -> None:
    training_run.start(data, tmp_path / "m", TrainingRequest(recipe), CPU, NullObserver())
    (tmp_path / "m" / "training" / "job.json").write_text(text)
    with pytest.raises((TrainingError, RecipeError), match=r"job\.json"):
        training_run.resume(data, tmp_path / "m", CPU, NullObserver())


@pytest.mark.parametrize(
    "wrong",
    [
        *({"seconds": value} for value in (0.0, float("nan"), float("inf"), 1e300)),
        *({"epochs": value} for value in (0, -3, 10**400)),
        *({"seed": value} for value in (-1, 2**63, 10**400)),
    ],
    ids=lambda wrong: str(wrong)[:30],
)
def test_lengths_and_seeds_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(TrainingError) as error:
        TrainingRequest(**wrong)  # type: ignore[arg-type]
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("key", ["seed", "epochs", "seconds"])
@pytest.mark.parametrize(
    "value", ["-1", "1" + "0" * 400, "1" + "0" * 5000, "1e999", "Infinity", "NaN", "[" * 10_000]
)
def test_a_job_file_with_a_number_that_cannot_be(
    data: Dataset, recipe: str, tmp_path: Path, key: str, value: str
) -> None:
    """One line for every kind."""
    split = {
        "train": data.ids,
        "validation": (),
        "recipe": tiny_recipe(together=True).model_dump(mode="json"),
    }
    known = record.TrainingRecord(**training_run.recorded(data, TrainingRequest(recipe)), **split)
    job = tmp_path / "training" / "job.json"
    job.parent.mkdir()
    job.write_text(json.dumps({**known.model_dump(mode="json"), key: "here"}).replace('"here"', value))
    with pytest.raises(TrainingError) as error:
        training_run.resume(data, tmp_path, CPU, NullObserver())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_recipe_that_predicts_labels_the_data_lacks(data: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(together=True)
    coarse = recipe.stages[0].model_copy(update={"labels": ("spleen",)})
    fine = recipe.stages[1].model_copy(update={"labels": ("spleen",)})
    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe.model_copy(update={"stages": (coarse, fine)})))
    with pytest.raises(
        RecipeError, match="predicts none of the data set's labels: left kidney, right kidney"
    ):
        training_run.start(data, tmp_path / "m", TrainingRequest(str(path)), CPU, NullObserver())


def test_shapes_that_do_not_suit_the_network_are_refused_before_a_case_is_read(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before anything is recorded, so that the corrected recipe can be trained in the same folder."""

    def never(*arguments: object) -> None:
        raise AssertionError("a case was read")

    recipe = tiny_recipe(together=True)
    coarse = recipe.stages[0]
    odd = coarse.model_copy(update={"grid": coarse.grid.model_copy(update={"tile": (13, 12, 12)})})
    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe.model_copy(update={"stages": (odd, recipe.stages[1])})))
    monkeypatch.setattr(Dataset, "load", never)
    with pytest.raises(RecipeError, match=r"stage 'coarse', grid\.tile: .*13 \(nearest: 12 or 14\)"):
        training_run.start(data, tmp_path / "m", TrainingRequest(str(path)), CPU, NullObserver())
    assert not training_run.is_begun(tmp_path / "m")


def described(root: Path, **changes: object) -> Dataset:
    """The tiny data set with another ``dataset.json``."""
    data = tiny_dataset(root)
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(description | changes))
    return open_dataset(data.root)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"background": 0, "left kidney": 7, "right kidney": 3}},
        {"labels": {"background": 0, "spleen": 3, "liver": 7}},
        {"channel_names": {"0": "MR"}},
    ],
    ids=["values swapped", "other names", "other channel"],
)
def test_resume_refuses_other_labels_and_channels(
    data: Dataset, recipe: str, tmp_path: Path, changes: dict[str, object]
) -> None:
    """With the same cases and number of classes, training could otherwise continue with other labels."""
    training_run.start(data, tmp_path / "m", TrainingRequest(recipe), CPU, NullObserver())
    other = described(tmp_path / "d", **changes)
    with pytest.raises(TrainingError, match=f"has {next(iter(changes))[:6]}.* but .* was trained with"):
        training_run.resume(other, tmp_path / "m", CPU, NullObserver())


RECORD = {
    "channels": ["CT"],
    "labels": {"left kidney": 3, "right kidney": 7},
    "recipe": tiny_recipe(together=True, iterations=2).model_dump(mode="json"),
    "train": ["case_0"],
    "validation": [],
    "seed": 0,
    "seconds": None,
    "epochs": None,
}
PLANNED = load("default").model_dump(mode="json")


def job_file(model: Path, **changes: object) -> None:
    """The files of a training that was killed before its first checkpoint."""
    (model / "training").mkdir(parents=True)
    (model / "training" / "job.json").write_text(json.dumps(RECORD | changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("epochs", "3"),
        ("seconds", math.nan),
        ("seed", -1),
        ("seed", None),
        ("train", "case_0"),
        ("validation", [1]),
        ("labels", []),
        ("recipe", {"name": "x"}),
        ("init", 3),
        pytest.param("recipe", PLANNED, id="planned"),
    ],
)
def test_a_job_file_with_wrong_entries(data: Dataset, tmp_path: Path, key: str, value: object) -> None:
    job_file(tmp_path / "m", **{key: value})
    with pytest.raises((TrainingError, RecipeError)) as refusal:
        training_run.resume(data, tmp_path / "m", CPU, NullObserver())
    assert "\n" not in str(refusal.value)


def test_a_training_killed_before_its_first_checkpoint_starts_again(data: Dataset, tmp_path: Path) -> None:
    job_file(tmp_path / "m")
    model = training_run.resume(data, tmp_path / "m", CPU, NullObserver())
    assert model.provenance["training_cases"] == ["case_0"]
    assert model.provenance["complete"] is True


def test_a_place_that_cannot_be_written_is_noticed_before_planning(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    class Busy(NullObserver):
        def preparing(self, stage: str, done: int, total: int) -> None:
            raise AssertionError("planned first")

    with pytest.raises(OutputError, match="file"):
        training_run.start(data, tmp_path / "file" / "m", TrainingRequest("default"), CPU, Busy())


def test_a_wrong_recipe_leaves_nothing_behind(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe 'defualt'"):
        training_run.start(data, tmp_path / "m", TrainingRequest("defualt"), CPU, NullObserver())
    assert not (tmp_path / "m").exists()


def test_a_budget_counts_from_when_the_command_began(data: Dataset, tmp_path: Path) -> None:
    request = TrainingRequest("default", seconds=30, began=time.monotonic() - 60)
    with pytest.raises(
        TrainingError, match=r"of 30 s was used up by start-up and planning, which took 6\d\.\d s"
    ):
        training_run.start(data, tmp_path / "m", request, CPU, NullObserver())


def test_cases_without_labels_are_named(data: Dataset, tmp_path: Path) -> None:
    class Told(NullObserver):
        said: ClassVar[list[str]] = []

        def message(self, text: str) -> None:
            self.said.append(text)

    first, *others = data.cases
    some = replace(data, cases=(replace(first, labels=None), *others))
    request = TrainingRequest("default", seconds=1e-6)
    with pytest.raises(TrainingError, match="used up"):
        training_run.start(some, tmp_path / "m", request, CPU, Told())
    assert f"not trained on, as they have no labels: {first.id}" in Told.said


def test_planning_may_take_all_the_time(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the time budget of 1e-06 s was used up by start-up and planning"
    ):
        training_run.start(
            data, tmp_path / "m", TrainingRequest("default", seconds=1e-6), CPU, NullObserver()
        )
    assert not (tmp_path / "m" / "training" / "job.json").exists()


def test_a_training_says_how_it_was_planned(data: Dataset, tmp_path: Path) -> None:
    training_run.start(
        data, tmp_path / "m", TrainingRequest(small_plan(tmp_path / "r.yaml")), CPU, NullObserver()
    )
    page = (tmp_path / "m" / "training" / "plan.md").read_text()
    assert page.startswith("# How default was planned for tiny\n")
    record = json.loads((tmp_path / "m" / "training" / "job.json").read_text())
    patches = ["x".join(map(str, stage["training"]["patch"])) for stage in record["recipe"]["stages"]]
    assert f"| coarse patch | {patches[0]} |" in page
    assert f"| fine patch | {patches[1]} |" in page
    assert "| length | 2 steps |" in page
    assert "| left kidney | 4 of 4 |" in page


def test_every_process_gets_a_patch(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planned batch is two, or as many as there are processes; missing ones are not awaited."""
    monkeypatch.setattr(Processes, "wait_for_first", lambda self, stop: None)
    monkeypatch.setattr(training_run.loop, "train", lambda data, split, recipe, *rest: recipe)
    plan = TrainingRequest(small_plan(tmp_path / "plan.yaml"))
    batches = []
    for world in (1, 4):
        planned: Any = training_run.start(
            data, tmp_path / f"{world}", plan, CPU, NullObserver(), Processes(0, world)
        )
        batches.append([stage.training.batch for stage in planned.stages])
    assert batches == [[2, 2], [4, 4]]


@pytest.mark.parametrize("kind", ["planned", "concrete"])
def test_what_the_data_set_leaves_unsaid_is_told_of(tmp_path: Path, recipe: str, kind: str) -> None:
    """A complete recipe states how intensities are normalised; labels need names in any case."""
    folder = tmp_path / "d"
    data = described(folder, channel_names={"0": "scan"}, labels={"label_3": 3, "label_7": 7})
    for file in (folder / "imagesTr").iterdir():
        scan = read_image(file)
        air = np.where(scan.data < -5, np.float32(-1000), scan.data.clip(max=140))
        air[:, 0, 0, 0] = 900
        write_image(file, Volume(air, scan.grid))
    heard: list[str] = []

    class Listening(NullObserver):
        def message(self, text: str) -> None:
            heard.append(text)

    wanted = recipe if kind == "concrete" else small_plan(tmp_path / "p.yaml")
    training_run.start(data, tmp_path / "m", TrainingRequest(wanted), CPU, Listening())
    labels = [text for text in heard if text.startswith("label names: label_3, label_7: no name of an organ")]
    groups = [text for text in heard if 'if it is CT, write "channel_names": {"0": "CT"} into' in text]
    assert (len(labels), len(groups)) == (1, kind == "planned")


WITH_SPLEEN = {"background": 0, "left kidney": 3, "right kidney": 7, "spleen": 9}


@pytest.mark.parametrize("kind", ["planned", "concrete"])
def test_an_organ_that_no_training_case_has_is_refused(tmp_path: Path, recipe: str, kind: str) -> None:
    data = described(tmp_path / "d", labels=WITH_SPLEEN)
    wanted = recipe if kind == "concrete" else small_plan(tmp_path / "p.yaml")
    with pytest.raises(DatasetError, match="no voxel of spleen in any of the 4 training cases"):
        training_run.start(data, tmp_path / "m", TrainingRequest(wanted), CPU, NullObserver())
    assert not (tmp_path / "m" / "training" / "job.json").exists()


def test_an_organ_that_the_recipe_does_not_predict_may_be_absent(tmp_path: Path) -> None:
    data = described(tmp_path / "d", labels=WITH_SPLEEN)
    kidneys = tiny_recipe(together=True, iterations=2)
    stages = tuple(s.model_copy(update={"labels": ("left kidney", "right kidney")}) for s in kidneys.stages)
    path = tmp_path / "r.yaml"
    path.write_text(dump(kidneys.model_copy(update={"stages": stages})))
    training_run.start(data, tmp_path / "m", TrainingRequest(str(path)), CPU, NullObserver())
