"""Accelerate a slow model with unlabelled scans: the model labels them, and a coarse stage that restricts the
model's region, or a small cascade that replaces it, is trained on these labels.

```
OUT/accelerate.json                 the request; a resumed acceleration reads it
OUT/distillation/labels/            <case>.nii.gz, and labels.json with the organs that the model found
OUT/distillation/region/            the coarse stage's training
OUT/region.json                     the chosen regions, and their effect in the held-out scans
OUT/                                the accelerated model (of several models, fold-0, fold-1, ...)
```

A fifth of the scans is held out: regions are chosen on them, and a small cascade is scored on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, ModelError, TrainingError, listed, quoted
from zoomseg.core.geometry import Index3, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import overlap_counts
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.layouts import CaseFiles, Dataset, folds
from zoomseg.inference.batch import Failed
from zoomseg.inference.load import PredictionSettings, load_predictor, ready_predictor
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.io.files import writable_directory, write_json_atomic, write_text_atomic
from zoomseg.io.scans import ScanInput, find_scans, read_grid, read_labels, write_labels
from zoomseg.pipeline import stage_input
from zoomseg.pipeline.cascade import Prediction
from zoomseg.planning import stage_plans
from zoomseg.recipe import graph
from zoomseg.recipe.load import dump, load
from zoomseg.recipe.spec import BodyMask, PlannedRecipe, Recipe, Stage, WholeVolume
from zoomseg.training import candidate_regions, loop, model_labels, record, requested_recipe, training_run
from zoomseg.training.candidate_regions import ChosenRegion
from zoomseg.training.log import TrainingObserver
from zoomseg.training.record import AccelerationRecord
from zoomseg.training.requested_recipe import TrainingRequest

DISTILLATION = "distillation"
REGION = "region"
"""Name of the coarse stage."""
REGIONS = "region.json"
PARTS = 5
"""One in this many scans is held out; of fewer scans, one."""


class _Found(BaseModel):
    """``labels.json``: by case, the organs that the model found; None for scans that could not be used."""

    model_config = ConfigDict(frozen=True, strict=True)

    cases: dict[str, tuple[str, ...] | None]


def _organs_by_case(known: _Found) -> dict[str, tuple[str, ...]]:
    return {case: found or () for case, found in known.cases.items()}


def _write(path: Path, case: Case, result: Prediction) -> tuple[str, ...]:
    """Write the model's labels of a scan; the organs that it found."""
    write_labels(path, result.labels)
    return result.labels.present


@dataclass(frozen=True)
class Acceleration:
    """Acceleration of an ensemble ``models`` with the scans in a folder. ``request`` gives the training
    length."""

    models: tuple[str, ...]
    scans: Path
    out: Path
    small: bool
    request: TrainingRequest
    longer: bool = False
    """Whether the training continues although it was finished, as a new length was given."""

    @cached_property
    def bundles(self) -> tuple[Bundle, ...]:
        return tuple(bundle.load(model) for model in self.models)

    @property
    def schema(self) -> LabelSchema:
        return self.bundles[0].schema

    @property
    def _labels(self) -> Path:
        return self.out / DISTILLATION / "labels"

    @property
    def _list(self) -> Path:
        return self._labels / "labels.json"

    # --- the labels of the model --------------------------------------------------------------------

    def label(self, device: Device, observer: TrainingObserver) -> None:
        """Label the scans that are not yet labelled. A scan that cannot be used is named and left out; until
        a training on the others has begun, the next call tries it again.

        Raises:
            TrainingError: fewer than two could be used, or the model found nothing.
            OutputError: labels cannot be written, or another process works there.
        """
        with record.locked_folder(self.out):
            done = self._found()
            known = set(done) if self._begun else {case for case, found in done.items() if found is not None}
            todo = [scan for scan in scans_in(self.scans) if scan.id not in known]
            if todo:
                predictor = load_predictor(self.models, device, on_warning=observer.message)
                writable_directory(self._labels)
                for scan, found in model_labels.label(
                    todo, predictor, self._labels, _write, "labels", observer
                ):
                    done[scan.id] = None if isinstance(found, Failed) else found
                    write_json_atomic(self._list, _Found(cases=done).model_dump(mode="json"))
        self._report_organs(observer)

    @property
    def _begun(self) -> bool:
        """Whether a training on the labelled scans was decided, from which they must not change."""
        region = self.out / DISTILLATION / REGION
        return region.with_suffix(".yaml").is_file() or training_run.is_begun(self.out)

    def _found(self) -> dict[str, tuple[str, ...] | None]:
        found = model_labels.read_list(self._list, _Found, _organs_by_case, self.schema)
        return {} if found is None else dict(found.cases)

    @cached_property
    def split(self) -> loop.Split:
        """The training scans, and the held-out ones.

        Raises:
            TrainingError: there are fewer than two.
        """
        used = [case for case, found in self._found().items() if found is not None]
        if len(used) < 2:
            raise TrainingError(
                f"{len(used)} of the scans in {self.scans} could be used; one is learned from and one kept "
                "back at least: give more"
            )
        held_out = folds(used, min(PARTS, len(used)), self.request.seed)[0]
        return loop.Split(tuple(sorted(set(used) - set(held_out))), held_out)

    @cached_property
    def organs(self) -> tuple[str, ...]:
        """Organs that the model found in training scans."""
        found = self._found()
        known = {name for case in self.split.train for name in found[case] or ()}
        return tuple(name for name in self.schema.names if name in known)

    def _report_organs(self, observer: TrainingObserver) -> None:
        if not self.organs:
            raise TrainingError(
                f"the model found nothing in the {len(self.split.train)} training scans; "
                "give scans that show its organs"
            )
        missing = [name for name in self.schema.names if name not in self.organs]
        if missing:
            observer.message(
                "found in no training scan, and therefore not predicted by the coarse stage: "
                f"{listed(missing)}"
            )

    @cached_property
    def dataset(self) -> Dataset:
        """The scans with the model's labels; labels that no training scan has are left out.

        Raises:
            TrainingError: the list of labelled scans is damaged.
        """
        schema = self.schema
        names = self.organs
        known = LabelSchema(names, tuple(schema.values[schema.names.index(name)] for name in names))
        files = {scan.id: scan.paths for scan in scans_in(self.scans)}
        for id_ in (*self.split.train, *self.split.validation):
            if id_ not in files:
                raise model_labels.damaged(
                    self._list, f"case {quoted(id_)} is none of the scans in {self.scans}"
                )
        cases = [
            CaseFiles(id_, files[id_], self._known_labels(id_, known))
            for id_ in sorted((*self.split.train, *self.split.validation))
        ]
        name = f"{self.scans.resolve().name}, labelled by {Path(self.models[0]).name}"
        return Dataset(self.scans, name, self.bundles[0].channel_names, known, tuple(cases))

    def _known_labels(self, case: str, known: LabelSchema) -> Path:
        """The file of a scan's labels; for a held-out one, without labels that were not learned."""
        file = self._labels / f"{case}.nii.gz"
        if set(self._found()[case] or ()) <= set(known.names):
            return file
        held_out = self._labels / "held-out" / f"{case}.nii.gz"
        # Written anew each time: which labels are learned depends on the scans of the split.
        labels = read_labels(file, self.schema)
        writable_directory(held_out.parent)
        write_labels(held_out, LabelMap(_as(labels, known), labels.grid, known))
        return held_out

    # --- a coarse stage ----------------------------------------------------------------------------

    def region_stage(self, device: Device, observer: TrainingObserver) -> Bundle:
        """The coarse stage as a separate model: trained, or resumed.

        Raises:
            InterruptedTrainingError: stopped; the next call continues.
            TrainingError: scans are so small that a coarse stage saves nothing.
            ZoomSegError: as ``training_run.start``.
        """
        folder = self.out / DISTILLATION / REGION
        file = folder.with_suffix(".yaml")
        if not file.is_file():
            recipe = self._region_recipe(device, observer)
            writable_directory(folder)
            write_text_atomic(file, dump(recipe))
        request = replace(self.request, recipe=str(file), split=self.split)
        return self._trained(folder, request, device, observer)

    def _trained(
        self, folder: Path, request: TrainingRequest, device: Device, observer: TrainingObserver
    ) -> Bundle:
        if self.longer and training_run.is_begun(folder):
            return training_run.resume(
                self.dataset, folder, device, observer, request.seconds, request.epochs
            )
        return training_run.finished(self.dataset, folder, request, device, observer)

    def _region_recipe(self, device: Device, observer: TrainingObserver) -> Recipe:
        default = load("default")
        assert isinstance(default, PlannedRecipe)
        planned = requested_recipe.plan_recipe(
            self.dataset, self.split, default, device, observer, self.request
        )
        recipe, model = planned.recipe, self.bundles[0].recipe
        if len(recipe.stages) == 1:
            raise TrainingError(
                "the scans are so small that a coarse stage would take as long as the model itself; use the "
                "model as it is"
            )
        stage = recipe.stages[0].model_copy(update={"name": REGION})
        if model.orientation != "canonical":  # the first axis may not run from side to side
            unmirrored = stage.training.augmentation.model_copy(update={"flip_axes": ()})
            training = stage.training.model_copy(update={"augmentation": unmirrored})
            stage = stage_plans.reordered(
                stage.model_copy(update={"training": training}), self._axes_in(model)
            )
        return recipe.model_copy(
            update={
                "name": REGION,
                "description": f"Where the organs of {model.name} may be.",
                "stages": (stage,),
                "train_together": (),
                "islands": None,
                "orientation": model.orientation,
                "crop": model.crop,
            }
        )

    def _axes_in(self, model: Recipe) -> Index3:
        """For each axis of a scan as the model reads it, the canonical one, in most training scans."""
        grids = [read_grid(self._labels / f"{case}.nii.gz") for case in self.split.train]
        seen = [stage_input.orientation_of(model, grid).grid(grid) for grid in grids]
        return Counter(Orientation.to_canonical(grid).inverse.order for grid in seen).most_common(1)[0][0]

    # --- regions -----------------------------------------------------------------------------------

    def choose(
        self, coarse: Bundle, device: Device, observer: TrainingObserver
    ) -> Mapping[str, ChosenRegion]:
        """The regions of all stages whose region was the whole scan.

        Raises:
            TrainingError: no region contains enough of the model's predictions.
        """
        model = self.bundles[0]
        stages = _everywhere(model.recipe)
        searches = candidate_regions.searches(
            stages, self.schema, REGION, self.organs, model.recipe.on_missing
        )
        # Any scan: of few training scans, a held-out one may differ more than their domain allows.
        settings = PredictionSettings(any_scan=True)
        predictor = ready_predictor(coarse, device, settings, on_warning=observer.message)
        held_out = self.dataset.subset(self.split.validation).cases
        for number, files in enumerate(held_out):
            observer.preparing("choosing the region", number, len(held_out))
            case = self.dataset.load(files)
            prediction = predictor.predict(Case(case.id, case.image)).stages[REGION]
            found = stage_input.prepare(case, model.recipe).labels
            assert found is not None
            for search in searches:
                search.add(prediction, found)
        observer.preparing("choosing the region", len(held_out), len(held_out))
        return {search.stage.name: search.chosen() for search in searches}

    def write(self, coarse: Bundle, regions: Mapping[str, ChosenRegion], observer: TrainingObserver) -> None:
        """Write the accelerated model, or one for each fold."""
        folders = (
            (self.out,)
            if len(self.bundles) == 1
            else tuple(self.out / f"fold-{n}" for n in range(len(self.bundles)))
        )
        for model, folder in zip(self.bundles, folders, strict=True):
            bundle.save(_accelerated(model, coarse, regions), folder)
            loop.convert(folder, observer)
        if len(folders) > 1:
            write_json_atomic(self.out / bundle.FOLDS, {"accelerated": list(self.models)})

    def compare(
        self, regions: Mapping[str, ChosenRegion], device: Device, observer: TrainingObserver
    ) -> Mapping[str, float]:
        """By organ, the Dice between the accelerated model and the model over all voxels of the held-out
        scans; written to ``region.json`` with the regions."""
        predictor = load_predictor((self.out,), device, on_warning=observer.message)
        overlaps = np.zeros((3, len(self.organs)), dtype=np.int64)
        for files in self.dataset.subset(self.split.validation).cases:
            case = self.dataset.load(files)
            assert case.labels is not None
            found = predictor.predict(Case(case.id, case.image), self.organs, keep=False).labels
            own = _as(found, case.labels.schema)
            overlaps += overlap_counts(own, case.labels.data, case.labels.schema.classes)
        dice = {
            name: 2 * int(both) / int(one + other)
            for name, one, other, both in zip(self.organs, *overlaps, strict=True)
            if one + other
        }
        stages = {
            name: {**asdict(own), "roi": own.roi.model_dump(mode="json")} for name, own in regions.items()
        }
        content = {"scans": list(self.split.validation), "stages": stages, "dice": dice}
        write_json_atomic(self.out / REGIONS, content)
        return dice

    # --- a small cascade ---------------------------------------------------------------------------

    def small_cascade(self, device: Device, observer: TrainingObserver) -> Bundle:
        """A cascade of the default recipe that learns the model's labels: trained, or resumed.

        Raises:
            InterruptedTrainingError: stopped; the next call continues.
            ZoomSegError: as ``training_run.start``.
        """
        request = replace(self.request, split=self.split, part_of=record.ACCELERATION)
        return self._trained(self.out, request, device, observer)


def begin(
    models: tuple[str, ...], scans: Path, out: Path, small: bool, request: TrainingRequest
) -> Acceleration:
    """Check a request and write it down.

    Raises:
        ModelError: ``out`` already contains a model, ``models`` are not models, or have regions already.
        DatasetError: DICOM, or too few scans.
        ScanError: there are no scans.
        OutputError: ``out`` cannot be written, or another process works there.
    """
    record.require_new_folder(out)
    found = scans_in(scans)
    if len(found) < 2:
        raise DatasetError(
            f"{scans} contains one scan; at least two are needed, one for training and one held out: add "
            "scans"
        )
    known = _paths(models)
    run = Acceleration(known, scans, out, small, request)
    model = run.bundles[0]
    if not small:
        _check_slow(models[0], model.recipe)
    asked = AccelerationRecord(
        channels=model.channel_names,
        labels=model.schema.value_of,
        seed=request.seed,
        seconds=request.seconds,
        epochs=request.epochs,
        cases=tuple(scan.id for scan in found),
        models=known,
        scans=str(scans.resolve()),
        small=small,
    )
    with record.locked_new_folder(out):
        record.write(asked, out / record.ACCELERATION)
    return run


def _paths(models: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(bundle.find(model).resolve()) for model in models)


def _check_slow(name: str, recipe: Recipe) -> None:
    """Refuse models that a coarse stage cannot accelerate, before anything is computed."""
    if any(stage.name == REGION for stage in recipe.stages):
        raise ModelError(
            f"{name} has a stage '{REGION}' already: it is accelerated; give the model that it was made "
            "from, or --small, which trains a smaller model"
        )
    if not _everywhere(recipe):
        raise ModelError(
            f"{name} has no stage whose region is the whole scan, so no region would save anything; "
            "--small trains a smaller model"
        )


def reopen(
    models: Sequence[str],
    scans: Path,
    out: Path,
    seconds: float | None = None,
    epochs: int | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Acceleration:
    """The acceleration in ``out``; ``seconds`` or ``epochs`` replace the length of its training, also for
    later calls without one. The models, the folder of scans and ``settings`` (values of the record) must be
    those with which it was started.

    Raises:
        ModelError: ``models`` are not models.
        TrainingError: there is none, it is damaged, it had other settings, or scans were added or removed
            since.
        OutputError: another process works there, and a length is given.
    """
    before = record.read_acceleration(out)
    given = {"models": _paths(models), "scans": str(scans.resolve()), **settings}
    before.require_same_settings(given, out)
    changed = set(before.cases) ^ {scan.id for scan in scans_in(scans)}
    if changed:
        raise TrainingError(f"{scans} has other scans than {out} was begun with ({min(changed)})")
    longer = seconds is not None or epochs is not None
    known = before.lasting(seconds, epochs)
    request = TrainingRequest(seconds=known.seconds, epochs=known.epochs, seed=known.seed)
    record.keep_length(known, before, out, record.ACCELERATION)
    return Acceleration(known.models, scans, out, known.small, request, longer)


def scans_in(folder: Path) -> list[ScanInput]:
    """The scans to be labelled.

    Raises:
        ScanError: there are none.
        DatasetError: DICOM.
    """
    found = find_scans(folder)
    if any(scan.dicom is not None for scan in found):
        raise DatasetError(f"{folder}: scans to learn from must be NIfTI, NRRD or MHA files, not DICOM")
    return found


def _as(labels: LabelMap, schema: LabelSchema) -> npt.NDArray[np.uint8]:
    """As classes of a schema with some of the labels; others become background."""
    table = np.zeros(labels.schema.classes, dtype=np.uint8)
    for name in schema.names:
        table[labels.schema.class_of(name)] = schema.class_of(name)
    out: npt.NDArray[np.uint8] = table[labels.data]
    return out


def _everywhere(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages whose region is the whole scan and that are computed in tiles."""
    return tuple(
        stage
        for stage in recipe.stages
        if isinstance(stage.roi, WholeVolume | BodyMask) and stage.grid.kind != "shape"
    )


def _accelerated(model: Bundle, coarse: Bundle, regions: Mapping[str, ChosenRegion]) -> Bundle:
    """The model after the coarse stage, with its stages in their regions."""
    (stage,) = coarse.recipe.stages
    first = stage.model_copy(
        update={
            "labels": graph.resolve_labels(stage, coarse.schema),
            "intensity": graph.intensity_of(coarse.recipe, stage),
            "fusion": "none",
        }
    )
    stages = (
        own.model_copy(update={"roi": regions[own.name].roi}) if own.name in regions else own
        for own in model.recipe.stages
    )
    recipe = model.recipe.model_copy(
        update={"stages": (first, *stages), "description": f"{model.recipe.description} Accelerated."}
    )
    graph.validate(recipe)
    graph.validate_labels(recipe, model.schema)
    return replace(
        model,
        recipe=recipe,
        weights={REGION: coarse.weights[REGION], **model.weights},
        provenance={**model.provenance, "region_learned_from": coarse.provenance["training_cases"]},
        graphs={},
    )
