"""Random choices of an input, and their record; values and bytes that are difficult for readers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

INTEGERS = (
    *(0, 1, 2, 3, 5, 7, -1, -2, 127, 128, 255, 256, 1000, 8000, 32767, 32768, 65535, 65536, -32768),
    *(10**6, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), 10**24),
)
FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 1e-3, 1e-6, 1e-12, 1e-30, 1e-45, 5e-324, 1e3, 1e6, 1e15, 1e30, 1e38),
    *(1.7e308, 0.9999999, 1.0000031, 32768.0, 2.0**31, 2.0**63),
    *(float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *("", " ", "0", "-1", "a b", "a/b", "../a", "../../a", "/a", "/tmp/a", ".", "..", "~", "CON", "a\\b"),
    *(
        "a\nb",
        "a\r",
        "a\tb",
        "a\0b",
        "\x1b[31ma",
        "[red]a[/red]",
        "%s{0}$HOME",
        "äöü",
        "\u202ea",
        "\U0001d51e",
    ),
    *("a" * 1_100, "a" * 65_536, "../" * 400 + "a", "1e400", "nan", "NaN", "true", "null"),
)


@dataclass(eq=False)
class Mutation:
    """The random choices of one input; ``notes`` lists the changes in order."""

    rng: random.Random
    notes: list[str] = field(default_factory=list)

    def pick(self, things: Sequence[T]) -> T:
        return things[self.rng.randrange(len(things))]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def times(self, most: int) -> range:
        """A number of repetitions: usually one, at most ``most``."""
        return range(1 if self.chance(0.6) else self.rng.randint(1, most))

    def note(self, text: str) -> None:
        self.notes.append(text)


def shown(value: object) -> str:
    """A value as it appears in a note, shortened and on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


# --- bytes ----------------------------------------------------------------------------------------


def _bits_flipped(m: Mutation, data: bytearray, start: int, stop: int) -> None:
    places = [m.rng.randrange(start, stop) for _ in m.times(16)]
    for place in places:
        data[place] ^= 1 << m.rng.randrange(8)
    m.note(f"bits flipped in bytes {places}")


def _bytes_set(m: Mutation, data: bytearray, start: int, stop: int) -> None:
    place, count, value = m.rng.randrange(start, stop), m.pick((1, 2, 4, 8, 64)), m.pick((0, 0x7F, 0x80, 255))
    count = min(count, stop - place)
    data[place : place + count] = bytes([value]) * count
    m.note(f"{count} bytes from {place} set to {value}")


def _cut(m: Mutation, data: bytearray, start: int, stop: int) -> None:
    place = m.rng.randrange(start, stop)
    del data[place:]
    m.note(f"cut at byte {place}")


def _repeated(m: Mutation, data: bytearray, start: int, stop: int) -> None:
    place = m.rng.randrange(start, stop)
    count = min(m.pick((1, 4, 80, 512, 4096)), len(data) - place)
    data[place:place] = data[place : place + count]
    m.note(f"{count} bytes from {place} repeated")


def _removed(m: Mutation, data: bytearray, start: int, stop: int) -> None:
    place, count = m.rng.randrange(start, stop), m.pick((1, 2, 4, 80))
    del data[place : place + count]
    m.note(f"{count} bytes from {place} removed")


def _inserted(m: Mutation, data: bytearray, start: int, stop: int) -> None:
    place, count = m.rng.randrange(start, stop), m.pick((1, 3, 1100))
    data[place:place] = m.rng.randbytes(count)
    m.note(f"{count} bytes inserted at {place}")


_CHANGES: tuple[Callable[[Mutation, bytearray, int, int], None], ...] = (
    *(_bits_flipped, _bits_flipped, _bits_flipped, _bytes_set, _bytes_set),
    *(_cut, _repeated, _removed, _inserted),
)


def damaged(m: Mutation, data: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes with one change that begins in ``[start, stop)``."""
    changed = bytearray(data)
    stop = min(len(data), len(data) if stop is None else stop)
    if start >= stop:
        return data
    m.pick(_CHANGES)(m, changed, start, stop)
    return bytes(changed)
