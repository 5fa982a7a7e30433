"""Names that distinguish the volumes in a folder or zip."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from zoomseg.io.dicom.read.archive import Source, is_zip
from zoomseg.io.dicom.read.series_discovery import Found
from zoomseg.io.files import folded


def base_name(path: Path) -> str:
    """``a/knee`` -> ``knee``, ``knee.zip`` -> ``knee``."""
    name = path.resolve().name
    return Path(name).stem if is_zip(path) or path.suffix.lower() in (".dcm", ".ima") else name


def case_names(path: Path, found: Found) -> tuple[str, ...]:
    """A name for each of ``found``'s stacks, then for each refused series; all different.

    A single series has the name of the folder or zip. Of several, each has its series number as a suffix. If
    several studies are in one folder, each has the name of its folder or zip in it.
    """
    series = [(s.series.study_uid, s.series.number, tuple(p.source for p in s.stored)) for s in found.stacks]
    series += [(r.study_uid, r.number, r.sources) for r in found.refused]
    several = len({study for study, _, _ in series}) > 1
    plain = [_entry(path, sources) if several else base_name(path) for _, _, sources in series]
    often = Counter(plain)
    wanted = [
        name if often[name] == 1 else f"{name}_{number if number is not None else 'x'}"
        for name, (_, number, _) in zip(plain, series, strict=True)
    ]
    return tuple(_all_different(wanted))


def _all_different(wanted: Sequence[str]) -> Iterator[str]:
    """Names made unique, also on disks that ignore case: duplicates are numbered."""
    often, taken = Counter(map(folded, wanted)), set(map(folded, wanted))
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: count(1))
    for name in wanted:
        if often[folded(name)] == 1:
            yield name
            continue
        new = next(n for number in numbers[folded(name)] if folded(n := f"{name}_{number}") not in taken)
        taken.add(folded(new))
        yield new


def _entry(path: Path, sources: Iterable[Source]) -> str:
    """The folder or zip directly in ``path`` that contains all ``sources``; otherwise ``path`` itself."""
    entries = {s.path.relative_to(path).parts[0] for s in sources} if path.is_dir() else set()
    entry = path / entries.pop() if len(entries) == 1 else path
    return base_name(entry) if entry.is_dir() or is_zip(entry) else base_name(path)
