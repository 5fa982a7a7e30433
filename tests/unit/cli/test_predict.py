"""``zoomseg predict``: valid scans are segmented, invalid ones reported, and other errors are one line."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from helpers.label_files import save_description
from helpers.tiny_dataset import CPU, tiny_case, tiny_dataset, tiny_recipe
from zoomseg.cli import predict as command
from zoomseg.cli.main import main
from zoomseg.core.volume import LabelMap
from zoomseg.inference import outputs
from zoomseg.inference.gather import Gathered
from zoomseg.inference.load import PredictionSettings, load_predictor
from zoomseg.io import scans
from zoomseg.io.scans import ScanInput, read_label_values, read_scan, write_image, write_labels
from zoomseg.pipeline.probability_map import LEVELS, probability_map
from zoomseg.training import loop
from zoomseg.training.log import NullObserver


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    data = tiny_dataset(root / "data")
    recipe = tiny_recipe(together=True, iterations=120, lr=2e-2)
    loop.train(data, loop.Split(data.ids, ()), recipe, root / "model", loop.LoopSettings(CPU), NullObserver())
    return root / "model"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write(tmp_path / "scans" / "patient.nii.gz", 9)


def write(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, tiny_case(seed)[0])
    return path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def predict(scan: Path, model: Path, out: Path, *more: str) -> int:
    return run("predict", scan, "-m", model, "-o", out, "--device", "cpu", *more)


def test_writes_labels_summary_and_account(scan: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(scan, model, out) == 0
    values, grid = read_label_values(out / "patient.nii.gz")
    image, truth = tiny_case(9)
    assert grid.same_as(image.grid)
    assert set(np.unique(values)) == {0, 3, 7}
    for c, value in ((1, 3), (2, 7)):
        a, b = values == value, truth.data == c
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.7
    with (out / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["organ"] for r in rows] == ["left kidney", "right kidney"]
    assert float(rows[0]["volume_ml"]) == pytest.approx((values == 3).sum() * 12 / 1000, abs=1e-3)
    account = json.loads((out / "run.json").read_text())["cases"]["patient"]
    assert account["status"] == "done"
    assert [s["stage"] for s in account["stages"]] == ["coarse", "fine"]
    assert account["seconds"]["total"] >= account["seconds"]["fine"] > 0


def test_an_overlap_that_is_no_less_than_the_models_is_one_line(
    scan: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(scan, model, tmp_path / "out", "--overlap", "0.99") == 2
    assert "an overlap of 0.99: tiles of recipe" in capsys.readouterr().err


def test_verbose_tells_tiles_and_costs(
    scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict(scan, model, tmp_path / "out", "-v") == 0
    lines = [line.split() for line in capfd.readouterr().err.splitlines()]
    stages = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]["patient"]["stages"]
    for stage in stages:
        tiles = str(stage["tiles"])
        assert ["patient", stage["stage"], tiles, "of", tiles, "tiles"] in lines
        (row,) = [line for line in lines if line[0] == stage["stage"]]
        assert row[2:] == [
            f"{stage['network_seconds']:.2f}",
            *(tiles, str(stage["tiles_skipped"])),
            f"{stage['flops'] / 1e9:,.1f}",
        ]


def test_scans_are_read_ahead_unless_memory_is_limited(
    scan: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There is no GPU memory to be limited on a CPU."""
    seen: list[bool] = []

    def segmented(*_: object, **named: Any) -> tuple[()]:
        seen.append(named["ahead"])
        return ()

    monkeypatch.setattr(outputs, "segment_to_folder", segmented)
    for limit in ((), ("--max-vram", "1G"), ("--max-ram", "8G")):
        assert predict(scan, model, tmp_path / "out", *limit) == 0
        assert ("no GPU is used" in capsys.readouterr().err) == ("--max-vram" in limit)
    assert seen == [True, True, False]


def test_only_the_organs_asked_for(scan: Path, model: Path, tmp_path: Path) -> None:
    assert predict(scan, model, tmp_path / "out", "--organs", "right kidney") == 0
    assert set(np.unique(read_label_values(tmp_path / "out" / "patient.nii.gz")[0])) == {0, 7}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["labels"] == {
        "background": 0,
        "right kidney": 7,
    }


def test_probabilities_on_the_scan_s_grid(
    scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command's label maps equal those of the Python interface, also with a memory limit if they fit."""
    asked = ("--probabilities", "right kidney")
    out = tmp_path / "out"
    assert predict(scan, model, out, *asked) == 0
    (made,) = (out / "probabilities").iterdir()
    assert made.name == "patient-right_kidney.nii.gz"
    image = nib.load(made)
    assert np.allclose(image.affine, nib.load(scan).affine)
    predictor = load_predictor([str(model)], "cpu")
    result = predictor.predict(read_scan(ScanInput("patient", (scan,))))
    recipe = predictor.bundle.recipe
    expected = probability_map("right kidney", tiny_case(9)[0].grid, recipe, result.stages, result.atlas)
    shown = image.get_fdata() * LEVELS
    np.testing.assert_allclose(shown, expected, atol=1e-3)
    assert expected[tiny_case(9)[1].data == 2].mean() > 0.5 * LEVELS > 10 * expected.mean()
    assert predict(scan, model, tmp_path / "limited", *asked, "--max-ram", "8G") == 0
    limited = nib.load(tmp_path / "limited" / "probabilities" / made.name).get_fdata()
    assert np.array_equal(limited * LEVELS, shown)
    capfd.readouterr()
    assert predict(scan, model, tmp_path / "no", "--probabilities", "right kidney, spleen") == 2
    assert "spleen" in capfd.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_flipped_and_permuted_scans_come_back_on_their_own_grid(model: Path, tmp_path: Path) -> None:
    image, _ = tiny_case(9)
    array = image.data[0]
    affine = image.grid.affine
    reversed_affine = affine.copy()
    reversed_affine[:3, 0] *= -1
    reversed_affine[:3, 3] = affine[:3, 3] + affine[:3, 0] * (array.shape[0] - 1)
    (tmp_path / "s").mkdir()
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "s" / "a.nii.gz")
    nib.save(nib.Nifti1Image(array[::-1], reversed_affine), tmp_path / "s" / "b.nii.gz")
    turned = affine[:, [2, 0, 1, 3]]
    nib.save(nib.Nifti1Image(array.transpose(2, 0, 1), turned), tmp_path / "s" / "c.nii.gz")
    assert predict(tmp_path / "s", model, tmp_path / "out") == 0
    a, b, c = (read_label_values(tmp_path / "out" / f"{n}.nii.gz")[0] for n in "abc")
    assert np.array_equal(a, b[::-1])
    assert np.array_equal(a, c.transpose(1, 2, 0))


def bad_scan(kind: str, path: Path) -> None:
    """A file that cannot be segmented."""
    array = tiny_case(9)[0].data[0]
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    match kind:
        case "truncated":
            nib.save(nib.Nifti1Image(array, affine), path)
            path.write_bytes(path.read_bytes()[:2000])
        case "not a scan":
            path.write_bytes(gzip.compress(b"hello"))
        case "4-D":
            nib.save(nib.Nifti1Image(np.stack([array, array], -1), affine), path)
        case "2-D":
            nib.save(nib.Nifti1Image(array[:, :, 0], affine), path)
        case "NaN":
            nib.save(nib.Nifti1Image(np.full_like(array, np.nan), affine), path)
        case "constant":
            nib.save(nib.Nifti1Image(np.ones_like(array), affine), path)
        case "labels":
            write_labels(path, tiny_case(9)[1])
        case "singular" | "zero spacing" | "NaN spacing":
            broken = nib.Nifti1Image(array, affine)
            header = broken.header
            if kind == "singular":
                header["srow_y"] = header["srow_x"]
            else:
                header["pixdim"][1:4] = 0 if kind == "zero spacing" else np.nan
                header["sform_code"], header["qform_code"] = 0, 1
            header["vox_offset"] = 352
            raw = header.binaryblock + bytes(4) + array.astype("<f4").tobytes(order="F")
            path.write_bytes(gzip.compress(raw))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", ""),
        ("not a scan", ""),
        ("4-D", "4"),
        ("2-D", "2"),
        ("NaN", "NaN"),
        ("constant", "constant"),
        ("labels", "label map"),
        ("singular", "singular"),
        ("zero spacing", "spacing"),
        ("NaN spacing", "spacing"),
    ],
)
def test_a_bad_scan_is_named_and_the_good_one_is_written(
    kind: str, says: str, scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad_scan(kind, scan.parent / "broken.nii.gz")
    assert predict(scan.parent, model, tmp_path / "out") == 1
    err = capfd.readouterr().err
    (line,) = [x for x in err.splitlines() if x.startswith("failed:")]
    assert "broken" in line
    assert says.lower() in line.lower()
    assert "Traceback" not in err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "journal",
        "labels.ctbl",
        "labels.itksnap.txt",
        "patient.nii.gz",
        "report",
        "report.html",
        "review.csv",
        "run.json",
        "summary.csv",
    ]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["cases"]["broken"]["status"] == "failed"


def test_wrong_number_of_channels(
    scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "two"
    for channel in range(2):
        write(folder / f"p_000{channel}.nii.gz", 9)
    assert predict(folder, model, tmp_path / "out") == 2
    err = capfd.readouterr().err
    assert "2 channel" in err
    assert "needs 1" in err


def test_nrrd_and_mha(model: Path, tmp_path: Path) -> None:
    image, _ = tiny_case(9)
    array = image.data[0]
    itk = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    itk.SetSpacing((2.0, 2.0, 3.0))
    (tmp_path / "s").mkdir()
    for suffix in ("nrrd", "mha"):
        sitk.WriteImage(itk, str(tmp_path / "s" / f"{suffix}.{suffix}"))
    assert predict(tmp_path / "s", model, tmp_path / "out") == 0
    one, two = (read_label_values(tmp_path / "out" / f"{n}.nii.gz") for n in ("nrrd", "mha"))
    assert np.array_equal(one[0], two[0])
    assert one[1].same_as(two[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--organs", "spleen"), "unknown label 'spleen'; allowed: left kidney, right kidney"),
        (("--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[str, ...],
    says: str,
    scan: Path,
    model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run("predict", scan, "-m", model, "-o", tmp_path / "out", *arguments) == 2
    err = capfd.readouterr().err.strip()
    assert says in err
    assert "\n" not in err
    assert not (tmp_path / "out").exists()


def test_empty_folder_missing_model_and_unwritable_output(
    scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert predict(tmp_path / "empty", model, tmp_path / "out") == 2
    assert "no scans" in capfd.readouterr().err
    assert predict(scan, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "nowhere" in capfd.readouterr().err
    (tmp_path / "file").write_text("x")
    assert predict(scan, model, tmp_path / "file" / "out") == 2
    assert str(tmp_path / "file" / "out") in capfd.readouterr().err


def test_damaged_weights(scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "model"
    (copy / "weights").mkdir(parents=True)
    (copy / "model.json").write_bytes((model / "model.json").read_bytes())
    for file in (model / "weights").iterdir():
        (copy / "weights" / file.name).write_bytes(file.read_bytes()[:-10])
    assert predict(scan, copy, tmp_path / "out") == 2
    assert "Traceback" not in capfd.readouterr().err


def test_full_disk_leaves_nothing_that_looks_complete(
    scan: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(image: nib.Nifti1Image, path: Path, compressed: bool) -> None:
        path.write_bytes(b"part of a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scans.nifti, "save", full)
    assert predict(scan, model, tmp_path / "out") == 2
    assert "No space left on device" in capfd.readouterr().err
    assert list((tmp_path / "out").rglob("*.nii.gz")) == []


def test_same_name_twice(scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = write(tmp_path / "other" / "patient.nii.gz", 8)
    assert run("predict", scan, other, "-m", model, "-o", tmp_path / "out") == 2
    assert "two scans are named 'patient'" in capfd.readouterr().err
    folder = write(tmp_path / "folder" / "A.nii.gz", 8).parent
    shutil.copy(folder / "A.nii.gz", folder / "a.nii.gz")
    assert run("predict", folder, "-m", model, "-o", tmp_path / "out") == 2
    err = capfd.readouterr().err
    assert "two scans are named 'A' and 'a', which some disks treat as one name; their results would" in err
    assert not (tmp_path / "out").exists()


def test_labels_beside_the_scan_are_not_replaced(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scan, drawn = write(tmp_path / "p1.nrrd", 9), tmp_path / "p1.nii.gz"
    write_labels(drawn, tiny_case(9)[1])
    before = drawn.read_bytes()
    assert predict(scan, model, tmp_path) == 2
    assert f"{drawn}: was not written by `zoomseg predict`" in capfd.readouterr().err
    assert drawn.read_bytes() == before


def test_an_account_that_cannot_be_read_is_told(
    scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(scan, model, out) == 0
    assert "damaged" not in capfd.readouterr().err
    (out / "run.json").write_text("{")
    assert predict(scan, model, out) == 0
    said = f"{out / 'run.json'}: damaged, or not written by ZoomSeg; it is rewritten"
    assert said in capfd.readouterr().err
    assert said in json.loads((out / "run.json").read_text())["notes"][0]


def test_names_of_many_scans_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    found = [ScanInput(Name(number), ()) for number in range(300)]
    monkeypatch.setattr(scans, "find_scans", lambda path, tell: found)
    assert command._found([Path()]) == (found, [])
    assert compared < 2 * len(found)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--ship",), "--ship is for --cluster; give both"),
        (
            ("--cluster", "local:2", "--part", "1/2"),
            "--part and --cluster both share the scans out; give one",
        ),
        (
            ("--cluster", "local:2", "-v"),
            "-v shows the steps of this process, and --cluster computes in others; give one",
        ),
    ],
)
def test_wrong_use_of_a_cluster(
    given: tuple[str, ...], says: str, scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict(scan, tmp_path / "model", tmp_path / "out", *given) == 2
    assert says in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_the_options_are_the_settings_of_a_prediction_on_a_cluster(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters = pytest.importorskip("zoomseg.cluster.predict", reason="needs the extra 'cluster'")
    seen: list[object] = []

    def predicted(*given: object) -> object:
        seen.append(given[3])
        return clusters.ClusterOutcome(0, 0, 0, Gathered(1, (), 0, ()))

    monkeypatch.setattr(clusters, "predict", predicted)
    given = ["--cluster", "tcp://nowhere:1", "--backend", "torch", "--max-ram", "8G", "--max-vram", "2G"]
    given += ["--overlap", "0.25", "--mirror", "--any-scan", "--organs", "liver", "--ship", "--resume"]
    assert predict(scan, tmp_path / "model", tmp_path / "out", *given) == 0
    settings = PredictionSettings("torch", 8 * 2**30, 2 * 2**30, any_scan=True, overlap=0.25, mirror=True)
    assert seen == [
        clusters.Request(
            (str(tmp_path / "model"),), ("liver",), device="cpu", settings=settings, ship=True, resume=True
        )
    ]


def test_mirrored_tiles_are_computed_where_it_is_asked_for(
    scan: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowing = shutil.copytree(model, tmp_path / "model")
    told = json.loads((allowing / "model.json").read_text())
    for stage in told["recipe"]["stages"]:
        stage["mirror_axes"] = ["k"]
    (allowing / "model.json").write_text(json.dumps(told))
    flops = []
    for given in ((), ("--mirror",)):
        assert predict(scan, allowing, tmp_path / "out", *given) == 0
        account = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]["patient"]
        flops.append(account["stages"][0]["flops"])  # the second stage's region depends on the first
    assert flops[1] == 2 * flops[0] > 0


def test_if_no_scan_is_left_that_is_wrong_use(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad_scan("constant", tmp_path / "flat.nii.gz")
    assert predict(tmp_path / "flat.nii.gz", model, tmp_path / "out") == 2
    err = capfd.readouterr().err
    assert err.startswith("failed: flat: ")
    assert len(err.splitlines()) == 1
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_results_never_replace_the_scans(
    scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = scan.read_bytes()
    assert predict(scan.parent, model, scan.parent) == 2
    assert "is the scan itself; choose another folder" in capfd.readouterr().err
    assert scan.read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1', '{"format": 1}', '{"format": 99}', "\0\xff"])
def test_damaged_model_file(scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(text, encoding="latin-1")
    assert predict(scan, tmp_path / "model", tmp_path / "out") == 2
    err = capfd.readouterr().err
    assert err.startswith("zoomseg: model ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_model(scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert predict(scan, scan.parent, tmp_path / "out") == 2
    assert capfd.readouterr().err == f"zoomseg: {scan.parent} is not a model: model.json is missing\n"


def test_chosen_organs_are_the_ones_evaluated(scan: Path, model: Path, tmp_path: Path) -> None:
    """``run.json`` lists the requested organs, so that ``evaluate`` does not score the others as missed."""
    (tmp_path / "truth").mkdir()
    write_labels(tmp_path / "truth" / "patient.nii.gz", tiny_case(9)[1])
    (tmp_path / "truth" / "labels.json").write_text('{"left kidney": 3, "right kidney": 7}')
    assert predict(scan, model, tmp_path / "out", "--organs", "right kidney") == 0
    assert run("evaluate", tmp_path / "out", tmp_path / "truth", "-o", tmp_path / "scores") == 0
    scores = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert list(scores["organs"]) == ["right kidney"]
    assert scores["organs"]["right kidney"]["dice"] > 0.7


def test_what_stages_said_tells_where_dice_is_lost(
    scan: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The reference contains a part of the left kidney in a corner that the coarse stage misses."""
    _, truth = tiny_case(9)
    drawn = truth.data.copy()
    drawn[:4, :4, :4] = 1
    reference = tmp_path / "reference"
    save_description(reference, labels={"background": 0, "left kidney": 3, "right kidney": 7})
    write_labels(reference / "patient.nii.gz", LabelMap(drawn, truth.grid, truth.schema))
    out, scores = tmp_path / "out", tmp_path / "scores"
    assert predict(scan, model, out, "--keep-stages") == 0
    names = ("patient-coarse.nii.gz", "patient-fine.nii.gz", "patient-fine-region.nii.gz", "patient.json")
    assert {p.name for p in (out / "stages").iterdir()} == set(names)
    capfd.readouterr()
    assert run("evaluate", out, reference, "-o", scores) == 0
    region = read_label_values(out / "stages" / names[2])[0] == 1
    values, _ = read_label_values(out / "patient.nii.gz")
    with (scores / "metrics.csv").open(newline="") as file:
        left = next(csv.DictReader(file))
    organ, answer = drawn == 1, values == 3
    recall = (organ & region).sum() / organ.sum()
    assert recall < 0.95
    assert float(left["region_recall"]) == pytest.approx(recall, rel=1e-5)
    assert f"{100 * recall:.1f} %" in capfd.readouterr().out
    cut = (organ & ~region & ~answer).sum() / (organ.sum() + answer.sum())
    assert float(left["lost_region"]) == pytest.approx(cut, rel=1e-5)
    losses = [float(value) for column, value in left.items() if column.startswith("lost_")]
    assert sum(losses) == pytest.approx(1 - float(left["dice"]), abs=1e-5)
    assert float(left["lost_coarse"]) == 0


def test_the_least_certain_of_several_scans_are_named(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    for name, seed in (("a", 9), ("b", 10)):
        write_image(tmp_path / "s" / f"{name}.nii.gz", tiny_case(seed)[0])
    assert predict(tmp_path / "s", model, tmp_path / "out", "--seg-nrrd") == 0
    with (tmp_path / "out" / "review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((r["case"], r["organ"]) for r in rows) == [
        (case, f"{side} kidney") for case in "ab" for side in ("left", "right")
    ]
    sure = [float(r["confidence"]) for r in rows]
    assert sure == sorted(sure)
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("review first")]
    assert said == [
        f"review first: {r['case']}, {r['organ']}: confidence {float(r['confidence']):.2f}" for r in rows[:3]
    ]
    for name in "ab":
        (labels, grid), (again, other) = (
            read_label_values(tmp_path / "out" / file)
            for file in (f"{name}.nii.gz", f"slicer/{name}.seg.nrrd")
        )
        assert np.array_equal(labels, again)
        assert grid.same_as(other)
    assert "3 left_kidney " in (tmp_path / "out" / "labels.ctbl").read_text()
