"""Fine-tuning: a new model starts from a trained one (Roth et al. 2018, CMIG 66:90-99, Section 4).

Layers keep their weights. If an axis of a tensor corresponds to labels (classes of the last layers, priors
among the input channels), its entries are matched by label name: those that both models have are copied, the
others stay new. These axes are determined from the networks themselves: they grow with an additional class or
input channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from zoomseg.anatomy.organ_names import label_of
from zoomseg.core.errors import ModelError
from zoomseg.core.labels import BACKGROUND, LabelSchema
from zoomseg.datasets.layouts import Dataset
from zoomseg.io import bundle
from zoomseg.networks import build as networks
from zoomseg.pipeline import inputs
from zoomseg.recipe import graph
from zoomseg.recipe.spec import BoxAround, DilatedForeground, ProbabilityTimesAtlas, Recipe, Stage

LEARNING_RATE_DIVISOR = 10
"""Fine-tuning divides learning rates by this."""

KEPT = "init"
"""Folder of the copy of an initial model, under its name, in that of several trainings."""

_IMAGE = "image"
_CLASS = "class"

Name = tuple[str, str]
"""Meaning of an entry of an axis: its source (a stage, the image) and its label or channel."""


@dataclass(frozen=True, eq=False)
class TransferredTensor:
    """A tensor, or a part of it: ``values`` belong at the entries ``places`` of each axis."""

    values: Tensor
    places: tuple[Tensor, ...]
    whole: bool

    def write(self, tensor: Tensor) -> None:
        """Write the values into a tensor, in place."""
        n = len(self.places)
        index = tuple(
            place.to(tensor.device).view(*(-1 if a == b else 1 for b in range(n)))
            for a, place in enumerate(self.places)
        )
        tensor[index] = self.values.to(tensor)


@dataclass(frozen=True, eq=False)
class StageTransfer:
    """The tensors that one stage's network adopts, by name. ``known`` and ``new`` are its classes."""

    pieces: Mapping[str, TransferredTensor]
    tensors: int
    """Number of tensors of the network, without counters."""
    known: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def taken(self) -> int:
        """Number of tensors that are adopted completely."""
        return sum(p.whole and p.values.is_floating_point() for p in self.pieces.values())

    def summary(self, stage: str) -> str:
        if not self.pieces:
            return f"stage '{stage}': all {self.tensors} tensors are new"
        partly = sum(not p.whole for p in self.pieces.values())
        part = f", {partly} in part" if partly else ""
        new = f"; new: {', '.join(self.new)}" if self.new else ""
        return (
            f"stage '{stage}': {self.taken} of {self.tensors} tensors are taken over{part}; "
            f"known: {', '.join(self.known)}{new}"
        )


@dataclass(frozen=True, eq=False)
class Transfer:
    """The weights that every stage of a recipe adopts from the model ``name``."""

    name: str
    recipe: str
    stages: Mapping[str, StageTransfer]

    @torch.no_grad()
    def apply(self, stage: str, module: nn.Module) -> None:
        """Write the adopted weights into a new network, in place."""
        state = module.state_dict()
        for key, piece in self.stages[stage].pieces.items():
            piece.write(state[key])

    @property
    def provenance(self) -> dict[str, bundle.JSON]:
        taken = sum(stage.taken for stage in self.stages.values())
        return {"model": self.name, "recipe": self.recipe, "tensors": taken}


def load(path: Path, dataset: Dataset) -> bundle.Bundle:
    """The initial model.

    Raises:
        ModelError: not a model, or one for scans with another number of channels, or the same ones in another
            order.
    """
    model = bundle.load(path)
    ours, theirs = dataset.channel_names, model.channel_names
    if len(ours) != len(theirs):
        raise ModelError(
            f"model {path} reads {len(theirs)} channel(s) ({', '.join(theirs)}), "
            f"data set '{dataset.name}' has {len(ours)} ({', '.join(ours)}); "
            "start from a model of as many channels, or omit --init"
        )
    moved = [name for name, other in zip(ours, theirs, strict=True) if name != other and name in theirs]
    if moved:
        raise ModelError(
            f"model {path} reads channels {', '.join(theirs)}, data set '{dataset.name}' has "
            f"{', '.join(ours)}: {moved[0]} is in another place; number the channels as the model does"
        )
    return model


def keep(model: bundle.Bundle, path: Path, out: Path) -> Path:
    """Copy the initial model, given as ``path``, to the folder of several trainings: those that have not
    started need it, even if the model itself was moved. Returns the copy's folder.

    Raises:
        OutputError: it cannot be written.
    """
    folder = out / KEPT / bundle.find(path).resolve().name
    bundle.save(model, folder)
    return folder


def kept(path: str, out: Path) -> Path:
    """The copy that ``keep`` made; the model itself if there is none, as in folders of earlier versions."""
    folder = out / KEPT / Path(path).name
    return folder if folder.is_dir() else Path(path)


def recipe_of(model: bundle.Bundle) -> Recipe:
    """A model's recipe, generalised for another data set: stages that predict all of the model's labels
    predict ``all``, and inputs restricted to a stage's own labels become ``own`` again."""
    return model.recipe.model_copy(
        update={"stages": tuple(_freed(stage, model.schema) for stage in model.recipe.stages)}
    )


def _freed(stage: Stage, schema: LabelSchema) -> Stage:
    own = graph.resolve_labels(stage, schema)
    if set(own) != set(schema.names):
        return stage.model_copy(update={"labels": own})  # split into groups: the data set may not have them
    roi, sources = stage.roi, list(stage.inputs)
    if isinstance(roi, DilatedForeground | BoxAround | ProbabilityTimesAtlas) and roi.labels == own:
        roi = roi.model_copy(update={"labels": "own"})
    for n, source in enumerate(sources):
        if source.kind != "image" and source.labels == own:
            sources[n] = source.model_copy(update={"labels": "own"})
    return stage.model_copy(update={"labels": "all", "roi": roi, "inputs": tuple(sources)})


def with_lower_rates(recipe: Recipe) -> Recipe:
    """Every stage with a tenth of its learning rate."""

    def gentle(stage: Stage) -> Stage:
        optimiser = stage.training.optimiser
        optimiser = optimiser.model_copy(update={"lr": optimiser.lr / LEARNING_RATE_DIVISOR})
        return stage.model_copy(
            update={"training": stage.training.model_copy(update={"optimiser": optimiser})}
        )

    return recipe.model_copy(update={"stages": tuple(gentle(stage) for stage in recipe.stages)})


def match(name: str, model: bundle.Bundle, recipe: Recipe, schema: LabelSchema, channels: int) -> Transfer:
    """The weights that the networks of an expanded recipe, on scans with this number of channels, share with
    a model's.

    Args:
        name: name of the model in messages and in the new model's provenance.

    Raises:
        ModelError: there are none.
    """
    stages = {stage.name: _match_stage(stage, model, recipe, schema, channels) for stage in recipe.stages}
    if not any(stage.pieces for stage in stages.values()):
        raise ModelError(
            f"model {name} (stages {', '.join(s.name for s in model.recipe.stages)}) has no layer of recipe "
            f"'{recipe.name}' (stages {', '.join(stages)}); omit -r to use the model's own recipe"
        )
    return Transfer(name, model.recipe.name, stages)


def _match_stage(
    stage: Stage, model: bundle.Bundle, recipe: Recipe, schema: LabelSchema, channels: int
) -> StageTransfer:
    outputs = _output_names(stage, schema)
    entering = input_names(stage, recipe, schema, channels)
    shapes = _shapes(stage, len(entering), len(outputs))
    total = sum(tensor.is_floating_point() for tensor in shapes.values())
    before = next((s for s in model.recipe.stages if s.name == stage.name), None)
    if before is None:
        return StageTransfer({}, total, (), tuple(label for _, label in outputs))
    old_outputs = _output_names(before, model.schema)
    old_entering = input_names(before, model.recipe, model.schema, len(model.channel_names))
    classes = _common(outputs, old_outputs)
    growing = (
        (_shapes(stage, len(entering), len(outputs) + 1), classes, len(old_outputs)),
        (_shapes(stage, len(entering) + 1, len(outputs)), _common(entering, old_entering), len(old_entering)),
    )
    pieces: dict[str, TransferredTensor] = {}
    for key, tensor in shapes.items():
        old = model.weights[stage.name].get(key)
        piece = None if old is None else _piece(key, tensor, torch.from_numpy(old), growing)
        if piece is not None:
            pieces[key] = piece
    if not any(_is_shared(key, shapes[key], growing) for key in pieces):
        # Labels of the same name are useless to a last layer without the layers before it.
        return StageTransfer({}, total, (), tuple(label for _, label in outputs))
    known = set(classes[0])
    return StageTransfer(
        pieces,
        total,
        tuple(label for n, (_, label) in enumerate(outputs) if n in known),
        tuple(label for n, (_, label) in enumerate(outputs) if n not in known),
    )


Pairs = tuple[Sequence[int], Sequence[int]]
"""Entries of an axis of the new tensor, and of the old one, with the same meaning."""
_Growing = tuple[Mapping[str, Tensor], Pairs, int]
"""The network's tensors with one additional entry, the common entries, and the number of old ones."""


def _piece(key: str, tensor: Tensor, old: Tensor, growing: Sequence[_Growing]) -> TransferredTensor | None:
    """The part of a tensor that is adopted from the old one; None if there is none."""
    if old.ndim != tensor.ndim:
        return None
    pairs = [_axis(key, axis, tensor, old, growing) for axis in range(tensor.ndim)]
    if any(not ours for ours, _ in pairs):
        return None
    values = old
    for axis, (_, theirs) in enumerate(pairs):
        values = values.index_select(axis, torch.tensor(theirs))
    return TransferredTensor(
        values, tuple(torch.tensor(ours) for ours, _ in pairs), values.shape == tensor.shape
    )


def _axis(key: str, axis: int, tensor: Tensor, old: Tensor, growing: Sequence[_Growing]) -> Pairs:
    """The common entries of an axis of a tensor and the old one's."""
    for larger, pairs, size in growing:
        if key not in larger:
            return (), ()  # a layer that exists only for some numbers of classes
        step = larger[key].shape[axis] - tensor.shape[axis]
        if step:
            return pairs if step == 1 and old.shape[axis] == size else ((), ())
    if old.shape[axis] != tensor.shape[axis]:
        return (), ()
    return range(old.shape[axis]), range(old.shape[axis])


def _is_shared(key: str, tensor: Tensor, growing: Sequence[_Growing]) -> bool:
    """Whether a tensor is the kernel of a layer that is independent of labels. (Offsets and norms of
    different networks may have the same length by chance.)"""
    return tensor.ndim > 1 and all(larger[key].shape == tensor.shape for larger, _, _ in growing)


def _shapes(stage: Stage, channels: int, classes: int) -> dict[str, Tensor]:
    """The network's tensors without their values."""
    with networks.without_memory():
        return networks.build(stage.network, channels, classes, stage.grid.padding).state_dict()


def _output_names(stage: Stage, schema: LabelSchema) -> tuple[Name, ...]:
    return tuple((_CLASS, label) for label in (BACKGROUND, *graph.resolve_labels(stage, schema)))


def input_names(stage: Stage, recipe: Recipe, schema: LabelSchema, channels: int) -> tuple[Name, ...]:
    """The channels that ``pipeline.stage_input`` passes to the network, in their order."""
    names = [(_IMAGE, str(channel)) for channel in inputs.image_channels(stage.inputs, channels)]
    for spec in inputs.prior_specs(stage.inputs):
        known = graph.prior_labels(recipe, spec.of, schema)
        names += [(spec.of, label) for label in inputs.prior_names(spec, known)]
    return tuple(names)


def _common(ours: Sequence[Name], theirs: Sequence[Name]) -> Pairs:
    """Positions of the common names, including other spellings of a label."""
    pairs: list[tuple[int, int]] = []
    for n, (source, label) in enumerate(ours):
        labels = dict.fromkeys(other for known, other in theirs if known == source and other != BACKGROUND)
        found = label_of(label, LabelSchema.consecutive(labels)) if labels and label != BACKGROUND else label
        if found is not None and (source, found) in theirs:
            pairs.append((n, theirs.index((source, found))))
    return [n for n, _ in pairs], [n for _, n in pairs]
