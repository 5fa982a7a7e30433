"""Complete results are recognised by content: the scan's, the models', and that of every requested file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.tiny_dataset import CPU, tiny_case
from helpers.untrained_models import predictor, untrained_bundle
from zoomseg.inference import journal, outputs
from zoomseg.inference.batch import ExtraOutputs, Failed
from zoomseg.inference.outputs import ALL, Part, segment_to_folder
from zoomseg.inference.predictor import Predictor
from zoomseg.io.scans import ScanInput, write_image

STAGES = ExtraOutputs(stages=True)


@pytest.fixture
def scans(tmp_path: Path) -> tuple[ScanInput, ...]:
    return tuple(scan(tmp_path, name, seed) for seed, name in enumerate("abc"))


def scan(folder: Path, name: str, seed: int) -> ScanInput:
    write_image(folder / f"{name}.nii.gz", tiny_case(seed)[0])
    return ScanInput(name, (folder / f"{name}.nii.gz",))


def computed(
    scans: tuple[ScanInput, ...],
    out: Path,
    model: Predictor | None = None,
    organs: tuple[str, ...] | None = None,
    extra: ExtraOutputs = STAGES,
    part: Part = ALL,
) -> list[str]:
    """The scans that a run with ``resume`` computes."""
    told: list[str] = []
    segment_to_folder(
        scans,
        out,
        model or predictor(),
        organs,
        on_result=lambda outcome: told.append(outcome.case),
        extra=extra,
        resume=True,
        part=part,
    )
    return told


def _unchanged(out: Path) -> None:
    pass


def _touch(out: Path) -> None:
    os.utime(out.parent / "b.nii.gz", (0, 0))


def _rescan(out: Path) -> None:
    scan(out.parent, "b", seed=9)


def _cut_short(out: Path) -> None:
    (out / "b.nii.gz").write_bytes((out / "b.nii.gz").read_bytes()[:-1])


def _without_label_map(out: Path) -> None:
    (out / "b.nii.gz").unlink()


def _without_a_stage(out: Path) -> None:
    (out / "stages" / "b-fine.nii.gz").unlink()


def _torn_line(out: Path) -> None:
    """As a process leaves it that is killed while it appends: b's line is the second."""
    (file,) = (out / "journal").glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1] + lines[3] + lines[2][: len(lines[2]) // 2])


def _no_journal(out: Path) -> None:
    (file,) = (out / "journal").glob("*.jsonl")
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (_unchanged, []),
        (_touch, []),
        (_rescan, ["b"]),
        (_cut_short, ["b"]),
        (_without_label_map, ["b"]),
        (_without_a_stage, ["b"]),
        (_torn_line, ["b"]),
        (_no_journal, ["a", "b", "c"]),
    ],
)
def test_only_what_is_not_whole_is_computed(
    scans: tuple[ScanInput, ...], tmp_path: Path, change: Callable[[Path], None], again: list[str]
) -> None:
    out = tmp_path / "out"
    assert computed(scans, out) == ["a", "b", "c"]
    before = (out / "summary.csv").read_bytes()
    change(out)
    assert computed(scans, out) == again
    assert computed(scans, out) == []
    cases = json.loads((out / "run.json").read_text())["cases"]
    assert {case: told["status"] for case, told in cases.items()} == dict.fromkeys("abc", "done")
    if change is not _rescan:
        assert sorted((out / "summary.csv").read_bytes().splitlines()) == sorted(before.splitlines())


def test_another_model_recipe_or_wish_computes_all_again(
    scans: tuple[ScanInput, ...], tmp_path: Path
) -> None:
    out, one = tmp_path / "out", scans[:1]
    assert computed(one, out, extra=ExtraOutputs()) == ["a"]
    assert computed(one, out) == ["a"]  # stages are asked for now
    assert computed(one, out, extra=ExtraOutputs()) == []
    other = untrained_bundle(1)
    assert computed(one, out, Predictor(other, CPU)) == ["a"]
    assert computed(one, out, Predictor(other, CPU)) == []
    assert computed(one, out, Predictor(other, CPU), ("right kidney",)) == ["a"]
    stages = tuple(
        s.model_copy(update={"grid": s.grid.model_copy(update={"overlap": 0.125})})
        for s in other.recipe.stages
    )
    changed = replace(other, recipe=other.recipe.model_copy(update={"stages": stages}))
    assert computed(one, out, Predictor(changed, CPU), ("right kidney",)) == ["a"]


def test_what_was_not_mirrored_is_computed_again_with_mirroring(
    scans: tuple[ScanInput, ...], tmp_path: Path
) -> None:
    model, out, one = untrained_bundle(), tmp_path / "out", scans[:1]
    stages = tuple(s.model_copy(update={"mirror_axes": ("k",)}) for s in model.recipe.stages)
    model = replace(model, recipe=model.recipe.model_copy(update={"stages": stages}))
    for mirror in (False, True):
        assert computed(one, out, Predictor(model, CPU, mirror=mirror)) == ["a"]
        assert computed(one, out, Predictor(model, CPU, mirror=mirror)) == []
        told = json.loads((out / "run.json").read_text())["recipe_in_full"]["stages"]
        assert [stage["mirror_axes"] for stage in told] == [["k"] if mirror else []] * len(stages)


def test_what_another_version_computed_is_computed_again(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, one = tmp_path / "out", scans[:1]
    assert computed(one, out) == ["a"]
    with monkeypatch.context() as later:
        later.setattr(outputs.importlib.metadata, "version", lambda name: "99.0")
        assert computed(one, out) == ["a"]
        assert computed(one, out) == []
    assert computed(one, out) == ["a"]


def test_what_might_have_been_refused_is_computed_again(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    """A scan that was not refused is the same with any scan allowed."""
    out, one = tmp_path / "out", scans[:1]
    lenient = Predictor(untrained_bundle(), CPU, any_scan=True)
    assert computed(one, out) == ["a"]
    assert computed(one, out, lenient) == []
    assert computed(scans[:2], out, lenient) == ["b"]
    assert computed(scans[:2], out) == ["b"]


def test_failed_scans_are_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"no")
    scans = (ScanInput("a", (tmp_path / "a.nii.gz",)),)
    (failed,) = segment_to_folder(scans, tmp_path / "out", predictor())
    assert isinstance(failed, Failed)
    assert journal.read(tmp_path / "out")["a"].entry.account["error"] == failed.reason
    scan(tmp_path, "a", 1)
    assert computed(scans, tmp_path / "out") == ["a"]
    assert computed(scans, tmp_path / "out") == []


def test_a_name_that_is_no_utf_8_is_recorded(tmp_path: Path) -> None:
    named = scan(tmp_path, "a", 1).paths[0]
    odd = (ScanInput("a", (named.rename(tmp_path / os.fsdecode(b"a\xff.nii.gz")),)),)
    assert computed(odd, tmp_path / "out") == ["a"]
    account = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]["a"]
    assert account["scan"] == ["../a\\xff.nii.gz"]
    assert computed(odd, tmp_path / "out") == []


def test_parts_are_all_scans_once(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    four = (*scans, scan(tmp_path, "d", 3))
    found = [computed(four, tmp_path / "out", part=Part(number, 3)) for number in (1, 2, 3)]
    assert found == [["a", "d"], ["b"], ["c"]]
    assert not (tmp_path / "out" / "run.json").exists()
    assert computed(four, tmp_path / "out") == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b"\xff\n",
        b'{"case": "../a", "finished": 1, "account": {"status": "failed", "error": "x"}}\n',
        b'{"case": "a", "finished": 1, "account": {"status": "done"}}\n',
        b'{"case": "a", "finished": NaN, "account": {"status": "failed", "error": "x"}}\n',
        b'{"case": "a", "finished": 1, "account": {"status": "failed", "error": ""}, "files": {"/": null}}\n',
    ],
)
def test_lines_that_are_none_of_ours_are_left_out(
    scans: tuple[ScanInput, ...], tmp_path: Path, line: bytes
) -> None:
    out = tmp_path / "out"
    segment_to_folder(scans[:1], out, predictor())
    (file,) = (out / "journal").glob("*.jsonl")
    head, entry = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(head + line + entry)
    assert list(journal.read(out)) == ["a"]
    assert journal.read(out)["a"].entry.done
    file.write_bytes(line + entry)
    assert journal.read(out) == {}


@pytest.mark.parametrize("line", [0, 1], ids=["run", "scan"])
def test_notes_that_are_no_texts_are_none_of_ours(
    scans: tuple[ScanInput, ...], tmp_path: Path, line: int
) -> None:
    out = tmp_path / "out"
    segment_to_folder(scans[:1], out, predictor())
    (file,) = (out / "journal").glob("*.jsonl")
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    lines[line]["run" if line == 0 else "account"]["notes"] = [{}]
    file.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    assert journal.read(out) == {}
