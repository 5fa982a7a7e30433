"""The files of a batch: summaries, and nothing of the user's is overwritten."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.tiny_dataset import CPU, tiny_case
from helpers.untrained_models import predictor, untrained_bundle
from zoomseg.core.case import Case
from zoomseg.core.errors import LabelError, OutputError
from zoomseg.inference import outputs
from zoomseg.inference.batch import ExtraOutputs, Failed, Segmented
from zoomseg.inference.confidence import organ_rows_of
from zoomseg.inference.outputs import Part, segment_to_folder
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.summary import OrganRow
from zoomseg.io import bundle
from zoomseg.io.scans import ScanInput, write_image
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.planning import training_domain
from zoomseg.recipe.load import from_dict


@pytest.fixture
def scans(tmp_path: Path) -> tuple[ScanInput, ...]:
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "good.nii.gz", tiny_case(1)[0])
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no")
    return tuple(ScanInput(n, (tmp_path / "in" / f"{n}.nii.gz",)) for n in ("good", "bad"))


def test_account_names_every_case(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    told: list[Segmented | Failed] = []
    failed = segment_to_folder(scans, tmp_path / "out", predictor(), on_result=told.append)
    assert [f.case for f in failed] == ["bad"]
    assert [t.case for t in told] == ["good", "bad"]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["labels"] == {"background": 0, "left kidney": 3, "right kidney": 7}
    assert run["recipe"] == "tiny"
    assert from_dict(run["recipe_in_full"]) == predictor().bundle.recipe
    assert (run["models"], run["trained"]) == ([], {})  # never trained, never saved
    assert run["precision"] == "float32"
    assert run["cases"]["bad"] == {"status": "failed", "error": failed[0].reason}
    good = run["cases"]["good"]
    assert list(good["seconds"]) == [
        *("read", "waited", "prepare", "coarse", "fine", "fuse", "write", "summary", "report", "total")
    ]
    own = sum(seconds for step, seconds in good["seconds"].items() if step not in ("waited", "total"))
    assert own - 0.01 <= good["seconds"]["total"] <= run["seconds"] + 0.01
    coarse, fine = good["stages"]
    assert (coarse["stage"], coarse["tiles"], coarse["region_share"]) == ("coarse", 1, 1.0)
    assert fine["tiles"] + fine["tiles_skipped"] > 0
    assert 0 < coarse["network_seconds"] < coarse["seconds"]
    assert 0 < coarse["flops"] < good["flops"] == coarse["flops"] + fine["flops"]
    assert good["peak_ram_mb"] > 10
    assert good["ram_area_mb_s"] > 0
    assert good["cpu_area_percent_s"] > 0
    assert (good["peak_vram_mb"], good["vram_area_mb_s"]) == (0, 0)  # on the CPU
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert [(r["case"], r["organ"]) for r in csv.DictReader(file)] == [
            ("good", "left kidney"),
            ("good", "right kidney"),
        ]


def test_every_scan_has_a_place_in_the_report_and_says_where_it_came_from(
    scans: tuple[ScanInput, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (failed,) = segment_to_folder(scans, out, predictor())
    page = (out / "report.html").read_text()
    assert f"<strong>bad</strong>: {failed.reason}" in html.unescape(page)
    assert 'src="report/planes/good.jpg"' in page
    assert [path.name for path in (out / "report" / "planes").iterdir()] == ["good.jpg"]
    account = json.loads((out / "run.json").read_text())["cases"]["good"]
    assert account["scan"] == ["../in/good.nii.gz"]
    assert (out / account["scan"][0]).resolve() == scans[0].paths[0].resolve()


def test_a_mirrored_scan_is_a_note(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the terminal, where it is not only a flag of an organ in a table."""
    told: list[Segmented | Failed] = []

    def rows_of(case: str, *given: object) -> list[OrganRow]:
        return [
            OrganRow(case, name, 1.0, 2.0, 0.5, ("sides_swapped",))
            for name in ("left kidney", "right kidney")
        ]

    monkeypatch.setattr(outputs, "organ_rows_of", rows_of)
    segment_to_folder(scans[:1], tmp_path / "out", predictor(), on_result=told.append)
    organs = "left kidney, right kidney"
    note = f"left organs lie to the right of right ones ({organs}); is the scan mirrored?"
    assert isinstance(told[0], Segmented)
    assert note in told[0].result.notes
    assert note in json.loads((tmp_path / "out" / "run.json").read_text())["cases"]["good"]["notes"]


def test_a_picture_that_cannot_be_drawn_is_a_note(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs.result_page, "draw", lambda *given: 1 / 0)
    failed = segment_to_folder(scans, tmp_path / "out", predictor())
    assert [f.case for f in failed] == ["bad"]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["cases"]["good"]["status"] == "done"
    assert run["cases"]["good"]["notes"][-1].startswith("no pictures: ")
    assert "ZeroDivisionError" in run["cases"]["good"]["notes"][-1]


def test_a_batch_that_is_stopped_has_its_report(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    def stop(outcome: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_to_folder(scans, tmp_path / "out", predictor(), on_result=stop)
    assert 'src="report/planes/good.jpg"' in (tmp_path / "out" / "report.html").read_text()


def test_the_reference_explains_every_key(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    segment_to_folder(scans, tmp_path / "out", predictor())
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    good = run["cases"]["good"]
    steps = {step for step in good["seconds"] if step not in ("coarse", "fine")}
    tables = [set(run), set(good) | {"error", "run"}, steps, set(good["stages"][0])]
    page = Path(__file__).parents[3] / "docs" / "reference" / "run-json.md"
    rows = re.findall(r"^\|(.*?)\|", page.read_text(encoding="utf-8"), re.MULTILINE)
    explained = [name for row in rows for name in re.findall("`(.+?)`", row)]
    assert sorted(explained) == sorted(name for table in tables for name in table)


def test_notes_are_in_the_account(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    known = replace(untrained_bundle(), domain=thin_domain())
    told = segment_to_folder(
        scans[:1], tmp_path / "out", Predictor(known, CPU), notes=["a file was left out"]
    )
    assert told == ()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["notes"] == ["a file was left out"]
    (note,) = run["cases"]["good"]["notes"]
    assert note.startswith("the body in it measures ")


def test_a_summary_that_cannot_be_made_fails_that_scan_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.nii.gz", tiny_case(1)[0])
    both = tuple(ScanInput(name, (tmp_path / f"{name}.nii.gz",)) for name in ("a", "b"))

    def rows_of(case: str, *given: object) -> list[OrganRow]:
        if case == "a":
            raise OverflowError("cannot convert float infinity to integer")
        return organ_rows_of(case, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(outputs, "organ_rows_of", rows_of)
    (failed,) = segment_to_folder(both, tmp_path / "out", predictor())
    assert failed.case == "a"
    assert "a.nii.gz: unexpected OverflowError" in failed.reason
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {case: told["status"] for case, told in run["cases"].items()} == {"a": "failed", "b": "done"}
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"b"}
    assert [path.name for path in sorted((tmp_path / "out").glob("*.nii.gz"))] == ["b.nii.gz"]


def thin_domain() -> TrainingDomain:
    """For scans like the tiny ones, but with bodies a quarter as thick."""
    case = Case("a", tiny_case(1)[0])
    recipe = untrained_bundle().recipe
    known = training_domain.describe([training_domain.sample(case)], recipe.intensity, ["CT"], [])
    low, high = known.cross_section_cm2
    return replace(known, cross_section_cm2=(low / 4, high / 4))


def test_account_is_there_after_every_case(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    """A batch that is stopped after the first case has recorded it."""

    class StoppedError(Exception):
        pass

    def stop(_: object) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        segment_to_folder(scans, tmp_path / "out", predictor(), on_result=stop)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert list(run["cases"]) == ["good"]
    assert (tmp_path / "out" / "summary.csv").is_file()


def test_the_same_scan_again_gives_the_same_bytes(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    kinds = ExtraOutputs(slicer=True, stages=True, probabilities=("left kidney",))
    for out in ("one", "two"):
        segment_to_folder(scans[:1], tmp_path / out, predictor(), extra=kinds)
        time.sleep(1.1)  # gzip stores whole seconds
    one, two = (
        {p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*.n*") if p.is_file()}
        for out in ("one", "two")
    )
    assert len(one) >= 5
    assert one == two


def test_files_beside_an_earlier_label_map_go_with_it(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    """Except those that somebody changed."""
    out, organs = tmp_path / "out", ("left kidney", "right kidney")
    kinds = ExtraOutputs(slicer=True, stages=True, probabilities=organs)
    segment_to_folder(scans[:1], out, predictor(), extra=kinds)
    edited, kept = out / "slicer" / "good.seg.nrrd", out / "probabilities" / "good-left_kidney.nii.gz"
    edited.write_bytes(edited.read_bytes() + b" ")
    (out / "stages" / "good-mine.nii.gz").write_bytes(b"not written by a run")
    segment_to_folder(scans[:1], out, predictor(1), extra=ExtraOutputs(probabilities=organs[:1]))
    found = {path.relative_to(out).as_posix() for path in out.rglob("good*") if "report" not in path.parts}
    assert found == {
        *("good.nii.gz", "stages/good-mine.nii.gz"),
        *(path.relative_to(out).as_posix() for path in (edited, kept)),
    }


def test_only_chosen_organs_are_listed(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    segment_to_folder(scans[:1], tmp_path / "out", predictor(), ("right kidney",))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["labels"] == {"background": 0, "right kidney": 7}
    with pytest.raises(LabelError, match="unknown label"):
        segment_to_folder(scans[:1], tmp_path / "other", predictor(), ("spleen",))
    assert not (tmp_path / "other").exists()


def test_a_scan_is_never_overwritten_by_its_labels(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    before = scans[0].paths[0].read_bytes()
    with pytest.raises(OutputError, match="is the scan itself"):
        segment_to_folder(scans, tmp_path / "in", predictor())
    assert scans[0].paths[0].read_bytes() == before


def test_no_result_replaces_a_scan_or_another_result(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    """A scan with the name of the output of another scan's stages."""
    place = tmp_path / "out" / "stages" / "good-coarse.nii.gz"
    place.parent.mkdir(parents=True)
    write_image(place, tiny_case(1)[0])
    before = place.read_bytes()
    other = ScanInput("other", (place,))
    with pytest.raises(OutputError, match=r"good-coarse\.nii\.gz: is the scan itself"):
        segment_to_folder((scans[0], other), tmp_path / "out", predictor(), extra=ExtraOutputs(stages=True))
    assert place.read_bytes() == before
    twice = tuple(ScanInput(name, scans[0].paths) for name in ("a", "a"))
    with pytest.raises(OutputError, match=r"a\.nii\.gz: would be a result of both 'a' and 'a'"):
        segment_to_folder(twice, tmp_path / "out", predictor())


@pytest.mark.parametrize(("one", "other"), [("A", "a"), ("Gr\u00f6\u00dfe", "Gro\u0308\u00dfe")])
def test_names_that_some_disks_treat_as_one_are_refused(
    scans: tuple[ScanInput, ...], tmp_path: Path, one: str, other: str
) -> None:
    both = tuple(ScanInput(name, scans[0].paths) for name in (one, other))
    with pytest.raises(OutputError, match=f"would be a result of both '{one}' and '{other}'; rename one"):
        segment_to_folder(both, tmp_path / "out", predictor())


@pytest.mark.parametrize("name", ["good.nii.gz", "probabilities/good-left_kidney.nii.gz"])
def test_a_file_that_no_run_wrote_is_not_replaced(
    scans: tuple[ScanInput, ...], tmp_path: Path, name: str
) -> None:
    """Manual labels beside the scan, as 3D Slicer users keep them."""
    place = tmp_path / "out"
    (place / name).parent.mkdir(parents=True)
    (place / name).write_bytes(b"drawn by hand")
    wanted = ExtraOutputs(probabilities=("left kidney",))
    for _ in range(2):  # the refusal does not make the case a known one
        with pytest.raises(OutputError, match=rf"{name}: was not written by `zoomseg predict`, .*; move it"):
            segment_to_folder(scans[:1], place, predictor(), extra=wanted)
    assert (place / name).read_bytes() == b"drawn by hand"
    (place / name).rename(tmp_path / "moved")
    assert not segment_to_folder(scans[:1], place, predictor(), extra=wanted)


@pytest.mark.parametrize("gone", ["journal", "run.json", "nothing"])
def test_results_are_replaced_again(scans: tuple[ScanInput, ...], tmp_path: Path, gone: str) -> None:
    """Also those of a version without a journal, and of jobs that were not gathered."""
    out = tmp_path / "out"
    segment_to_folder(scans[:1], out, predictor())
    before = (out / "good.nii.gz").read_bytes()
    if gone == "journal":
        shutil.rmtree(out / "journal")
    elif gone == "run.json":
        (out / "run.json").unlink()
    assert not segment_to_folder(scans[:1], out, predictor(1))
    assert (out / "good.nii.gz").read_bytes() != before


def test_the_result_of_a_killed_process_is_replaced(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label map is there, and not yet in the journal."""
    out = tmp_path / "out"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Recorder, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            segment_to_folder(scans[:1], out, predictor())
    assert (out / "good.nii.gz").is_file()
    assert list((out / "journal").glob("*.jsonl")) == []
    for part in (Part(1, 2), Part(1, 1)):
        assert not segment_to_folder(scans[:1], out, predictor(), resume=True, part=part)


def test_a_case_and_its_stage_named_like_another(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = predictor()
    coarse, fine = model.bundle.recipe.stages
    stages = (coarse, fine.model_copy(update={"name": "b-coarse"}))
    recipe = model.bundle.recipe.model_copy(update={"stages": stages})
    monkeypatch.setattr(model, "bundle", SimpleNamespace(recipe=recipe, schema=model.bundle.schema))
    both = tuple(ScanInput(name, scans[0].paths) for name in ("a", "a-b"))
    with pytest.raises(OutputError, match="would be a result of both 'a' and 'a-b'; rename one"):
        segment_to_folder(both, tmp_path / "out", model, extra=ExtraOutputs(stages=True))


def test_the_model_is_named_without_its_cases(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    made = {"data_set": "mine", "seed": 3, "training_cases": ["secret"]}
    for name in ("first", "second"):
        bundle.save(replace(untrained_bundle(), provenance=made), tmp_path / name)
    first, second = (bundle.load(tmp_path / name) for name in ("first", "second"))
    segment_to_folder(scans[:1], tmp_path / "out", Predictor(first, CPU, others=[second]))
    text = (tmp_path / "out" / "run.json").read_text()
    assert json.loads(text)["models"] == [str(tmp_path / "first"), str(tmp_path / "second")]
    assert json.loads(text)["trained"] == {"data_set": "mine", "seed": 3}
    assert "secret" not in text


def test_the_account_of_many_scans_is_rewritten_for_a_twentieth_of_the_time(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time, all cases are written; with 10,000 scans, most of the time would be spent on run.json."""
    now, written = [0.0], []

    def slow(out: Path, run: dict[str, dict[str, object]], *others: object) -> None:
        now[0] += 0.5
        written.append(len(run["cases"]))
        (out / "run.json").write_text(f"{written}")

    monkeypatch.setattr(outputs, "write_account", slow)
    monkeypatch.setattr(outputs.time, "monotonic", lambda: now[0])
    account = outputs._Account(tmp_path, {})
    run: dict[str, dict[str, object]] = {"cases": {}, "labels": {}}
    for case in range(100):  # a second each
        now[0] += 1.0
        run["cases"][f"{case}"] = {}
        if account.is_due:
            account.write(run, [])
    assert written == list(range(1, 101, 10))
