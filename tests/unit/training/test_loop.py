"""The training loop: it learns, is reproducible, survives a kill, and names problems."""

from __future__ import annotations

import csv
import errno
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny_dataset import CPU, retrained, tiny_case, tiny_dataset, tiny_recipe
from zoomseg.backends import onnx_graph
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError, OutputError, RecipeError, TrainingError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.datasets.layouts import Dataset
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.recipe.spec import SGD, Recipe, UNet3D
from zoomseg.training import loop
from zoomseg.training.data.preprocessing import Finished, PackedCases, Preprocessing
from zoomseg.training.log import LogRow, NullObserver
from zoomseg.training.loop import LoopSettings, Split
from zoomseg.training.stage_group import StageGroup

SPLIT = Split(("case_0", "case_1", "case_2"), ("case_3",))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


class Recorder(NullObserver):
    def __init__(self) -> None:
        self.rows: list[LogRow] = []
        self.messages: list[str] = []

    def row(self, row: LogRow, remaining_seconds: float | None) -> None:
        self.rows.append(row)

    def message(self, text: str) -> None:
        self.messages.append(text)


class StopAfter(Recorder):
    """Stops the run, like SIGTERM, after ``steps`` rows of training in its group ``group``."""

    def __init__(self, steps: int, stop: threading.Event, group: int = 0) -> None:
        super().__init__()
        self._steps, self._stop, self._group = steps, stop, group

    def row(self, row: LogRow, remaining_seconds: float | None) -> None:
        super().row(row, remaining_seconds)
        if row.group == self._group and row.step > self._steps:
            self._stop.set()


def weights(model: bundle.Bundle) -> dict[str, torch.Tensor]:
    return {f"{s}/{k}": v for s, state in model.weights.items() for k, v in state.items()}


def assert_same(one: bundle.Bundle, two: bundle.Bundle) -> None:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    assert [k for k in a if not np.array_equal(a[k], b[k])] == []


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
def test_learns_and_the_model_predicts(data: Dataset, tmp_path: Path, together: bool) -> None:
    recipe = tiny_recipe(together, iterations=80, lr=2e-2)
    watch = Recorder()
    model = loop.train(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU, seed=1), watch)
    image, truth = tiny_case(3)
    for source in (model, bundle.load(tmp_path / "m")):
        found = Predictor(source, CPU).predict(Case("x", image)).labels
        for c in (1, 2):
            a, b = found.data == c, truth.data == c
            assert 2 * int((a & b).sum()) / int(a.sum() + b.sum()) > 0.75
    assert {(r.split, r.stage) for r in watch.rows} == {
        (split, stage) for split in ("train", "validation") for stage in ("coarse", "fine")
    }
    assert not (tmp_path / "m" / "training" / "cache").exists()


class Listening(NullObserver):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.mark.parametrize(
    "error",
    [ModelError("stage 'fine' has no ONNX form"), ModuleNotFoundError("No module named 'onnx'")],
    ids=lambda error: type(error).__name__,
)
def test_a_model_that_cannot_be_converted_is_complete_and_told_of(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(folder: Path) -> None:
        raise error

    monkeypatch.setattr(onnx_graph, "write_graphs", failing)
    observer, recipe = Listening(), tiny_recipe(together=True, iterations=2)
    loop.train(data, SPLIT, recipe, tmp_path, LoopSettings(CPU), observer)
    model = bundle.load(tmp_path)
    assert model.provenance["complete"] is True
    assert model.graphs == {}
    note = f"note: not converted to ONNX, so the model predicts with torch alone ({error})"
    assert observer.messages == [note]


def test_same_seed_same_weights_other_seed_others(data: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(together=True, iterations=6)
    runs = [
        loop.train(data, SPLIT, recipe, tmp_path / str(n), LoopSettings(CPU, seed=seed), NullObserver())
        for n, seed in enumerate((5, 5, 6))
    ]
    assert_same(runs[0], runs[1])
    a, c = weights(runs[0]), weights(runs[2])
    assert any(not np.array_equal(a[k], c[k]) for k in a)


def in_groups(*groups: tuple[str, ...], iterations: int = 14) -> Recipe:
    return tiny_recipe(True, iterations).model_copy(update={"train_together": groups})


@pytest.mark.parametrize(
    ("recipe", "groups"),
    [
        (tiny_recipe(True, 14), 1),
        (tiny_recipe(False, 14), 2),
        (in_groups(("coarse",), ("coarse", "fine")), 2),
        (in_groups(("coarse", "fine"), ("coarse",)), 2),
    ],
    ids=["together", "apart", "coarse first", "coarse last"],
)
@pytest.mark.parametrize(("kill_at", "ema_decay"), [(1, 0.9), (11, 0.9), (11, 0.0)])
def test_resumed_run_equals_an_uninterrupted_one(
    data: Dataset,
    tmp_path: Path,
    recipe: Recipe,
    groups: int,
    kill_at: int,
    ema_decay: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = retrained(recipe, ema_decay=ema_decay)
    whole = loop.train(data, SPLIT, recipe, tmp_path / "whole", LoopSettings(CPU), NullObserver())
    stop = threading.Event()
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 1)
    run = loop._Run(data, SPLIT, recipe, tmp_path / "cut", LoopSettings(CPU), StopAfter(kill_at, stop))
    with pytest.raises(InterruptedTrainingError, match="continue with --resume"):
        run.train(stop)
    part = bundle.load(tmp_path / "cut")  # any checkpoint is a usable model
    Predictor(part, CPU).predict(Case("x", tiny_case(3)[0]))
    resumed = loop.train(
        data, SPLIT, recipe, tmp_path / "cut", LoopSettings(CPU, resume=True), NullObserver()
    )
    assert_same(whole, resumed)
    with (tmp_path / "cut" / "training" / "metrics.csv").open(newline="") as file:
        steps = [(r["group"], int(r["step"])) for r in csv.DictReader(file) if r["split"] == "train"]
    assert sorted(set(steps)) == [(str(u), s) for u in range(groups) for s in range(1, 15)]


def test_a_stage_in_two_groups_is_trained_further(data: Dataset, tmp_path: Path) -> None:
    """Where the second group learns nothing, it keeps the weights that the first one gave it."""
    first, last = ("coarse",), ("coarse", "fine")
    alone = in_groups(first, iterations=3)
    begun = loop.train(
        data,
        SPLIT,
        alone.model_copy(update={"stages": alone.stages[:1]}),
        tmp_path / "alone",
        LoopSettings(CPU),
        NullObserver(),
    )
    still = retrained(in_groups(first, last, iterations=3), optimiser=SGD(lr=1e-30, momentum=0.0))
    coarse = still.stages[0].model_copy(update={"training": alone.stages[0].training})
    both = still.model_copy(update={"stages": (coarse, still.stages[1])})
    watch = Recorder()
    model = loop.train(data, SPLIT, both, tmp_path / "both", LoopSettings(CPU), watch)
    for name, value in begun.weights["coarse"].items():
        np.testing.assert_array_equal(model.weights["coarse"][name], value)
    further = retrained(both, optimiser=alone.stages[0].training.optimiser)
    model = loop.train(data, SPLIT, further, tmp_path / "further", LoopSettings(CPU), NullObserver())
    head = "heads.0.weight"
    assert not np.array_equal(model.weights["coarse"][head], begun.weights["coarse"][head])
    shown = list(dict.fromkeys((row.group, row.stage) for row in watch.rows))
    assert shown == [(0, "coarse"), (1, "coarse"), (1, "fine")]


@pytest.mark.parametrize(
    "groups", [(("coarse",), ("coarse", "fine")), (("coarse", "fine"), ("coarse",))], ids=["first", "last"]
)
def test_training_resumes_in_the_second_group_of_a_stage(
    data: Dataset, tmp_path: Path, groups: tuple[tuple[str, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, stop = in_groups(*groups, iterations=4), threading.Event()
    whole = loop.train(data, SPLIT, recipe, tmp_path / "whole", LoopSettings(CPU), NullObserver())
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 1)
    run = loop._Run(data, SPLIT, recipe, tmp_path / "cut", LoopSettings(CPU), StopAfter(1, stop, group=1))
    with pytest.raises(InterruptedTrainingError):
        run.train(stop)
    watch = Recorder()
    resumed = loop.train(data, SPLIT, recipe, tmp_path / "cut", LoopSettings(CPU, resume=True), watch)
    assert_same(whole, resumed)
    assert {row.group for row in watch.rows} == {1}


def test_a_resumed_run_says_how_little_it_did(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, stop = tiny_recipe(together=True, iterations=3), threading.Event()
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 1)
    run = loop._Run(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU), StopAfter(1, stop))
    with pytest.raises(InterruptedTrainingError):
        run.train(stop)
    for begun, more in ((2, "1 more step"), (3, "0 more steps")):
        observer = Listening()
        loop.train(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU, resume=True), observer)
        told = [line for line in observer.messages if "resumed" in line]
        assert told == [f"stage 'fine': resumed at step {begun}, trained {more}"]


def out_of_fold_recipe(iterations: int) -> Recipe:
    return tiny_recipe(together=False, iterations=iterations).model_copy(update={"prior_from": "out_of_fold"})


def test_out_of_fold_priors_come_from_the_copy_that_did_not_see_the_case(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Split(("case_0", "case_1", "case_2"), ("case_3",))
    prepared: list[tuple[Sequence[str], Sequence[str], Finished]] = []
    packs = Preprocessing.packs

    def spy(
        self: Preprocessing,
        group: StageGroup,
        train: Sequence[str],
        validation: Sequence[str],
        finished: Finished,
        stop: threading.Event,
    ) -> PackedCases:
        prepared.append((train, validation, finished))
        return packs(self, group, train, validation, finished, stop)

    monkeypatch.setattr(Preprocessing, "packs", spy)
    run = loop._Run(data, split, out_of_fold_recipe(2), tmp_path / "m", LoopSettings(CPU), NullObserver())
    model = run.train(threading.Event())
    (all_cases, *_), (one, no_validation, _), (two, *_), (fine, validation, networks_for) = prepared
    assert all_cases == fine == split.train
    assert sorted((*one, *two)) == sorted(split.train)
    assert min(len(one), len(two)) == 1
    assert (no_validation, validation) == ((), split.validation)
    learned = [weight(run.copies[half]["coarse"]) for half in (0, 1)]
    assert not torch.equal(learned[0], learned[1])
    for case in split.train:
        assert torch.equal(weight(networks_for(case)["coarse"]), learned[1 if case in one else 0])
    whole = model.weights["coarse"]["heads.0.weight"]
    assert np.array_equal(weight(networks_for("case_3")["coarse"]), whole)
    plain = tiny_recipe(together=False, iterations=2)
    other = loop.train(data, split, plain, tmp_path / "plain", LoopSettings(CPU), NullObserver())
    assert np.array_equal(other.weights["coarse"]["heads.0.weight"], whole)


def weight(module: torch.nn.Module) -> torch.Tensor:
    return module.state_dict()["heads.0.weight"]


@pytest.mark.parametrize("kill_in", [2, 3])
def test_out_of_fold_training_resumes_in_any_part(
    data: Dataset, tmp_path: Path, kill_in: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, stop = out_of_fold_recipe(3), threading.Event()
    whole = loop.train(data, SPLIT, recipe, tmp_path / "whole", LoopSettings(CPU), NullObserver())
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 1)

    run = loop._Run(data, SPLIT, recipe, tmp_path / "cut", LoopSettings(CPU), StopAfter(1, stop, kill_in))
    with pytest.raises(InterruptedTrainingError):
        run.train(stop)
    part = bundle.load(tmp_path / "cut")
    assert sorted(part.weights) == (["coarse", "fine"] if kill_in == 3 else ["coarse"])
    watch = Recorder()
    resumed = loop.train(data, SPLIT, recipe, tmp_path / "cut", LoopSettings(CPU, resume=True), watch)
    assert_same(whole, resumed)
    names = ["coarse", "coarse-half-1", "coarse-half-2", "fine"]
    assert list(dict.fromkeys(row.stage for row in watch.rows)) == names[kill_in:]


def test_one_case_has_no_halves(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="out_of_fold needs 2 training cases or more, got 1"):
        loop.train(
            data,
            Split(("case_0",), ()),
            out_of_fold_recipe(1),
            tmp_path / "m",
            LoopSettings(CPU),
            NullObserver(),
        )


def test_finished_run_resumes_to_itself(data: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(together=False, iterations=3)
    first = loop.train(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU), NullObserver())
    again = loop.train(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU, resume=True), NullObserver())
    assert_same(first, again)


def test_a_finished_stage_is_not_prepared_again(data: Dataset, tmp_path: Path) -> None:
    """The run was stopped while the next one was prepared."""
    recipe, stop = tiny_recipe(together=False, iterations=3), threading.Event()
    whole = loop.train(data, SPLIT, recipe, tmp_path / "whole", LoopSettings(CPU), NullObserver())

    class Preparing(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.prepared: list[str] = []

        def preparing(self, stage: str, done: int, total: int) -> None:
            self.prepared.append(stage)

    class StopIn(Recorder):
        def preparing(self, stage: str, done: int, total: int) -> None:
            if stage == "fine":
                stop.set()

    run = loop._Run(data, SPLIT, recipe, tmp_path / "cut", LoopSettings(CPU), StopIn())
    with pytest.raises(InterruptedTrainingError, match="while preparing the data"):
        run.train(stop)
    (run.folder / "group-0.safetensors").unlink()  # stopped before it was written
    watch = Preparing()
    resumed = loop.train(data, SPLIT, recipe, tmp_path / "cut", LoopSettings(CPU, resume=True), watch)
    assert_same(whole, resumed)
    assert set(watch.prepared) == {"fine"}
    assert watch.messages == [
        "stage 'coarse': resumed at step 3, trained 0 more steps",
        "training 2 of 2: stage 'fine'",
    ]


def test_a_budget_shorter_than_what_was_spent_is_told_of(data: Dataset, tmp_path: Path) -> None:
    watch = Recorder()
    run = loop._Run(data, SPLIT, tiny_recipe(True), tmp_path / "m", LoopSettings(CPU, seconds=100.0), watch)
    group = run._group(0)
    group.step, group.elapsed, group.spent = 7, 40.0, 200.0
    run._set_length(group)
    assert group.length.seconds == 2.0
    assert group.progress == 1.0
    assert watch.messages == [
        "the time budget was used up before stage 'fine'; it gets 2 s, of which it had 40"
    ]


def test_resume_refuses_another_run(data: Dataset, tmp_path: Path) -> None:
    loop.train(data, SPLIT, tiny_recipe(True, 2), tmp_path / "m", LoopSettings(CPU), NullObserver())
    other = LoopSettings(CPU, seed=9, resume=True)
    with pytest.raises(TrainingError, match="another recipe, seed, choice of cases or teachers"):
        loop.train(data, SPLIT, tiny_recipe(True, 2), tmp_path / "m", other, NullObserver())


def test_a_checkpoint_is_recognised_by_the_recipe_as_it_was_recorded(data: Dataset, tmp_path: Path) -> None:
    """Also if an earlier version recorded it, which knew fewer keys."""
    recipe = tiny_recipe(True, 2)
    earlier = recipe.model_dump(mode="json", exclude={"description"})
    loop.train(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU, recorded=earlier), NullObserver())
    loop.train(
        data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU, resume=True, recorded=earlier), NullObserver()
    )
    with pytest.raises(TrainingError, match="another recipe"):
        loop.train(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU, resume=True), NullObserver())


def test_loss_that_is_not_finite_names_the_cases_and_gives_up(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> torch.Tensor:
        return torch.tensor(float("nan"), requires_grad=True)

    monkeypatch.setattr("zoomseg.training.stage_group.loss.compute", broken)
    watch = Recorder()
    with pytest.raises(TrainingError, match=r"10 steps in a row without a finite loss.*case_\d"):
        loop.train(data, SPLIT, tiny_recipe(True), tmp_path / "m", LoopSettings(CPU), watch)
    assert len(watch.messages) == 10
    assert "step skipped" in watch.messages[0]
    assert "case_" in watch.messages[0]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_single_bad_step_changes_no_weight(data: Dataset, tmp_path: Path, batch_norm: bool) -> None:
    """Nor the statistics of batch norms, which the forward pass has already changed."""
    recipe = tiny_recipe(together=True)
    if batch_norm:
        stages = tuple(s.model_copy(update={"network": UNet3D(channels=(8, 16))}) for s in recipe.stages)
        recipe = recipe.model_copy(update={"stages": stages})
    run = loop._Run(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU), NullObserver())
    group = run._group(0)
    source = loop.PatchSource(recipe, group.stages, run._pack(group).train, run.schemas)
    batch = source.draw(1, np.random.default_rng(0))
    batch.stages["fine"].image_BCIJK[0, 0, 0, 0, 0] = float("inf")
    before = {k: v.clone() for k, v in group.modules["fine"].state_dict().items()}
    assert any("running_mean" in key for key in before) == batch_norm
    assert group.train_step(batch, {}, measure=False) is None
    after = group.modules["fine"].state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert group.train_step(source.draw(1, np.random.default_rng(0)), {}, measure=False) is not None
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_a_model_without_its_last_stage_can_be_used(data: Dataset, tmp_path: Path) -> None:
    """Its only stage would not be written to the label map if the next one were there."""
    recipe = tiny_recipe(together=False)
    coarse, fine = recipe.stages
    recipe = recipe.model_copy(update={"stages": (coarse.model_copy(update={"fusion": "none"}), fine)})
    run = loop._Run(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU), NullObserver())
    first = run._group(0)
    run._save_model(first)
    (stage,) = bundle.load(tmp_path / "m").recipe.stages
    assert (stage.name, stage.fusion) == ("coarse", "replace_in_roi")
    run.finished |= first.modules
    run._save_model(run._group(1))
    assert [one.fusion for one in bundle.load(tmp_path / "m").recipe.stages] == ["none", fine.fusion]


def test_time_budget_is_kept_and_the_schedule_ends(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that advances at every query, so that a busy machine causes no delay."""
    clock = itertools.count(0.0, 0.04)
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 1)
    watch = Recorder()
    settings = LoopSettings(CPU, seconds=4.0)
    split = Split(("case_0", "case_1"), ())
    model = loop.train(data, split, tiny_recipe(together=False), tmp_path / "m", settings, watch)
    seconds = model.provenance["seconds"]
    assert isinstance(seconds, float)
    assert 3.5 < seconds < 4.8  # plus the last step, validation and checkpoint
    for stage in ("coarse", "fine"):
        last = [r for r in watch.rows if r.stage == stage and r.split == "train"][-1]
        assert last.progress > 0.9
        assert last.learning_rate < 3e-3 * 0.1
        assert 1.5 < last.seconds < 2.2  # equal shares


def test_budget_used_up_by_preparation_is_an_error(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"used up by preparing the data, which took \d+\.\d s of the 0\.0 s"
    ):
        loop.train(
            data, SPLIT, tiny_recipe(True), tmp_path / "m", LoopSettings(CPU, seconds=1e-3), NullObserver()
        )


def test_patch_that_does_not_suit_the_network_is_named(data: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(True)
    fine = recipe.stages[1]
    bad = fine.model_copy(update={"training": fine.training.model_copy(update={"patch": (15, 16, 12)})})
    recipe = recipe.model_copy(update={"stages": (recipe.stages[0], bad)})
    with pytest.raises(RecipeError, match=r"stage 'fine', training.patch: .*15 \(nearest: 14 or 16\)"):
        loop.train(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU), NullObserver())


def test_no_training_cases(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training cases"):
        loop.train(data, Split((), ()), tiny_recipe(True), tmp_path / "m", LoopSettings(CPU), NullObserver())


def test_stopping_while_preparing_does_not_wait_for_the_other_cases(data: Dataset, tmp_path: Path) -> None:
    stop = threading.Event()

    class StopAtOnce(Recorder):
        def preparing(self, stage: str, done: int, total: int) -> None:
            self.messages.append(f"{done} of {total}")
            stop.set()

    watch = StopAtOnce()
    run = loop._Run(data, SPLIT, tiny_recipe(True, 2), tmp_path / "m", LoopSettings(CPU), watch)
    with pytest.raises(InterruptedTrainingError, match="while preparing the data; continue with --resume"):
        run.train(stop)
    assert watch.messages == ["0 of 4"]
    model = loop.train(
        data, SPLIT, tiny_recipe(True, 2), tmp_path / "m", LoopSettings(CPU, resume=True), NullObserver()
    )
    assert model.provenance["complete"] is True


def test_a_full_disk_ends_training_and_a_resumed_one_goes_on(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(together=False, iterations=2)
    whole = loop.train(data, SPLIT, recipe, tmp_path / "whole", LoopSettings(CPU), NullObserver())
    write = Path.write_bytes

    def full(file: Path, content: bytes) -> int:
        if "checkpoint.safetensors" in file.name:
            write(file, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left on device"):
            loop.train(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU), NullObserver())
    left = [p.name for p in (tmp_path / "m").rglob("*") if p.is_file() and "cache" not in p.parts]
    assert not any("safetensors" in name for name in left)
    assert_same(
        whole, loop.train(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU, resume=True), NullObserver())
    )


def test_an_epoch_is_as_long_as_each_stage_says(data: Dataset, tmp_path: Path) -> None:
    coarse, fine = tiny_recipe(together=False).stages
    longer = fine.training.model_copy(update={"steps_per_epoch": 7})
    recipe = tiny_recipe(together=False).model_copy(
        update={"stages": (coarse, fine.model_copy(update={"training": longer}))}
    )
    run = loop._Run(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU, epochs=3), NullObserver())
    assert run._group(0).length.steps == 15
    assert run._group(1).length.steps == 21
