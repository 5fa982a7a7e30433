"""A complete node: it receives, segments and sends until it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from zoomseg.core.errors import ModelError, OutputError, ZoomSegError
from zoomseg.core.labels import LabelSchema
from zoomseg.io import bundle, digests
from zoomseg.io.bundle import Bundle
from zoomseg.node.intake import Intake, RuleModel
from zoomseg.node.jobs import LOG, NodeJob, NodeJobs
from zoomseg.node.receiver import Receiver
from zoomseg.node.segmentation import segment_series
from zoomseg.node.sending import Sender
from zoomseg.node.settings import NodeSettings, SettingsError
from zoomseg.node.store import Store
from zoomseg.serve.background import ran
from zoomseg.serve.job_runner import Runner
from zoomseg.serve.worker import ProcessWorker, Worker

CLEAR_INTERVAL_SECONDS = 300


class Node:
    """All parts of a node."""

    def __init__(
        self,
        settings: NodeSettings,
        dry_run: bool = False,
        start_worker: Callable[[], Worker] | None = None,
    ) -> None:
        """
        Args:
            dry_run: whether series are only received, and the decisions on them reported.
            start_worker: creates a worker, instead of a process.

        Raises:
            ModelError: a rule's model cannot be read.
            SettingsError: a rule requests an organ that its model does not have.
            OutputError: the folder cannot be written, or another node uses it.
        """
        self.settings = settings
        self.dry_run = dry_run
        folders, models = found_models(settings)
        self.jobs = NodeJobs(settings.folder)
        try:
            self.store = Store(settings.folder / "received", settings.limits.free_bytes)
        except OutputError:
            self.jobs.close()
            raise
        self.intake = Intake(settings, self.store, self.jobs, models, dry_run)
        self.receiver = Receiver(settings, self.intake)
        self.sender = Sender(settings, self.jobs)
        start = start_worker or (lambda: ProcessWorker(settings.device, segment_series, folders.values()))
        self.runner: Runner[NodeJob] = Runner(self.jobs, folders, start)
        self._stopping = threading.Event()
        self._clearing = threading.Thread(target=self._clear, name="zoomseg-clear", daemon=True)

    def start(self) -> None:
        """Start, with the state that an earlier node left.

        Raises:
            ZoomSegError: the address is in use, a certificate cannot be used, or the disk fails; the node is
                then closed.
        """
        try:
            self.receiver.start()
            self.intake.start()
        except ZoomSegError:
            self.receiver.stop()
            self.jobs.close()
            raise
        if not self.dry_run:
            self.sender.start()  # first: it gives up deliveries, also those of jobs that wait
            self.runner.start()
        self._clearing.start()
        LOG.info("listening as %s at port %d", self.settings.ae_title, self.receiver.port)

    def stop(self) -> None:
        """Stop all parts; waiting jobs are processed after the next start."""
        self._stopping.set()
        self.receiver.stop()
        self.intake.stop()
        if not self.dry_run:
            self.runner.stop()
            self.sender.stop()
        self._clearing.join()
        self.jobs.close()

    def _clear(self) -> None:
        while not self._stopping.wait(CLEAR_INTERVAL_SECONDS):
            self.clear(time.time())

    def clear(self, now: float) -> None:
        """Delete everything older than the retention time."""
        ran(lambda: self.intake.clear(now - self.settings.keep_hours * 3600), LOG.error)


def found_models(settings: NodeSettings) -> tuple[dict[str, Path], dict[str, RuleModel]]:
    """Folders of models by their names, and models by the names used in rules.

    Raises:
        ModelError: one cannot be read, or two have the same name.
        SettingsError: a rule requests an organ that its model does not have.
    """
    folders: dict[str, Path] = {}
    known: dict[Path, tuple[LabelSchema, RuleModel]] = {}
    models: dict[str, RuleModel] = {}
    for rule in settings.rules:
        folder = bundle.find(rule.model).resolve()
        if folders.setdefault(folder.name, folder) != folder:
            raise ModelError(f"two models are called '{folder.name}'; rename the folder of one")
        if folder not in known:
            loaded = bundle.load(folder)
            known[folder] = loaded.schema, RuleModel(folder.name, _fingerprint(loaded))
        schema, models[rule.model] = known[folder]
        unknown = [organ for organ in rule.organs if organ not in {*schema.names, *schema.groups}]
        if unknown:
            raise SettingsError(f"rule '{rule.name}': its model knows no '{unknown[0]}'")
    return folders, models


def _fingerprint(model: Bundle) -> str:
    """A digest of everything that determines a model's predictions."""
    try:
        return digests.of_json([digests.of_model(model), model.recipe.model_dump(mode="json")])
    except OSError as error:
        raise ModelError(f"{model.folder}: its atlases cannot be read ({error.strerror})") from error
