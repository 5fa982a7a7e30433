"""Label schemas: names, file values, groups, and which names mirror each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import LabelError
from zoomseg.core.sides import (
    doubtful_pairs,
    has_side,
    is_asymmetric,
    mirror_name,
    name_meaning,
    name_tokens,
    side_of,
)

BACKGROUND = "background"
IGNORE = 255
"""Class index of voxels that are excluded from training and evaluation."""

MAX_CLASSES = 254
MAX_VALUE = 2**31 - 1
_COUNTED = {"label", "labels", "class", "value", "structure", "organ", "object", "segment", "region", "roi"}
"""Words that name no organ, alone or with a number."""
_PIECE_VALUES = 1 << 20
"""Number of file values that are converted at once: their positions among the known values take eight bytes
each."""


@dataclass(frozen=True)
class LabelSchema:
    """Foreground labels in class order. Class index 0 is background, ``names[c - 1]`` is class c.

    ``values`` are the values in label files; they need not be consecutive. Value 0 is background.

    Raises:
        LabelError: duplicate or empty names; values that are not distinct or not in 1..MAX_VALUE;
            too many classes.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.names:
            raise LabelError("a label schema needs at least one foreground label")
        if len(self.names) != len(self.values):
            raise LabelError(f"{len(self.names)} label names but {len(self.values)} values")
        if len(set(self.names)) != len(self.names) or "" in self.names or BACKGROUND in self.names:
            raise LabelError(
                f"label names must be distinct, non-empty and not '{BACKGROUND}', got {list(self.names)}"
            )
        if len(set(self.values)) != len(self.values) or min(self.values) < 1 or max(self.values) > MAX_VALUE:
            raise LabelError(f"label values must be distinct and in 1..{MAX_VALUE}, got {list(self.values)}")
        if len(self.names) > MAX_CLASSES:
            raise LabelError(f"at most {MAX_CLASSES} labels are supported, got {len(self.names)}")

    @classmethod
    def consecutive(cls, names: Iterable[str]) -> LabelSchema:
        names = tuple(names)
        return cls(names, tuple(range(1, len(names) + 1)))

    @property
    def value_of(self) -> dict[str, int]:
        """Each label's value in files."""
        return dict(zip(self.names, self.values, strict=True))

    @property
    def classes(self) -> int:
        """Number of classes, including background."""
        return len(self.names) + 1

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Left/right pairs, each once, in schema order."""
        found: list[tuple[str, str]] = []
        for name in self.names:
            other = mirror_name(name, self.names)
            if other is not None and mirror_name(other, self.names) == name and (other, name) not in found:
                found.append((name, other))
        return tuple(found)

    @property
    def left_right(self) -> tuple[tuple[str, str], ...]:
        """The ``pairs`` as (left, right)."""
        return tuple(pair if side_of(pair[0]) == "left" else pair[::-1] for pair in self.pairs)

    @property
    def doubtful(self) -> tuple[tuple[str, str], ...]:
        """Pairs of labels that may be left and right, but do not state it in words (``LK``, ``RK``)."""
        return doubtful_pairs(self.names)

    @property
    def unpaired(self) -> tuple[str, ...]:
        """Labels that name a side without a symmetric counterpart in the schema, or may name one
        (``doubtful``): they would be wrong in a mirrored image."""
        paired = {name for pair in self.pairs for name in pair if not is_asymmetric(name)}
        doubtful = {name for pair in self.doubtful for name in pair}
        return tuple(n for n in self.names if n in doubtful or (n not in paired and has_side(n)))

    @property
    def unnamed(self) -> tuple[str, ...]:
        """Labels whose name is only a number: ``label_1``, ``3``."""
        return tuple(n for n in self.names if all(t.isdigit() or t in _COUNTED for t in name_tokens(n)))

    def class_of(self, name: str) -> int:
        """Class index of a label.

        Raises:
            LabelError: the schema has no label of this name.
        """
        if name not in self.names:
            raise LabelError(f"unknown label '{name}'; allowed: {', '.join(self.names)}")
        return self.names.index(name) + 1

    def find(self, name: str) -> str | None:
        """The label with the meaning of ``name``, regardless of case, separators, the order of words and the
        spelling of the side (``right_kidney``, ``Kidney_R``), but not of the symbols ``~ ! + -`` (see
        ``name_meaning``); None if there is none."""
        if name in self.names:
            return name
        wanted = name_meaning(name)
        if not wanted:  # names of other characters are matched only exactly
            return None
        return next((n for n in self.names if name_meaning(n) == wanted), None)

    def select(self, names: Iterable[str] | str) -> tuple[str, ...]:
        """Resolve ``"all"``, label names and group names to label names in schema order."""
        if isinstance(names, str):
            names = self.names if names == "all" else (names,)
        wanted: set[str] = set()
        for name in names:
            members = self.groups.get(name, (name,))
            for member in members:
                self.class_of(member)
                wanted.add(member)
        return tuple(n for n in self.names if n in wanted)

    def encode(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """File values to class indices (uint8, same shape).

        Raises:
            LabelError: a value is not in the schema.
        """
        order = np.argsort(np.abs(values.strides))[::-1]  # in memory order
        turned = values.transpose(order)
        flat = turned.reshape(-1)
        pieces = [slice(n, n + _PIECE_VALUES) for n in range(0, len(flat), _PIECE_VALUES)]
        present = np.unique(np.concatenate([flat[:0], *(np.unique(flat[piece]) for piece in pieces)]))
        known = {0: 0} | {v: c for c, v in enumerate(self.values, start=1)}
        unknown = [v.item() for v in present if v.item() not in known]
        if unknown:
            raise LabelError(f"label values {unknown[:10]} are not in the schema; allowed: {sorted(known)}")
        classes = np.array([known[v.item()] for v in present], dtype=np.uint8)
        out = np.empty(flat.shape, dtype=np.uint8)
        for piece in pieces:
            out[piece] = classes[np.searchsorted(present, flat[piece])]
        return out.reshape(turned.shape).transpose(np.argsort(order))

    def decode(self, classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.generic]:
        """Class indices to file values, in the smallest of uint8, uint16 and int32 that holds them."""
        dtype = np.uint8 if max(self.values) < 256 else np.uint16 if max(self.values) < 65536 else np.int32
        table = np.array([0, *self.values], dtype=dtype)
        out: npt.NDArray[np.generic] = table[classes]
        return out
