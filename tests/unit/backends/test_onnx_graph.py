"""A network's ONNX graph: positions of its weights, and dynamic shapes. ``test_networks`` compares
predictions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from helpers.onnx_models import converted, one_stage
from zoomseg.backends import onnx_graph
from zoomseg.backends.onnx_graph import write_graphs
from zoomseg.core.errors import ModelError
from zoomseg.io import bundle


@pytest.mark.parametrize("half", [False, True])
def test_weights_are_in_their_own_file_alone(half: bool, tmp_path: Path) -> None:
    bundle.save(one_stage("unet3d"), tmp_path, half)
    (before,) = (tmp_path / "weights").iterdir()
    content = before.read_bytes()
    write_graphs(tmp_path)
    model = bundle.load(tmp_path)
    files = model.graphs["coarse"]
    assert files.weights == before
    assert before.read_bytes() == content
    inner = onnx.load(files.graph, load_external_data=False)
    assert all(tensor.data_location == TensorProto.EXTERNAL for tensor in inner.graph.initializer)
    constants = [a.t for n in inner.graph.node for a in n.attribute if a.HasField("t")]
    assert max((len(t.raw_data) for t in (*constants, *inner.graph.initializer)), default=0) <= 8
    stored = {t.data_type for t in inner.graph.initializer}
    assert stored == {TensorProto.FLOAT16 if half else TensorProto.FLOAT}
    whole = onnx.load(files.graph)
    for tensor in whole.graph.initializer:  # batch norms included: nothing was folded
        name = tensor.name.removeprefix("network.").removesuffix(".stored")
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), model.weights["coarse"][name])
    assert len(whole.graph.initializer) == sum(
        not name.endswith("num_batches_tracked") for name in model.weights["coarse"]
    )


def test_graphs_name_no_place_of_this_machine_and_leave_shapes_open(tmp_path: Path) -> None:
    files = converted("unet3d", tmp_path).graphs["coarse"]
    content = files.graph.read_bytes()
    assert b".py" not in content
    assert str(tmp_path).encode() not in content
    graph = onnx.load_from_string(content).graph
    shapes = [
        [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]
    assert shapes == [["batch", 2, "i", "j", "k"], ["batch", 3, "i_out", "j_out", "k_out"]]


def test_the_same_model_gives_the_same_graph(tmp_path: Path) -> None:
    found = set()
    for name in ("a", "b"):
        onnx_graph._architecture.cache_clear()
        torch.manual_seed(len(found))  # the architecture's random weights are not in it
        state = torch.random.get_rng_state()
        bundle.save(one_stage("unet2d"), tmp_path / name)
        torch.random.set_rng_state(state)
        write_graphs(tmp_path / name)
        assert torch.equal(torch.random.get_rng_state(), state)
        found.add(bundle.load(tmp_path / name).graphs["coarse"].graph.read_bytes())
    assert len(found) == 1


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    narrow = one_stage("unet3d")
    weights = dict(narrow.weights["coarse"])
    weights["last.bias"] = torch.zeros(4)
    bundle.save(dataclasses.replace(narrow, weights={"coarse": weights}), tmp_path)
    with pytest.raises(ModelError, match=r"weight 'last.bias' in .*coarse-.* does not fit its network"):
        write_graphs(tmp_path)
    assert bundle.load(tmp_path).graphs == {}
