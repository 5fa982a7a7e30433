"""A trained model as one zip that runs without torch and without an installed ZoomSeg.

```
__main__.py               python FILE.zip SCAN.nii.gz -o LABELS.nii.gz
README.txt                how to run it, and the labels
model/                    the model folder as it is (see ``io.bundle``)
model.sha256              that of model/model.json, which has those of the other files
zoomseg/                  the modules of ZoomSeg that ``export.run`` imports, as they are
```
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from zoomseg.backends.compilers import COMPILERS
from zoomseg.core.errors import OutputError, RecipeError
from zoomseg.export import run
from zoomseg.export.modules import SOURCE, distributions, needed_by
from zoomseg.io import bundle as bundles
from zoomseg.io.bundle import Bundle
from zoomseg.io.files import atomic_path, writable_directory, writing
from zoomseg.recipe import graph
from zoomseg.recipe.spec import Recipe

MAIN = """\
import importlib.util
import sys
from pathlib import Path

if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])

NEEDED = {needed}
COMPILERS = {compilers}

archive = Path(__file__).parent
missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
if not any(importlib.util.find_spec(name) for name in COMPILERS):
    missing.append(COMPILERS[0])
if missing:
    names = " ".join(missing)
    print(f"{{archive.name}}: packages are missing; install: pip install {{names}}", file=sys.stderr)
    sys.exit(2)

from zoomseg.export.run import main

sys.exit(main(archive, sys.argv[1:]))
"""

NOTICE = "For research. Not a medical device; not for diagnosis or treatment. Inspect every result."


def export(model: str | Path, path: Path, half: bool = False) -> None:
    """Write a model as a package to ``path``; the file is either the old one or the complete new one.

    The same model gives the same bytes. Requires torch and onnx only if the model has no ONNX graphs yet, or
    with ``half``.

    Args:
        model: as in ``io.bundle.find``.
        half: store the weights as float16.

    Raises:
        RecipeError: a stage needs an atlas.
        ModelError: no such model, a damaged one, or its weights do not fit into float16.
        OutputError: ``path`` cannot be written.
    """
    bundle = bundles.load(model)
    refuse(bundle.recipe)
    if path.suffix.lower() != ".zip":
        raise OutputError(f"{path}: a package is a zip file; use a name that ends in .zip")
    writable_directory(path.parent)
    with _ready(bundle, half) as ready, atomic_path(path) as partial:
        _pack(ready, partial)


@cache
def libraries() -> dict[str, str]:
    """Libraries that a package needs in addition to a backend: name in Python -> name for pip."""
    return distributions(needed_by(run.__name__).libraries)


def pip_line() -> str:
    """The command that installs what a package needs."""
    return f"pip install {' '.join(sorted(libraries().values()))} {COMPILERS[0]}"


def refuse(recipe: Recipe) -> None:
    """Refuse a recipe that a package cannot run.

    Raises:
        RecipeError: names the stage and the unsupported feature.
    """
    for stage in recipe.stages:
        if graph.uses_atlas(stage):
            raise RecipeError(
                f"stage '{stage.name}' needs an atlas prior, which a package cannot compute; "
                "only recipes without an atlas can be exported: use 'zoomseg predict'"
            )


@contextmanager
def _ready(bundle: Bundle, half: bool) -> Iterator[Bundle]:
    """The model with a graph of every stage, and weights of the requested precision: itself, or a temporary
    copy."""
    if not half and _has_graphs(bundle):
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix="zoomseg-") as name:
        folder = Path(name)
        _copy(bundle, folder)
        if half:
            bundles.save(bundle, folder, half)  # graphs of weights already stored in this precision are kept
        if not _has_graphs(bundles.load(folder)):
            from zoomseg.backends.onnx_graph import write_graphs  # with torch

            write_graphs(folder)
        yield bundles.load(folder)


def _has_graphs(bundle: Bundle) -> bool:
    return all(stage.name in bundle.graphs for stage in bundle.recipe.stages)


def _files(bundle: Bundle) -> dict[str, Path]:
    """The files of a model on disk, by their names in its folder."""
    assert bundle.folder is not None  # of ``bundles.load``
    return {file.relative_to(bundle.folder).as_posix(): file for file in bundles.files(bundle.folder)}


def _copy(bundle: Bundle, folder: Path) -> None:
    for name, file in _files(bundle).items():
        with writing(folder / name):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / name)


def _pack(bundle: Bundle, path: Path) -> None:
    model = _files(bundle)
    needed = MAIN.format(needed=repr(libraries()), compilers=repr(COMPILERS))
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, "__main__.py", needed.encode())
        _add(archive, "README.txt", _readme(bundle).encode())
        digest = hashlib.sha256(model[bundles.MANIFEST].read_bytes()).hexdigest()
        _add(archive, run.CHECKSUM, f"{digest}  {run.MANIFEST}\n".encode())
        for file in needed_by(run.__name__).modules.values():
            _add(archive, file.relative_to(SOURCE).as_posix(), file.read_bytes())
        for name, file in model.items():  # weights hardly compress
            _add(archive, f"{run.MODEL}/{name}", file.read_bytes(), zipfile.ZIP_STORED)


def _add(
    archive: zipfile.ZipFile, name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED
) -> None:
    """Add a file without a time, so that the same model gives the same package."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = compression
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def _readme(bundle: Bundle) -> str:
    recipe, schema = bundle.recipe, bundle.schema
    labels = "\n".join(f"{value:6}  {name}" for name, value in zip(schema.names, schema.values, strict=True))
    return f"""{recipe.name}: a self-contained ZoomSeg model

{NOTICE}
Its errors are unknown on scans unlike those it was trained on.

    {pip_line()}
    python FILE.zip SCAN.nii.gz -o LABELS.nii.gz

Python 3.11 or newer; onnxruntime may take the place of openvino. SCAN is a NIfTI file {_orientation(recipe)},
one file per channel: {", ".join(bundle.channel_names)}. LABELS lies on the scan's own grid and holds these
values:

{labels}

"python FILE.zip --help" lists the options. model/model.json holds the recipe with every number, the labels,
and how the model was made. The folder model can be unpacked and used with 'zoomseg predict -m'.
"""


def _orientation(recipe: Recipe) -> str:
    if recipe.orientation == "stored":
        return "whose axes run as those of the model's training files (it reads scans as stored)"
    return "in any orientation"
