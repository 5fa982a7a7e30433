"""Dependencies found from imports, and ignored ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoomseg.export import run
from zoomseg.export.modules import SOURCE, distributions, needed_by

FILES = {
    "__init__.py": "from __future__ import annotations\nTYPE_CHECKING = False\n",
    "a/__init__.py": "import click\n",
    "a/entry.py": (
        "import os.path\nimport numpy.typing as npt\nfrom zoomseg.b import module, VALUE\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from zoomseg.c import for_types\n    import torch\n"
        "def later():\n    from zoomseg.c import later\n    import ants\n"
    ),
    "b/__init__.py": "VALUE = 1\n",
    "b/module.py": (
        "import sys\nif sys.platform == 'none':\n    import zoomseg.c.branch\nelse:\n    import yaml.nodes\n"
        "from zoomseg.a import entry\n"
    ),
    "b/other.py": "import scipy\n",
    "c/__init__.py": "",
    **{f"c/{name}.py": "" for name in ("branch", "for_types", "later")},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / "zoomseg" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_what_is_imported_on_loading_is_found(source: Path) -> None:
    """In every form of import, with parent packages, and with cycles."""
    needed = needed_by("zoomseg.a.entry", source)
    root = source / "zoomseg"
    assert needed.modules == {
        "zoomseg": root / "__init__.py",
        "zoomseg.a": root / "a" / "__init__.py",
        "zoomseg.a.entry": root / "a" / "entry.py",
        "zoomseg.b": root / "b" / "__init__.py",
        "zoomseg.b.module": root / "b" / "module.py",
        "zoomseg.c": root / "c" / "__init__.py",
        "zoomseg.c.branch": root / "c" / "branch.py",
    }
    assert needed.libraries == ("click", "numpy", "yaml")


def test_of_a_package_neither_training_nor_dicom_nor_atlases() -> None:
    rooms = {name.split(".")[1] for name in needed_by(run.__name__).modules if "." in name}
    assert rooms == {"anatomy", "backends", "core", "export", "inference", "io", "pipeline", "recipe"}
    assert not any(name.startswith("zoomseg.io.dicom") for name in needed_by(run.__name__).modules)
    assert (SOURCE / "zoomseg" / "export" / "run.py") in needed_by(run.__name__).modules.values()


def test_libraries_have_names_of_their_own_for_pip() -> None:
    named = {"cc3d": "connected-components-3d", "yaml": "pyyaml", "numpy": "numpy"}
    assert distributions(named) == named
