"""Records of the decisions at the start of a training or a cross-validation: a resumed one reads them and
makes no new decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoomseg.core.errors import ModelError, TrainingError
from zoomseg.datasets.layouts import Dataset
from zoomseg.io.bundle import FOLDS, MANIFEST
from zoomseg.io.files import read_file, reason_of, writable_directory, write_json_atomic
from zoomseg.io.locks import locked
from zoomseg.io.manifests import first_problem
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.recipe.load import from_dict
from zoomseg.recipe.spec import PlannedRecipe, Recipe

FILE = Path("training", "job.json")
"""Record of a training, in the model's folder."""

UNLABELLED = "unlabelled.json"
"""Record of a training with unlabelled scans, in the model's folder."""


ACCELERATION = "accelerate.json"
"""Record of the acceleration of a model, in the new model's folder."""

CaseIds = tuple[tuple[str, ...], tuple[str, ...]]
"""Training and held-out cases."""

_BEGUN = (ACCELERATION, UNLABELLED, FOLDS, MANIFEST, FILE)
"""Each of these files shows that something was started in a folder."""


class _Record(BaseModel):
    """``channels`` and ``labels`` are the data set's; the rest is as in a ``TrainingRequest``."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    channels: tuple[str, ...]
    labels: dict[str, int]
    seed: int
    seconds: float | None
    epochs: int | None
    init: str | None = None
    teachers: tuple[str, ...] = ()
    requested_recipe: dict[str, Any] | None = None
    """As it was when the training started, before it was planned or fitted to the labels; None: that of
    ``init``."""

    def require_same_settings(self, given: Mapping[str, Any], out: Path) -> None:
        """Refuse settings other than those with which the training in ``out`` was started: a resumed training
        makes no new decisions.

        Args:
            given: values of some of this record's fields.

        Raises:
            TrainingError: names the first one that differs.
        """
        for key, value in given.items():
            started = getattr(self, key, None)
            if started == value:
                continue
            now, then = _spoken(key, value), _spoken(key, started)
            changed = f"{now} has changed since then" if now == then else f"it was started with {then}"
            raise TrainingError(
                f"{now} cannot be given to resume the training in {out}: {changed}; omit it, or choose "
                "another folder"
            )

    def require_same_data(self, dataset: Dataset, out: Path) -> None:
        """Refuse a data set other than that of the training in ``out``.

        Raises:
            TrainingError: other channels, labels or cases.
        """
        for key, value in fixed_by(dataset).items():
            trained = self.model_dump(mode="json")[key]
            if trained != value:
                raise TrainingError(
                    f"data set '{dataset.name}' has {key} {value}, but {out} was trained with {trained}"
                )
        changed = self._changed_cases(dataset)
        unlabelled = changed & {case.id for case in dataset.cases if case.labels is None}
        if unlabelled:
            raise TrainingError(
                f"data set '{dataset.name}': {min(unlabelled)} has no labels any more, but {out} was trained "
                "with them; put the file back, or train into another folder"
            )
        if changed:
            raise TrainingError(
                f"data set '{dataset.name}' has other cases than {out} was trained with ({min(changed)})"
            )

    def lasting(self, seconds: float | None, epochs: int | None) -> Self:
        """The record with another length of the unfinished parts, if one is given."""
        if seconds is None and epochs is None:
            return self
        return self.model_copy(update={"seconds": seconds, "epochs": epochs})

    def resumed(
        self,
        dataset: Dataset,
        out: Path,
        settings: Mapping[str, Any],
        seconds: float | None,
        epochs: int | None,
    ) -> Self:
        """The record of the training in ``out`` that is resumed: as ``lasting``.

        Raises:
            TrainingError: as ``require_same_settings`` and ``require_same_data``.
        """
        self.require_same_settings(settings, out)
        self.require_same_data(dataset, out)
        return self.lasting(seconds, epochs)

    def is_longer_than(self, other: _Record) -> bool:
        """Whether more training, or another kind of length, is asked for than in another record."""
        if (self.seconds is None, self.epochs is None) != (other.seconds is None, other.epochs is None):
            return True
        return (self.seconds or 0, self.epochs or 0) > (other.seconds or 0, other.epochs or 0)

    def _changed_cases(self, dataset: Dataset) -> set[str]:
        """Cases whose absence, or presence, prevents the training from being resumed."""
        raise NotImplementedError


def _spoken(key: str, value: Any) -> str:
    """A setting and its value, for users."""
    name = key.removeprefix("requested_")
    match value:
        case ((str(), *_) as train, held_out) if key == "split":
            return f"a split into {len(train)} training and {len(held_out)} held-out cases"
        case ((_, _), *_) if key == "split":
            return f"a split into {len(value)} folds"
        case None | ():
            return f"no {name}"
        case dict():
            return f"{name} '{value.get('name')}'"
        case tuple():
            return f"{name} {', '.join(map(str, value))}"
        case _:
            return f"{name} {value}"


class _OfAllLabelled(_Record):
    """``cases`` are the ids of all labelled cases."""

    cases: tuple[str, ...]

    def _changed_cases(self, dataset: Dataset) -> set[str]:
        return set(self.cases) ^ set(dataset.labelled_ids)


class CrossValidationRecord(_OfAllLabelled):
    """``folds.json``: the cases are distributed over the folds; ``split`` are the training and held-out
    cases of each, if they were given."""

    folds: Annotated[int, Field(ge=2)]
    split: tuple[CaseIds, ...] | None = None


class SelfTrainingRecord(_OfAllLabelled):
    """``unlabelled.json``; ``unlabelled`` is the folder of unlabelled scans, ``recipe`` a name, or that of
    the copy, ``split`` the training and held-out cases, if they were given."""

    unlabelled: str
    recipe: str | None
    folds: Annotated[int, Field(ge=2)] | None
    fold: Annotated[int, Field(ge=0)]
    split: CaseIds | None = None


class AccelerationRecord(_OfAllLabelled):
    """``accelerate.json``: ``cases`` are the ids of all scans, ``models`` and ``scans`` are paths; ``small``
    if a separate model is trained."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    scans: str
    small: bool


class TrainingRecord(_Record):
    """``recipe`` is complete; ``train`` and ``validation`` are case ids, split by ``fold`` and ``folds``."""

    recipe: dict[str, Any]
    train: Annotated[tuple[str, ...], Field(min_length=1)]
    validation: tuple[str, ...]
    folds: int | None = None
    fold: int = 0
    registered: str | None = None
    training_domain: TrainingDomain | None = None
    planning_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Start-up and planning, which ``seconds`` includes."""

    @property
    def split(self) -> CaseIds:
        return self.train, self.validation

    @property
    def seconds_left(self) -> float | None:
        """What start-up and planning left of ``seconds``."""
        return None if self.seconds is None else max(0.0, self.seconds - self.planning_seconds)

    def _changed_cases(self, dataset: Dataset) -> set[str]:
        return {*self.train, *self.validation} - set(dataset.labelled_ids)

    def resolved_recipe(self, out: Path) -> Recipe:
        """The recipe, checked.

        Raises:
            TrainingError: it is not complete.
            RecipeError: it is not valid.
        """
        recipe = from_dict(self.recipe, str(out / FILE))
        if isinstance(recipe, PlannedRecipe):
            raise _damaged(out / FILE, "its recipe has no numbers")
        return recipe


_AnyRecord = TypeVar("_AnyRecord", bound=_Record)


def fixed_by(dataset: Dataset) -> dict[str, Any]:
    """The meaning of a network's inputs and outputs, which must not change before a training is resumed."""
    return {"channels": list(dataset.channel_names), "labels": dataset.schema.value_of}


@contextmanager
def locked_folder(out: Path) -> Iterator[None]:
    """Lock a training's folder, which is created if necessary, while writing to it: two trainings there would
    mix their files.

    Raises:
        OutputError: another process trains there; or the folder cannot be written.
    """
    with locked(
        writable_directory(out) / ".lock",
        "a training uses this folder; wait until it has ended, or choose another",
    ):
        yield


@contextmanager
def locked_new_folder(out: Path, part_of: str | None = None) -> Iterator[None]:
    """As ``locked_folder``, in a folder in which nothing was started.

    Args:
        part_of: the record, in the folder, of a task that this training is part of.

    Raises:
        ModelError: something was.
        OutputError: as ``locked_folder``.
    """
    with locked_folder(out):
        _refuse_begun(out, part_of)
        yield


def require_new_folder(out: Path, part_of: str | None = None) -> None:
    """The refusals of ``locked_new_folder``, before anything is read or computed. If another process trains
    there, it is named, as ``--resume`` would not help."""
    if out.is_dir() and _begun(out, part_of) is not None:
        with locked_folder(out):
            _refuse_begun(out, part_of)


def _refuse_begun(out: Path, part_of: str | None) -> None:
    there = _begun(out, part_of)
    if there == out / MANIFEST and not (out / FILE).is_file():
        raise ModelError(f"{out} already holds a model; choose another folder")
    if there is not None:
        raise ModelError(
            f"{out} already holds a training ({there.name}); give --resume to continue it, or choose another "
            "folder"
        )


def _begun(out: Path, part_of: str | None) -> Path | None:
    """The file that shows that something was started in a folder, if any."""
    return next((out / file for file in _BEGUN if file != part_of and (out / file).exists()), None)


def write(record: _Record, file: Path) -> None:
    """
    Raises:
        OutputError: it cannot be written.
    """
    write_json_atomic(file, record.model_dump(mode="json"))


def keep_length(known: _Record, before: _Record, out: Path, name: str) -> None:
    """Write a record in the folder ``out`` again if its length is another one than ``before``: a resumed
    training to which no length is given has the last one.

    Raises:
        OutputError: as ``locked_folder``.
    """
    if known != before:
        with locked_folder(out):
            write(known, out / name)


def read_training(out: Path) -> TrainingRecord:
    """The record of the training in ``out``.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
    return _read(TrainingRecord, out / FILE, f"there is no training to resume in {out}")


def read_cross_validation(out: Path) -> CrossValidationRecord:
    """The record of the cross-validation in ``out``.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
    return _read(CrossValidationRecord, out / FOLDS, f"there is no cross-validation to resume in {out}")


def read_self_training(out: Path) -> SelfTrainingRecord:
    """The record of the training with unlabelled scans in ``out``.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
    missing = f"there is no training with unlabelled scans to resume in {out}"
    return _read(SelfTrainingRecord, out / UNLABELLED, missing)


def read_acceleration(out: Path) -> AccelerationRecord:
    """The record of the acceleration in ``out``.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
    return _read(AccelerationRecord, out / ACCELERATION, f"there is no acceleration to resume in {out}")


def _read(kind: type[_AnyRecord], file: Path, missing: str) -> _AnyRecord:
    try:
        return kind.model_validate_json(read_file(file))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TrainingError(f"{missing}; omit --resume") from error
    except ValidationError as error:
        raise _damaged(file, first_problem(error)) from error
    except OSError as error:
        raise _damaged(file, reason_of(error)) from error


def _damaged(file: Path, reason: str) -> TrainingError:
    return TrainingError(f"{file} is damaged ({reason}); train again into another folder")
