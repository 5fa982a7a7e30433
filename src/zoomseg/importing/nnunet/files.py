"""A trained model's folder, or the zip of one: found, checked and read.

```
plans.json, dataset.json
fold_0/checkpoint_final.pth     or checkpoint_best.pth
```
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zoomseg.core.errors import ModelError, listed, quoted
from zoomseg.importing.nnunet import plans
from zoomseg.io.files import parse_json, read_file
from zoomseg.io.zips import ZipLimits, checked_zip

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
"""In the order of the search; nnU-Net predicts with the first. All folds have the same one: a fold that only
has a best checkpoint, beside others that are finished, is still being trained."""

MAX_JSON_BYTES = 50_000_000
_LIMITS = ZipLimits("models", 10_000, file_bytes=40_000_000_000, total_bytes=40_000_000_000)
"""Five folds of the largest networks have about 10 GB."""

_JSON = re.compile(r"(^|/)(plans|dataset)\.json$")
_WEIGHTS = re.compile(r"(^|/)fold_[^/]+/checkpoint_(final|best)\.pth$")


@dataclass(frozen=True)
class ModelFiles:
    """The content of a trained model's folder."""

    plans: dict[str, Any]
    dataset: dict[str, Any]
    checkpoints: dict[str, Path]
    """By fold (``0`` to ``4``, or ``all``)."""
    left_out: tuple[str, ...]
    """Further numbered folds, which are not trained to the end."""


@contextmanager
def opened(source: Path, configuration: str | None = None) -> Iterator[Path]:
    """The folder with ``plans.json``, in ``source`` or temporarily unpacked from it.

    Args:
        configuration: chooses one of several models; None: there is only one, or a cascade.

    Raises:
        ModelError: there is none, or several; the zip is damaged, or would write outside its folder.
    """
    if source.is_dir():
        yield _model_in(source, source, configuration)
        return
    if not source.is_file():
        raise ModelError(f"no file or folder at {source}; give a trained nnU-Net model's folder or its zip")
    if not zipfile.is_zipfile(source):
        raise ModelError(
            f"{source} is no zip; give a trained nnU-Net model's folder (with plans.json) or zip"
        )
    with tempfile.TemporaryDirectory() as folder:
        yield _unpacked(source, Path(folder), configuration)


def read(folder: Path, folds: tuple[str, ...] | None) -> ModelFiles:
    """The files of a trained model.

    Args:
        folds: requested ones; None: all that exist.

    Raises:
        ModelError: a file is missing or is not a JSON object, or a fold has no checkpoint.
    """
    known = {name: _checkpoints(folder, name) for name in CHECKPOINTS}
    if not any(known.values()):
        raise ModelError(
            f"{folder} has no fold_*/{CHECKPOINTS[0]}; copy the whole folder, or train it to the end"
        )
    fitting = (name for name, own in known.items() if set(own).intersection(folds or own))
    name = next(fitting, CHECKPOINTS[0])
    found = known[name]
    lacking = [fold for fold in folds or () if fold not in found]
    if lacking:
        having = "; ".join(f"{name} of {', '.join(own)}" for name, own in known.items() if own)
        raise ModelError(f"{folder} has no {name} of fold {listed(lacking)}; it has: {having}")
    # nnU-Net uses the numbered folds; one trained on all cases predicts alone.
    numbered = tuple(fold for fold in found if fold != "all")
    wanted = folds or numbered or tuple(found)
    checkpoints = {fold: found[fold] for fold in wanted}
    unfinished = set().union(*known.values()) - {*found, "all"}
    left_out = () if folds else tuple(sorted(unfinished))
    return ModelFiles(_json(folder / "plans.json"), _json(folder / "dataset.json"), checkpoints, left_out)


def beside(folder: Path, configuration: str) -> Path:
    """The folder of another configuration of the same data set, trainer and plans.

    Raises:
        ModelError: there is none with nnU-Net's name.
    """
    found = _sibling(folder.resolve(), configuration)
    if "__" not in folder.resolve().name or not (found / "plans.json").is_file():
        raise ModelError(
            f"{folder} is a cascade that reads {quoted(configuration)}, and there is no {quoted(found.name)} "
            "beside it; give that model's folder or zip with --lowres"
        )
    return found


def _checkpoints(folder: Path, name: str) -> dict[str, Path]:
    """The files of this name, by fold."""
    files = sorted(folder.glob(f"fold_*/{name}"))
    return {file.parent.name.removeprefix("fold_"): file for file in files if file.is_file()}


def _model_in(folder: Path, source: Path, configuration: str | None) -> Path:
    """The folder of the only model in a folder, or of the one of a configuration."""
    depths = ("", "*/", "*/*/", "*/*/*/")
    found = sorted(file.parent for depth in depths for file in folder.glob(f"{depth}plans.json"))
    if not found:
        raise ModelError(
            f"{source} holds no plans.json; give the folder that nnU-Net's training wrote, whole"
        )
    chosen = found
    if len(found) > 1 and configuration is not None:
        chosen = [path for path in found if _configuration(path) == configuration]
    elif len(found) > 1:  # of a cascade's two folders, the second
        read = [_read_by(path) for path in found]
        chosen = [path for path in found if path not in read]
    if len(chosen) == 1:
        return chosen[0]
    names = listed([str(path.relative_to(folder)) for path in chosen or found])
    if not chosen:
        raise ModelError(f"{source} holds no model of {quoted(configuration)}; it holds {names}")
    raise ModelError(
        f"{source} holds {len(chosen)} models ({names}); choose one by the last part of its name, e.g. "
        f"--configuration {quoted(_configuration(chosen[-1]))}, or give its folder alone"
    )


def _configuration(folder: Path) -> str:
    """The configuration of a model, by nnU-Net's name of its folder."""
    return folder.name.rpartition("__")[2]


def _read_by(folder: Path) -> Path | None:
    """The folder of the model whose label map a model reads, by nnU-Net's names; None: it reads none."""
    name, known = _configuration(folder), plans.parse(_json(folder / "plans.json"))
    if name not in known.configurations:  # the folder has another name than nnU-Net gave it
        return None
    previous = plans.configuration_of(known, name).previous_stage
    return None if previous is None else _sibling(folder, previous)


def _sibling(folder: Path, configuration: str) -> Path:
    """The folder of another configuration of the same data set, trainer and plans."""
    return folder.with_name(f"{folder.name.rpartition('__')[0]}__{configuration}")


def _unpacked(source: Path, folder: Path, configuration: str | None) -> Path:
    """Unpack the files of one model in a zip, and of the one whose label map it reads, to their positions
    below ``folder``. The model is chosen by the small files: weights may have gigabytes."""
    try:
        with checked_zip(source, _LIMITS, ModelError) as archive:
            members = archive.infolist()
            _check_names(source, members)
            _unpack(archive, [member for member in members if _JSON.search(member.filename)], folder)
            model = _model_in(folder, source, configuration)
            needed = (model, _read_by(model))
            weights = [member for member in members if _WEIGHTS.search(member.filename)]
            _unpack(archive, [own for own in weights if _place(own, folder).parent.parent in needed], folder)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{source} cannot be unpacked ({error}); copy it again") from error
    return model


def _unpack(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    for member in members:
        target = _place(member, folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out)


def _place(member: zipfile.ZipInfo, folder: Path) -> Path:
    return folder.joinpath(*PurePosixPath(member.filename).parts)


def _check_names(source: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        path = PurePosixPath(member.filename)
        outside = (
            path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename
        )
        link = (member.external_attr >> 16) & 0o170000 == 0o120000
        if outside or link:
            raise ModelError(
                f"{source} holds {quoted(member.filename)}, which would be written outside its own folder; "
                "it is not unpacked: get the model from elsewhere"
            )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path.name} is missing in {path.parent}; copy the whole folder")
    try:
        data = parse_json(read_file(path, MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); copy it again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is no JSON object; copy it again")
    return data
