"""The prediction benchmark: its ZoomSeg row from end to end on a tiny scan, and the arithmetic of the rest.

The peers' rows need a separate environment and are not run here.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.io import bundle
from zoomseg.io.scans import write_image
from zoomseg.networks.build import multiply_adds

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "predict"
sys.path.insert(0, str(BENCHMARK))

import account  # noqa: E402
import measure  # noqa: E402
import rows  # noqa: E402
import scan as scans  # noqa: E402
import table  # noqa: E402
import watch  # noqa: E402

GB = 1024.0


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARK / "run.py", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.mark.slow
def test_zoomseg_is_measured_from_end_to_end(tmp_path: Path) -> None:
    model = untrained_bundle()
    bundle.save(model, tmp_path / "model")
    write_image(tmp_path / "patient.nii.gz", tiny_case(0)[0])
    out = tmp_path / "out"
    result = run("-o", out, "-m", tmp_path / "model", "--scan", tmp_path / "patient.nii.gz", "--threads", "1")
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    assert (row["name"], row["failure"], row["classes"]) == ("zoomseg", None, 3)
    steps = {step["name"]: step for step in row["steps"]}
    assert {"start", "read", "coarse", "fine", "write"} <= set(steps)
    assert {steps["read"]["group"], steps["fine"]["group"]} == {"read", "network"}
    assert sum(step["seconds"] for step in row["steps"]) == pytest.approx(row["seconds"])
    recorded = json.loads((out / "zoomseg" / "run.json").read_text())["cases"]["patient"]
    assert row["tiles"] == sum(stage["tiles"] for stage in recorded["stages"])
    assert row["peak_ram_mb"] >= max(recorded["peak_ram_mb"] - 1, 100)
    assert row["flops_per_voxel"] == fine_flops_per_voxel(model)
    with (out / "steps.csv").open() as file:
        assert [line["step"] for line in csv.DictReader(file)] == list(steps)
    assert "| ZoomSeg (ZoomSeg " in (out / "table.md").read_text()
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "zoomseg" / "patient.nii.gz").is_file()


def fine_flops_per_voxel(model: bundle.Bundle) -> float:
    """Of the tiny recipe's last stage, whose network sees the scan and a prior of two organs."""
    from zoomseg.backends.torch_networks import build_network

    fine = model.recipe.stages[-1]
    module = build_network(fine, model.recipe, model.schema, 1).eval()
    channels = next(module.parameters()).shape[1]
    return 2 * multiply_adds(module, (channels, 32, 32, 32)) / 32**3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("--only", "zoomseg,nnunett"),
            "no row 'nnunett'; allowed: zoomseg, nnunet, nnunet-same-flops, monai",
        ),
        (("--only", "monai"), "row 'monai' needs --peers"),
        (("--scan", "nowhere.nii.gz"), "nowhere.nii.gz: no such file"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    result = run("-o", tmp_path, "-m", tmp_path, *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr.splitlines()[-1]


def test_a_step_counts_only_what_no_inner_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([10.0, 11.0, 14.0, 16.0])
    monkeypatch.setattr(time, "time", lambda: next(moments))
    clock = account.Clock()
    argmax = clock.timed("argmax", "merge", lambda: "labels")
    with clock.step("export", "write"):
        assert argmax() == "labels"
    assert clock.segments == [
        account.Segment("export", "write", 10, 11),
        account.Segment("argmax", "merge", 11, 14),
        account.Segment("export", "write", 14, 16),
    ]


def test_a_step_ends_when_the_device_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def settle() -> None:
        now[0] += 5

    clock = account.Clock(settle)
    with clock.step("network", "network"):
        now[0] += 1
    assert clock.segments == [account.Segment("network", "network", 5, 11)]


def test_an_account_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = account.Account("MONAI 1", (account.Segment("load", "read", 1.5, 2.0),), 27, 12.5)
    account.write_account(written, tmp_path / "account.json")
    assert account.read_account(tmp_path / "account.json") == written


def test_a_step_of_no_group_is_refused() -> None:
    with pytest.raises(ValueError, match="no group 'rest'; allowed: start, read"):
        account.Segment("load", "rest", 0, 1)


def test_steps_are_laid_beside_memory() -> None:
    samples = tuple(
        watch.Sample(t, ram) for t, ram in [(0.5, 100.0), (2.5, 300.0), (3.5, 900.0), (5.5, 400.0)]
    )
    watched = watch.Watched(0.0, 7.0, 0, samples, 950.0, over_limit=False)
    segments = [
        account.Segment("load", "read", 1.0, 1.25),
        account.Segment("network", "network", 2.0, 3.0),
        account.Segment("argmax", "merge", 3.0, 5.0),
        account.Segment("network", "network", 5.0, 6.0),
    ]
    assert measure.steps_of(watched, segments) == (
        measure.Step("start", "start", 7 - 4.25, 100.0),
        measure.Step("load", "read", 0.25, None),
        measure.Step("network", "network", 2.0, 400.0),
        measure.Step("argmax", "merge", 2.0, 900.0),
    )


def test_zoomsegs_steps_end_when_the_label_map_was_written(tmp_path: Path) -> None:
    seconds = {
        "read": 1.0,
        "waited": 1.0,
        "coarse": 2.0,
        "fuse": 0.5,
        "write": 0.25,
        "summary": 0.5,
        "total": 4.5,
    }
    stages = [
        {"stage": "coarse", "tiles": 4, "network_seconds": 1.5},
        {"stage": "fine", "tiles": 9, "network_seconds": 0.0},
    ]
    case = {"status": "done", "seconds": seconds, "stages": stages, "peak_vram_mb": 7.0}
    (tmp_path / "run.json").write_text(json.dumps({"zoomseg": "9", "cases": {"a": case}}))
    (tmp_path / "a.nii.gz").touch()
    os.utime(tmp_path / "a.nii.gz", (1000.0, 1000.0))
    found = rows.zoomseg_account(tmp_path)
    assert found == account.Account(
        "ZoomSeg 9",
        (
            account.Segment("read", "read", 996.25, 997.25),
            account.Segment("coarse", "network", 997.25, 998.75),
            account.Segment("coarse, around", "other", 998.75, 999.25),
            account.Segment("fuse", "merge", 999.25, 999.75),
            account.Segment("write", "write", 999.75, 1000.0),
            account.Segment("summary", "write", 1000.0, 1000.5),
        ),
        13,
        7.0,
    )


HUNGRY = "import time; held = b'x' * (300 << 20); time.sleep({seconds})"


def test_memory_of_children_is_seen(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HUNGRY.format(seconds=1.2)!r}])"
    watched = watch.watch([sys.executable, "-c", code], os.environ, tmp_path / "log", limit_mb=GB)
    assert (watched.exit_code, watched.over_limit) == (0, False)
    assert 300 < max(sample.ram_mb for sample in watched.samples) < 400
    assert watched.peak_ram_mb >= max(sample.ram_mb for sample in watched.samples)


def test_a_process_over_its_limit_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HUNGRY.format(seconds=60)]
    watched = watch.watch(command, os.environ, tmp_path / "log", limit_mb=200)
    assert watched.over_limit
    assert watched.ended - watched.started < 30
    assert measure.failure_of(watched, tmp_path / "log", 200) == "out of memory: passed 0.2 GB"


def test_a_failed_process_gives_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('loading'); raise SystemExit('no such thing')"]
    watched = watch.watch(command, os.environ, tmp_path / "log", limit_mb=GB)
    assert measure.failure_of(watched, tmp_path / "log", GB) == "exit code 1: loading / no such thing"


def a_row(name: str, title: str, failure: str | None = None) -> measure.Measured:
    steps = (
        measure.Step("start", "start", 1.0, 100.0),
        measure.Step("network", "network", 4.0, 2 * GB),
        measure.Step("argmax", "merge", 5.0, None),
    )
    scale = 1 if name == "zoomseg" else 3
    return measure.Measured(
        name,
        title,
        "" if failure else "P 1",
        "U-Net",
        125728.0,
        14,
        10.0 * scale,
        2.5 * GB,
        0.0,
        27,
        () if failure else steps,
        failure,
    )


SETTING = table.Setting("scan.nii.gz", "a machine", "cpu", 2, 1.5, "2026-01-01")


def test_the_table_compares_and_says_who_failed(tmp_path: Path) -> None:
    failure = "out of memory: passed 4.0 GB"
    found = [a_row("zoomseg", "ZoomSeg"), a_row("nnunet", "nnU-Net"), a_row("monai", "MONAI", failure)]
    table.write_results(SETTING, found, tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    cells = {line.split(" ")[1]: [c.strip() for c in line.strip("|").split("|")] for line in lines[4:7]}
    header = [c.strip() for c in lines[2].strip("|").split("|")]
    ours, nnunet, monai = (
        dict(zip(header, cells[name], strict=True)) for name in ("ZoomSeg", "nnU-Net", "MONAI")
    )
    assert (ours["network"], ours["outside network"], ours["total"]) == ("4.0", "5.0", "10.0")
    assert (ours["against ZoomSeg"], nnunet["against ZoomSeg"], monai["against ZoomSeg"]) == (
        "1.0 x",
        "3.0 x",
        "",
    )
    assert (nnunet[""], monai[""]) == ("nnU-Net (P 1, U-Net)", "MONAI (U-Net)")
    assert (monai["network"], monai["total"]) == ("", f"{failure}, after 30 s")
    assert (monai["peak RAM"], monai["FLOPs per voxel"]) == ("2.50 GB", "125,728")
    assert "| nnU-Net | network | network | 4.00 | 2.00 GB |" in lines
    assert "| nnU-Net | argmax | merge | 5.00 |  |" in lines
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def a_ct(path: Path, spacing: tuple[float, float, float]) -> None:
    """A scan whose values are its world z coordinate, and labels that split it in the middle of x."""
    shape = (8, 6, 10)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (5.0, -7.0, 11.0)
    z = affine[2, 3] + affine[2, 2] * np.arange(shape[2])
    data = np.broadcast_to(z, shape).astype(np.int16)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[4:] = 1
    scans.save(data, scans.Target(shape, affine), path / "ct.nii.gz")
    scans.save(labels, scans.Target(shape, affine), path / "labels.nii.gz")


def test_a_long_scan_keeps_its_place(tmp_path: Path) -> None:
    a_ct(tmp_path, (2.0, 2.0, 40.0))
    scans.make_scan(tmp_path / "ct.nii.gz", tmp_path / "big.nii.gz", (16, 12, 40), noise_hu=0)
    scans.make_labels(tmp_path / "labels.nii.gz", tmp_path / "big_labels.nii.gz", (16, 12, 40))
    big, labels = scans.read(tmp_path / "big.nii.gz"), scans.read(tmp_path / "big_labels.nii.gz")
    assert np.asarray(big.dataobj).dtype == np.int16
    np.testing.assert_allclose(np.diag(big.affine)[:3], [1, 1, 10])
    np.testing.assert_array_equal(big.affine, labels.affine)
    inner = np.asarray(big.dataobj)[0, 0, 2:-2]  # beyond the outer voxels' centres the edge goes on
    world = big.affine[2, 3] + big.affine[2, 2] * np.arange(2, 38)
    np.testing.assert_allclose(inner, world, atol=0.5)  # rounded to integers
    assert np.asarray(labels.dataobj)[:8].max() == 0
    assert np.asarray(labels.dataobj)[8:].min() == 1


def test_a_slab_is_stretched_and_noise_is_the_same_every_time(tmp_path: Path) -> None:
    a_ct(tmp_path, (2.0, 2.0, 3.0))
    for name in ("one.nii.gz", "two.nii.gz"):
        scans.make_scan(tmp_path / "ct.nii.gz", tmp_path / name, (16, 12, 40))
    one, two = scans.read(tmp_path / "one.nii.gz"), scans.read(tmp_path / "two.nii.gz")
    np.testing.assert_allclose(np.diag(one.affine)[:3], [1, 1, scans.LENGTH_MM / 40])
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
    noise = np.asarray(one.dataobj)[:, :, 20].astype(float)
    assert noise.std() == pytest.approx(10, rel=0.15)
