"""Many scans: one that fails is named, the others are done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import tiny_case
from untrained import predictor
from zoomseg.core.errors import OutputError
from zoomseg.engine import batch
from zoomseg.engine.batch import Done, Failed, result_path, segment
from zoomseg.io.scans import ScanInput, read_label_values, write_image


@pytest.fixture
def scans(tmp_path: Path) -> tuple[ScanInput, ...]:
    for seed in (1, 3):
        write_image(tmp_path / f"case_{seed}.nii.gz", tiny_case(seed)[0])
    (tmp_path / "case_2.nii.gz").write_bytes(b"not a scan")
    return tuple(ScanInput(f"case_{n}", (tmp_path / f"case_{n}.nii.gz",)) for n in (1, 2, 3))


def test_good_bad_good(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    one, two, three = segment(scans, out, predictor())
    assert isinstance(one, Done)
    assert isinstance(two, Failed)
    assert isinstance(three, Done)
    assert two.case == "case_2"
    assert "case_2.nii.gz" in two.reason
    for done in (one, three):
        assert done.path == result_path(out, ScanInput(done.case, ()))
        values, grid = read_label_values(done.path)
        assert grid.same_as(done.image.grid)
        decoded = done.result.schema.decode(done.result.labels.data.numpy())
        assert (values == decoded).all()
        parts = [s for step, s in done.seconds.items() if step != "total"]
        assert done.seconds["total"] >= max(parts)
        mean_ram_mb = done.usage.ram_area_mb_s / done.seconds["total"]
        assert 10 < mean_ram_mb < 2 * done.usage.peak_ram_mb  # reading to writing, little more
        assert (done.usage.peak_vram_mb, done.usage.vram_area_mb_s) == (0, 0)
    assert not (out / "case_2.nii.gz").exists()


def test_out_of_memory_is_a_failed_scan_other_errors_are_bugs(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    model = predictor()
    monkeypatch.setattr(model, "predict", too_large)
    (outcome,) = segment(scans[:1], tmp_path, model)
    assert isinstance(outcome, Failed)
    assert "does not fit in memory" in outcome.reason

    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(model, "predict", bug)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(segment(scans[:1], tmp_path, model))


def test_a_place_that_cannot_be_written_ends_the_batch(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("no room")

    monkeypatch.setattr(batch, "write_labels", full)
    with pytest.raises(OutputError, match="no room"):
        list(segment(scans, tmp_path, predictor()))
