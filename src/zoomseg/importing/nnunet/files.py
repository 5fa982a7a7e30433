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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zoomseg.core.errors import ModelError, listed, quoted
from zoomseg.core.memory import format_bytes
from zoomseg.importing.nnunet import plans
from zoomseg.io.files import parse_json, read_file, stays_inside
from zoomseg.io.zips import ZipLimits, checked_zip

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
"""In the order of the search; nnU-Net predicts with the first. All folds have the same one: a fold that only
has a best checkpoint, beside others that are finished, is still being trained."""

MAX_JSON_BYTES = 50_000_000
"""Of a JSON file, and of all in a zip together: those of nnU-Net have some ten thousand bytes each."""
_LIMITS = ZipLimits("models", 10_000, file_bytes=40_000_000_000, total_bytes=40_000_000_000)
"""Five folds of the largest networks have about 10 GB."""

_JSON = re.compile(r"(^|/)(plans|dataset)\.json$")
_WEIGHTS = re.compile(r"(^|/)fold_[^/]+/checkpoint_(final|best)\.pth$")
_FOLD = re.compile(r"[0-9]+|all")
FOLDER_DEPTHS = ("", "*/", "*/*/", "*/*/*/")
"""Of the search in a folder, which may hold anything else."""


@dataclass(frozen=True)
class ModelFiles:
    """The content of a trained model's folder."""

    plans: dict[str, Any]
    dataset: dict[str, Any]
    checkpoints: dict[str, Path]
    """By fold (``0`` to ``4``, or ``all``)."""
    left_out: tuple[str, ...]
    """Further numbered folds, which are not trained to the end."""
    no_folds: tuple[str, ...]
    """Further folders called ``fold_...`` with a checkpoint, such as backups."""


@contextmanager
def opened(
    source: Path, configuration: str | None = None, folds: tuple[str, ...] | None = None
) -> Iterator[Path]:
    """The folder with ``plans.json``, in ``source`` or temporarily unpacked from it.

    Args:
        configuration: chooses one of several models; None: there is only one, or a cascade.
        folds: that ``read`` will be asked for; checkpoints of others are not unpacked.

    Raises:
        ModelError: there is none, or several; a fold has no checkpoint; the zip is damaged, too large for
            the disk, or would write outside its folder.
    """
    if source.is_dir():
        yield _model_in(source, source, FOLDER_DEPTHS, configuration)
        return
    if not source.is_file():
        raise ModelError(f"no file or folder at {source}; give a trained nnU-Net model's folder or its zip")
    if not zipfile.is_zipfile(source):
        raise ModelError(
            f"{source} is no zip; give a trained nnU-Net model's folder (with plans.json) or zip"
        )
    with tempfile.TemporaryDirectory() as folder:
        yield _unpacked(source, Path(folder), configuration, folds)


def read(folder: Path, folds: tuple[str, ...] | None) -> ModelFiles:
    """The files of a trained model.

    Args:
        folds: requested ones; None: all that exist.

    Raises:
        ModelError: a file is missing or is not a JSON object, or a fold has no checkpoint.
    """
    every = {name: _checkpoints(folder, name) for name in CHECKPOINTS}
    known = {
        name: {fold: file for fold, file in own.items() if _FOLD.fullmatch(fold)}
        for name, own in every.items()
    }
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
    no_folds = () if folds else tuple(sorted(set().union(*every.values()).difference(*known.values())))
    return ModelFiles(
        _json(folder / "plans.json"), _json(folder / "dataset.json"), checkpoints, left_out, no_folds
    )


def neighbouring_model(folder: Path, configuration: str) -> Path:
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
    """The files of this name, by what follows ``fold_`` in their folder's name."""
    files = sorted(folder.glob(f"fold_*/{name}"))
    return {file.parent.name.removeprefix("fold_"): file for file in files if file.is_file()}


def _model_in(folder: Path, source: Path, depths: tuple[str, ...], configuration: str | None) -> Path:
    """The folder of the only model in a folder, or of the one of a configuration."""
    if _is_trained(folder):
        return folder
    plans_in = sorted(file.parent for depth in depths for file in folder.glob(f"{depth}plans.json"))
    if not plans_in:
        deep = f", up to {len(depths) - 1} folders deep" if source.is_dir() else ""
        raise ModelError(
            f"{source} holds no plans.json{deep}; give the folder that nnU-Net's training wrote, whole"
        )
    found = [path for path in plans_in if _is_trained(path)] or plans_in
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


def _is_trained(folder: Path) -> bool:
    """Whether it is a model's: nnU-Net also copies ``plans.json`` beside predictions, ensembles and results
    of cross-validation."""
    return (folder / "plans.json").is_file() and any(folder.glob("fold_*"))


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


def _unpacked(source: Path, folder: Path, configuration: str | None, folds: tuple[str, ...] | None) -> Path:
    """Unpack the files of one model in a zip, and of the one whose label map it reads, to their positions
    below ``folder``. The model and its checkpoints are chosen by names and small files, as weights may have
    gigabytes: those that are not needed become empty files."""
    with checked_zip(source, _LIMITS, ModelError) as archive:
        members = archive.infolist()
        small = [member for member in members if _JSON.search(_name(member))]
        weights = [member for member in members if _WEIGHTS.search(_name(member))]
        _check_names(source, [*small, *weights])
        _check_small(source, small)
        try:
            for member in weights:
                _created(member, folder).touch()
            _unpack(archive, small, folder)
            model = _model_in(folder, source, ("**/",), configuration)
            needed = _needed(model, folds)
            wanted = [member for member in weights if _place(member, folder) in needed]
            _require_room(source, folder, wanted)
            _unpack(archive, wanted, folder)
        except ModelError:
            raise
        except Exception as error:  # inflating a hostile zip may raise many exceptions
            raise ModelError(f"{source} cannot be unpacked ({quoted(error)}); copy it again") from error
    return model


def _needed(model: Path, folds: tuple[str, ...] | None) -> set[Path]:
    """The checkpoints of a model, and of the one whose label map it reads, if that is there."""
    checkpoints = read(model, folds).checkpoints
    needed = set(checkpoints.values())
    before = _read_by(model)
    if before is not None:
        with suppress(ModelError):  # another one may be given instead; otherwise reported when it is read
            needed.update(read(before, tuple(checkpoints)).checkpoints.values())
    return needed


def _require_room(source: Path, folder: Path, members: list[zipfile.ZipInfo]) -> None:
    needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{source}: its checkpoints have {format_bytes(needed)}, and {folder.parent} has "
            f"{format_bytes(free)} free; free some space, set TMPDIR to a folder that has more, or choose "
            "fewer with --folds"
        )


def _unpack(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    for member in members:
        with archive.open(member) as stream, _created(member, folder).open("wb") as out:
            shutil.copyfileobj(stream, out)


def _created(member: zipfile.ZipInfo, folder: Path) -> Path:
    """The place of a member, in an existing folder."""
    target = _place(member, folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _place(member: zipfile.ZipInfo, folder: Path) -> Path:
    return folder.joinpath(*PurePosixPath(_name(member)).parts)


def _name(member: zipfile.ZipInfo) -> str:
    """With slashes: some programs on Windows write backslashes."""
    return member.filename.replace("\\", "/")


def _check_names(source: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        outside = not stays_inside(_name(member)) or ":" in member.filename
        link = (member.external_attr >> 16) & 0o170000 == 0o120000
        if outside or link:
            raise ModelError(
                f"{source} holds {quoted(member.filename)}, which would be written outside its own folder; "
                "it is not unpacked: get the model from elsewhere"
            )


def _check_small(source: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse files of numbers and names that would fill the disk; all of them are unpacked to choose a
    model."""
    size = sum(member.file_size for member in members)
    if size > MAX_JSON_BYTES:
        raise ModelError(
            f"{source}: its plans.json and dataset.json have {format_bytes(size)}, and at most "
            f"{format_bytes(MAX_JSON_BYTES)} are read; download the model again"
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
