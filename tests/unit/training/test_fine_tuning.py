"""Fine-tuning: shared weights are copied, label by label; new ones stay new; every mismatch is one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from helpers.tiny_dataset import CPU, SCHEMA, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.backends.torch_networks import build_network, state_dict
from zoomseg.core.errors import ModelError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.io import bundle
from zoomseg.recipe import graph
from zoomseg.recipe.load import dump
from zoomseg.recipe.spec import BoxAround, PriorInput, Recipe, ResidualFCN, UNet3D
from zoomseg.training import fine_tuning, loop, training_run
from zoomseg.training.log import NullObserver
from zoomseg.training.requested_recipe import TrainingRequest

MORE = LabelSchema(("Kidney (right)", "spleen", "left_kidney"), (1, 2, 3))
"""The kidneys in another order and spelling, and an additional organ."""


class Told(NullObserver):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def fitted(model: bundle.Bundle, schema: LabelSchema) -> Recipe:
    return graph.expand(graph.fit(fine_tuning.recipe_of(model), schema)[0], schema)


def network(recipe: Recipe, stage: int, schema: LabelSchema) -> torch.nn.Module:
    torch.manual_seed(99)
    return build_network(recipe.stages[stage], recipe, schema, 1)


def other_labels(root: Path) -> Dataset:
    """The tiny data set, with other names and values of its kidneys and an additional organ in one case."""
    tiny_dataset(root)
    file = root / "labelsTr" / "case_0.nii.gz"
    image = nib.load(file)  # type: ignore[attr-defined]
    values = np.asarray(image.dataobj).copy()
    values[:2, :2, :2] = 9
    nib.save(nib.Nifti1Image(values, image.affine), file)  # type: ignore[attr-defined, no-untyped-call]
    description = json.loads((root / "dataset.json").read_text())
    labels = {"background": 0, "Kidney (right)": 7, "spleen": 9, "left_kidney": 3}
    (root / "dataset.json").write_text(json.dumps(description | {"labels": labels}))
    return open_dataset(root)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("transfer"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    short = tiny_recipe(together=True, iterations=2)
    bundle.save(dataclasses.replace(untrained_bundle(), recipe=short), tmp_path / "old")
    return tmp_path / "old"


def test_with_the_same_labels_the_first_answer_is_the_old_models(data: Dataset, tmp_path: Path) -> None:
    old = untrained_bundle()
    recipe = fitted(old, data.schema)
    taken = fine_tuning.match("old", old, recipe, data.schema, 1)
    settings = loop.LoopSettings(CPU, seed=4, init=taken)
    run = loop._Run(data, loop.Split(data.ids, ()), recipe, tmp_path / "m", settings, NullObserver())
    group = run._group(0)
    before = {stage.name: build_network(stage, old.recipe, SCHEMA, 1) for stage in old.recipe.stages}
    for name, module in before.items():
        module.load_state_dict(state_dict(old, name))
    source = loop.PatchSource(recipe, group.stages, run._pack(group).train, run.schemas)
    batch = source.draw(2, np.random.default_rng(0))
    expected, found = group.forward(batch, before), group.forward(batch, group.modules)
    for name in ("coarse", "fine"):
        assert torch.equal(found[0][name], expected[0][name])
        assert torch.equal(found[1][name], expected[1][name])
        assert group.final_weights[name].keys() == old.weights[name].keys()
        assert all(np.array_equal(group.final_weights[name][k], v) for k, v in old.weights[name].items())


def test_rows_follow_their_labels_into_another_order_and_new_ones_stay_new() -> None:
    old = untrained_bundle()
    recipe = fitted(old, MORE)
    taken = fine_tuning.match("old", old, recipe, MORE, 1)
    module = network(recipe, 0, MORE)
    fresh = {k: v.clone() for k, v in module.state_dict().items()}
    taken.apply("coarse", module)
    for key, now in module.state_dict().items():
        was = torch.from_numpy(old.weights["coarse"][key])
        if not key.startswith("heads."):
            assert torch.equal(now, was)
            continue
        # Classes: background, right, spleen, left; they were background, left, right.
        assert torch.equal(now[[0, 1, 3]], was[[0, 2, 1]])
        assert torch.equal(now[2], fresh[key][2])
    assert taken.stages["coarse"].known == ("background", "Kidney (right)", "left_kidney")
    assert taken.stages["coarse"].new == ("spleen",)


def test_prior_channels_of_the_first_layers_follow_their_labels() -> None:
    old = untrained_bundle()
    recipe = fitted(old, MORE)
    module = network(recipe, 1, MORE)
    fresh = {k: v.clone() for k, v in module.state_dict().items()}
    fine_tuning.match("old", old, recipe, MORE, 1).apply("fine", module)
    state = module.state_dict()
    (key,) = [k for k in state if state[k].ndim == 5 and state[k].shape[1] == 4]  # image and three priors
    was = torch.from_numpy(old.weights["fine"][key])
    # Channels: image, right, spleen, left; they were image, left, right.
    assert torch.equal(state[key][:, [0, 1, 3]], was[:, [0, 2, 1]])
    assert torch.equal(state[key][:, 2], fresh[key][:, 2])


@pytest.mark.parametrize(
    "spec",
    [ResidualFCN(channels=(4, 6), strides=((1, 1, 1), (2, 2, 2))), UNet3D(channels=(4, 8))],
    ids=lambda spec: spec.kind,
)
def test_every_tensor_of_other_networks_is_shared_or_follows_the_labels(spec: UNet3D | ResidualFCN) -> None:
    """In all tensors that depend on the labels, the rows of common ones are the old ones: without the new
    label, only the old model remains."""
    base = tiny_recipe(together=True)
    recipe = base.model_copy(
        update={"stages": tuple(s.model_copy(update={"network": spec}) for s in base.stages)}
    )
    weights = {s.name: build_network(s, recipe, SCHEMA, 1).state_dict() for s in recipe.stages}
    old = bundle.Bundle(recipe, SCHEMA, ("CT",), weights, {})
    wider = LabelSchema(("left kidney", "spleen", "right kidney"), (1, 2, 3))
    module = network(fitted(old, wider), 0, wider)
    fine_tuning.match("old", old, fitted(old, wider), wider, 1).apply("coarse", module)
    for key, now in module.state_dict().items():
        was = torch.from_numpy(old.weights["coarse"][key])
        for axis in range(now.ndim):
            if now.shape[axis] != was.shape[axis]:
                now = now.index_select(axis, torch.tensor([0, 1, 3]))
        assert torch.equal(now, was), key


def test_a_wider_network_shares_nothing_and_nothing_at_all_is_an_error() -> None:
    old = untrained_bundle()
    wide = UNet3D(channels=(8, 16))
    coarse = old.recipe.stages[0].model_copy(update={"network": wide})
    mixed = old.recipe.model_copy(update={"stages": (coarse, old.recipe.stages[1])})
    taken = fine_tuning.match("old", old, mixed, SCHEMA, 1)
    assert taken.stages["coarse"].pieces == {}
    assert taken.stages["coarse"].summary("coarse") == "stage 'coarse': all 39 tensors are new"
    assert taken.stages["fine"].taken == taken.stages["fine"].tensors
    alone = mixed.model_copy(update={"stages": (coarse,), "train_together": ()})
    with pytest.raises(
        ModelError, match=r"model old \(stages coarse, fine\) has no layer of recipe 'tiny' .*-r"
    ):
        fine_tuning.match("old", old, alone, SCHEMA, 1)


def test_stages_that_knew_every_label_know_every_label_again() -> None:
    old = untrained_bundle()
    coarse, fine = old.recipe.stages
    names = SCHEMA.names
    fine = fine.model_copy(
        update={
            "labels": names,
            "roi": BoxAround(of="coarse", labels=names),
            "inputs": (fine.inputs[0], PriorInput(of="coarse", labels=names)),
        }
    )
    named = bundle.Bundle(
        old.recipe.model_copy(update={"stages": (coarse, fine)}), SCHEMA, ("CT",), old.weights, {}
    )
    new = fitted(named, MORE).stages[1]
    assert new.labels == "all"
    assert new.roi == BoxAround(of="coarse", labels=MORE.names)
    assert new.inputs[1] == PriorInput(of="coarse", labels=MORE.names)


def test_a_stage_of_some_labels_keeps_those_that_there_are() -> None:
    old = untrained_bundle()
    coarse, fine = old.recipe.stages
    schema = LabelSchema(("liver", *SCHEMA.names), (1, 2, 3), {"kidneys": SCHEMA.names})
    stages = (coarse, fine.model_copy(update={"labels": ("kidneys",)}))
    named = bundle.Bundle(old.recipe.model_copy(update={"stages": stages}), schema, ("CT",), old.weights, {})
    recipe, notes = graph.fit(fine_tuning.recipe_of(named), LabelSchema(("left kidney", "spleen"), (1, 2)))
    assert recipe.stages[1].labels == ("left kidney",)
    assert notes == ("stage 'fine': the data set has no right kidney; dropped",)


def test_fine_tuning_to_other_labels_from_start_to_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "convert", lambda *_: None)
    data, told = other_labels(tmp_path / "d"), Told()
    new = training_run.start(data, tmp_path / "m", TrainingRequest(init=model), CPU, told)
    rates = [stage.training.optimiser.lr for stage in new.recipe.stages]
    assert rates == pytest.approx([3e-4, 3e-4])
    assert new.recipe == bundle.load(tmp_path / "m").recipe
    assert [m for m in told.messages if m.startswith(("starting", "stage"))] == [
        f"starting from {model}; learning rates are a tenth of the recipe's",
        "stage 'coarse': 23 of 25 tensors are taken over, 2 in part; "
        "known: background, left_kidney, Kidney (right); new: spleen",
        "stage 'fine': 22 of 25 tensors are taken over, 3 in part; "
        "known: background, left_kidney, Kidney (right); new: spleen",
    ]
    assert new.provenance["init"] == {"model": "old", "recipe": "tiny", "tensors": 45}


@pytest.mark.parametrize("kill_at", [0, 2])
def test_resumed_fine_tuning_needs_the_model_no_more(
    data: Dataset, model: Path, tmp_path: Path, kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its first step, or within its first group: the next groups also start from the model."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(dump(tiny_recipe(together=False, iterations=4)))
    request = TrainingRequest(str(recipe), init=model)
    whole = training_run.start(data, tmp_path / "whole", request, CPU, NullObserver())
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 1)
    stop = threading.Event()

    class Killed(NullObserver):
        def preparing(self, stage: str, done: int, total: int) -> None:
            if kill_at == 0:
                stop.set()

        def row(self, row: loop.Row, remaining_seconds: float | None) -> None:
            if row.step == kill_at:
                stop.set()

    def start_and_stop(*arguments: object) -> bundle.Bundle:
        return loop._Run(*arguments).train(stop)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", start_and_stop)
        with pytest.raises(InterruptedTrainingError):
            training_run.start(data, tmp_path / "cut", request, CPU, Killed())
    model.rename(tmp_path / "elsewhere")
    resumed = training_run.resume(data, tmp_path / "cut", CPU, NullObserver())
    for name, state in whole.weights.items():
        assert all(np.array_equal(resumed.weights[name][key], value) for key, value in state.items())
    assert resumed.provenance["init"] == whole.provenance["init"]


def test_a_model_of_other_channels_and_what_is_no_model(data: Dataset, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model"):
        training_run.start(data, tmp_path / "m", TrainingRequest(init=tmp_path), CPU, NullObserver())
    for fold in (0, 1):
        shutil.copytree(model, tmp_path / "folds" / f"fold-{fold}")
    (tmp_path / "folds" / bundle.FOLDS).write_text("{}")
    with pytest.raises(
        ModelError, match=r"holds 2, one for each fold; give one of them, e\.g\. .*folds/fold-0"
    ):
        training_run.start(
            data, tmp_path / "m", TrainingRequest(init=tmp_path / "folds"), CPU, NullObserver()
        )
    old = untrained_bundle()
    double = bundle.Bundle(old.recipe, SCHEMA, ("T1", "T2"), old.weights, {})
    bundle.save(double, tmp_path / "two")
    with pytest.raises(ModelError, match=r"reads 2 channel\(s\) \(T1, T2\), data set 'tiny' has 1 \(CT\)"):
        training_run.start(data, tmp_path / "m", TrainingRequest(init=tmp_path / "two"), CPU, NullObserver())
    with pytest.raises(ModelError, match="has no layer of recipe 'default'"):
        training_run.start(data, tmp_path / "m", TrainingRequest("default", init=model), CPU, NullObserver())


@pytest.mark.parametrize("theirs", [("T2", "T1"), ("T2", "PET")])
def test_channels_in_another_order_are_refused(
    data: Dataset, model: Path, tmp_path: Path, theirs: tuple[str, str]
) -> None:
    old = untrained_bundle()
    bundle.save(bundle.Bundle(old.recipe, SCHEMA, theirs, old.weights, {}), tmp_path / "two")
    with pytest.raises(ModelError, match=r"has T1, T2: T. is in another place; number the channels as"):
        fine_tuning.load(tmp_path / "two", dataclasses.replace(data, channel_names=("T1", "T2")))
    same = dataclasses.replace(data, channel_names=theirs)
    assert fine_tuning.load(tmp_path / "two", same).channel_names == theirs


def test_other_names_of_channels_are_told_of(data: Dataset, model: Path, tmp_path: Path) -> None:
    told = Told()
    mr = dataclasses.replace(data, channel_names=("MR",))
    training_run.start(mr, tmp_path / "m", TrainingRequest(init=model, epochs=1), CPU, told)
    assert "channels MR are taken for the initial model's CT, in this order" in told.messages
    told.messages.clear()
    training_run.start(data, tmp_path / "n", TrainingRequest(init=model, epochs=1), CPU, told)
    assert not any(text.startswith("channels") for text in told.messages)


def test_an_included_model_is_known_by_its_name_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = TrainingRequest(init=Path(bundle.ABDOMEN_CT))
    monkeypatch.chdir(tmp_path)
    given = training_run.settings_given(request, {"init"})
    assert given == {"init": str((bundle.INCLUDED_MODELS / bundle.ABDOMEN_CT).resolve())}
    with pytest.raises(ModelError, match="no model folder at nowhere"):
        training_run.settings_given(TrainingRequest(init=Path("nowhere")), {"init"})


def test_a_copy_of_the_model_has_its_name(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert fine_tuning.kept(str(model), out) == model  # of an earlier version
    folder = fine_tuning.keep(bundle.load(model), model, out)
    assert folder == out / "init" / "old"
    assert fine_tuning.kept(str(model), out) == folder
    assert bundle.load(folder).recipe == bundle.load(model).recipe
