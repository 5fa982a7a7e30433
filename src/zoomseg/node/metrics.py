"""A node's metrics for Prometheus, computed on request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from zoomseg.serve.job_queue import State

if TYPE_CHECKING:
    from zoomseg.node.run import Node


class NodeCollector(Collector):
    """Queue, results, refusals and disk space of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        """Called by Prometheus' client library."""
        jobs, receiver = self._node.jobs, self._node.receiver
        states = GaugeMetricFamily("zoomseg_node_jobs", "Jobs by state.", labels=["state"])
        for state, count in jobs.counts().items():
            states.add_metric([state.value], count)
        yield states
        objects = CounterMetricFamily(
            "zoomseg_node_objects", "Objects that came, and associations rejected.", labels=["what"]
        )
        for what in ("stored", "known", "refused", "rejected"):
            objects.add_metric([what], receiver.counts[what])
        yield objects
        waiting = GaugeMetricFamily(
            "zoomseg_node_deliveries_waiting", "Results that wait to be sent.", labels=["destination"]
        )
        destinations = dict.fromkeys(self._node.settings.destinations, 0) | jobs.deliveries_waiting()
        for name, count in destinations.items():
            waiting.add_metric([name], count)
        yield waiting
        yield SummaryMetricFamily(
            "zoomseg_node_segmentation_seconds",
            "Seconds from a job's start until its results were written.",
            count_value=jobs.segmented,
            sum_value=jobs.segmented_seconds,
        )
        queued = jobs.first(State.QUEUED)
        oldest = 0.0 if queued is None else time.time() - queued.created
        yield GaugeMetricFamily("zoomseg_node_oldest_queued_seconds", "Age of the oldest queued job.", oldest)
        room = self._node.store.room()
        yield GaugeMetricFamily("zoomseg_node_free_bytes", "Room on the disk beyond limits.free_bytes.", room)


def exposition(node: Node) -> bytes:
    """The text for Prometheus."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(node))
    return generate_latest(registry)
