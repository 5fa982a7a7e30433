"""Trainings are done once, in the same way for every row, and a folder contains a single study."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.atlas.library import AtlasLibrary
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import DatasetError, RecipeError, TrainingError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.volume import Volume
from zoomseg.datasets.layouts import Dataset
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.io.scans import write_image
from zoomseg.recipe import graph
from zoomseg.recipe.load import dump, load
from zoomseg.recipe.spec import ATLAS, AtlasInput, AtlasSpec, ImageInput, Recipe, Stage
from zoomseg.study.ablations import Ablation, StudyTraining, TableRow
from zoomseg.study.recipe_edits import chain, narrower, on_stages, only, overlap, unchanged, without_atlas
from zoomseg.study.trainings import StudySettings, Trainings, chosen_folds, named_alike, open_trainings
from zoomseg.training import loop, requested_recipe, self_training, training_run

COARSE = StudyTraining("coarse", only("coarse"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("trainings"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(dump(tiny_recipe(together=True, iterations=2)))
    return Ablation("tiny", str(path), "nowhere", (TableRow("coarse", COARSE),), baseline="coarse", folds=2)


DEFAULT = StudySettings()


def opened(study: Ablation, data: Dataset, out: Path, settings: StudySettings = DEFAULT) -> Trainings:
    return open_trainings(study, data, out, settings, CPU)


@pytest.mark.parametrize(
    ("settings", "pooled", "expected"),
    [
        (StudySettings(), False, (5, (0,))),
        (StudySettings(), True, (5, (0, 1, 2, 3, 4))),
        (StudySettings(folds=3), False, (3, (0, 1, 2))),
        (StudySettings(folds=3, fold=2), False, (3, (2,))),
        (StudySettings(fold=4), True, (5, (4,))),
    ],
)
def test_folds(
    study: Ablation, settings: StudySettings, pooled: bool, expected: tuple[int, tuple[int, ...]]
) -> None:
    assert chosen_folds(replace(study, folds=5, pooled=pooled), settings) == expected


def test_the_folds_of_a_split_file(study: Ablation) -> None:
    assert chosen_folds(study, StudySettings(), 3) == (3, (0, 1, 2))
    assert chosen_folds(study, StudySettings(fold=2), 3) == (3, (2,))
    with pytest.raises(DatasetError, match="; omit --folds"):
        chosen_folds(study, StudySettings(folds=2), 3)


def test_the_cases_of_a_split_file_are_trained_and_held_back(
    study: Ablation, data: Dataset, tmp_path: Path
) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["case_3"], "validation": ["case_1"], "test": ["case_0"]}))
    opened_ = opened(study, data, tmp_path / "out", StudySettings(split=file))
    assert opened_.unseen is not None
    assert opened_.unseen.ids == ("case_0",)
    model = opened_.model(COARSE, 0)
    assert model.provenance["training_cases"] == ["case_3"]
    assert model.provenance["validation_cases"] == ["case_1"]
    file.write_text(json.dumps({"train": ["case_2"], "validation": ["case_1"]}))
    with pytest.raises(TrainingError, match="holds a study with splits"):
        opened(study, data, tmp_path / "out", StudySettings(split=file))


def test_two_test_sets_are_refused(study: Ablation, data: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["case_3"], "validation": ["case_1"], "test": ["case_0"]}))
    with pytest.raises(DatasetError, match="the split file has a test list; omit it or --test"):
        opened(study, data, tmp_path / "out", StudySettings(split=file, test=tmp_path / "other"))


def test_a_test_set_s_labels_are_called_as_the_data_set_s(data: Dataset) -> None:
    schema = LabelSchema(("RK", "spleen", "LK"), (1, 2, 5))
    cases = (
        replace(data.cases[0], annotated=frozenset(["RK", "spleen"])),
        replace(data.cases[1], labels=None),
    )
    found = named_alike(replace(data, schema=schema, cases=cases), data)
    assert found.schema == LabelSchema(("right kidney", "spleen", "left kidney"), (1, 2, 5))
    assert found.ids == ("case_0",)
    assert found.cases[0].annotated == frozenset(["right kidney", "spleen"])


def test_of_two_labels_that_mean_the_same_neither_is_renamed(data: Dataset) -> None:
    schema = LabelSchema(("RK", "kidney_right", "LK"), (1, 2, 5))
    found = named_alike(replace(data, schema=schema, cases=data.cases[:1]), data)
    assert found.schema == LabelSchema(("RK", "kidney_right", "left kidney"), (1, 2, 5))


def test_test_sets_that_cannot_be_scored_are_refused(study: Ablation, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none is in both"):
        named_alike(replace(data, schema=LabelSchema(("liver", "spleen"), (3, 7))), data)
    with pytest.raises(DatasetError, match="has no labelled case"):
        named_alike(replace(data, cases=()), data)
    with pytest.raises(DatasetError, match="has channels T1, T2, the data set has CT"):
        named_alike(replace(data, channel_names=("T1", "T2")), data)
    with pytest.raises(DatasetError, match="is the data set that is trained on"):
        opened(study, data, tmp_path / "out", StudySettings(test=data.root))


def test_small_organs_and_atlases_change_the_recipe(study: Ablation, data: Dataset, tmp_path: Path) -> None:
    per_label = on_stages(lambda s: s.model_copy(update={"labels": "all", "per_label": True}), "fine")
    file = tmp_path / "other.yaml"
    file.write_text(dump(per_label(tiny_recipe(together=False)).model_copy(update={"atlas": AtlasSpec()})))
    settings = StudySettings(recipe=str(file), small=("RK",), atlases=4)
    found = opened(study, data, tmp_path / "out", settings)
    assert [s.labels for s in found.recipe.stages] == ["all", ("right kidney",)]
    assert found.recipe.atlas == AtlasSpec(number=4)
    assert found.small == ("right kidney",)
    with pytest.raises(DatasetError, match="data set 'tiny' has no liver; it has left kidney, right kidney"):
        opened(study, data, tmp_path / "other", StudySettings(recipe=str(file), small=("liver",)))
    with pytest.raises(RecipeError, match="has no stage per label"):
        opened(study, data, tmp_path / "other", StudySettings(small=("RK",)))
    with pytest.raises(RecipeError, match="has no atlas prior"):
        opened(study, data, tmp_path / "other", StudySettings(atlases=4))


def test_a_recipe_of_the_user_s_from_which_a_row_cannot_be_made_is_refused_at_once(
    study: Ablation, data: Dataset, tmp_path: Path
) -> None:
    """Without a trace in the folder, so that the corrected recipe can be used there. A row with a recipe of
    its own is not made from it."""
    file, own = tmp_path / "mine.yaml", tmp_path / "own.yaml"
    recipe = tiny_recipe(together=True)
    own.write_text(dump(recipe))
    rows = (
        TableRow("own", StudyTraining("own", only("nowhere"), recipe=str(own))),
        TableRow("all", StudyTraining("all"), overlap("fine", 0.0)),
    )
    mine, settings = replace(study, rows=rows), StudySettings(recipe=str(file))
    file.write_text(dump(graph.renamed(recipe, {"coarse": "first", "fine": "second"})))
    of_row = "row 'all' of study 'tiny': "
    with pytest.raises(RecipeError, match=of_row + "recipe 'tiny' has no stage 'fine'; allowed: first"):
        opened(mine, data, tmp_path / "out", settings)
    odd = on_stages(lambda s: s.model_copy(update={"grid": s.grid.model_copy(update={"tile": (13, 12, 12)})}))
    file.write_text(dump(odd(recipe)))
    with pytest.raises(RecipeError, match=of_row + r"stage 'coarse', grid\.tile: .*nearest: 12 or 14"):
        opened(mine, data, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    file.write_text(dump(recipe))
    opened(mine, data, tmp_path / "out", settings)


def test_a_fold_that_does_not_exist(study: Ablation) -> None:
    with pytest.raises(DatasetError, match="fold must be 0 to 1, got 2"):
        chosen_folds(study, StudySettings(fold=2))


def test_a_training_is_a_job_of_the_changed_recipe_and_done_once(
    study: Ablation, data: Dataset, tmp_path: Path
) -> None:
    trainings = opened(study, data, tmp_path, StudySettings(coarser=2, narrower=2, seed=3))
    model = trainings.model(COARSE, 0)
    (stage,) = model.recipe.stages
    assert (stage.name, stage.grid.mm, stage.network.channels) == ("coarse", (8, 8, 8), (4, 8))  # type: ignore[union-attr]
    split = trainings.split(0)
    assert model.provenance["training_cases"] == list(split.train)
    assert model.provenance["validation_cases"] == list(split.validation)
    assert split == requested_recipe.choose_split(
        data, requested_recipe.TrainingRequest(folds=2, fold=0, seed=3)
    )
    folder = tmp_path / "runs" / "coarse" / "fold-0"
    record = json.loads((folder / "training" / "job.json").read_text())
    assert (record["seed"], record["seconds"]) == (3, None)
    assert load(tmp_path / "runs" / "coarse" / "recipe.yaml").name == "tiny-coarse"
    before = (folder / "model.json").stat().st_mtime_ns
    again = opened(study, data, tmp_path, StudySettings(coarser=2, narrower=2, seed=3)).model(COARSE, 0)
    assert (folder / "model.json").stat().st_mtime_ns == before
    assert again.recipe == model.recipe


def test_a_training_that_was_begun_is_resumed(
    study: Ablation, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = opened(study, data, tmp_path)
    calls: list[str] = []
    real = training_run.start

    def stopped(*arguments: object) -> Bundle:
        folder = tmp_path / "runs" / "coarse" / "fold-1"
        (folder / "training").mkdir(parents=True)
        (folder / "training" / "job.json").write_text("{}")
        raise InterruptedTrainingError("stopped at step 1")

    def resumed(dataset: Dataset, out: Path, *arguments: object) -> Bundle:
        calls.append(f"resumed {out.name}")
        return real(
            dataset, tmp_path / "elsewhere", requested_recipe.TrainingRequest(study.recipe or ""), *arguments
        )  # type: ignore[arg-type]

    monkeypatch.setattr(training_run, "start", stopped)
    with pytest.raises(InterruptedTrainingError, match="the same command resumes from here"):
        trainings.model(COARSE, 1)
    monkeypatch.setattr(training_run, "resume", resumed)
    trainings.model(COARSE, 1)
    assert calls == ["resumed fold-1"]


def test_a_model_that_was_damaged_after_its_training_is_made_again(
    study: Ablation, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the checkpoint, as ``zoomseg train`` does."""
    trainings = opened(study, data, tmp_path)
    before = trainings.model(COARSE, 0)
    folder = trainings.folder(COARSE.id, 0)
    weights = next((folder / "weights").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    monkeypatch.setattr(training_run, "start", None)
    again = trainings.model(COARSE, 0)
    assert again.provenance["complete"] is True
    assert again.recipe == before.recipe
    for name, tensor in before.weights["coarse"].items():
        np.testing.assert_array_equal(again.weights["coarse"][name], tensor)
    assert bundle.load(folder).provenance["complete"] is True


def test_a_model_whose_conversion_was_stopped_is_converted(
    study: Ablation, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = opened(study, data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "convert", lambda *of: None)
        trainings.model(COARSE, 0)
    folder = trainings.folder(COARSE.id, 0)
    assert not bundle.load(folder).graphs
    trainings.model(COARSE, 0)
    assert set(bundle.load(folder).graphs) == {"coarse"}


def test_a_training_with_a_recipe_of_its_own_keeps_it(study: Ablation, data: Dataset, tmp_path: Path) -> None:
    """It is reduced like the study's, which ``settings`` replace."""
    own, others = tmp_path / "own.yaml", tmp_path / "others.yaml"
    own.write_text(dump(tiny_recipe(together=False).model_copy(update={"name": "own"})))
    others.write_text(dump(tiny_recipe(together=True).model_copy(update={"name": "others"})))
    of_own = StudyTraining("of-own", recipe=str(own))
    rows = (*study.rows, TableRow("own", of_own))
    settings = StudySettings(recipe=str(others), coarser=2, narrower=2)
    trainings = opened(replace(study, rows=rows), data, tmp_path / "out", settings)
    assert (trainings.start(COARSE).name, trainings.start(of_own).name) == ("others", "own")
    for training in (COARSE, of_own):
        coarse = trainings.start(training).stages[0]
        assert (coarse.grid.mm, coarse.network.channels) == ((8, 8, 8), (4, 8))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (StudySettings(seconds=60), "time budget in seconds null, this one has 60"),
        (StudySettings(seed=1), "seed 0, this one has 1"),
        (StudySettings(coarser=2), "coarser 1.0, this one has 2"),
        (StudySettings(folds=4), "folds 2, this one has 4"),
    ],
)
def test_a_folder_holds_one_study(
    study: Ablation, data: Dataset, tmp_path: Path, other: StudySettings, what: str
) -> None:
    opened(study, data, tmp_path)
    with pytest.raises(TrainingError, match=what):
        opened(study, data, tmp_path, other)
    opened(study, data, tmp_path, StudySettings(fold=1))  # one fold of the same study


def test_other_data_are_another_study(study: Ablation, data: Dataset, tmp_path: Path) -> None:
    opened(study, data, tmp_path)
    with pytest.raises(TrainingError, match="cases"):
        opened(study, data.subset(["case_0", "case_1", "case_2"]), tmp_path)


def test_a_recipe_or_model_that_has_changed_is_another_study(
    study: Ablation, data: Dataset, tmp_path: Path
) -> None:
    """Trainings that are still to come would read the new one."""
    file, out = tmp_path / "mine.yaml", tmp_path / "of-recipe"
    recipe = tiny_recipe(together=True)
    file.write_text(dump(recipe))
    settings = StudySettings(recipe=str(file))
    opened(study, data, out, settings)
    moved = tmp_path / "moved.yaml"
    file.rename(moved)
    opened(study, data, out, StudySettings(recipe=str(moved)))
    file.write_text(dump(overlap("fine", 0.0)(recipe)))
    with pytest.raises(TrainingError, match='a study with recipe "tiny", which has changed since then; give'):
        opened(study, data, out, settings)
    model, out = tmp_path / "model", tmp_path / "of-model"
    bundle.save(untrained_bundle(), model)
    opened(replace(study, recipe=None), data, out, StudySettings(init=model))
    opened(replace(study, recipe=None), data, out, StudySettings(init=model))
    bundle.save(untrained_bundle(seed=1), model)
    with pytest.raises(TrainingError, match=r"a study with init .*, this one has .*; give the same options"):
        opened(replace(study, recipe=None), data, out, StudySettings(init=model))


def test_the_splits_of_a_file_may_be_trained_one_by_one_with_a_test_list_each(
    study: Ablation, data: Dataset, tmp_path: Path
) -> None:
    file = tmp_path / "split.json"
    splits = [
        {"train": ["case_0"], "validation": ["case_1"], "test": ["case_2"]},
        {"train": ["case_1"], "validation": ["case_0"], "test": ["case_3"]},
    ]
    file.write_text(json.dumps(splits))
    unseen = opened(study, data, tmp_path / "out", StudySettings(split=file, fold=1)).unseen
    assert unseen is not None
    assert unseen.ids == ("case_3",)
    unseen = opened(study, data, tmp_path / "out", StudySettings(split=file)).unseen
    assert unseen is not None
    assert unseen.ids == ("case_2",)
    file.write_text(json.dumps([splits[0], splits[1] | {"test": ["case_2"]}]))
    with pytest.raises(TrainingError, match="holds a study with splits"):
        opened(study, data, tmp_path / "out", StudySettings(split=file))


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_record_is_named(study: Ablation, data: Dataset, tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(TrainingError, match=r"study\.json is damaged"):
        opened(study, data, tmp_path)


def test_init_is_for_fine_tuning_and_needed_there(study: Ablation, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="does not start from a model; omit --init"):
        opened(study, data, tmp_path, StudySettings(init=tmp_path))
    fine_tuning = replace(study, recipe=None)
    with pytest.raises(TrainingError, match="give it with --init MODEL"):
        opened(fine_tuning, data, tmp_path)
    with pytest.raises(TrainingError, match="omit --coarser and --narrower"):
        opened(fine_tuning, data, tmp_path, StudySettings(init=tmp_path, coarser=2))
    assert not (tmp_path / "study.json").exists()


# --- scans without labels -------------------------------------------------------------------------

SELF_TAUGHT = StudyTraining("unlabelled", unlabelled=True)
DRAWN = StudyTraining("all-labelled", own_labels=True)


@pytest.fixture
def with_unlabelled(study: Ablation) -> Ablation:
    rows = (
        TableRow("alone", StudyTraining("labelled")),
        TableRow("both", SELF_TAUGHT),
        TableRow("all", DRAWN),
    )
    return replace(study, rows=rows, baseline="alone")


def scans_of(data: Dataset, folder: Path, *ids: str) -> Path:
    folder.mkdir()
    for id_ in ids:
        shutil.copy(data.subset([id_]).cases[0].images[0], folder)
    return folder


def of_split(tmp_path: Path, train: list[str], validation: str, test: list[str] | None = None) -> Path:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": train, "validation": [validation], "test": test or []}))
    return file


@pytest.mark.slow
def test_cases_that_a_split_leaves_out_are_labelled_by_models_or_as_they_are(
    with_unlabelled: Ablation, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first round is trained on the split's cases only; killed during labelling, the study is resumed."""
    monkeypatch.setattr(self_training, "MIN_CONFIDENCE", 0.0)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(dump(tiny_recipe(together=True, iterations=40)))
    split = of_split(tmp_path, ["case_0", "case_1"], "case_2")
    settings = StudySettings(
        split=split, unlabelled=scans_of(data, tmp_path / "u", "case_3"), recipe=str(recipe)
    )
    trainings = opened(with_unlabelled, data, tmp_path / "out", settings)
    assert isinstance(trainings.study, Ablation)
    assert [row.name for row in trainings.study.rows] == ["alone", "both", "all"]
    folder = tmp_path / "out" / "runs" / "unlabelled" / "fold-0"

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(self_training.SelfTraining, "label", killed)
        with pytest.raises(KeyboardInterrupt):
            trainings.model(SELF_TAUGHT, 0)
    teachers = [bundle.load(folder / "teachers" / f"fold-{n}") for n in range(2)]
    assert [t.provenance["training_cases"] for t in teachers] != [["case_0", "case_1"]] * 2
    assert {str(i) for t in teachers for i in t.provenance["training_cases"]} == {"case_0", "case_1"}  # type: ignore[union-attr]
    first = (folder / "teachers" / "fold-0" / "model.json").stat().st_mtime_ns
    model = opened(with_unlabelled, data, tmp_path / "out", settings).model(SELF_TAUGHT, 0)
    assert (folder / "teachers" / "fold-0" / "model.json").stat().st_mtime_ns == first
    assert model.provenance["training_cases"] == ["case_0", "case_1", "case_3"]
    assert model.provenance["pseudo_labelled_cases"] == ["case_3"]
    assert model.provenance["validation_cases"] == ["case_2"]
    drawn = trainings.model(DRAWN, 0)
    assert drawn.provenance["training_cases"] == ["case_0", "case_1", "case_3"]
    assert drawn.provenance["validation_cases"] == ["case_2"]
    assert not drawn.provenance.get("pseudo_labelled_cases")


def test_scans_of_nobody_s_labels_have_no_row_with_their_labels(
    with_unlabelled: Ablation, data: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "u"
    folder.mkdir()
    write_image(folder / "new.nii.gz", tiny_case(10)[0])
    for name, split in (("drawn", None), ("split", of_split(tmp_path, ["case_0", "case_1"], "case_2"))):
        found = opened(
            with_unlabelled, data, tmp_path / name, StudySettings(split=split, unlabelled=folder)
        ).study
        assert isinstance(found, Ablation)
        assert [row.name for row in found.rows] == ["alone", "both"]


def test_a_scan_added_to_the_unlabelled_ones_makes_another_study(
    with_unlabelled: Ablation, data: Dataset, tmp_path: Path
) -> None:
    folder, out = tmp_path / "u", tmp_path / "out"
    folder.mkdir()
    for name in ("one", "two"):
        write_image(folder / f"{name}.nii.gz", tiny_case(10)[0])
        if name == "one":
            opened(with_unlabelled, data, out, StudySettings(unlabelled=folder))
    with pytest.raises(TrainingError, match=r'unlabelled scans \["one"\], this one has \["one", "two"\]'):
        opened(with_unlabelled, data, out, StudySettings(unlabelled=folder))


def test_unlabelled_scans_are_needed_refused_and_of_no_case_that_is_used(
    study: Ablation, with_unlabelled: Ablation, data: Dataset, tmp_path: Path
) -> None:
    folder, out = scans_of(data, tmp_path / "u", "case_3"), tmp_path / "out"
    with pytest.raises(TrainingError, match="give them with --unlabelled FOLDER"):
        opened(with_unlabelled, data, out)
    with pytest.raises(TrainingError, match="labelled scans only; omit --unlabelled"):
        opened(study, data, out, StudySettings(unlabelled=folder))
    named = "'case_3' has the name of a case"
    with pytest.raises(DatasetError, match=named):
        opened(with_unlabelled, data, out, StudySettings(unlabelled=folder))
    tested = of_split(tmp_path, ["case_0", "case_1"], "case_2", ["case_3"])
    with pytest.raises(DatasetError, match=named):
        opened(with_unlabelled, data, out, StudySettings(unlabelled=folder, split=tested))
    assert not out.exists()


def test_unlabelled_scans_are_none_of_the_test_set_s(
    with_unlabelled: Ablation, data: Dataset, tmp_path: Path
) -> None:
    """With the same name as there, or as the same file with another name."""
    unseen = tiny_dataset(tmp_path / "unseen", cases=2)
    for n in range(2):
        for folder in ("imagesTr", "labelsTr"):
            for file in (unseen.root / folder).glob(f"case_{n}*"):
                file.rename(file.with_name(file.name.replace("case", "other")))
    for name, named in (
        ("other_1", "'other_1' has the name of a case"),
        ("x", "'x' is the file of case 'other_1'"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.nii.gz").symlink_to(unseen.root / "imagesTr" / "other_1_0000.nii.gz")
        settings = StudySettings(unlabelled=folder, test=unseen.root)
        with pytest.raises(DatasetError, match=named):
            opened(with_unlabelled, data, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_rows_that_change_no_stage_may_have_a_recipe_that_is_planned(
    study: Ablation, data: Dataset, tmp_path: Path
) -> None:
    """It is planned once, from the training cases, and reduced like any other recipe."""
    plain = replace(study, rows=(TableRow("as it is", StudyTraining("plain")),))
    settings = StudySettings(recipe="default", narrower=2, split=of_split(tmp_path, ["case_0"], "case_2"))
    found = opened(plain, data, tmp_path / "out", settings)
    written = load(tmp_path / "out" / "recipe.yaml")
    assert isinstance(written, Recipe)
    assert found.recipe == narrower(2)(written)
    assert "1 case" in (tmp_path / "out" / "plan.md").read_text()
    before = (tmp_path / "out" / "recipe.yaml").stat().st_mtime_ns
    assert opened(plain, data, tmp_path / "out", settings).recipe == found.recipe
    assert (tmp_path / "out" / "recipe.yaml").stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match="has no numbers of its own"):
        opened(study, data, tmp_path / "other", settings)


# --- atlas priors, and the training's clock -------------------------------------------------------


class StartedError(Exception):
    """Raised instead of a training."""


@pytest.fixture
def with_atlas(tmp_path: Path, data: Dataset) -> Trainings:
    """The coarse stage also reads the atlas prior."""

    def seen(stage: Stage) -> Stage:
        return stage.model_copy(update={"inputs": (*stage.inputs, AtlasInput(labels=SCHEMA.names))})

    recipe = on_stages(seen, "coarse")(tiny_recipe(together=True, iterations=2))
    path = tmp_path / "atlas.yaml"
    path.write_text(dump(recipe.model_copy(update={"atlas": AtlasSpec()})))
    return opened(Ablation("tiny", str(path), "", (), baseline="", folds=2), data, tmp_path / "out")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recorded events in order: the prior of each case, the collection, the start of the training."""
    calls: list[str] = []
    build = AtlasLibrary.build

    def collected(*arguments: object) -> AtlasLibrary:
        calls.append("collected")
        return build(*arguments)  # type: ignore[arg-type]

    def prior(self: AtlasLibrary, image: Volume, *, exclude: str, **_: object) -> StagePrediction:
        calls.append(exclude)
        maps = torch.ones(3, *image.grid.shape) / 3
        return StagePrediction(maps, image.grid, self.schema.names, Region.whole(image.grid), ATLAS)

    def start(dataset: Dataset, out: Path, request: requested_recipe.TrainingRequest, *_: object) -> Bundle:
        calls.append("started")
        raise StartedError(str(request.registered))

    monkeypatch.setattr(AtlasLibrary, "build", collected)
    monkeypatch.setattr(AtlasLibrary, "prior", prior)
    monkeypatch.setattr(training_run, "start", start)
    return calls


def test_priors_are_made_before_the_clock_of_a_training_starts(
    with_atlas: Trainings, done: list[str]
) -> None:
    """The priors of all cases are stored where the training expects them; a second training of the fold reads
    no case again."""
    split = with_atlas.split(0)
    priors = [*split.train, *split.validation]
    with pytest.raises(StartedError, match=str(with_atlas.registered)):
        with_atlas.model(StudyTraining("full"), 0)
    assert done == ["collected", *priors, "started"]
    with pytest.raises(StartedError):
        with_atlas.model(StudyTraining("coarse", only("coarse")), 0)
    assert done[len(priors) + 2 :] == [*priors, "started"]


@pytest.mark.parametrize("begun", [False, True])
def test_priors_of_scans_given_as_unlabelled_are_made_before_the_clock_starts_too(
    with_atlas: Trainings,
    with_unlabelled: Ablation,
    data: Dataset,
    done: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: bool,
) -> None:
    """Cases with manual labels are also used as atlases; those labelled by models are not."""
    settings = StudySettings(
        split=of_split(tmp_path, ["case_0", "case_1"], "case_2"),
        unlabelled=scans_of(data, tmp_path / "u", "case_3"),
        recipe=with_atlas.study.recipe,
    )
    trainings = opened(with_unlabelled, data, tmp_path / "of-split", settings)
    with pytest.raises(StartedError, match=str(trainings.registered)):
        trainings.model(DRAWN, 0)
    assert done == ["collected", "case_0", "case_1", "case_3", "case_2", "started"]
    done.clear()
    extra = [replace(case, pseudo=case.id == "case_3") for case in data.cases]
    monkeypatch.setattr(self_training, "extended", lambda *_: replace(data, cases=tuple(extra)))
    monkeypatch.setattr(self_training.SelfTraining, "teach", lambda *_: done.append("taught"))
    monkeypatch.setattr(self_training.SelfTraining, "label", lambda *_: done.append("labelled"))
    for _ in range(1 + begun):
        done.clear()
        with pytest.raises(StartedError, match=str(trainings.registered)):
            opened(with_unlabelled, data, tmp_path / "of-split", settings).model(SELF_TAUGHT, 0)
    collected = [] if begun else ["collected"]
    assert done == ["taught", "labelled", *collected, "case_0", "case_1", "case_3", "case_2", "started"]


def test_no_priors_for_a_training_that_uses_none(with_atlas: Trainings, done: list[str]) -> None:
    def blind(stage: Stage) -> Stage:
        return stage.model_copy(update={"inputs": (ImageInput(),)})

    for name, change in (("blind", on_stages(blind, "coarse")), ("none", without_atlas)):
        with pytest.raises(StartedError):
            with_atlas.model(StudyTraining(name, chain(on_stages(blind, "coarse"), change)), 0)
    assert done == ["started", "started"]


# --- a study that compares nothing ----------------------------------------------------------------


def test_rows_that_only_organs_would_tell_apart_are_refused(data: Dataset, tmp_path: Path) -> None:
    def of_liver(stage: Stage) -> Stage:
        return stage.model_copy(update={"labels": ("liver", "spleen")})

    path = tmp_path / "liver.yaml"
    path.write_text(dump(on_stages(of_liver, "fine")(tiny_recipe(together=True))))
    both = StudyTraining("both")
    rows = (TableRow("coarse", both, only("coarse")), TableRow("coarse to fine", both, unchanged))
    study = Ablation("livers", str(path), "", rows, baseline="coarse")
    with pytest.raises(DatasetError) as refused:
        opened(study, data, tmp_path / "out")
    assert str(refused.value) == (
        "study 'livers' compares nothing on data set 'tiny' (labels left kidney, right kidney): without the "
        "organs that its stages are for (liver, spleen), rows 'coarse' and 'coarse to fine' are the same; "
        "choose another --ablation or data set"
    )
    assert not (tmp_path / "out").exists()
    apart = (rows[0], TableRow("coarse to fine", StudyTraining("other"), unchanged))
    assert opened(replace(study, rows=apart), data, tmp_path / "out").count == 5
