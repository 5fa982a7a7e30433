"""Missing information in a data set, each with the line to write into ``dataset.json``.

Nothing is decided here: intensities distributed like Hounsfield units are probably CT, and ``RK`` is probably
the right kidney, but only the creator of the data knows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zoomseg.core.errors import quoted
from zoomseg.core.hounsfield import looks_like_hounsfield
from zoomseg.core.labels import BACKGROUND
from zoomseg.core.modality import named
from zoomseg.core.volume import Volume
from zoomseg.datasets.layouts import Dataset
from zoomseg.io.scans import ScanInput, as_channels, split_channel

SHOWN = 5
"""Maximum number of labels in a line to write."""
_NUMBERED = re.compile(r"channel_\d+")

Hounsfield = Sequence[bool]
"""By channel of a case, whether its intensities are distributed like Hounsfield units."""


@dataclass(frozen=True)
class Advice:
    """The subject, what was ``found``, and what to do about it."""

    kind: Literal["channel_names", "label_names", "side_names"]
    found: str
    todo: str

    @property
    def what(self) -> str:
        return self.kind.replace("_", " ")

    def __str__(self) -> str:
        return f"{self.found}; {self.todo}"


def hounsfield(image: Volume) -> tuple[bool, ...]:
    """For every channel, whether it looks like CT."""
    return tuple(looks_like_hounsfield(channel) for channel in image.data)


def advise(dataset: Dataset, units: Iterable[Hounsfield] = ()) -> tuple[Advice, ...]:
    """The lines to write into ``dataset.json``.

    Args:
        units: of the cases that were read, from ``hounsfield``.
    """
    channels = (*_as_channels(dataset), *_apart(dataset), *_units(dataset, list(units)))
    return (*channels, *_labels(dataset), *_sides(dataset))


def _as_channels(dataset: Dataset) -> Iterator[Advice]:
    """Files that were taken for channels of one case, in a data set without channel names."""
    scans = [ScanInput(case.id, case.images) for case in dataset.cases]
    read = as_channels(scans)
    if read is None or not all(_NUMBERED.fullmatch(name) for name in dataset.channel_names):
        return
    names = {str(c): f"NAME OF {c}" for c in range(len(dataset.channel_names))}
    todo = (
        "if each is a case of its own, give each labels of its own name, or names that do not end in _0000, "
    )
    yield Advice(
        "channel_names", read, f"{todo}_0001, ...; else {_line(dataset.root, 'channel_names', names)}"
    )


def _apart(dataset: Dataset) -> Iterator[Advice]:
    """Files that were not taken for channels, although they are named like channels."""
    firsts = {case for case, channel in map(split_channel, dataset.ids) if channel == 0}
    alike = [i for i in dataset.ids if split_channel(i)[0] in firsts and split_channel(i)[1] is not None]
    if len(alike) < 2:
        return
    found = (
        f"{quoted(alike[0])} to {quoted(alike[-1])} are named like channels of one case, but each has labels"
    )
    todo = "each is a case here, while 'zoomseg predict' would read them as channels: rename them"
    yield Advice("channel_names", found, todo)


def _units(dataset: Dataset, units: Sequence[Hounsfield]) -> Iterator[Advice]:
    """Channels that look like CT in most cases, but are not named CT."""
    names = dict(enumerate(dataset.channel_names))
    whole = [case for case in units if len(case) == len(names)]
    open_ = [c for c, name in names.items() if not named(name)]  # names of other modalities are trusted
    ct = [c for c in open_ if 2 * sum(case[c] for case in whole) > len(whole)]
    if not ct:
        return
    which = " and ".join(f"channel {c} ('{quoted(names[c])}')" for c in ct)
    cases = sum(all(case[c] for c in ct) for case in whole)
    found = (
        f"{which}: values are distributed like Hounsfield units in {cases} of {len(whole)} cases, but it is "
        "not called CT, so each scan is normalised separately"
    )
    written = {str(c): "CT" if c in ct else name for c, name in names.items()}
    yield Advice("channel_names", found, f"if it is CT, {_line(dataset.root, 'channel_names', written)}")


def _labels(dataset: Dataset) -> Iterator[Advice]:
    """Labels with a number as their name."""
    schema = dataset.schema
    unnamed = set(schema.unnamed)
    if not unnamed:
        return
    values = schema.value_of
    written: dict[str, int] = {BACKGROUND: 0}
    for name, value in list(values.items())[:SHOWN]:
        written[f"NAME OF {value}" if name in unnamed else name] = value
    some = ", ".join(quoted(name) for name in schema.unnamed[:SHOWN])
    more = f" and {len(unnamed) - SHOWN} more" if len(unnamed) > SHOWN else ""
    found = (
        f"{some}{more}: no name of an organ, so left and right cannot be distinguished, and patches are not "
        "mirrored"
    )
    rest = ", and so on" if len(values) > SHOWN else ""
    yield Advice("label_names", found, f"{_line(dataset.root, 'labels', written)}{rest}")


def _sides(dataset: Dataset) -> Iterator[Advice]:
    """Labels that may be left and right ones."""
    for left, right in dataset.schema.doubtful:
        found = f"'{left}' and '{right}' may be the left and the right one, so patches are not mirrored"
        todo = (
            "if they are, use left and right in their names, which also allows swapped sides to be detected"
        )
        yield Advice("side_names", found, todo)


def _line(root: Path, key: str, value: Mapping[str, object]) -> str:
    """The line to write, and its place."""
    where = root / "dataset.json"
    text = json.dumps(value, ensure_ascii=False)
    if os.path.isfile(where):
        return f'write "{key}": {text} into {where}'
    return f'write {{"{key}": {text}}} to {where}'
