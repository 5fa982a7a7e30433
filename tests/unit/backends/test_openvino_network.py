"""Networks computed by OpenVINO: precision, threads, any shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from helpers.onnx_models import classifying, converted, doubling
from zoomseg.backends import openvino_network


def test_any_batch_and_tile_is_computed() -> None:
    network = openvino_network.load(doubling())
    first = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
    assert np.array_equal(network(first), 2 * first)
    assert np.array_equal(network(np.ones((3, 1, 1, 5, 2), np.float32)), np.full((3, 1, 1, 5, 2), 2))
    assert np.array_equal(network(first), 2 * first)


def test_an_output_outlives_its_network() -> None:
    first = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
    output = openvino_network.load(doubling())(first)
    assert np.array_equal(output, 2 * first)


def test_the_last_layer_is_found_where_it_reads_one_voxel(tmp_path: Path) -> None:
    model = converted("plain_conv_unet", tmp_path)
    head = openvino_network.pointwise_head(model.graphs["coarse"].graph)
    weights = model.weights["coarse"]
    assert head is not None
    assert np.array_equal(head.weight, weights["last.weight"].reshape(3, 4))
    assert np.array_equal(head.bias, weights["last.bias"])
    assert openvino_network.pointwise_head(doubling()) is None


def test_a_last_layer_has_a_bias_for_each_class() -> None:
    head = openvino_network.pointwise_head(classifying(3, biases=3))
    assert head is not None
    assert head.bias.tolist() == [0.5, 0.5, 0.5]
    assert openvino_network.pointwise_head(classifying(3, biases=1)) is None


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, {"INFERENCE_NUM_THREADS": 5}),
        ({"threads": 2}, {"INFERENCE_NUM_THREADS": 2}),
        ({"precision": "float32"}, {"INFERENCE_NUM_THREADS": 5, "INFERENCE_PRECISION_HINT": "f32"}),
    ],
)
def test_settings(
    given: dict[str, Any], settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    compile_model = openvino.Core.compile_model

    def compiling(core: openvino.Core, model: object, device: str, config: dict[str, object]) -> object:
        seen.append(config)
        return compile_model(core, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", compiling)
    monkeypatch.setattr(openvino_network, "usable_threads", lambda: 5)
    openvino_network.load(doubling(), **given)
    assert seen == [{"PERFORMANCE_HINT": "LATENCY", **settings}]


def test_signals_find_a_stack_when_networks_go_in_the_order_they_came() -> None:
    script = (
        "import signal\n"
        "from helpers.onnx_models import doubling\n"
        "from zoomseg.backends.openvino_network import load\n"
        "first, second = load(doubling()), load(doubling())\n"
        "del first\n"
        "del second\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: print('heard'))\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    tests = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | tests
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
