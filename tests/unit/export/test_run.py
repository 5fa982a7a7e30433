"""A package runs without torch and without the installed ZoomSeg, in a separate process; problems with it or
its use are one line."""

from __future__ import annotations

import gzip
import os
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_recipe
from helpers.untrained_models import untrained
from zoomseg.backends.compilers import COMPILERS
from zoomseg.backends.device import resolve
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError, OutputError
from zoomseg.core.geometry import Grid
from zoomseg.export import run as runner
from zoomseg.export.modules import needed_by
from zoomseg.export.package import export
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle as bundles
from zoomseg.io.bundle import Bundle
from zoomseg.io.scans import read_label_values, write_image, write_labels
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.pipeline.cascade import Prediction
from zoomseg.recipe.spec import Recipe

SPY = """
import runpy, sys
archive = sys.argv[1]
sys.argv = sys.argv[1:]
try:
    runpy.run_path(archive, run_name="__main__")
except SystemExit as stop:
    code = stop.code
print(code, sys.modules["zoomseg"].__file__)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "zoomseg"))
"""
FOREIGN = {"torch", "onnx", "SimpleITK", "highdicom", "click", "rich", "matplotlib", "pandas"}


@pytest.fixture(scope="module")
def model() -> Bundle:
    return untrained(tiny_recipe(together=True), SCHEMA, seed=2)


@pytest.fixture(scope="module")
def archive(model: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(model, tmp_path_factory.mktemp("package"))


def packed(model: Bundle, folder: Path) -> Path:
    bundles.save(model, folder / "model")
    export(folder / "model", folder / "model.zip")
    return folder / "model.zip"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    write_image(path, tiny_case(9)[0])
    return path


def execute(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["TMPDIR"] = str(cwd)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def run(archive: Path, *arguments: str | Path) -> int:
    return runner.main(archive, [str(a) for a in arguments])


def test_it_runs_with_nothing_but_what_is_in_it(
    archive: Path, model: Bundle, scan: Path, tmp_path: Path
) -> None:
    """The loaded modules are those found from the imports; the result is that of the same library here, and
    that of torch but for voxels of equally probable classes."""
    done = execute("-c", SPY, archive, scan, "-o", "labels.nii.gz", "--engine", "onnxruntime", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, ended, libraries, modules = done.stdout.splitlines()
    assert ended == f"0 {archive / 'zoomseg' / '__init__.py'}"
    assert set(libraries.split()) & FOREIGN == set()
    assert set(modules.split()) == set(needed_by(runner.__name__).modules)
    left = {path.name for path in tmp_path.iterdir()} - {".ses"}  # of ONNX Runtime
    assert left == {"labels.nii.gz", "scan.nii.gz"}
    values, grid = read_label_values(tmp_path / "labels.nii.gz")
    image, _ = tiny_case(9)
    case, packed = Case("x", image), bundles.load(runner.unpacked(archive, tmp_path))
    expected = Predictor(packed, CPU, backend="onnxruntime").predict(case).labels
    by_torch = Predictor(model, CPU).predict(case).labels
    assert np.mean(by_torch.data == expected.data) > 0.999
    assert grid.same_as(image.grid)
    assert set(np.unique(values)) == {0, 3, 7}
    assert np.array_equal(values, SCHEMA.decode(expected.data))


def test_openvino_in_a_process_of_its_own(archive: Path, scan: Path, tmp_path: Path) -> None:
    done = execute(archive, scan, "-o", tmp_path / "labels.nii.gz", "--engine", "openvino", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "(openvino). For research, not for diagnosis." in done.stdout
    folder = runner.unpacked(archive, tmp_path)
    predictor = Predictor(bundles.load(folder), resolve("cpu"), backend="openvino")
    expected = SCHEMA.decode(predictor.predict(Case("x", tiny_case(9)[0])).labels.data)
    assert np.array_equal(read_label_values(tmp_path / "labels.nii.gz")[0], expected)


@pytest.mark.parametrize("engine", COMPILERS)
def test_in_float32_the_label_map_is_that_of_predict(
    engine: str, archive: Path, model: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoomseg.backends.device.fast_bfloat16", lambda: False)
    for seed in range(3):
        image, _ = tiny_case(seed)
        write_image(tmp_path / "scan.nii", image)
        assert run(archive, tmp_path / "scan.nii", "-o", tmp_path / "out.nii.gz", "--engine", engine) == 0
        expected = SCHEMA.decode(Predictor(model, CPU).predict(Case("x", image)).labels.data)
        assert len(np.unique(expected)) == 3
        assert np.array_equal(read_label_values(tmp_path / "out.nii.gz")[0], expected)


def test_votes_and_several_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file per channel, or all in one."""
    monkeypatch.setattr("zoomseg.backends.device.fast_bfloat16", lambda: False)
    recipe = tiny_recipe(together=False)
    coarse = recipe.stages[0]
    voting = {"fusion": "majority_vote", "argmax_on": "stage_grid"}
    stages = [coarse.model_dump() | {"name": name} | voting for name in ("one", "two", "three")]
    made = Recipe.model_validate(recipe.model_dump() | {"stages": stages})
    model = untrained(made, SCHEMA, ("T1", "T2"), seed=1)
    archive = packed(model, tmp_path)
    first, second = (tiny_case(seed)[0] for seed in (4, 5))
    both = replace(first, data=np.concatenate([first.data, second.data]))
    for name, image in (("a", first), ("b", second), ("both", both)):
        write_image(tmp_path / f"{name}.nii.gz", image)
    expected = SCHEMA.decode(Predictor(model, CPU).predict(Case("x", both)).labels.data)
    assert len(np.unique(expected)) > 1
    for files in ((tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"), (tmp_path / "both.nii.gz",)):
        assert run(archive, *files, "-o", tmp_path / "out.nii.gz", "--engine", "onnxruntime") == 0
        assert np.array_equal(read_label_values(tmp_path / "out.nii.gz")[0], expected)


def test_wrong_use_is_one_line(
    archive: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.nii.gz"
    (tmp_path / "text.nii.gz").write_text("hello")
    write_labels(tmp_path / "drawn.nii.gz", tiny_case(9)[1])
    cases = {
        "no such file": (tmp_path / "none.nii.gz", "-o", out),
        "not an image": (tmp_path / "text.nii.gz", "-o", out),
        "looks like a label map": (tmp_path / "drawn.nii.gz", "-o", out),
        "reads .nii.gz and .nii files; 'zoomseg predict' reads others": (tmp_path, "-o", out),
        "cannot write this format": (scan, "-o", tmp_path / "labels.nrrd"),
        "there is no folder": (scan, "-o", tmp_path / "none" / "labels.nii"),
        "has 2 channel(s), the model needs 1: CT": (scan, scan, "-o", out),
        "GB are allowed; allow more with --max-ram": (scan, "-o", out, "--max-ram", "0.2G"),
        "'much' is not an amount of memory": (scan, "-o", out, "--max-ram", "much"),
    }
    for reason, arguments in cases.items():
        assert run(archive, *arguments) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("model.zip: ")
        assert reason in printed.err
        assert printed.err.count("\n") == 1
        assert not out.exists()


def test_the_label_map_never_replaces_the_scan(
    archive: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by its own name nor by a link, nor the file of another channel."""
    before, link = scan.read_bytes(), tmp_path / "link.nii.gz"
    link.symlink_to(scan)
    other = tmp_path / "other.nii.gz"
    other.write_bytes(before)
    for scans, out in (((scan,), scan), ((scan,), link), ((other, scan), scan)):
        assert run(archive, *scans, "-o", out) == 2
        said = f"model.zip: {out}: is the scan itself; choose another file for the label map\n"
        assert capsys.readouterr().err == said
    assert scan.read_bytes() == before


def test_what_the_header_leaves_open_is_told(
    archive: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = scan.with_name("labels.nii.gz")
    assert run(archive, scan, "-o", out) == 0
    assert "header" not in capsys.readouterr().err
    content = bytearray(gzip.decompress(scan.read_bytes()))
    content[123] = 5  # xyzt_units
    scan.write_bytes(gzip.compress(content))
    assert run(archive, scan, "-o", out) == 0
    assert capsys.readouterr().err.startswith(
        "note: unit code 5 is not defined; lengths are interpreted as millimetres\n"
    )


DOMAIN = TrainingDomain(
    modality="CT",
    intensities=((-20.0,) * 6 + (0.0,) * 7 + (20.0,) * 6,),
    darkest=(-150.0, -20.0),
    cross_section_cm2=(1.0, 2.0),
    organs={},
)


def test_scans_are_compared_with_those_of_the_training(
    model: Bundle, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, out = packed(replace(model, domain=DOMAIN), tmp_path), tmp_path / "labels.nii.gz"
    assert run(archive, scan, "-o", out) == 0
    assert capsys.readouterr().err.startswith("note: the body in it measures")
    image = tiny_case(9)[0]
    write_image(scan, replace(image, data=image.data + 150))
    assert run(archive, scan, "-o", tmp_path / "other.nii.gz") == 2
    assert capsys.readouterr().err.startswith("model.zip: the scan is not in the unit")
    assert run(archive, scan, "-o", tmp_path / "other.nii.gz", "--any-scan") == 0
    assert "note: clearly unlike the training scans: the scan is not in the unit" in capsys.readouterr().err


def test_too_little_memory_an_interruption_and_any_error_are_one_line(
    archive: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = "the scan does not fit in memory; use a machine with more memory"
    cases = (
        (MemoryError(), 2, memory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, memory),
        (
            RuntimeError("no\nsuch kernel"),
            2,
            "unexpected RuntimeError at export/run.py:{} (no such kernel); please report it with the "
            "scan's header",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    )
    for raised, code, said in cases:

        def stop(*_: object, raised: BaseException = raised) -> None:
            raise raised

        monkeypatch.setattr(runner, "_segmented", stop)
        assert run(archive, scan, "-o", scan.with_name("out.nii.gz")) == code
        before, _, after = f"model.zip: {said}\n".partition("{}")
        assert re.fullmatch(rf"{re.escape(before)}\d*{re.escape(after)}", capsys.readouterr().err)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mirrored_scan_is_told(
    mirrored: bool,
    archive: Path,
    scan: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its header says that the body lies the other way round along the first axis."""
    image, labels = tiny_case(9)
    grid = image.grid
    if mirrored:
        grid = Grid(grid.shape, np.diag([-1.0, 1.0, 1.0, 1.0]) @ grid.affine)
        write_image(scan, replace(image, grid=grid))
    found = Prediction("x", replace(labels, grid=grid), {}, {}, (), {}, ("one of the model",))
    monkeypatch.setattr(Predictor, "predict", lambda *_, **__: found)
    assert run(archive, scan, "-o", scan.with_name("labels.nii.gz")) == 0
    said = "note: one of the model\n"
    if mirrored:
        organs = "left kidney, right kidney"
        said += f"note: left organs lie to the right of right ones ({organs}); is the scan mirrored?\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ({"yaml"}, "pyyaml"),
        ({"nibabel", "cc3d"}, "connected-components-3d nibabel"),
        (set(COMPILERS), "openvino"),
        ({"openvino"}, None),
    ],
)
def test_a_missing_library_is_one_line(
    gone: set[str],
    named: str | None,
    archive: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    monkeypatch.setattr(runner, "main", lambda path, arguments: 99)
    monkeypatch.setattr(sys, "argv", [str(archive)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(archive), run_name="__main__")
    if named is None:
        assert stop.value.code == 99
        return
    assert stop.value.code == 2
    assert capsys.readouterr().err == (f"model.zip: packages are missing; install: pip install {named}\n")


# --- packages that are damaged --------------------------------------------------------------------

Members = dict[str, bytes]


def rewritten(archive: Path, path: Path, change: Callable[[Members], Mapping[str, bytes]]) -> Path:
    with zipfile.ZipFile(archive) as files:
        members = {name: files.read(name) for name in files.namelist()}
    with zipfile.ZipFile(path, "w") as files:
        for name, content in change(members).items():
            files.writestr(name, content)
    return path


def without(suffix: str) -> Callable[[Members], Members]:
    return lambda members: {n: c for n, c in members.items() if not n.endswith(suffix)}


def test_damaged_packages_are_refused(
    archive: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(name: str, text: bytes) -> Path:
        def change(members: Members) -> Members:
            (found,) = (n for n in members if re.fullmatch(name, n))
            return members | {found: text}

        return rewritten(archive, tmp_path / f"{len(list(tmp_path.iterdir()))}.zip", change)

    (tmp_path / "text.zip").write_text("hello")
    cases = {
        tmp_path / "text.zip": "not a zip file",
        tmp_path / "none.zip": "No such file",
        rewritten(archive, tmp_path / "a.zip", without("model.json")): "model/model.json",
        rewritten(archive, tmp_path / "b.zip", without("model.sha256")): "model.sha256",
        rewritten(archive, tmp_path / "c.zip", without(".safetensors")): "weights/coarse-",
        rewritten(archive, tmp_path / "d.zip", without(".onnx")): "No such file",
        changed(r"model/model\.json", b"{}"): "model/model.json differs from what was exported",
        changed(r"model\.sha256", b"\xff"): "can't decode",
        changed(r"model/weights/fine-.*\.safetensors", b"?"): "is not the file that model.json names",
        changed(r"model/weights/fine-.*\.onnx", b"?"): "is not the file that model.json names",
    }
    for path, reason in cases.items():
        assert run(path, scan, "-o", tmp_path / "out.nii.gz") == 2
        said = capsys.readouterr().err
        assert "is damaged" in said
        assert reason in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("local", "central", "value"), [(8, 10, b"\x63\0"), (6, 8, b"\1\0"), (14, 16, b"abcd")]
)
def test_a_zip_that_cannot_be_unpacked_is_refused(
    archive: Path, tmp_path: Path, local: int, central: int, value: bytes
) -> None:
    """A method unknown to zipfile, encryption, a wrong checksum: each raises another exception."""
    path = rewritten(archive, tmp_path / "a.zip", lambda m: {n: m[n] for n in sorted(m, key="model".find)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as files:
        at = files.getinfo("model.sha256").header_offset
    entry = data.rindex(b"model.sha256") - 46
    data[at + local : at + local + len(value)] = value
    data[entry + central : entry + central + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"is damaged .*; export it again"):
        runner.unpacked(path, tmp_path / "room")


def test_nothing_is_unpacked_but_the_files_of_a_model(archive: Path, tmp_path: Path) -> None:
    names = ("model/../evil", "model/weights/../../evil", "/evil", "model//evil", "model/weights/.hidden")
    hostile = rewritten(archive, tmp_path / "a.zip", lambda m: m | dict.fromkeys(names, b"!"))
    folder = runner.unpacked(hostile, tmp_path / "deep" / "room")
    found = {path for path in tmp_path.rglob("*") if path.is_file() and path != hostile}
    assert {path.relative_to(folder).parts[0] for path in found} == {"README.md", "model.json", "weights"}
    assert len(found) == 6
    bundles.load(folder)


def test_a_file_that_would_grow_is_refused(archive: Path, tmp_path: Path) -> None:
    path = rewritten(archive, tmp_path / "a.zip", lambda members: members)
    with zipfile.ZipFile(path, "a") as files:
        files.writestr("model/weights/huge.onnx", bytes(10**6), zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match=r"huge\.onnx is compressed, which is not allowed"):
        runner.unpacked(path, tmp_path / "room")


def test_a_full_disk_is_named(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner.shutil, "copyfileobj", full)
    with pytest.raises(OutputError, match="No space left on device"):
        runner.unpacked(archive, tmp_path)
