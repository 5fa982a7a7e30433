"""A trained model as one zip that runs without torch and without ZoomSeg.

```
__main__.py               python FILE.zip SCAN.nii.gz -o LABELS.nii.gz
pipeline.json             recipe, labels, channels, networks and their SHA-256, provenance
pipeline.sha256           that of pipeline.json
networks/<stage>.onnx     tile in, probabilities out
zoomseg/                  the runner, and the modules of ZoomSeg that it uses, as they are
README.txt
```
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoomseg.backends import onnx_graph
from zoomseg.backends.torch_networks import trained_network
from zoomseg.core.errors import OutputError, RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.export.runner.pipeline import CHECKSUM, FORMAT, MANIFEST
from zoomseg.io.bundle import Bundle
from zoomseg.io.files import atomic_path, writable_directory
from zoomseg.pipeline import inputs
from zoomseg.pipeline.inputs import input_channels
from zoomseg.recipe import graph, network_shapes
from zoomseg.recipe.spec import BoxAround, InputSpec, PriorInput, Recipe, Stage

RUNNER = "export/runner"
CARRIED = (
    "backends/compilers.py",
    "backends/cpu.py",
    "backends/onnxruntime_network.py",
    "backends/openvino_network.py",
    "core/arrays.py",
    "core/errors.py",
    "core/extras.py",
    "core/geometry.py",
    "core/labels.py",
    "core/morphology.py",
    "core/resample.py",
    "anatomy/positions.py",
    "core/sides.py",
    "core/tiling.py",
    "core/widening.py",
    "core/window.py",
    "io/files.py",
    "io/header_limits.py",
    "io/nifti_header.py",
    "io/training_domain.py",
)
"""Modules of the package that the runner imports; what it uses of them needs numpy, nibabel and what computes
networks."""

FUSIONS = ("none", "replace_in_roi", "paste", "most_probable")
"""What the runner can do."""

MAIN = """\
import sys
from pathlib import Path

if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])

from zoomseg.export.runner.main import main

sys.exit(main(Path(__file__).parent, sys.argv[1:]))
"""

NOTICE = "For research. Not a medical device; not for diagnosis or treatment. Look at every result."


def export(bundle: Bundle, path: Path, half: bool = False) -> None:
    """Write ``bundle`` as a package to ``path``; the file is either the old one or the whole new one.

    Args:
        half: store the weights as float16.

    Raises:
        RecipeError: the runner cannot do what a stage asks for.
        ModelError: the weights do not fit the networks, or not into float16.
        OutputError: ``path`` cannot be written.
    """
    refuse(bundle.recipe)
    if path.suffix.lower() != ".zip":
        raise OutputError(f"{path}: a package is a zip file; give it a name that ends in .zip")
    writable_directory(path.parent)
    models = {stage.name: _network(bundle, stage, half) for stage in bundle.recipe.stages}
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, text in _texts(bundle, models):
            _add(archive, name, text.encode(), zipfile.ZIP_DEFLATED)
        for stage, model in models.items():
            _add(archive, _file(stage), model, zipfile.ZIP_STORED)  # weights do not get smaller


def refuse(recipe: Recipe) -> None:
    """Refuse a recipe that the runner cannot carry out.

    Raises:
        RecipeError: names the stage, what it asks for and what is possible.
    """
    for stage in recipe.stages:
        if graph.uses_atlas(stage):
            raise RecipeError(
                f"stage '{stage.name}' needs an atlas prior, which a package cannot make; "
                "only recipes without atlas can be exported: use 'zoomseg predict'"
            )
        if stage.fusion not in FUSIONS:
            raise RecipeError(
                f"stage '{stage.name}', fusion '{stage.fusion}' cannot be exported; allowed: "
                f"{', '.join(FUSIONS)}: use 'zoomseg predict'"
            )


def _network(bundle: Bundle, stage: Stage, half: bool) -> bytes:
    read = input_channels(stage, bundle.recipe, bundle.schema, len(bundle.channel_names))
    return onnx_graph.to_onnx(trained_network(bundle, stage), read, stage.grid.tile, half)


def _file(stage: str) -> str:
    return f"networks/{stage}.onnx"


def _texts(bundle: Bundle, models: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Everything in a package but the networks: name and content."""
    yield "__main__.py", MAIN
    yield "README.txt", _readme(bundle)
    text = json.dumps(manifest(bundle, models), indent=1, ensure_ascii=False)
    yield MANIFEST, text
    yield CHECKSUM, f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}\n"
    package = importlib.resources.files("zoomseg")
    runner = sorted(f.name for f in (package / RUNNER).iterdir() if f.name.endswith(".py"))
    for name in (*CARRIED, *(f"{RUNNER}/{file}" for file in runner)):
        yield f"zoomseg/{name}", (package / name).read_text(encoding="utf-8")
    for folder in ("", "anatomy/", "backends/", "core/", "io/", "export/"):
        yield f"zoomseg/{folder}__init__.py", ""


def _add(archive: zipfile.ZipFile, name: str, content: bytes, compression: int) -> None:
    """Without the time of day, so that the same model gives the same file."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = compression
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def manifest(bundle: Bundle, models: Mapping[str, bytes]) -> dict[str, Any]:
    """``pipeline.json``: all that the runner needs, and where the model came from."""
    recipe = resolved(bundle.recipe, bundle.schema)
    return {
        "format": FORMAT,
        "zoomseg": importlib.metadata.version("zoomseg"),
        "notice": NOTICE,
        "recipe": recipe.model_dump(mode="json"),
        "labels": {"names": bundle.schema.names, "values": bundle.schema.values},
        "channel_names": bundle.channel_names,
        "networks": {
            stage.name: {
                "file": _file(stage.name),
                "sha256": hashlib.sha256(models[stage.name]).hexdigest(),
                "halo": network_shapes.halo(stage.network, stage.grid.padding),
            }
            for stage in recipe.stages
        },
        "provenance": dict(bundle.provenance),
        "training_domain": None if bundle.domain is None else asdict(bundle.domain),
    }


def resolved(recipe: Recipe, schema: LabelSchema) -> Recipe:
    """The recipe with every label named, so that a reader need not know what ``all`` means where."""

    def named(stage: Stage) -> Stage:
        roi = stage.roi
        if isinstance(roi, BoxAround) and isinstance(roi.labels, str):
            roi = roi.model_copy(update={"labels": graph.prior_labels(recipe, roi.of, schema)})
        seen: list[InputSpec] = []
        for source in stage.inputs:
            if isinstance(source, PriorInput):
                names = inputs.prior_names(source, graph.prior_labels(recipe, source.of, schema))
                seen.append(source.model_copy(update={"labels": names}))
            else:
                seen.append(source)
        labels = graph.resolve_labels(stage, schema)
        return stage.model_copy(update={"roi": roi, "inputs": tuple(seen), "labels": labels})

    stages = tuple(named(stage) for stage in recipe.stages)
    update: dict[str, object] = {
        "stages": stages,
        "largest_component": schema.select(recipe.largest_component),
    }
    if recipe.islands is not None:
        labels = schema.select(recipe.islands.labels)
        update["islands"] = recipe.islands.model_copy(update={"labels": labels})
    return recipe.model_copy(update=update)


def _readme(bundle: Bundle) -> str:
    recipe, schema = bundle.recipe, bundle.schema
    labels = "\n".join(f"{value:6}  {name}" for name, value in zip(schema.names, schema.values, strict=True))
    return f"""{recipe.name}: a ZoomSeg model that runs by itself

{NOTICE}
Its errors are unknown on scans unlike those it was trained on.

    pip install numpy scipy nibabel openvino        (or onnxruntime in place of openvino)
    python FILE.zip SCAN.nii.gz -o LABELS.nii.gz

Python 3.11 or newer. SCAN is a 3-D NIfTI file in any orientation, one file per channel:
{", ".join(bundle.channel_names)}. LABELS lies on the scan's own grid and holds these values:

{labels}

pipeline.json holds the recipe with every number, the labels, and how the model was made.
networks/*.onnx take one tile of a stage ("inputs") and give its probabilities, background first.
"""
