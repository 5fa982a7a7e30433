"""A model, loaded once, for any number of scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from zoomseg.backends import blas
from zoomseg.backends.choice import Backend
from zoomseg.backends.device import Device
from zoomseg.backends.networks import costs_of, networks_of
from zoomseg.core.case import Case
from zoomseg.core.errors import GeometryError, ModelError
from zoomseg.core.geometry import Grid
from zoomseg.core.region import Region
from zoomseg.inference import atlas_priors, memory_limits
from zoomseg.inference.domain_similarity import compare
from zoomseg.inference.memory_limits import MemoryLimits
from zoomseg.io import digests
from zoomseg.io.bundle import Bundle
from zoomseg.io.training_domain import DomainSimilarity
from zoomseg.pipeline import inputs, stage_input
from zoomseg.pipeline.cascade import AtlasPriorOf, Cascade, Prediction, keeps_full_prediction
from zoomseg.pipeline.grid import stage_grid
from zoomseg.pipeline.inputs import network_channels
from zoomseg.pipeline.sliding_window import (
    OnProgress,
    SplitNetwork,
    StageNetwork,
    StageRecord,
    before_head,
    ignore_progress,
)
from zoomseg.recipe import graph, network_shapes
from zoomseg.recipe.spec import Stage


class Predictor:
    """A loaded model, ready for any number of scans."""

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        atlas_of: AtlasPriorOf | None = None,
        limits: MemoryLimits | None = None,
        others: Sequence[Bundle] = (),
        any_scan: bool = False,
        backend: Backend = "torch",
        mirror: bool = False,
    ) -> None:
        """
        Args:
            atlas_of: computes a scan's atlas prior, instead of the model's own atlases.
            limits: memory limits of the process.
            others: models of the same recipe (for example of other folds) that form an ensemble with this
                one: in every stage, the probabilities of all are averaged.
            any_scan: whether scans that are plainly unlike those of the training are segmented, too.
            backend: the library that computes the networks (see ``backends.choice``).
            mirror: whether predictions are averaged over mirrored tiles, as far as the recipe allows.

        Raises:
            BackendError: the backend refuses a network.
            ModelError: the weights do not fit the networks, the model's atlases are missing, or ``others``
                have other regions or labels.
            RecipeError: the recipe does not fit the model's labels and channels, or allows no mirroring.
        """
        graph.validate_labels(bundle.recipe, bundle.schema)
        for other in others:
            _check_alike(bundle, other)
        models = tuple(
            replace(model, recipe=graph.with_mirroring(model.recipe, mirror)) for model in (bundle, *others)
        )
        self.bundle = models[0].without_weights()
        """The first model of the ensemble, with the recipe as it predicts."""
        self.folders = tuple(model.folder for model in models if model.folder is not None)
        """Folders of the models that came from disk."""
        self.sha256 = digests.of_models(models)
        """Digest of the models, without their recipe (see ``io.digests``)."""
        self.device = device
        self._atlas_of = atlas_of or atlas_priors.of_model(self.bundle)
        self.limits = limits or MemoryLimits(device)
        self.any_scan = any_scan
        """Whether scans that are plainly unlike those of the training are segmented, too."""
        self.backend = backend
        self._models = len(models)
        self._networks = networks_of(models, backend, device)
        self._costs = costs_of(self.bundle, backend)
        self._works = {stage.name: self._work(stage) for stage in self.bundle.recipe.stages}

    @property
    def channels(self) -> int:
        """Number of channels that a scan must have."""
        return len(self.bundle.channel_names)

    def predict(
        self,
        case: Case,
        organs: tuple[str, ...] | None = None,
        keep: bool = True,
        on_progress: OnProgress = ignore_progress,
        wait_for_others: Callable[[], None] = memory_limits.no_wait,
    ) -> Prediction:
        """Segment one scan; ``keep`` and ``on_progress`` as in ``Cascade.run``, ``wait_for_others``
        as in ``MemoryLimits.fit``.

        Raises:
            GeometryError: the scan does not have the model's number of channels.
            ScanError: the scan shows nothing within the model's window, or is plainly unlike those of the
                model's training.
            MemoryLimitError: not even the smallest tiles fit into the memory limit.
        """
        if case.image.channels != self.channels:
            raise GeometryError(
                f"scan {case.id} has {case.image.channels} channel(s), the model needs {self.channels}: "
                f"{', '.join(self.bundle.channel_names)}"
            )

        def fit(
            view: stage_input.StageView, full_prediction: bool
        ) -> tuple[stage_input.StageView, int | None]:
            if not self.limits.any:
                return view, None
            work, labels = self._works[view.stage.name], case.image.grid.box.voxels
            return self.limits.fit(view, work, full_prediction, labels, wait_for_others)

        known = self.bundle.domain
        likeness = self._likeness(case)
        cascade = Cascade(
            self.bundle.recipe,
            self.bundle.schema,
            self._network,
            self.device,
            self._atlas_of,
            fit,
            typical_positions=None if known is None else known.organs,
        )
        with blas.single_threaded():
            result = cascade.run(case, organs, keep, on_progress)
        records = tuple(replace(record, flops=self._flops(record)) for record in result.records)
        return replace(
            result,
            records=records,
            notes=(
                *case.notes,
                *stage_input.orientation_notes(self.bundle.recipe, case),
                *likeness.warnings,
                *result.notes,
            ),
            confidence_factor=likeness.confidence_factor,
        )

    def _flops(self, record: StageRecord) -> int:
        axes = graph.stage_of(self.bundle.recipe, record.stage).mirror_axes
        times: int = self._models * 2 ** len(axes)
        return times * record.tiles * self._costs[record.stage].flops(record.tile)

    def _likeness(self, case: Case) -> DomainSimilarity:
        """How like the training scans a scan is; if nothing is known about these, it counts as alike."""
        known, intensity = self.bundle.domain, self.bundle.recipe.intensity
        if known is None:
            return DomainSimilarity()
        return compare(known, case, intensity, self.any_scan)

    def admit(self, grid: Grid, reading: int, keep: bool = True) -> None:
        """Refuse a scan by its header alone; reading it will need ``reading`` bytes. ``keep`` as in
        ``Cascade.run``. No network is computed, so that another thread may predict at the same time.

        Raises:
            MemoryLimitError: it cannot fit into the memory limit.
        """
        recipe = self.bundle.recipe
        if recipe.crop == "nonzero":  # what is left is only known from the voxels
            self.limits.admit(grid, reading)
            return
        intensities = [graph.intensity_of(recipe, stage) for stage in recipe.stages]
        masking = grid.box.voxels * inputs.masking_bytes(intensities, self.channels)
        self.limits.admit(grid, reading, self._first_bytes(grid, keep), masking)

    def _first_bytes(self, grid: Grid, keep: bool) -> int:
        """The minimum memory of the first stage for a scan on this grid."""
        recipe = self.bundle.recipe
        stage = recipe.stages[0]
        if stage.roi.kind != "whole_volume":
            return 0  # the region is only known from the voxels
        lattice = stage_grid(stage.grid, stage_input.orientation_of(recipe, grid).grid(grid))
        view = stage_input.StageView(stage, lattice, Region.whole(lattice))
        return memory_limits.least_bytes(
            view, self._works[stage.name], keeps_full_prediction(stage, recipe, keep), self.device
        )

    def _network(self, view: stage_input.StageView) -> StageNetwork:
        return self._networks[view.stage.name]

    def _work(self, stage: Stage) -> memory_limits.StageWork:
        bundle, networks = self.bundle, self._networks  # no cycle: networks are freed with the predictor
        seen = len(inputs.image_channels(stage.inputs, self.channels))
        read, classes = network_channels(stage, bundle.recipe, bundle.schema, self.channels)
        network = networks[stage.name]
        return memory_limits.StageWork(
            self._costs[stage.name].activation_bytes,
            read,
            seen,
            classes,
            network.head.features if isinstance(network, SplitNetwork) else classes,
            lambda x_BCIJK: before_head(networks[stage.name])(x_BCIJK, ()),
        )


def _check_alike(one: Bundle, other: Bundle) -> None:
    """Raise an error unless two models can form an ensemble: only networks and training may differ, and
    networks only if they predict the same voxels of a tile.

    Raises:
        ModelError: names the difference.
    """

    def shown(bundle: Bundle) -> dict[str, object]:
        recipe = bundle.recipe.model_dump(exclude={"name", "description", "source", "stages"})
        for stage in bundle.recipe.stages:
            recipe[f"stage '{stage.name}'"] = stage.model_dump(exclude={"network", "training"})
            halo = network_shapes.halo(stage.network, stage.grid.padding)
            recipe[f"margin of a tile that the network of stage '{stage.name}' does not predict"] = halo
        return {"labels": bundle.schema, "channels": bundle.channel_names, **recipe}

    ours, theirs = shown(one), shown(other)
    for part in {**ours, **theirs}:
        if ours.get(part) != theirs.get(part):
            raise ModelError(
                f"models of an ensemble must have the same recipe and labels; the {part} of "
                f"'{one.folder or one.recipe.name}' and '{other.folder or other.recipe.name}' differ"
            )
