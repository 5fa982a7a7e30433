"""The rationale of a plan: one row per decision, written by the deciding function, and the format of
figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoomseg.core.geometry import Index3, Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.io import markdown
from zoomseg.planning.fingerprint import Fingerprint, OrganStatistics
from zoomseg.recipe.spec import Recipe

SMALL_ORGAN_VOXELS = 30
"""A warning is issued for organs with fewer voxels of the finest grid."""

AXES = "RAS"
HEADING = ("what", "value", "why")
ORGAN_HEADING = ("organ", "cases", "ml", "extent (mm)", "centre", "voxels")


@dataclass(frozen=True)
class Reason:
    """A decision, its result, and the figures on which it is based. A warning is not a decision."""

    what: str
    value: str
    why: str
    warning: bool = False


@dataclass(frozen=True)
class Plan:
    """A complete recipe, the reasons for its numbers, and the properties of the data."""

    recipe: Recipe
    reasons: tuple[Reason, ...]
    data: Fingerprint
    finest_mm: Vector3
    """Spacing of the recipe's finest grid."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each."""
        return tuple(f"{r.what}: {r.value}; {r.why}" for r in self.reasons if r.warning)

    def organ_rows(self) -> list[tuple[str, ...]]:
        """Under ``ORGAN_HEADING``: cases with the organ out of those in which it should be annotated, then
        medians."""
        return [
            (
                organ.name,
                f"{organ.cases} of {organ.annotated}",
                millilitres(organ.volume_ml),
                times(as_whole(organ.extent_mm)),
                ", ".join(f"{share:.2f}" for share in organ.centre),
                f"{voxels_of(organ, self.finest_mm):,}",
            )
            for organ in self.data.organs
        ]

    def markdown(self, dataset: str) -> str:
        """A page with both tables."""
        rows = [(r.what, r.value, r.why) for r in self.reasons]
        return f"""# How {markdown.plain(self.recipe.name)} was planned for {markdown.plain(dataset)}

{markdown.table(HEADING, rows, numbers=False)}
## Organs

Medians over the cases that have the organ, of the {self.data.read} that were read. The centre is that of the
organ's box, as a share of the scan along R, A and S; voxels are those of the finest grid.

{markdown.table(ORGAN_HEADING, self.organ_rows(), numbers=False)}"""


def organ_reasons(data: Fingerprint, schema: LabelSchema, finest_mm: Vector3) -> list[Reason]:
    """The smallest organ, organs that are barely visible on the finest grid, and those that were not
    found."""
    reasons: list[Reason] = []
    for n, organ in enumerate(sorted(data.organs, key=lambda organ: organ.volume_ml)):
        voxels = voxels_of(organ, finest_mm)
        small = voxels < SMALL_ORGAN_VOXELS
        if n > 0 and not small:
            break
        size = f"{organ.name}, {millilitres(organ.volume_ml)} ml = {voxels:,} voxels of the finest grid"
        why = "median of the cases that have it"
        if small:
            why = (
                f"below {SMALL_ORGAN_VOXELS} voxels a grid hardly shows an organ's shape: "
                "a longer training or a copy of the recipe with more fine_voxels has a finer one"
            )
        reasons.append(Reason("small organ" if small else "smallest organ", size, why, warning=small))
    unseen = [name for name in schema.names if name not in {organ.name for organ in data.organs}]
    if unseen:
        why = f"in none of the {data.read} cases read, but in others of the {data.cases}"
        reasons.append(Reason("rare organs", ", ".join(unseen), why))
    return reasons


def voxels_of(organ: OrganStatistics, spacing_mm: Vector3) -> int:
    """Number of voxels of a spacing that an organ of the median volume fills."""
    return round(1000 * organ.volume_ml / math.prod(spacing_mm))


def about(data: Fingerprint) -> Reason:
    """The data from which the plan starts."""
    cases = f"{data.cases:,} cases" if data.read == data.cases else f"{data.read} of {data.cases:,} cases"
    return Reason(
        "median scan",
        f"{times(data.shape)} voxels of {millimetres(data.spacing_mm)}",
        f"of {cases}, axes R, A, S: {times(as_whole(data.extent_mm))} mm; the largest scan is "
        f"{times(data.largest_shape)} such voxels",
    )


# --- figures --------------------------------------------------------------------------------------


def times(shape: Index3) -> str:
    """``64x64x48``."""
    return "x".join(str(n) for n in shape)


def millimetres(spacing_mm: Vector3) -> str:
    """``2.71 mm``, or ``1.25x1.25x7.7 mm``."""
    figures = [f"{round(mm, decimals(mm)):g}" for mm in spacing_mm]
    return ("x".join(figures) if len(set(figures)) > 1 else figures[0]) + " mm"


def decimals(mm: float) -> int:
    """Of a rounded spacing: three, and more where these would be fewer than three digits."""
    return max(3, 2 - math.floor(math.log10(mm)))


def count(number: float) -> str:
    """``4.42 billion``, ``2.5 million``, ``150,000``."""
    if number >= 999_500_000:
        return f"{number / 1e9:.3g} billion"
    return f"{number / 1e6:.3g} million" if number >= 999_500 else f"{round(number, -2):,.0f}"


def millilitres(volume_ml: float) -> str:
    """``4.77``, ``1,650``."""
    return f"{volume_ml:.3g}" if volume_ml < 100 else f"{volume_ml:,.0f}"


def as_whole(values: Vector3) -> Index3:
    """Rounded."""
    return (round(values[0]), round(values[1]), round(values[2]))
