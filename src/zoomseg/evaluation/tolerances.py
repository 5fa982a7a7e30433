"""Surface tolerances of the NSD: the same for every organ, or one per organ.

A table is a CSV file with the columns ``organ`` and ``mm``, or YAML, ``organ: mm``. ``flare22`` is the rule
of the MICCAI challenge FLARE 2022, as in its ``FLARE22_DSC_NSD_Eval.py`` (github.com/JunMa11/FLARE).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from zoomseg.anatomy.organ_names import organ_words
from zoomseg.core.errors import GeometryError, ScanError

MAX_TABLE_BYTES = 1024**2
"""Maximum size of a table of tolerances."""

Words = frozenset[str]


@dataclass(frozen=True)
class OrganRule:
    """How one organ is scored.

    Args:
        tolerance_mm: None: it has no tolerance, and therefore no NSD.
        reference_slices: whether Dice and distances are those of the axial slices from the reference's lowest
            to the one below its highest: the challenge's script omits the highest.
        neither: Dice and NSD of a case in which neither map has the organ; None: it is not scored.

    Undefined values are None, as NaN equals nothing, and rules are compared.

    Raises:
        GeometryError: the tolerance is not a distance.
    """

    tolerance_mm: float | None
    reference_slices: bool = False
    neither: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance_mm is not None and not 0 <= self.tolerance_mm < math.inf:
            raise GeometryError(f"the tolerance must be 0 mm or more, got {self.tolerance_mm}")


NO_TOLERANCE = OrganRule(None)


@dataclass(frozen=True)
class Tolerances:
    """The rules of all organs, found for any spelling in a data set (``anatomy.organ_names``). ``name`` is
    for readers; ``others`` is the rule of organs that are not in the table."""

    name: str
    organs: Mapping[Words, OrganRule] = field(default_factory=dict)
    others: OrganRule = NO_TOLERANCE

    @classmethod
    def same(cls, tolerance_mm: float) -> Tolerances:
        """The same tolerance for all.

        Raises:
            GeometryError: it is not a distance.
        """
        return cls(f"{tolerance_mm:g} mm", {}, OrganRule(tolerance_mm))

    @classmethod
    def by_organ(cls, name: str, tolerances_mm: Mapping[str, float]) -> Tolerances:
        """A tolerance per organ.

        Raises:
            GeometryError: one of them is not a distance, or two names denote one organ.
        """
        found: dict[Words, OrganRule] = {}
        for organ, mm in tolerances_mm.items():
            if organ_words(organ) in found:
                raise GeometryError(f"{name}: '{organ}' has two tolerances")
            if math.isnan(mm):
                raise GeometryError(f"{name}: the tolerance of '{organ}' is not a number")
            found[organ_words(organ)] = OrganRule(mm)
        return cls(name, found)

    def of(self, organ: str) -> OrganRule:
        return self.organs.get(organ_words(organ), self.others)

    def without(self, organs: Iterable[str]) -> tuple[str, ...]:
        """The organs without a tolerance."""
        return tuple(organ for organ in organs if self.of(organ).tolerance_mm is None)


FLARE22 = "flare22"
FLARE22_ORGANS: Mapping[str, tuple[str, OrganRule]] = {
    "Liver": ("liver", OrganRule(5, neither=1)),
    "RK": ("right kidney", OrganRule(3, neither=1)),
    "Spleen": ("spleen", OrganRule(3, neither=1)),
    "Pancreas": ("pancreas", OrganRule(5, neither=1)),
    "Aorta": ("aorta", OrganRule(2, reference_slices=True, neither=1)),
    "IVC": ("inferior vena cava", OrganRule(2, reference_slices=True, neither=1)),
    "RAG": ("right adrenal gland", OrganRule(2, neither=1)),
    "LAG": ("left adrenal gland", OrganRule(2, neither=1)),
    "Gallbladder": ("gallbladder", OrganRule(2, neither=1)),
    "Esophagus": ("esophagus", OrganRule(3, reference_slices=True, neither=1)),
    "Stomach": ("stomach", OrganRule(5, neither=1)),
    "Duodenum": ("duodenum", OrganRule(7, neither=1)),
    "LK": ("left kidney", OrganRule(3, neither=1)),
}
"""By the challenge's own names, in its order."""

FLARE22_TOLERANCES = Tolerances(
    FLARE22, {organ_words(organ): rule for organ, rule in FLARE22_ORGANS.values()}
)


def read_tolerances(source: str) -> Tolerances:
    """``flare22``, or the table in a file, given by its path.

    Raises:
        ScanError: the file cannot be read, or is not a table of tolerances.
        GeometryError: a tolerance is not a distance, or two are of one organ.
    """
    if source == FLARE22:
        return FLARE22_TOLERANCES
    path = Path(source)
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise ScanError(f"{path}: larger than {MAX_TABLE_BYTES} bytes; not a table of tolerances")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScanError(
            f"{source}: neither '{FLARE22}' nor a readable table of tolerances ({error})"
        ) from error
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _yaml_rows(path, text)
    found: dict[str, float] = {}
    for organ, mm in rows:
        if organ in found:
            raise GeometryError(f"{path}: '{organ}' has two tolerances")
        found[organ] = _distance(path, organ, mm)
    if not found:
        raise ScanError(f"{path}: no organ has a tolerance in it")
    # By its name alone, a file "flare22" would pass for the challenge's rule.
    return Tolerances.by_organ(source if path.name == FLARE22 else path.name, found)


def _csv_rows(path: Path, text: str) -> list[tuple[str, object]]:
    try:
        table = csv.DictReader(io.StringIO(text), strict=True)
        if table.fieldnames != ["organ", "mm"]:
            raise ScanError(f"{path}: a table of tolerances has the columns organ and mm")
        return [(row["organ"].strip(), row["mm"]) for row in table]
    except csv.Error as error:
        raise ScanError(f"{path}: not a CSV table ({error})") from error


def _yaml_rows(path: Path, text: str) -> list[tuple[str, object]]:
    try:
        table = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ScanError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(table, dict):
        raise ScanError(f"{path}: a table of tolerances is CSV with the columns organ and mm, or 'organ: mm'")
    return [(str(organ), mm) for organ, mm in table.items()]


def _distance(path: Path, organ: str, value: object) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError) as error:
        raise ScanError(f"{path}: the tolerance of '{organ}' is no number of mm: {value!r}") from error
