"""From received objects to jobs: decides when a study is complete, and what is done with its series."""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from zoomseg.core.errors import OutputError, ScanError
from zoomseg.io.files import reason_of
from zoomseg.node.jobs import LOG, Delivery, NodeJob, NodeJobs, Series, SeriesState
from zoomseg.node.rules import Decision, SeriesFacts, decide
from zoomseg.node.settings import NodeSettings, Rule
from zoomseg.node.store import Arrival, Instance, Store, digest, read_instance
from zoomseg.serve.background import ran
from zoomseg.serve.job_queue import State

POLL_INTERVAL_SECONDS = 0.25

DAMAGED = "none of its stored files is whole"
"""The reason why a series is not segmented."""


@dataclass
class _Open:
    """A study that is being received."""

    series: set[str] = field(default_factory=set)
    last: float = 0.0
    """Time of its last image, by the monotonic clock."""
    bringing: set[str] = field(default_factory=set)
    """Open associations that sent images of it."""
    broken: bool = False
    """Whether one of them ended without a release, and none that began later has been released: images may be
    missing."""
    earlier: set[str] = field(default_factory=set)
    """Open ones that began before that."""


@dataclass(frozen=True)
class RuleModel:
    """A model used by rules. ``fingerprint`` identifies what determines its predictions."""

    name: str
    fingerprint: str


class Intake:
    """Receives objects, and creates jobs from complete studies."""

    def __init__(
        self,
        settings: NodeSettings,
        store: Store,
        jobs: NodeJobs,
        models: Mapping[str, RuleModel],
        dry_run: bool = False,
    ) -> None:
        """
        Args:
            models: by the names used in rules.
            dry_run: whether decisions are only reported.
        """
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._models = models
        self._dry_run = dry_run
        self._open: dict[str, _Open] = {}
        self._guard = threading.RLock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zoomseg-intake", daemon=True)

    def start(self) -> None:
        """Resume with the images received before the last node ended; then watch for complete studies."""
        self._recover()
        self._thread.start()

    def stop(self) -> None:
        """Stop; studies that are being received are completed some time after the next start."""
        self._stopping.set()
        self._thread.join()

    # --- arriving ---------------------------------------------------------------------------------

    def take(self, instance: Instance, content: bytes, association: str) -> Arrival:
        """Store an object that an association sent; when this returns, it is on the disk.

        Raises:
            OutputError: it could not be stored.
            ConflictError: another object has its UID.
        """
        with self._guard:
            arrival = self._store.put(instance, content)
            study = self._open.setdefault(instance.study_uid, _Open())
            study.last = time.monotonic()
            study.bringing.add(association)
            if instance.series not in study.series:
                study.series.add(instance.series)  # first: everything stored must be decided
                self._receiving(instance)
            return arrival

    def _receiving(self, instance: Instance) -> None:
        known = self._jobs.series(instance.series)
        self._jobs.note(
            Series(
                key=instance.series,
                study_uid=instance.study_uid,
                series_uid=instance.series_uid,
                state=SeriesState.RECEIVING,
                first=time.time() if known is None else known.first,
                rule=None if known is None else known.rule,
            )
        )

    def ended(self, association: str, released: bool) -> None:
        """An association has ended, by release or otherwise."""
        with self._guard:
            for study in self._open.values():
                if association in study.bringing:
                    study.bringing.discard(association)
                    if not released:
                        study.broken, study.earlier = True, set(study.bringing)
                    elif association in study.earlier:  # it need not bring what is missing
                        study.earlier.discard(association)
                    else:
                        study.broken = False

    def _recover(self) -> None:
        """Treat studies with stored images but without a decision as if they had just arrived."""
        decided = {SeriesState.TAKEN, SeriesState.LEFT} | ({SeriesState.DRY_RUN} if self._dry_run else set())
        with self._guard:
            for key in self._store.series():
                known = self._jobs.series(key)
                if known is not None and known.state in decided:
                    continue
                study_uid = self._begun_again(key, known)
                if study_uid is not None:
                    study = self._open.setdefault(study_uid, _Open())
                    study.series.add(key)
                    study.last, study.broken = time.monotonic(), True

    def _begun_again(self, key: str, known: Series | None) -> str | None:
        """Record a series that an earlier node received, as if it arrived now; returns its study, which is
        None for a series that was not recorded and cannot be read: it is left to the next start."""
        if known is not None:
            rule = None if known.state is SeriesState.DRY_RUN else known.rule
            self._jobs.note(known.model_copy(update={"state": SeriesState.RECEIVING, "rule": rule}))
            return known.study_uid
        try:
            instance = self._header(key)
        except OutputError as error:
            LOG.error("%s", error)
            return None
        if instance is None:
            return None
        self._receiving(instance)
        return instance.study_uid

    def _header(self, series: str) -> Instance | None:
        """The header of a series' first whole file; None if none is whole.

        Raises:
            OutputError: a file cannot be read, which may be temporary.
        """
        for file in self._store.files(series):
            try:
                return read_instance(file.read_bytes())
            except ScanError:
                LOG.error("series %s: a stored file is damaged", series)
            except (OSError, MemoryError) as error:
                message = f"series {series}: a stored file cannot be read ({reason_of(error)})"
                raise OutputError(message) from error
        return None

    # --- completing -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.wait(POLL_INTERVAL_SECONDS):
            ran(self.complete, LOG.error)

    def clear(self, before: float) -> None:
        """Delete everything finished before a time, in seconds since 1970. Nothing is received meanwhile, so
        that no object is deleted right after its sender was notified.

        Raises:
            OutputError: the disk refuses it.
        """
        with self._guard:
            for series in self._jobs.clear(before):
                self._store.remove(series.key)
                LOG.info("series %s: deleted", series.key)

    def complete(self) -> None:
        """Decide on the studies that are complete by now."""
        with self._guard:
            for uid in [uid for uid, study in self._open.items() if self._is_complete(study)]:
                if ran(partial(self._decide, uid, self._open[uid].series), LOG.error):
                    del self._open[uid]
                else:  # tried again: the cause may be temporary
                    self._open[uid].last = time.monotonic()

    def _is_complete(self, study: _Open) -> bool:
        times = self._settings.complete
        # Of rules that choose among series, the best one may follow in an association of its own.
        chosen = any(rule.one_per_study for rule in self._settings.rules)
        released = not study.bringing and not study.broken and not chosen
        quiet = time.monotonic() - study.last
        return quiet >= (times.released_seconds if released else times.quiet_seconds)

    def _decide(self, study_uid: str, keys: set[str]) -> None:
        facts, uids = {}, {}
        for key in sorted(keys):
            found = self._facts(key)
            if found is not None:
                facts[key], uids[key] = found
        earlier = {s.rule: s.key for s in self._jobs.series_of(study_uid) if s.rule}
        decisions = decide(self._settings.rules, facts, earlier)
        jobs = {} if self._dry_run else self._jobs_of(study_uid, decisions, facts, uids)
        for key, job in jobs.items():
            if self._jobs.find(job.id) is None or not self._jobs.scan(job.id).is_dir():
                self._store.link(key, self._jobs.scan(job.id))
        series = [
            self._decided(study_uid, key, uids[key][0], facts[key], decisions[key], jobs.get(key))
            for key in facts
        ]
        series += [
            _damaged(known) for known in self._jobs.series_of(study_uid) if known.key in keys - set(facts)
        ]
        begun = self._jobs.decide(series, list(jobs.values()))
        for one in series:
            LOG.info("series %s: %d slices, %s", one.key, one.slices, one.state)
        for job in begun:
            LOG.info("job %s: series %s, rule %s", job.id, job.series, job.rule)

    def _facts(self, key: str) -> tuple[SeriesFacts, tuple[str, list[str]]] | None:
        """The properties of a series that rules read, its UID, and digests of its objects; None if none of
        them is whole.

        Raises:
            OutputError: it cannot be read.
        """
        instance = self._header(key)
        if instance is None:
            return None
        objects = self._store.contents(key)
        slices = max(len(objects), instance.frames)
        facts = SeriesFacts(
            instance.modality, instance.body_part, instance.description, slices, instance.number
        )
        return facts, (instance.series_uid, objects)

    def _jobs_of(
        self,
        study_uid: str,
        decisions: Mapping[str, Decision],
        facts: Mapping[str, SeriesFacts],
        uids: Mapping[str, tuple[str, list[str]]],
    ) -> dict[str, NodeJob]:
        made = {}
        for key, decision in decisions.items():
            rule = decision.rule
            if rule is not None:
                series_uid, objects = uids[key]
                seed = seed_of(series_uid, objects, rule, self._models[rule.model].fingerprint)
                made[key] = NodeJob(
                    id=digest("job", seed, rule.name, *rule.outputs, ":", *rule.send_to),
                    model=self._models[rule.model].name,
                    state=State.QUEUED,
                    created=time.time(),
                    series=key,
                    study_uid=study_uid,
                    series_uid=series_uid,
                    rule=rule.name,
                    slices=facts[key].slices,
                    outputs=rule.outputs,
                    organs=rule.organs,
                    seed=seed,
                    deliveries=tuple(Delivery(destination=name) for name in rule.send_to),
                )
        return made

    def _decided(
        self,
        study_uid: str,
        key: str,
        series_uid: str,
        facts: SeriesFacts,
        decision: Decision,
        job: NodeJob | None,
    ) -> Series:
        known = self._jobs.series(key)
        taken = SeriesState.DRY_RUN if self._dry_run else SeriesState.TAKEN
        return Series(
            key=key,
            study_uid=study_uid,
            series_uid=series_uid,
            state=SeriesState.LEFT if decision.rule is None else taken,
            first=time.time() if known is None else known.first,
            decided=time.time(),
            slices=facts.slices,
            why=decision.why,
            job=None if job is None else job.id,
            rule=None if decision.rule is None else decision.rule.name,
        )


def _damaged(known: Series) -> Series:
    changes = {"state": SeriesState.LEFT, "decided": time.time(), "why": DAMAGED}
    return known.model_copy(update=changes)


def seed_of(series_uid: str, objects: Sequence[str], rule: Rule, fingerprint: str) -> str:
    """The seed of the results' UIDs: images (``Store.contents``), model, settings, and this version."""
    version = importlib.metadata.version("zoomseg")
    return digest(series_uid, *objects, ":", *rule.organs, ":", fingerprint, version)
