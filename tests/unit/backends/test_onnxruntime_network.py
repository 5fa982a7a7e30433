"""Networks computed by ONNX Runtime: threads, any shape."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from helpers.onnx_models import doubling
from zoomseg.backends import onnxruntime_network


def test_any_batch_and_tile_is_computed_and_answers_stay() -> None:
    network = onnxruntime_network.load(doubling())
    first = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
    answer = network(first)
    other = network(np.ones((3, 1, 1, 5, 2), np.float32))
    assert np.array_equal(other, np.full((3, 1, 1, 5, 2), 2))
    assert np.array_equal(answer, 2 * first)


@pytest.mark.parametrize(("given", "threads"), [(None, 5), (2, 2)])
def test_threads(given: int | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    session = onnxruntime.InferenceSession

    def opening(graph: bytes, options: onnxruntime.SessionOptions, **others: object) -> object:
        seen.append(options.intra_op_num_threads)
        return session(graph, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    monkeypatch.setattr(onnxruntime_network, "usable_threads", lambda: 5)
    onnxruntime_network.load(doubling(), given)
    assert seen == [threads]
