"""Every example runs, on tiny data, and gives the expected results."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import zoomseg
from helpers.tiny_dataset import SCHEMA, small_plan, tiny_case, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained
from zoomseg.cli.demo import HELD_OUT_SEED
from zoomseg.cli.main import main
from zoomseg.io import bundle
from zoomseg.io.scans import write_image
from zoomseg.recipe.load import dump

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a model trained on it briefly, its results, and another model's."""
    root = tmp_path_factory.mktemp("examples")
    data = tiny_dataset(root / "data")
    (root / "recipe.yaml").write_text(dump(tiny_recipe(together=True, iterations=100, lr=2e-2)))
    zoomseg.train(data.root, root / "model", str(root / "recipe.yaml"), folds=4, device="cpu")
    bundle.save(untrained(tiny_recipe(together=True), SCHEMA), root / "untrained")
    scans = str(root / "data" / "imagesTr")
    for model, out in (("model", "results"), ("untrained", "others")):
        with pytest.raises(SystemExit) as ended:
            main(["predict", scans, "-o", str(root / out), "-m", str(root / model), "--device", "cpu"])
        assert ended.value.code == 0
    return root


def run(name: str, *arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run an example like its command line; returns the exit code."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_one_scan(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = work / "data" / "imagesTr" / "case_0_0000.nii.gz", tmp_path / "labels.nii.gz"
    run("segment_scan.py", scan, work / "model", out, monkeypatch=monkeypatch)
    assert np.array_equal(voxels(out), voxels(work / "results" / "case_0.nii.gz"))
    ml = float(re.findall(r"left kidney +([\d.]+) ml", capsys.readouterr().out)[0])
    assert ml == pytest.approx((voxels(out) == 3).sum() * 0.012, abs=0.05)
    assert ml > 0


def test_a_folder_with_a_scan_that_cannot_be_used(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_image(scans / "good.nii.gz", tiny_case(0)[0])
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    assert run("segment_folder.py", scans, work / "model", tmp_path / "out", monkeypatch=monkeypatch) == 1
    told = capsys.readouterr().out
    assert re.search(r"^bad: .*bad\.nii\.gz", told, re.MULTILINE)
    assert re.search(r"^good: done", told, re.MULTILINE)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]
    assert np.array_equal(
        voxels(tmp_path / "out" / "good.nii.gz"), voxels(work / "results" / "case_0.nii.gz")
    )


@pytest.mark.parametrize(("good", "code"), [(True, 0), (False, 2)])
def test_a_folder_with_one_kind_of_scan(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: bool, code: int
) -> None:
    scan = tmp_path / "scans" / "one.nii.gz"
    scan.parent.mkdir()
    if good:
        write_image(scan, tiny_case(0)[0])
    else:
        scan.write_bytes(b"no scan")
    assert (
        run("segment_folder.py", scan.parent, work / "model", tmp_path / "out", monkeypatch=monkeypatch)
        == code
    )


def test_training(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (work / "data", tmp_path / "model", "5", work / "recipe.yaml")
    run("train_model.py", *arguments, monkeypatch=monkeypatch)
    assert "finds left kidney, right kidney" in capsys.readouterr().out
    provenance = json.loads((tmp_path / "model" / "training" / "job.json").read_text())
    assert provenance["seconds"] == 5
    assert len(provenance["validation"]) == 1


def test_training_makes_phantoms_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(zoomseg, "train", lambda *given, **named: asked.append(given) or sys.exit(0))
    run("train_model.py", tmp_path / "data", tmp_path / "model", "5", monkeypatch=monkeypatch)
    assert asked == [(str(tmp_path / "data"), str(tmp_path / "model"), "default")]
    assert len(list((tmp_path / "data" / "labelsTr").iterdir())) == 8


def test_results(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("read_results.py", work / "results", monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    summary = pd.read_csv(work / "results" / "summary.csv")
    mean = summary[summary["organ"] == "left kidney"]["volume_ml"].mean()
    assert re.search(rf"left kidney +4 +{mean:.1f} ", told)
    assert f"{summary['flags'].notna().sum()} of 8 organs have a flag" in told
    device = json.loads((work / "results" / "run.json").read_text())["device"]
    assert f"with tiny on {device}" in told
    assert re.search(r"^case_3 +[\d.]+", told, re.MULTILINE)


def test_comparison(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = (work / "data", work / "results", work / "others", tmp_path / "out")
    run("compare_models.py", *folders, monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    first, other = (
        json.loads((tmp_path / "out" / name / "summary.json").read_text())["mean"]["dice"]
        for name in ("first", "other")
    )
    assert f"{work / 'results'}: Dice {first:.3f}" in told
    assert first > other + 0.2  # one is not trained
    assert re.search(r"^left kidney +-0\.\d{3} \[", told, re.MULTILINE)
    assert "other minus first: Dice -0." in told.replace("\u2212", "-")
    assert (tmp_path / "out" / "compare.html").is_file()


def test_uncertainty(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = work / "data" / "imagesTr" / "case_0_0000.nii.gz"
    run("uncertainty.py", scan, work / "model", tmp_path / "out", monkeypatch=monkeypatch)
    left, right = (voxels(tmp_path / "out" / f"{name}.nii.gz") for name in SCHEMA.names)
    shares = np.stack([1 - left - right, left, right]).clip(1e-30, 1)
    expected = -(shares * np.log2(shares)).sum(axis=0)
    assert np.allclose(voxels(tmp_path / "out" / "entropy.nii.gz"), expected, atol=1e-3)
    sure = [float(found) for found in re.findall(r"confidence ([\d.]+)", capsys.readouterr().out)]
    assert len(sure) == 2
    assert sure == sorted(sure)


def test_package(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, out = work / "data" / "imagesTr" / "case_0_0000.nii.gz", tmp_path / "labels.nii.gz"
    run("export_package.py", work / "model", scan, tmp_path / "model.zip", out, monkeypatch=monkeypatch)
    differ = voxels(out) != voxels(work / "results" / "case_0.nii.gz")
    assert differ.mean() < 1e-3  # bfloat16 on one side, perhaps


def run_notebook(name: str, parameters: dict[str, object]) -> dict[str, Any]:
    """Run a notebook's cells one after the other, with other parameters; returns its files, and the outputs
    of its cells by their id."""
    cells = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]
    space: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]), cell["id"])
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), space)
        if isinstance(last, ast.Expr):
            space["shown " + cell["id"]] = eval(
                compile(ast.Expression(last.value), cell["id"], "eval"), space
            )
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(parameters) <= set(space)
            space |= parameters
    return space


def test_predicting_notebook(work: Path, tmp_path: Path) -> None:
    scan, out = work / "data" / "imagesTr" / "case_0_0000.nii.gz", tmp_path / "segmented.nii.gz"
    space = run_notebook("predict.ipynb", {"SCAN": str(scan), "MODEL": str(work / "model"), "OUT": str(out)})
    assert np.array_equal(voxels(out), voxels(work / "results" / "case_0.nii.gz"))
    assert np.array_equal(np.asarray(space["labels"].dataobj), voxels(out))
    assert "data:image/jpeg" in space["shown predict"]._repr_html_()
    assert list(space["shown table"]["confidence"]) == sorted(space["table"]["confidence"])


def test_training_notebook(work: Path, tmp_path: Path) -> None:
    parameters = {
        "DATA": str(work / "data"),
        "MODEL": str(tmp_path / "model"),
        "RECIPE": str(work / "recipe.yaml"),
        "SECONDS": None,
    }
    space = run_notebook("train.ipynb", parameters)
    (scored,) = space["evaluation"].cases
    assert [scored.id] == json.loads((tmp_path / "model" / "training" / "job.json").read_text())["validation"]
    assert min(space["shown held-back"].values()) > 0.3
    assert (tmp_path / "model" / "scores" / "report.html").is_file()


def test_training_notebook_makes_phantoms_where_there_is_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TrainedError(Exception):
        pass

    def train(*given: object, **named: object) -> None:
        raise TrainedError

    monkeypatch.setattr(zoomseg, "train", train)
    with pytest.raises(TrainedError):
        run_notebook("train.ipynb", {"DATA": str(tmp_path / "data"), "MODEL": str(tmp_path / "model")})
    assert len(list((tmp_path / "data" / "labelsTr").iterdir())) == 8


@pytest.mark.slow
def test_quickstart_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    small = {"CASES": 2, "SECONDS": None, "RECIPE": small_plan(tmp_path / "recipe.yaml")}
    space = run_notebook("quickstart.ipynb", small)
    assert len(space["evaluation"].cases) == 2
    assert {path.name for path in (tmp_path / "quickstart").iterdir()} == {
        "training",
        "held-out",
        "model",
        "predictions",
        "scores",
    }
    assert len(space["axes"].images) == 2


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_is_valid_and_without_outputs(notebook: Path) -> None:
    """According to nbformat 4.5."""
    book = json.loads(notebook.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in book["cells"]:
        needed = {"id", "cell_type", "metadata", "source"}
        code = cell["cell_type"] == "code"
        assert set(cell) == (needed | {"outputs", "execution_count"} if code else needed)
        if code:
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_every_example_is_listed_and_tested() -> None:
    listed = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert listed == files
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in files if f'"{name}"' not in tested] == []


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_a_script_says_how_to_call_it_and_has_a_default_for_every_argument(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    (usage,) = re.findall(rf"python {script.name}((?: \[\w+\])+)", ast.get_docstring(tree) or "")
    (defaults,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert len(usage.split()) == len(ast.literal_eval(defaults)) == len(function.args.args)


def test_defaults_are_what_the_demo_leaves() -> None:
    demo = (ROOT / "src" / "zoomseg" / "cli" / "demo.py").read_text(encoding="utf-8")
    scripts = "".join(script.read_text(encoding="utf-8") for script in sorted(EXAMPLES.glob("*.py")))
    found = set(re.findall(r'"zoomseg-demo/([\w-]+)(?:/imagesTr/([\w.]+))?', scripts))
    assert {name for _, name in found} == {"", f"phantom_{HELD_OUT_SEED:04d}_0000.nii.gz"}
    assert [folder for folder, _ in found if f'"{folder}"' not in demo] == []
