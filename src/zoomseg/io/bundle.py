"""A trained model on disk: a folder of plain, checkable files, of which nothing is ever executed.

```
model.json                          recipe, labels, channels, provenance, calibration of the confidence, the
                                    training domain, and the weights' SHA-256
weights/<stage>-<sha>.safetensors   one per stage
weights/<stage>-<sha>.onnx          its network as an ONNX graph, which names that file as the location of its
                                    weights; only to predict without torch (backends/onnx_graph.py)
README.md                           model card
atlases/                            coarse images of training cases, if the recipe has an atlas prior
```

The names of weights contain their hash and ``model.json`` is replaced last, so a process that is killed
while saving leaves the earlier model usable. Reading a model while it is replaced gives the new one.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from zoomseg.core.arrays import AnyNumpy, to_numpy
from zoomseg.core.errors import LabelError, ModelError, RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.memory import require_ram
from zoomseg.io.calibration import Calibration
from zoomseg.io.files import read_file, reason_of, write_bytes_atomic
from zoomseg.io.manifests import read_manifest, write_content
from zoomseg.io.markdown import plain, table
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.recipe import load as load_recipe
from zoomseg.recipe.spec import Recipe

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None

FORMAT = 1
"""Incremented whenever an older ZoomSeg could misread a newer model."""

ATLASES = "atlases"
"""Folder of a model's atlases, beside the files that are read and written here."""
MANIFEST = "model.json"
"""The recipe, labels and provenance of a model, and the digests of its files, in its folder."""

ATLASES_MANIFEST = "atlases.json"
"""The list of the atlases in that folder, with the digest of their voxels."""

FOLDS = "folds.json"
"""File that marks the folder of a cross-validation: a model per fold."""

INCLUDED_MODELS = Path(__file__).parents[1] / "models"
"""Folders of the models included in the package."""

ABDOMEN_CT = "abdomen-ct"
"""The default model."""

MAX_WEIGHTS_BYTES = 8 * 1024**3
"""Maximum per stage: two thousand million weights in single precision. The largest network of a recipe here
has a twentieth."""

COPIES = 3
"""Memory of half-precision weights while they are read: the file, and single precision."""

_INTEGER_TYPES = (np.int64, np.int32)
_SHOWN_ITEMS = 12


@dataclass(frozen=True)
class NetworkFiles:
    """A stage's network on disk: an ONNX graph, and beside it the file with the graph's weights."""

    graph: Path
    weights: Path
    flops: int = 0
    """For a tile of the recipe's shape."""
    activation_bytes: int = 0
    """Maximum memory of feature maps alive at once while such a tile is computed in float32."""


@dataclass(frozen=True)
class Bundle:
    """A trained model: everything that prediction needs, and its origin.

    ``weights`` maps each stage of the recipe to its network's state dict. ``provenance`` describes the
    training (data set, cases, date, seed, versions, device, steps, seconds).

    Raises:
        ModelError: the weights are not one non-empty, finite state dict per stage of the recipe; the
            provenance cannot be written as JSON.
    """

    recipe: Recipe
    schema: LabelSchema
    channel_names: tuple[str, ...]
    weights: Mapping[str, Mapping[str, AnyNumpy]]
    """May be given as torch tensors, which become arrays of the same memory."""
    provenance: Mapping[str, JSON]
    folder: Path | None = None
    """The folder from which it was read."""
    calibration: Calibration | None = None
    """Calibration of its confidence, if there were held-out cases to fit it."""
    domain: TrainingDomain | None = None
    """Properties of its training scans; None: unknown, and any scan is considered alike."""
    graphs: Mapping[str, NetworkFiles] = field(default_factory=dict)
    """Stage -> its network with these ``weights``, if the folder contains it as an ONNX graph."""

    @property
    def graphs_are_there(self) -> bool:
        """Whether the folder still contains them; not if another model replaced this one."""
        return all(file.is_file() for own in self.graphs.values() for file in (own.graph, own.weights))

    def __post_init__(self) -> None:
        stages = [stage.name for stage in self.recipe.stages]
        if set(self.weights) != set(stages):
            raise ModelError(f"model has weights of stages {sorted(self.weights)}, its recipe has {stages}")
        if not self.channel_names:
            raise ModelError("model names no image channel; it needs at least one")
        try:
            json.dumps(dict(self.provenance), allow_nan=False)
        except (ValueError, TypeError) as error:  # checked now, and not when results are written
            raise ModelError(f"the model's provenance cannot be written as JSON ({error})") from error
        arrays = {s: {name: to_numpy(t) for name, t in ts.items()} for s, ts in self.weights.items()}
        for stage, tensors in arrays.items():
            _check_tensors(stage, tensors)
        object.__setattr__(self, "weights", arrays)

    def without_weights(self) -> Bundle:
        """A copy with empty ``weights``, for use once the networks have been built."""
        described = copy.copy(self)
        object.__setattr__(described, "weights", {})
        return described


class _Labels(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    names: list[str]
    values: list[int]
    groups: dict[str, list[str]]


class _Weights(BaseModel):
    """The patterns keep every name inside the model's own folder."""

    model_config = ConfigDict(extra="forbid", strict=True)
    file: Annotated[str, Field(pattern=r"^weights/[a-z][a-z0-9_-]*\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Graph(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    file: Annotated[str, Field(pattern=r"^weights/[a-z][a-z0-9_-]*\.onnx$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the weights for which the graph was created."""
    flops: Annotated[int, Field(ge=0, lt=2**63)]
    activation_bytes: Annotated[int, Field(ge=0, lt=2**63)]


class _Manifest(BaseModel):
    """``model.json``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    zoomseg: str
    recipe: dict[str, object]
    labels: _Labels
    channel_names: Annotated[list[str], Field(min_length=1)]
    weights: dict[str, _Weights]
    graphs: dict[str, _Graph] = Field(default_factory=dict)
    provenance: dict[str, object]
    calibration: Calibration | None = None
    training_domain: TrainingDomain | None = None


def save(bundle: Bundle, path: Path, half: bool = False) -> None:
    """Write the model folder; ``half`` stores floating-point weights as float16.

    Raises:
        ModelError: a weight does not fit in float16.
        OutputError: no permission, full disk; an earlier model in the folder is still usable.
    """
    weights = {stage: _write_weights(path, stage, t, half) for stage, t in bundle.weights.items()}
    manifest = _Manifest(
        format=FORMAT,
        zoomseg=importlib.metadata.version("zoomseg"),
        recipe=bundle.recipe.model_dump(mode="json"),
        labels=_Labels(
            names=list(bundle.schema.names),
            values=list(bundle.schema.values),
            groups={name: list(members) for name, members in bundle.schema.groups.items()},
        ),
        channel_names=list(bundle.channel_names),
        weights=weights,
        provenance=dict(bundle.provenance),
        calibration=bundle.calibration,
        training_domain=bundle.domain,
    )
    manifest = manifest.model_copy(update={"graphs": _graphs_of_same_weights(path, manifest)})
    _write_manifest(path, manifest)
    write_bytes_atomic(path / "README.md", _model_card(bundle, (path / ATLASES).is_dir()).encode())
    _remove_others(path, manifest)


def weights_files(path: Path) -> dict[str, Path]:
    """The file of each stage's weights in a model folder.

    Raises:
        ModelError: no model there, or a damaged one.
    """
    return {stage: path / entry.file for stage, entry in _read_manifest(path).weights.items()}


def files(path: Path) -> tuple[Path, ...]:
    """The files of the model in a folder, without its atlases. A training leaves further ones there.

    Raises:
        ModelError: no model there, or a damaged one.
    """
    manifest = _read_manifest(path)
    weights = (entry.file for entry in manifest.weights.values())
    graphs = (entry.file for entry in manifest.graphs.values())
    named = (path / name for name in (MANIFEST, "README.md", *weights, *graphs))
    return tuple(sorted(file for file in named if file.is_file()))


def _graphs_of_same_weights(path: Path, manifest: _Manifest) -> dict[str, _Graph]:
    """Existing graphs of stages whose weights do not change."""
    if not is_model(path):
        return {}
    try:
        there = _read_manifest(path).graphs
    except ModelError:  # the replaced model may be damaged
        return {}
    weights = manifest.weights
    return {s: g for s, g in there.items() if s in weights and weights[s].sha256 == g.weights_sha256}


@dataclass(frozen=True)
class NetworkGraph:
    """A stage's network as an ONNX graph, to be stored; the other fields are as in ``NetworkFiles``."""

    content: bytes
    flops: int
    activation_bytes: int


def store_graphs(path: Path, graphs: Mapping[str, NetworkGraph]) -> None:
    """Add the networks of all or some stages, as ONNX graphs, to the model in this folder. Saving the model
    with other weights removes them.

    Raises:
        ModelError: no usable model there, or none with such a stage.
        OutputError: no permission, full disk; the model is still usable.
    """
    manifest = _read_manifest(path)
    unknown = set(graphs) - set(manifest.weights)
    if unknown:
        raise ModelError(f"model {path} has no stage {', '.join(sorted(unknown))}")
    entries = {stage: _write_graph(path, stage, g, manifest.weights[stage]) for stage, g in graphs.items()}
    changed = manifest.model_copy(update={"graphs": manifest.graphs | entries})
    _write_manifest(path, changed)
    _remove_others(path, changed)


def find(model: str | Path) -> Path:
    """The folder of a model: a path, or the name of an included one. A folder of that name in the working
    directory takes precedence.

    Raises:
        ModelError: neither exists.
    """
    path = Path(model)
    if os.path.exists(path) or len(path.parts) != 1:
        return path
    named = sorted(manifest.parent.name for manifest in INCLUDED_MODELS.glob(f"*/{MANIFEST}"))
    if str(model) in named:
        return INCLUDED_MODELS / str(model)
    raise ModelError(
        f"no model folder at {model}, and no included model of that name (included: {', '.join(named)})"
    )


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, which may be damaged."""
    return os.path.isfile(folder / MANIFEST)


def models_in(model: str | Path) -> tuple[str | Path, ...]:
    """The models that a name denotes: for the folder of a cross-validation, all of its folds."""
    folder = Path(model)
    if not (folder / FOLDS).is_file():
        return (model,)
    return tuple(sorted(file.parent for file in folder.glob(f"fold-*/{MANIFEST}"))) or (model,)


def load(model: str | Path) -> Bundle:
    """Read a model folder, given as in ``find``; floating-point weights are returned as float32.

    Raises:
        ModelError: missing or damaged files, weights that do not match ``model.json``, names outside the
            folder, or a format of a later ZoomSeg.
        MemoryLimitError: the weights do not fit into the free memory.
    """
    path = find(model)
    manifest = _read_manifest(path)
    while True:
        try:
            return _read(path, manifest)
        except ModelError:  # a training may have replaced the model meanwhile, and deleted the old weights
            before, manifest = manifest, _read_manifest(path)
            if manifest == before:
                raise


def _read(path: Path, manifest: _Manifest) -> Bundle:
    weights = {stage: _read_weights(path, stage, entry) for stage, entry in manifest.weights.items()}
    labels = manifest.labels
    try:
        recipe = load_recipe.from_dict(manifest.recipe, "recipe")
        if not isinstance(recipe, Recipe):
            raise RecipeError("its recipe has not been planned")
        groups = {name: tuple(members) for name, members in labels.groups.items()}
        schema = LabelSchema(tuple(labels.names), tuple(labels.values), groups)
    except (RecipeError, LabelError) as error:
        raise _damaged(path, str(error)) from error
    provenance: Mapping[str, JSON] = manifest.provenance  # type: ignore[assignment]
    channels = tuple(manifest.channel_names)
    return Bundle(
        recipe,
        schema,
        channels,
        weights,
        provenance,
        path,
        manifest.calibration,
        manifest.training_domain,
        _checked_graphs(path, manifest),
    )


def _write_manifest(path: Path, manifest: _Manifest) -> None:
    optional = ("calibration", "training_domain", "graphs")
    unsaid = {key for key in optional if not getattr(manifest, key)}
    text = json.dumps(
        manifest.model_dump(mode="json", exclude=unsaid), indent=1, ensure_ascii=False, allow_nan=False
    )
    write_bytes_atomic(path / MANIFEST, text.encode())


def _remove_others(path: Path, manifest: _Manifest) -> None:
    """Delete files of the previous model."""
    kept = {path / entry.file for entry in manifest.weights.values()}
    kept |= {path / entry.file for entry in manifest.graphs.values()}
    for suffix in ("safetensors", "onnx"):
        for file in (path / "weights").glob(f"*.{suffix}"):
            if file not in kept:
                file.unlink(missing_ok=True)


def _write_graph(path: Path, stage: str, graph: NetworkGraph, weights: _Weights) -> _Graph:
    file, digest = write_content(path, f"weights/{stage}", ".onnx", graph.content)
    return _Graph(
        file=file,
        sha256=digest,
        weights_sha256=weights.sha256,
        flops=graph.flops,
        activation_bytes=graph.activation_bytes,
    )


def _write_weights(path: Path, stage: str, tensors: Mapping[str, AnyNumpy], half: bool) -> _Weights:
    stored = {name: np.ascontiguousarray(t).reshape(t.shape) for name, t in tensors.items()}
    if half:
        with np.errstate(over="ignore"):  # values out of range are refused
            stored = {name: t.astype(np.float16) if _is_real(t) else t for name, t in stored.items()}
        large = next((name for name, t in stored.items() if not bool(np.isfinite(t).all())), None)
        if large is not None:
            raise ModelError(f"weight '{large}' of stage '{stage}' is too large for half precision")
    file, digest = write_content(path, f"weights/{stage}", ".safetensors", safetensors.save(stored))
    return _Weights(file=file, sha256=digest)


def _read_manifest(path: Path) -> _Manifest:
    file = path / MANIFEST
    if not path.is_dir():
        raise ModelError(f"no model folder at {path}")
    if not file.is_file():
        parts = models_in(path)
        if parts != (path,):
            raise ModelError(
                f"{path} is not one model but holds {len(parts)}, one for each fold; give one of them, e.g. "
                f"{parts[0]}"
            )
        raise ModelError(f"{path} is not a model: {MANIFEST} is missing")
    return read_manifest(file, _Manifest, FORMAT, f"model {path} has", partial(_damaged, path))


def _read_checked(folder: Path, file: str, sha256: str, manifest: str) -> bytes:
    try:
        size = (folder / file).stat().st_size
        if size <= MAX_WEIGHTS_BYTES:
            require_ram(COPIES * size, f"reading {folder / file}", "close other programs, or raise the limit")
        content = read_file(folder / file, MAX_WEIGHTS_BYTES)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{file} is not the file that {manifest} names (SHA-256 differs)")
    return content


def _checked_graphs(path: Path, manifest: _Manifest) -> dict[str, NetworkFiles]:
    """The graphs are those named in ``model.json``; the backends check that they read only their own stage's
    weights."""
    try:
        for entry in manifest.graphs.values():
            _read_checked(path, entry.file, entry.sha256, MANIFEST)
        return {
            stage: NetworkFiles(
                path / entry.file,
                path / manifest.weights[stage].file,
                entry.flops,
                entry.activation_bytes,
            )
            for stage, entry in manifest.graphs.items()
        }
    except KeyError as error:
        raise _damaged(path, f"{MANIFEST}: graphs: no stage {error}") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def read_tensors(folder: Path, file: str, sha256: str, manifest: str) -> dict[str, AnyNumpy]:
    """A safetensors file, if it is the one named in the file ``manifest`` beside it.

    Raises:
        ValueError: the problem, to be reported by the caller.
    """
    content = _read_checked(folder, file, sha256, manifest)
    try:
        return safetensors.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: {reason_of(error)}") from error


def _read_weights(path: Path, stage: str, entry: _Weights) -> dict[str, AnyNumpy]:
    try:
        tensors = read_tensors(path, entry.file, entry.sha256, MANIFEST)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    _check_tensors(stage, tensors)
    return {name: np.array(t, np.float32) if _is_real(t) else np.array(t) for name, t in tensors.items()}


def _is_real(tensor: AnyNumpy) -> bool:
    return np.issubdtype(tensor.dtype, np.floating)


def _check_tensors(stage: str, tensors: Mapping[str, AnyNumpy]) -> None:
    if not tensors:
        raise ModelError(f"stage '{stage}' of the model has no weights")
    for name, tensor in tensors.items():
        if not _is_real(tensor) and tensor.dtype not in _INTEGER_TYPES:
            raise ModelError(
                f"weight '{name}' of stage '{stage}' has type {tensor.dtype}; allowed: real numbers"
            )
        if not bool(np.isfinite(tensor).all()):
            raise ModelError(f"weight '{name}' of stage '{stage}' is not finite; the model cannot be used")


def _damaged(path: Path, reason: str) -> ModelError:
    line = " ".join(reason.split())
    return ModelError(f"model {path} is damaged ({line}); copy or train it again")


def _model_card(bundle: Bundle, with_atlases: bool) -> str:
    """Information for a person who finds the folder, in Markdown."""
    recipe, schema = bundle.recipe, bundle.schema
    stages = "\n".join(f"- `{s.name}`: {s.network.kind} on a {s.grid.kind} grid" for s in recipe.stages)
    values = zip(map(str, schema.values), schema.names, strict=True)
    known = {
        key.replace("_", " "): value for key, value in bundle.provenance.items() if value not in ("", [])
    }
    origin = "\n".join(f"- {plain(key)}: {_brief(value)}" for key, value in known.items())
    about = "\n".join(text for text in (recipe.description, recipe.source) if text)
    parameters = sum(t.size for tensors in bundle.weights.values() for t in tensors.values())
    return f"""# {plain(recipe.name)}

A ZoomSeg model: finds {len(schema.names)} structures in scans with the channels
{", ".join(plain(c) for c in bundle.channel_names)}.

**For research. Not a medical device; not for diagnosis or treatment.** Its errors are unknown on scans
unlike those it was trained on: other scanners, protocols, ages, diseases. Inspect every result.

## Use

    zoomseg predict SCAN -m THIS_FOLDER -o OUT

## Labels

{table(("value", "name"), values, numbers=False)}
## Trained on

{origin or "Not recorded."}

{_atlas_notice(bundle) if with_atlases else ""}## Stages ({parameters:,} parameters)

{stages}

{about}

The complete recipe is in `model.json`.
"""


def _atlas_notice(bundle: Bundle) -> str:
    """A note on patient data in the folder, which weights are not."""
    atlas, cases = bundle.recipe.atlas, bundle.provenance.get("training_cases")
    if atlas is None:
        return ""
    number = min(atlas.number, len(cases)) if isinstance(cases, list) else atlas.number
    spacing = " x ".join(f"{mm:g}" for mm in atlas.spacing_mm)
    return f"""## Holds images of patients

The folder `{ATLASES}` holds images of up to {number} training patients, with labels and case names, on
coarse grids ({spacing} mm, or the scan's own where that is coarser). Share the model only as you may share
the scans.

"""


def _brief(value: JSON) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{plain(key)}: {_brief(item)}" for key, item in value.items())
    if isinstance(value, list):
        shown = ", ".join(_brief(item) for item in value[:_SHOWN_ITEMS])
        return shown if len(value) <= _SHOWN_ITEMS else f"{len(value)}: {shown}, ..."
    return plain(str(value))
