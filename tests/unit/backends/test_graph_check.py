"""A graph may read its own stage's weights, and no other file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper

from zoomseg.backends import graph_check
from zoomseg.backends.graph_check import check

FILE, SIZE = "fine-0123.safetensors", 100


def outside(location: str = FILE, offset: int = 8, length: int = 40, name: str = "w") -> TensorProto:
    tensor = TensorProto(
        name=name, dims=[10], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model() -> ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("", TensorProto.FLOAT, [1], [2.0])),
        helper.make_node("Mul", ["x", "w"], ["m"]),
        helper.make_node("Resize", ["m", "", "c"], ["y"], mode="linear", axes=[2], cubic_coeff_a=-0.75),
    ]
    shape = ["n", 10]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [outside()]))


def test_a_graph_of_ours_passes() -> None:
    check(model().SerializeToString(), FILE, SIZE)
    check(model().SerializeToString(), FILE, 48)


def replaced(tensor: TensorProto) -> Callable[[ModelProto], object]:
    return lambda m: m.graph.initializer[0].CopyFrom(tensor)


def in_attribute(tensor: TensorProto) -> Callable[[ModelProto], object]:
    return lambda m: m.graph.node[0].attribute[0].t.CopyFrom(tensor)


def with_twice(m: ModelProto) -> None:
    m.graph.initializer[0].external_data.add(key="location", value=FILE)


def subgraph(m: ModelProto) -> None:
    m.graph.node[1].attribute.append(helper.make_attribute("body", m.graph))


def without_length(m: ModelProto) -> None:
    del m.graph.initializer[0].external_data[2]


def with_checksum(m: ModelProto) -> None:
    m.graph.initializer[0].external_data.add(key="checksum", value="0")


HOSTILE: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "elsewhere": (replaced(outside("../../secret")), r"reads '../../secret', and may read fine-0123"),
    "elsewhere, with a control character": (replaced(outside("a\nb")), "reads 'a b'"),
    "absolute": (replaced(outside("/etc/passwd")), "reads '/etc/passwd'"),
    "another stage": (replaced(outside("coarse-0123.safetensors")), "reads 'coarse"),
    "no name": (replaced(outside("")), "has an ambiguous location|reads ''"),
    "beyond the end": (replaced(outside(offset=61)), "beyond the end"),
    "before the start": (replaced(outside(offset=-8)), "tensor of the graph is invalid"),
    "huge number": (replaced(outside(length=10**18)), "tensor of the graph is invalid"),
    "second tensor": (lambda m: m.graph.initializer.append(outside("b", name="v")), "reads 'b'"),
    "in an attribute": (in_attribute(outside("b")), "reads 'b'"),
    "said twice": (with_twice, "has two locations"),
    "no length": (without_length, "lacks its location, offset or length"),
    "more than we write": (with_checksum, "lacks its location, offset or length"),
    "subgraph": (subgraph, "attribute of the graph has a field 6"),
    "tensors in an attribute": (
        lambda m: m.graph.node[0].attribute[0].tensors.append(outside("b")),
        "attribute of the graph has a field 10",
    ),
    "function": (lambda m: m.functions.add(name="f"), "model of the graph has a field 25"),
    "training": (lambda m: m.training_info.add(), "model of the graph has a field 20"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "graph of the graph has a field 15"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_graph_is_refused(case: str) -> None:
    change, message = HOSTILE[case]
    made = model()
    change(made)
    with pytest.raises(ValueError, match=message):
        check(made.SerializeToString(), FILE, SIZE)


def field(number: int, content: bytes) -> bytes:
    """A short message as a field of another one."""
    return bytes([number << 3 | 2, len(content)]) + content


def test_a_second_value_which_a_parser_would_take_is_refused() -> None:
    entry = field(1, b"location") + field(2, FILE.encode()) + field(2, b"evil")
    content = field(7, field(5, field(13, entry)))
    (tensor,) = onnx.load_from_string(content).graph.initializer
    assert tensor.external_data[0].value == "evil"
    with pytest.raises(ValueError, match="has an ambiguous location"):
        check(content, FILE, SIZE)


def test_a_graph_in_two_parts_which_a_parser_would_join_is_checked_whole() -> None:
    content = (
        model().SerializeToString() + ModelProto(graph={"initializer": [outside("b")]}).SerializeToString()
    )
    assert len(onnx.load_from_string(content).graph.initializer) == 2
    with pytest.raises(ValueError, match="reads 'b'"):
        check(content, FILE, SIZE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x3a\x05ab", "cut off"),
        (b"\x3a", "cut off"),
        (b"\x09ab", "cut off"),
        (b"\x3b", "wire type 3"),
        (b"\xff" * 11, "unterminated number"),
        (b"\x38\x01", "field 7"),
        (bytes(graph_check.LARGEST + 1), "at most"),
    ],
)
def test_what_is_no_graph_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(content, FILE, SIZE)


def test_whatever_passes_reads_the_one_file_alone() -> None:
    """Graphs with a few changed bytes, as parsed by onnx."""
    rng, start = np.random.default_rng(0), model().SerializeToString()
    passed = refused = 0
    for _ in range(5000):
        content = np.frombuffer(start, np.uint8).copy()
        where = rng.integers(len(content), size=rng.integers(1, 4))
        content[where] = rng.integers(256, size=where.size)
        try:
            check(content.tobytes(), FILE, SIZE)
        except ValueError:
            refused += 1
            continue
        try:
            graph = onnx.load_from_string(content.tobytes()).graph
        except DecodeError:
            continue
        tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute)]
        places = [e.value for t in tensors for e in t.external_data if e.key == "location"]
        assert set(places) <= {FILE}
        passed += 1
    assert min(passed, refused) > 500
