"""Content that must never be in the repository: paths of a single machine, unsafe loading, large files. Every
guard is a function from files to complaints, and is tested with files about which it must complain."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_BYTES = 16_000_000

# [x] keeps the patterns from finding themselves.
PLACES = {
    "package index": re.compile(
        r"p[y]pi\.org/simple|[f]iles\.pythonhosted\.org|[d]ownload\.pytorch\.org"
        r"|\b(?:extra-)?index-[u]rl\b|\[\[tool\.uv\.[i]ndex\]\]|\bfind-[l]inks\s*="
    ),
    "one machine's path": re.compile(r"(?<![\w.])/(?:[w]ork|[r]oot|[h]ome)/\w+|\.\./[s]hared\b"),
}
ALLOWED = {(".ci/run", "../" + "shared/data"): 1}
"""(file, text) -> how often it may appear: CI looks there for real scans."""

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    *("torch.load", "np.load", "numpy.load", "eval", "exec", "os.system", "pd.read_pickle"),
    *(f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "full_load_all")),
}


def repository_files() -> list[Path]:
    """All files that are committed or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of the project's files")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def foreign_places(path: Path, root: Path) -> Iterator[str]:
    """Registry hosts and paths of one machine in a text file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    name = path.relative_to(root).as_posix()
    for (file, allowed), count in ALLOWED.items():
        if file == name:
            text = text.replace(allowed, "", count)
    for number, line in enumerate(text.splitlines(), start=1):
        for what, pattern in PLACES.items():
            if pattern.search(line):
                yield f"{name}:{number}: {what}: {line.strip()[:100]}"


def unsafe_loading(path: Path) -> Iterator[str]:
    """Imports and calls that can run code from a file. ``yaml.load`` may take a safe loader, ``torch.load``
    be of weights only; what a refused pickle raises may be imported."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    safe = {node.name for node in classes if "yaml.SafeLoader" in map(ast.unparse, node.bases)}
    for node in nodes:
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and [a.name for a in node.names] != ["UnpicklingError"]:
            modules = [node.module or ""]
        yield from (f"{where}: imports {m}" for m in modules if m.split(".")[0] in UNSAFE_MODULES)
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {ast.unparse(argument) for argument in node.args}
            weights_only = "weights_only=True" in map(ast.unparse, node.keywords)
            checked = (name == "yaml.load" and given & safe) or (name == "torch.load" and weights_only)
            if name in UNSAFE_CALLS and not checked:
                yield f"{where}: calls {name}"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in ("allow_pickle", "shell") and value is not False:
                    yield f"{where}: {keyword.arg}={ast.unparse(keyword.value)}"


def too_large(path: Path, limit: int = MAX_BYTES) -> bool:
    return path.stat().st_size > limit


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    assert [complaint for path in repository_files() for complaint in foreign_places(path, ROOT)] == []


@pytest.mark.parametrize(
    "line",
    [
        "source = { registry = 'https://p" + "ypi.org/simple' }",
        "--extra-index-" + "url https://example.org",
        "data = '/wo" + "rk/main/data'",
        "data = '/ho" + "me/me/data'",
        "cd ../sha" + "red/data",
    ],
)
def test_places_are_noticed(tmp_path: Path, line: str) -> None:
    file = tmp_path / "notes.md"
    file.write_text(f"fine\n{line}\n")
    (complaint,) = foreign_places(file, tmp_path)
    assert complaint.startswith("notes.md:2: ")


def test_a_place_that_is_allowed_once_is_not_allowed_twice(tmp_path: Path) -> None:
    file = tmp_path / ".ci" / "run"
    file.parent.mkdir()
    file.write_text("../sha" + "red/data\n")
    assert list(foreign_places(file, tmp_path)) == []
    file.write_text(2 * ("../sha" + "red/data\n"))
    assert len(list(foreign_places(file, tmp_path))) == 1


@pytest.mark.parametrize(
    "line", ["networks/wo" + "rk/main", "homework/x", "a/ro" + "ot/b", "results/ho" + "me/x"]
)
def test_innocent_paths_are_left_alone(tmp_path: Path, line: str) -> None:
    file = tmp_path / "notes.md"
    file.write_text(line)
    assert list(foreign_places(file, tmp_path)) == []


def test_no_module_loads_what_could_run_code() -> None:
    modules = sorted((ROOT / "src").rglob("*.py"))
    assert [complaint for path in modules for complaint in unsafe_loading(path)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import os, joblib",
        "from dill import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=chosen)",
        "from pickle import UnpicklingError, loads",
        "np.load(path)",
        "numpy.lib.format.read_array(file, allow_pickle=True)",
        "numpy.lib.format.read_array(file, allow_pickle=trusted)",
        "yaml.load(text, Loader=yaml.Loader)",
        "class Loose(yaml.Loader): ...\nyaml.load(text, Loose)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_unsafe_loading_is_noticed(tmp_path: Path, code: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(f"{code}\n")
    assert len(list(unsafe_loading(file))) == 1


def test_safe_loading_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "good.py"
    file.write_text(
        '"""never pickle"""\n'
        "class Strict(yaml.SafeLoader): ...\n"
        "yaml.load(t, Strict)\n"
        "yaml.safe_load(t)\n"
        "model.eval()\n"
        "read(f, allow_pickle=False)\n"
    )
    assert list(unsafe_loading(file)) == []


def test_no_large_files() -> None:
    assert [path.name for path in repository_files() if too_large(path)] == []


def test_a_large_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "scan.nii.gz"
    file.write_bytes(b"x" * 11)
    assert too_large(file, limit=10)
    assert not too_large(file, limit=11)


def test_the_lock_file_with_its_registry_hosts_is_not_committed() -> None:
    assert "uv.lock" not in [path.name for path in repository_files()]
