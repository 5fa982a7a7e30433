"""Prometheus reads the node's metrics."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from helpers.nodes import archive, finished, push, running, series, settings, until
from zoomseg.node.metrics import exposition
from zoomseg.node.run import Node
from zoomseg.serve.job_queue import State


def samples(node: Node) -> dict[str, float]:
    """Values by name and labels."""
    found = {}
    for family in text_string_to_metric_families(exposition(node).decode()):
        for one in family.samples:
            found[one.name + "".join(f",{value}" for value in one.labels.values())] = one.value
    return found


def test_jobs_objects_seconds_and_room(tmp_path: Path) -> None:
    images = series()
    with archive() as there, running(settings(tmp_path, there)) as node:
        push(node, images)
        push(node, images[:1])
        (job,) = finished(node)
        told = samples(node)
    assert told["zoomseg_node_jobs,finished"] == 1
    assert told["zoomseg_node_jobs,queued"] == 0
    assert told["zoomseg_node_objects_total,stored"] == len(images)
    assert told["zoomseg_node_objects_total,known"] == 1
    assert told["zoomseg_node_segmentation_seconds_count"] == 1
    assert told["zoomseg_node_segmentation_seconds_sum"] == job.segmentation_seconds
    assert told["zoomseg_node_deliveries_waiting,archive"] == 0
    assert told["zoomseg_node_oldest_queued_seconds"] == 0
    assert told["zoomseg_node_free_bytes"] > 0


def test_what_waits(tmp_path: Path) -> None:
    with archive(lambda dataset: 0xA700) as there, running(settings(tmp_path, there)) as node:
        push(node, series(study="1.2.4"))
        until(lambda: node.jobs.in_state(State.SENDING))
        node.runner.stop()
        push(node, series(study="1.2.5"))
        until(lambda: node.jobs.in_state(State.QUEUED))
        told = samples(node)
    assert told["zoomseg_node_deliveries_waiting,archive"] == 1
    assert told["zoomseg_node_jobs,queued"] == 1
    assert told["zoomseg_node_oldest_queued_seconds"] > 0
    with running(settings(tmp_path), dry_run=True) as node:  # no destination of this name
        assert samples(node)["zoomseg_node_deliveries_waiting,archive"] == 1
