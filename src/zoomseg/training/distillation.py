"""Distillation: trained models teach a new one (Hinton, Vinyals & Dean 2015, arXiv:1503.02531).

Stage by stage, the teachers' networks read the same patch as the student's, including prior channels, and the
mean of their probabilities is a second target beside the reference (``training.loss.distilled``). An ensemble
(for example the folds of a cross-validation) is thus available at the cost of one small network.

In partially annotated cases, the teachers' predictions cover all organs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from zoomseg.backends.device import Device
from zoomseg.backends.networks import mean
from zoomseg.backends.torch_networks import as_network, ready_network
from zoomseg.core.errors import ModelError, RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import Dataset
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.pipeline.sliding_window import StageNetwork
from zoomseg.recipe import graph, network_shapes
from zoomseg.recipe.spec import Recipe, Stage
from zoomseg.training import fine_tuning


@dataclass(frozen=True, eq=False)
class Teachers:
    """An ensemble of teachers. ``names`` are their names in a model's provenance."""

    names: tuple[str, ...]
    models: tuple[Bundle, ...]

    def networks(self, stages: Sequence[str], device: Device) -> dict[str, StageNetwork]:
        """By stage name, the mean of the teachers' probabilities: frozen networks in evaluation mode, on the
        training's device and in its precision."""
        return {
            name: mean([as_network(ready_network(model, name, device), device) for model in self.models])
            for name in stages
        }

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of every model's weights: a resumed training must have the same teachers."""
        return tuple(_digest(model) for model in self.models)

    @property
    def provenance(self) -> list[bundle.JSON]:
        return [
            {"model": name, "recipe": model.recipe.name, "weights": digest[:12]}
            for name, model, digest in zip(self.names, self.models, self.digests, strict=True)
        ]

    @property
    def summary(self) -> str:
        """What a user should know about them."""
        return f"half of the loss is the cross-entropy with the predictions of {', '.join(self.names)}"


def load(models: Sequence[str | Path], dataset: Dataset, recipe: Recipe) -> Teachers:
    """The teachers of an expanded recipe on a data set.

    Raises:
        ModelError: not a model, or one whose networks cannot process the recipe's patches; names the stage
            and the difference.
    """
    loaded = tuple(bundle.load(model) for model in models)
    for model, teacher in zip(models, loaded, strict=True):
        _check(str(model), teacher, dataset, recipe)
    return Teachers(tuple(_name(teacher) for teacher in loaded), loaded)


def _name(model: Bundle) -> str:
    """The last two parts of its folder, as folds of several cross-validations have the same name."""
    return "" if model.folder is None else "/".join(model.folder.resolve().parts[-2:])


def _digest(model: Bundle) -> str:
    sha = hashlib.sha256()
    for stage, tensors in sorted(model.weights.items()):
        for name, tensor in sorted(tensors.items()):
            sha.update(f"{stage}/{name}".encode())
            sha.update(tensor.tobytes())
    return sha.hexdigest()


def _check(name: str, teacher: Bundle, dataset: Dataset, recipe: Recipe) -> None:
    """Networks and training may differ, their inputs and outputs may not."""
    theirs = {stage.name: stage for stage in teacher.recipe.stages}
    ours = _whole(recipe, dataset.channel_names)
    _compare(name, "", ours, _whole(teacher.recipe, teacher.channel_names))
    for stage in recipe.stages:
        where = f"stage '{stage.name}': "
        if stage.name not in theirs:
            raise ModelError(
                f"teacher {name} has no stage '{stage.name}' (it has {', '.join(theirs)}); a teacher needs "
                "all stages of the recipe"
            )
        other = theirs[stage.name]
        channels = len(dataset.channel_names)
        _compare(
            name,
            where,
            _seen(stage, recipe, dataset.schema, channels),
            _seen(other, teacher.recipe, teacher.schema, channels),
        )
        try:
            network_shapes.check_input_shape(other.network, other.grid.padding, stage.training.patch)
        except RecipeError as error:
            raise ModelError(
                f"teacher {name}, {where}its network cannot process the patches: {error}"
            ) from error


def _compare(name: str, where: str, ours: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    for part, value in ours.items():
        if theirs[part] != value:
            raise ModelError(
                f"teacher {name} cannot teach this recipe: {where}its {part} is {theirs[part]}, the recipe's "
                f"is {value}; copy the teacher's value into the recipe, or choose another teacher"
            )


def _whole(recipe: Recipe, channels: tuple[str, ...]) -> dict[str, object]:
    return {"channels": ", ".join(channels), "intensity": recipe.intensity.model_dump(mode="json")}


def _seen(stage: Stage, recipe: Recipe, schema: LabelSchema, channels: int) -> dict[str, object]:
    """The properties of a stage that define its network's inputs and outputs. Tiles are irrelevant, as
    patches are cut."""
    grid = stage.grid.model_dump(mode="json", exclude={"tile", "overlap", "padding"})
    return {
        "labels": ", ".join(graph.resolve_labels(stage, schema)),
        "intensity": graph.intensity_of(recipe, stage).model_dump(mode="json"),
        "grid": grid,
        "region": stage.roi.model_dump(mode="json"),
        "inputs": ", ".join(
            " ".join(part) for part in fine_tuning.input_names(stage, recipe, schema, channels)
        ),
        "margin in voxels": list(network_shapes.halo(stage.network, stage.grid.padding)),
    }
