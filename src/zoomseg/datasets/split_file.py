"""The cases to train on and to score, from a file: own lists, or nnU-Net's ``splits_final.json``.

```json
{"train": ["case_1", "case_2"], "validation": ["case_3"], "test": ["case_4"]}
[{"train": ["case_1"], "val": ["case_2"]}, {"train": ["case_2"], "val": ["case_1"]}]
```
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zoomseg.core.errors import DatasetError
from zoomseg.datasets.layouts import Dataset
from zoomseg.io.files import parse_json, read_file

EXPECTED = 'expected {"train": [...], "validation": [...], "test": [...]}, or a list of these'
_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class CaseSplit:
    """Case ids; no case is in two of the lists. Only ``test`` may be empty."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()


def read_splits(file: Path, dataset: Dataset) -> tuple[CaseSplit, ...]:
    """The splits of a file, one per fold.

    Raises:
        DatasetError: no such file, not of this form, a case that the data set lacks or has no labels of, a
            case in two lists of one split, or one that is held out in several splits.
    """
    try:
        content = parse_json(read_file(file))
    except (OSError, ValueError) as error:
        raise DatasetError(f"split file {file} cannot be read ({error}); {EXPECTED}") from error
    given = content if isinstance(content, list) else [content]
    if not given:
        raise DatasetError(f"split file {file} is empty; {EXPECTED}")
    labelled = set(dataset.labelled_ids)
    splits = tuple(_split(f"split file {file}, split {n}", value, labelled) for n, value in enumerate(given))
    held_out = Counter(case for split in splits for case in split.validation)
    twice = next((case for case, times in held_out.items() if times > 1), None)
    if twice is not None:
        raise DatasetError(
            f"split file {file}: case '{twice}' is held out in several splits, whose scores are pooled; "
            "allowed: one, or a file for each split"
        )
    return splits


def _split(where: str, value: object, labelled: set[str]) -> CaseSplit:
    if not isinstance(value, Mapping) or not value.keys() <= _NAMES.keys():
        raise DatasetError(f"{where}: {EXPECTED}")
    lists = {_NAMES[given]: _ids(where, given, ids) for given, ids in value.items()}
    if len(lists) < len(value):
        raise DatasetError(f"{where}: has both 'val' and 'validation'; use only one of them")
    for name in ("train", "validation"):
        if not lists.get(name):
            raise DatasetError(f"{where}: no case in '{name}'; {EXPECTED}")
    found = Counter(case for ids in lists.values() for case in ids)
    twice = next((case for case, times in found.items() if times > 1), None)
    if twice is not None:
        raise DatasetError(f"{where}: case '{twice}' is named twice; a case is in one list only")
    unknown = sorted(found.keys() - labelled)
    if unknown:
        raise DatasetError(f"{where}: the data set has no labelled case {', '.join(unknown[:5])}")
    return CaseSplit(**lists)


def _ids(where: str, name: str, ids: object) -> tuple[str, ...]:
    if not isinstance(ids, list) or not all(isinstance(case, str) for case in ids):
        raise DatasetError(f"{where}: '{name}' is not a list of case ids; {EXPECTED}")
    return tuple(ids)
