"""No input causes a traceback, a signal, a hang, 4 GB of memory, files outside the command's folder, or
incomplete results that look complete. ``benchmarks/robustness_fuzz.py`` runs any number of inputs, or repeats
one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzzing import stand_ins
from fuzzing.inputs import KINDS, PACKAGE, Input, kind_of, make
from fuzzing.judging import violations
from fuzzing.outcomes import outcomes
from fuzzing.runner import Ran, Runner
from fuzzing.samples import Samples
from zoomseg.io import bundle

INPUTS = 300
MIN_DONE = 0.1
"""Share of the inputs of each kind that must be accepted."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples(tmp_path_factory.mktemp("samples") / "samples")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with Runner(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_hostile_does_harm(kind: str, samples: Samples, runner: Runner, tmp_path: Path) -> None:
    seeds = [seed for seed in range(INPUTS) if kind_of(seed) == kind]
    found = list(outcomes(seeds, tmp_path, samples, runner))
    assert [o.told for o in found if o.violations] == []
    codes = [o.ran.code for o in found]
    assert {0} < set(codes) <= {0, 1, 2}  # otherwise no input is invalid
    # Otherwise mainly the rejection of input is tested: some input must also reach the computation.
    assert codes.count(0) >= MIN_DONE * len(codes)


# --- each violation is detected -------------------------------------------------------------------

NOTICED = {
    "raises": "traceback",
    "raises_in_thread": "traceback",
    "is_killed": "signal",
    "leaves_at_once": "signal",
    "computes_forever": "hang",
    "waits_forever": "hang",
    "allocates": "memory",
    "allocates_and_says_so": "memory",
    "ends_oddly": "exit code",
    "says_nothing": "unclear",
    "says_too_much": "unclear",
    "repeats_the_input": "unclear",
    "rules_the_terminal": "unclear",
    "writes_elsewhere": "outside",
    "writes_elsewhere_natively": "outside",
    "changes_its_input": "outside",
    "starts_a_process": "outside",
    "leaves_a_temporary_file": "left over",
    "leaves_a_partial_result": "left over",
}
"""Stand-in -> expected violation."""

UNFINISHED = {
    "leaves_a_label_map_that_failed": "predict",
    "leaves_a_label_map_cut_short": "predict",
    "leaves_a_label_map_without_account": "predict",
    "says_done_without_a_label_map": "predict",
    "gives_up_the_batch": "predict",
    "leaves_a_file": "recipes",
    "leaves_a_report": "evaluate",
}
"""Stand-in -> command that it replaces; it leaves a file that looks complete."""


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A runner with limits of one second and one gigabyte."""
    with Runner(tmp_path_factory.mktemp("home"), modules=(), memory_gb=1, hang_s=1) as made:
        yield made


def prepared(folder: Path, name: str, command: str = "none") -> Input:
    for part in ("given", "results", "temporary"):
        (folder / part).mkdir(parents=True)
    (folder / "given" / "scan.nii").write_bytes(bytes(10))
    places = (str(folder / "results" / "out"), str(folder / "given"))
    sound = name == "gives_up_the_batch"
    return Input(0, "stand-in", (), folder, f"{stand_ins.__name__}:{name}", (command, *places), sound)


def kinds_of_violations(strict: Runner, given: Input) -> set[str]:
    return {violation.kind for violation in violations(given, strict.run(given))}


@pytest.mark.parametrize("name", ["nothing_wrong", "refuses"])
def test_what_is_as_it_should_be_is_left_alone(strict: Runner, tmp_path: Path, name: str) -> None:
    assert kinds_of_violations(strict, prepared(tmp_path, name)) == set()


@pytest.mark.parametrize("name", NOTICED)
def test_violations_are_noticed(strict: Runner, tmp_path: Path, name: str) -> None:
    assert NOTICED[name] in kinds_of_violations(strict, prepared(tmp_path / "a", name))
    # They are attributed to this input, not to the next one.
    assert kinds_of_violations(strict, prepared(tmp_path / "b", "nothing_wrong")) == set()


@pytest.mark.parametrize("name", UNFINISHED)
def test_what_only_looks_complete_is_noticed(strict: Runner, tmp_path: Path, name: str) -> None:
    assert kinds_of_violations(strict, prepared(tmp_path, name, UNFINISHED[name])) == {"looks complete"}


def test_every_stand_in_is_used() -> None:
    public = {name for name, thing in vars(stand_ins).items() if callable(thing) and name[0] != "_"}
    own = {name for name in public if getattr(stand_ins, name).__module__ == stand_ins.__name__}
    assert own == {*NOTICED, *UNFINISHED, "nothing_wrong", "refuses"}


def ended(code: int | None) -> Ran:
    return Ran(code, "", "", False, (), "said", "", (), 0.0)


def test_a_data_set_or_a_model_of_a_failed_command_is_noticed(samples: Samples, tmp_path: Path) -> None:
    for command, source in (("check", samples.dataset), ("train", samples.model)):
        given = prepared(tmp_path / command, "refuses", command)
        assert violations(given, ended(2)) == ()
        shutil.copytree(source, given.out)
        (found,) = violations(given, ended(2))
        assert found.kind == "looks complete"
        assert violations(given, ended(0)) == ()
    given = prepared(tmp_path / "no model", "refuses", "train")
    assert [v.kind for v in violations(given, ended(0))] == ["looks complete"]


def test_a_label_map_of_a_package_that_failed_is_noticed(samples: Samples, tmp_path: Path) -> None:
    given = prepared(tmp_path, "refuses")
    given = Input(0, "package", (), given.folder, PACKAGE, ())
    assert [v.kind for v in violations(given, ended(0))] == ["looks complete"]
    labels = given.out.with_name("labels.nii.gz")
    shutil.copy(samples.predictions / "case_0.nii.gz", labels)
    assert violations(given, ended(0)) == ()
    assert [v.kind for v in violations(given, ended(2))] == ["looks complete"]
    labels.write_bytes(labels.read_bytes()[:-20])
    assert [v.kind for v in violations(given, ended(0))] == ["looks complete"]


# --- a seed defines an input ----------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_seed_makes_the_same_input_again(samples: Samples, tmp_path: Path) -> None:
    other = Samples(tmp_path / "samples")
    for seed in range(3 * len(KINDS)):
        if kind_of(seed) == "package":  # exporting its networks takes seconds
            continue
        made = [
            make(seed, s, tmp_path / name / str(seed)) for s, name in ((samples, "first"), (other, "second"))
        ]
        assert made[0].mutation == made[1].mutation
        assert files(made[0].given) == files(made[1].given)


def test_seeds_differ(samples: Samples, tmp_path: Path) -> None:
    made = [make(seed, samples, tmp_path / str(seed)) for seed in range(0, 20 * len(KINDS), len(KINDS))]
    contents = {tuple(files(one.given).values()) for one in made}
    assert len(contents) >= 18
    assert all(one.mutation for one in made)


def test_the_model_that_is_changed_is_sound(samples: Samples) -> None:
    assert bundle.load(samples.model).channel_names == ("CT",)
