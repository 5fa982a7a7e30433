"""One scan through a trained cascade: look, compute the tiles that touch the region, stitch, fuse."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from zoomseg.core.case import Case, Prior
from zoomseg.core.errors import GeometryError, ModelError, RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.tiling import Stitcher, Tile, cover, tent
from zoomseg.core.volume import LabelMap
from zoomseg.engine import atlases, look
from zoomseg.engine.atlases import AtlasOf
from zoomseg.engine.device import Device
from zoomseg.io.bundle import Bundle
from zoomseg.networks import build as networks
from zoomseg.recipe import graph
from zoomseg.recipe.spec import ATLAS, Recipe, Stage
from zoomseg.stage import fusion, inputs

Network = Callable[[Tensor, Tile], Tensor]
"""Input ``[1, C, *outer]`` and its tile -> logits ``[1, classes, *inner]``. The tile is for oracles."""
NetworkOf = Callable[[look.View], Network]
"""The network for where a stage looks: the stage's trained one, or an oracle on the view's grid."""


@dataclass(frozen=True)
class StageRecord:
    """What one stage did on one scan, for ``run.json``."""

    stage: str
    seconds: float
    tiles: int
    tiles_skipped: int
    region_share: float
    """Voxels of the region over voxels of the stage's grid."""


@dataclass(frozen=True, eq=False)
class Result:
    """``labels`` on the scan's own grid and orientation; ``priors`` on the canonical stage grids, of the
    stages that had somewhere to look."""

    case: str
    labels: LabelMap
    confidence: Mapping[str, float]
    priors: Mapping[str, Prior]
    records: tuple[StageRecord, ...]
    seconds: Mapping[str, float]

    @property
    def schema(self) -> LabelSchema:
        return self.labels.schema

    @property
    def probabilities(self) -> Prior | None:
        """The last answer's probabilities, on that stage's grid; None if no stage had anywhere to look."""
        return list(self.priors.values())[-1] if self.priors else None


def input_channels(stage: Stage, recipe: Recipe, schema: LabelSchema, channels: int) -> int:
    """How many channels a stage's network reads.

    Raises:
        RecipeError: it wants an image channel that the scans do not have.
    """
    shown = inputs.image_channels(stage.inputs, channels)
    for channel in shown:
        if not 0 <= channel < channels:
            raise RecipeError(
                f"stage '{stage.name}', inputs: scans have no channel {channel}; allowed: 0 to {channels - 1}"
            )
    count = len(shown)
    for spec in inputs.prior_specs(stage.inputs):
        count += len(inputs.prior_names(spec, graph.prior_labels(recipe, spec.of, schema)))
    return count


def build_network(stage: Stage, recipe: Recipe, schema: LabelSchema, channels: int) -> nn.Module:
    classes = 1 + len(graph.resolve_labels(stage, schema))
    return networks.build(
        stage.network, input_channels(stage, recipe, schema, channels), classes, stage.grid.padding
    )


def as_network(module: nn.Module, device: Device) -> Network:
    """A trained module as the callable that ``run_stage`` drives."""

    def compute(x_BCIJK: Tensor, tile: Tile) -> Tensor:
        with torch.inference_mode(), device.autocast():
            logits: Tensor = module(x_BCIJK.to(device.place))[0]
            return logits

    return compute


def run_stage(
    view: look.View,
    scan: look.Scan,
    priors: Mapping[str, Prior],
    labels: tuple[str, ...],
    network: Network,
    device: Device,
) -> tuple[Prior, StageRecord]:
    """Compute a stage on one scan. Only tiles that touch the region are computed; the inputs are
    sampled once, over the box that the tiles read."""
    started = time.perf_counter()
    spec = view.stage.grid
    halo = networks.halo(view.stage.network, spec.padding)
    tiling = cover(view.region, spec.tile, halo, spec.overlap)
    outer = tiling.outer
    data = look.read(view, scan, priors, outer)
    answered = tiling.tiles[0].inner.shape
    weights = tent(answered) if spec.overlap > 0 and spec.padding == "same" else torch.ones(answered)
    stitcher = Stitcher(1 + len(labels), view.region.box, weights, device.place)
    for tile in tiling.tiles:
        window = data[(slice(None), *tile.outer.relative_to(outer.start).slices)]
        stitcher.add(tile, network(window[None], tile)[0].float().softmax(dim=0))
    prior = _with_background_rim(stitcher.result().cpu(), view, labels)
    record = StageRecord(
        view.stage.name,
        time.perf_counter() - started,
        len(tiling.tiles),
        tiling.skipped,
        view.region.voxels / view.grid.box.voxels,
    )
    return prior, record


def _with_background_rim(probabilities: Tensor, view: look.View, labels: tuple[str, ...]) -> Prior:
    """Where the region ends inside the scan, one voxel of certain background is added: a prior's edge
    goes on beyond its grid, and beyond the region the stage said nothing."""
    box = view.region.box.expand((1, 1, 1)).intersect(view.grid.box)
    if box != view.region.box:
        wide = torch.zeros((probabilities.shape[0], *box.shape))
        wide[0] = 1.0
        wide[(slice(None), *view.region.box.relative_to(box.start).slices)] = probabilities
        probabilities = wide
    return Prior(probabilities, view.grid.crop(box), labels, view.region, view.stage.name)


class Predictor:
    """A loaded model, ready for any number of scans."""

    def __init__(self, bundle: Bundle, device: Device, atlas_of: AtlasOf | None = None) -> None:
        """
        Args:
            atlas_of: what gives a scan's atlas prior, instead of the model's own atlases.

        Raises:
            ModelError: the weights do not fit the networks, or the model's atlases are missing.
            RecipeError: the recipe does not fit the model's labels and channels.
        """
        graph.validate_labels(bundle.recipe, bundle.schema)
        self.bundle = bundle
        self.device = device
        self._atlas_of = atlas_of or atlases.of_model(bundle)
        self._networks = {
            stage.name: as_network(self._module(stage), device) for stage in bundle.recipe.stages
        }

    def _module(self, stage: Stage) -> nn.Module:
        module = build_network(stage, self.bundle.recipe, self.bundle.schema, self.channels)
        try:
            module.load_state_dict(dict(self.bundle.weights[stage.name]))
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise ModelError(f"weights of stage '{stage.name}' do not fit its network ({detail})") from error
        return module.float().to(self.device.place).eval()

    @property
    def channels(self) -> int:
        """How many channels a scan must have."""
        return len(self.bundle.channel_names)

    def predict(self, case: Case, organs: tuple[str, ...] | None = None) -> Result:
        """Segment one scan.

        Raises:
            GeometryError: the scan has not as many channels as the model.
        """
        if case.image.channels != self.channels:
            raise GeometryError(
                f"scan {case.id} has {case.image.channels} channel(s), the model needs {self.channels}: "
                f"{', '.join(self.bundle.channel_names)}"
            )
        bundle = self.bundle
        return cascade(case, bundle.recipe, bundle.schema, self._network, self.device, organs, self._atlas_of)

    def _network(self, view: look.View) -> Network:
        return self._networks[view.stage.name]


def cascade(
    case: Case,
    recipe: Recipe,
    schema: LabelSchema,
    network_of: NetworkOf,
    device: Device,
    organs: tuple[str, ...] | None = None,
    atlas_of: AtlasOf | None = None,
) -> Result:
    """Drive a recipe over one scan with the networks given (trained ones, or an oracle)."""
    started = time.perf_counter()
    scan = look.prepare(case, recipe)
    seconds = {"prepare": time.perf_counter() - started}
    priors: dict[str, Prior] = {}
    if atlas_of is not None:
        clock = time.perf_counter()
        priors[ATLAS] = atlas_of(scan)
        seconds[ATLAS] = time.perf_counter() - clock
    records: list[StageRecord] = []
    for stage in recipe.stages:
        view = look.view(stage, recipe, scan, priors)
        labels = graph.resolve_labels(stage, schema)
        if view is None:
            priors[stage.name] = look.nothing(stage, scan, labels)
            continue
        prior, record = run_stage(view, scan, priors, labels, network_of(view), device)
        priors[stage.name] = prior
        records.append(record)
        seconds[stage.name] = record.seconds
    answers = {record.stage: priors[record.stage] for record in records}
    clock = time.perf_counter()
    canvas = _fused(recipe, answers, fusion.Canvas.blank(scan.grid, schema), priors.get(ATLAS))
    seconds["fuse"] = time.perf_counter() - clock
    labels_map = _select(canvas, organs).reoriented(scan.orientation.inverse)
    return Result(case.id, labels_map, _confidence(recipe, answers), answers, tuple(records), seconds)


def _confidence(recipe: Recipe, answers: Mapping[str, Prior]) -> dict[str, float]:
    """Of every organ, by the last stage that answered for it."""
    out: dict[str, float] = {}
    for stage in recipe.stages:
        if stage.fusion != "none" and stage.name in answers:
            prior = answers[stage.name]
            earlier = {organ: value for organ, value in out.items() if organ not in prior.labels}
            out = earlier | fusion.confidence(prior)
    return out


def _fused(
    recipe: Recipe, answers: Mapping[str, Prior], canvas: fusion.Canvas, atlas: Prior | None
) -> fusion.Canvas:
    """The canvas after every stage that answered; neighbours of one kind enter together, as they may vote.
    Only when all have answered, as the canvas is for nobody to read before."""
    entering = list(itertools.dropwhile(lambda s: _overwritten(s, recipe), recipe.stages))
    kinds = itertools.groupby((s for s in entering if s.fusion != "none"), key=lambda s: s.fusion)
    for kind, stages in kinds:
        said = [fusion.Answer(answers[s.name], s.argmax_on) for s in stages if s.name in answers]
        if said:
            fusion.fuse(kind, canvas, said, atlas)
    fusion.keep_largest(canvas, canvas.schema.select(recipe.largest_component))
    return canvas


def _overwritten(stage: Stage, recipe: Recipe) -> bool:
    """Whether a stage's foreground leaves no trace, as a later one looks at all of it and replaces it: then
    entering it into a blank canvas would be lost work."""
    later = recipe.stages[recipe.stages.index(stage) + 1 :]
    return stage.fusion == "none" or (
        stage.fusion in ("replace_in_roi", "paste")
        and any(
            s.fusion in ("replace_in_roi", "replace_times_atlas")
            and s.roi.kind == "dilated_foreground"
            and s.roi.of == stage.name
            for s in later
        )
    )


def _select(canvas: fusion.Canvas, organs: tuple[str, ...] | None) -> LabelMap:
    labels = canvas.labels
    if organs is not None:
        keep = np.zeros(256, dtype=np.uint8)
        for name in canvas.schema.select(organs):
            keep[canvas.schema.class_of(name)] = canvas.schema.class_of(name)
        labels = torch.from_numpy(keep)[labels.long()]
    return LabelMap(labels, canvas.grid, canvas.schema)
