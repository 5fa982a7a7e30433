"""Check that an ONNX graph of a model folder reads its own stage's weights and no other file.

ONNX allows every tensor of a graph to be in another file, at any path. External graphs are therefore checked
before a runtime loads them, by protobuf's wire format (protobuf.dev/programming-guides/encoding) and the
field numbers of onnx.proto: prediction does not require the ``onnx`` package. Everything that graphs of
``onnx_graph.py`` do not contain (subgraphs, functions, sparse tensors) is refused, as it could contain
tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from zoomseg.core.errors import quoted

LARGEST = 1 << 20
"""Maximum number of bytes of a graph: those of our networks have less than a tenth."""

_Field: TypeAlias = "tuple[int, int | bytes]"
"""Number and value: bytes for strings, messages and packed numbers; otherwise a number, whose value is
irrelevant here."""

_MODEL, _MODEL_GRAPH = {1, 2, 3, 4, 5, 6, 8}, 7
_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = {2, 10, 11, 12}, 1, 5
_NODE, _NODE_ATTRIBUTE = {1, 2, 3, 4, 6, 7}, 5
_ATTRIBUTE, _ATTRIBUTE_TENSOR = {1, 2, 3, 4, 7, 8, 9, 13, 20}, 5
_TENSOR, _TENSOR_EXTERNAL = {1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14}, 13
_KEY, _VALUE = 1, 2


def check(graph: bytes, location: str, size: int) -> None:
    """Refuse a graph that reads anything but the file ``location`` of ``size`` bytes beside it.

    Raises:
        ValueError: the reason, in one line.
    """
    if len(graph) > LARGEST:
        raise ValueError(f"the graph has {len(graph)} bytes; at most {LARGEST} are read")
    for content in _messages(graph, "model", _MODEL_GRAPH, _MODEL):
        for number, part in _parts(content, "graph", {_GRAPH_NODE, _GRAPH_INITIALIZER}, _GRAPH):
            if number == _GRAPH_INITIALIZER:
                _check_tensor(part, location, size)
                continue
            for attribute in _messages(part, "node", _NODE_ATTRIBUTE, _NODE):
                for tensor in _messages(attribute, "attribute", _ATTRIBUTE_TENSOR, _ATTRIBUTE):
                    _check_tensor(tensor, location, size)


def _check_tensor(tensor: bytes, location: str, size: int) -> None:
    external: dict[bytes, bytes] = {}
    for entry in _messages(tensor, "tensor", _TENSOR_EXTERNAL, _TENSOR):
        key, value = _entry(entry)
        if key in external:
            raise ValueError("a tensor of the graph has two locations")
        external[key] = value
    if not external:
        return
    if set(external) != {b"location", b"offset", b"length"}:
        raise ValueError("a tensor of the graph lacks its location, offset or length")
    if external[b"location"] != location.encode():
        place = quoted(external[b"location"].decode(errors="replace"))
        raise ValueError(f"the graph reads '{place}', and may read {location} alone")
    if _number(external[b"offset"]) + _number(external[b"length"]) > size:
        raise ValueError(f"the graph reads beyond the end of {location}")


def _entry(message: bytes) -> tuple[bytes, bytes]:
    """Key and value of an entry: of two fields with the same number a parser uses the later one, so there
    must be one of each."""
    found = list(_parts(message, "tensor's place", {_KEY, _VALUE}, set()))
    if [number for number, _ in found] != [_KEY, _VALUE]:
        raise ValueError("a tensor of the graph has an ambiguous location")
    return found[0][1], found[1][1]


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise ValueError("the offset or length of a tensor of the graph is invalid")
    return int(text)


def _messages(message: bytes, what: str, wanted: int, harmless: set[int]) -> Iterator[bytes]:
    for _, part in _parts(message, what, {wanted}, harmless):
        yield part


def _parts(message: bytes, what: str, wanted: set[int], harmless: set[int]) -> Iterator[tuple[int, bytes]]:
    """The fields with the numbers ``wanted``; any field that is neither of these nor ``harmless`` is
    refused."""
    for number, value in _fields(message):
        if number in wanted and isinstance(value, bytes):
            yield number, value
        elif number not in harmless:
            raise ValueError(f"the {what} of the graph has a field {number}, which is not allowed")


def _fields(message: bytes) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
                yield tag >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = _varint(message, at)
            case 5:
                length = 4
            case kind:
                raise ValueError(f"the graph is not an ONNX file (wire type {kind})")
        if at + length > len(message):
            raise ValueError("the graph is cut off")
        yield tag >> 3, message[at : at + length] if tag & 7 == 2 else 0
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("the graph is cut off")
        byte = message[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("the graph is not an ONNX file (unterminated number)")
