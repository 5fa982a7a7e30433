"""A scan cut into stations is restored; stations of other scans are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from zoomseg.core import stations as module
from zoomseg.core.case import Case
from zoomseg.core.errors import MemoryLimitError, ScanError
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.stations import stitch
from zoomseg.core.volume import Volume

SHAPE = (12, 10, 40)
CUTS = ((0, 16), (12, 30), (24, 40))
"""Slices of three stations; neighbours share 4 and 6."""


def oblique() -> np.ndarray:
    """Voxels of 2 x 3 x 5 mm, rotated by 20 degrees about x, stored from head to feet."""
    turn = np.deg2rad(20)
    rotation = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([2.0, 3.0, -5.0])
    affine[:3, 3] = (-10, 25, 300)
    return affine


def scan(channels: int = 1, affine: np.ndarray | None = None) -> Volume:
    data = np.random.default_rng(3).normal(200, 60, (channels, *SHAPE)).astype(np.float32)
    return Volume(data, Grid(SHAPE, oblique() if affine is None else affine))


def station(name: str, whole: Volume, start: int, stop: int, gain: float = 1, offset: float = 0) -> Case:
    part = whole.crop(Box((0, 0, start), (*SHAPE[:2], stop)))
    return Case(name, Volume(part.data * np.float32(gain) + np.float32(offset), part.grid))


def cut(whole: Volume) -> list[Case]:
    fits = ((1, 0), (1.7, -30), (0.4, 12))
    return [station(f"s{n}", whole, *CUTS[n], *fits[n]) for n in range(3)]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_scan_cut_in_three_with_different_gains_is_given_back(channels: int) -> None:
    whole = scan(channels)
    joined, matches = stitch(cut(whole))
    assert joined.grid.same_as(whole.grid, 1e-6)
    assert joined.data.dtype == np.float32
    np.testing.assert_allclose(joined.data, whole.data, rtol=1e-4, atol=1e-2)
    assert [(m.station, m.of, m.voxels) for m in matches] == [("s1", "s0", 480), ("s2", "s1", 720)]
    np.testing.assert_allclose(matches[0].gain, [1 / 1.7] * channels, rtol=1e-5)
    np.testing.assert_allclose(matches[0].offset, [30 / 1.7] * channels, rtol=1e-4)
    np.testing.assert_allclose(matches[1].gain, [1 / 0.4] * channels, rtol=1e-5)


def test_the_first_station_rules_intensities_and_storage_and_order_does_not_matter() -> None:
    whole = scan()
    parts = cut(whole)
    joined, matches = stitch([parts[2], parts[0], parts[1]])
    np.testing.assert_allclose(joined.data, 0.4 * whole.data + 12, rtol=1e-4, atol=1e-2)
    assert joined.grid.same_as(whole.grid, 1e-6)
    assert [(m.station, m.of) for m in matches] == [("s1", "s2"), ("s0", "s1")]


def test_stations_stored_in_other_orders_lie_where_their_affines_say() -> None:
    whole = scan()
    parts = cut(whole)
    turned = Orientation((2, 0, 1), (True, False, True))
    parts[1] = dataclasses.replace(parts[1], image=parts[1].image.reoriented(turned))
    joined, _ = stitch(parts)
    assert joined.grid.same_as(whole.grid, 1e-6)
    np.testing.assert_allclose(joined.data, whole.data, rtol=1e-4, atol=1e-2)


def test_noise_does_not_lower_the_gain() -> None:
    """Least squares would give 0.8 for these: signal and noise of variances 4 to 1 in both stations."""
    grid = Grid.from_spacing((40, 40, 60), (1.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    tissue = rng.normal(0, 2, (1, *grid.shape))
    cases = []
    for n, (start, stop) in enumerate(((0, 40), (20, 60))):
        box = Box((0, 0, start), (40, 40, stop))
        seen = tissue[..., start:stop] + rng.normal(0, 1, (1, *box.shape))
        cases.append(Case(f"s{n}", Volume(seen.astype(np.float32), grid.crop(box))))
    _, (match,) = stitch(cases)
    assert match.gain[0] == pytest.approx(1, abs=0.02)


def test_the_overlap_fades_from_one_station_to_the_other() -> None:
    """Two stations whose noise differs: across the shared slices the weights are 4:1, 3:2, 2:3, 1:4."""
    shared = np.random.default_rng(1).normal(0, 1, (1, *SHAPE)).astype(np.float32)
    grid = Grid(SHAPE, oblique())
    first, second = shared.copy(), shared.copy()
    second[0, 3:5, 3, 18:22] += np.array([[0.5], [-0.5]])  # mean kept; the deviation hardly changes
    cases = [
        station("a", Volume(first, grid), 0, 22),
        station("b", Volume(second, grid), 18, 40),
    ]
    joined, (match,) = stitch(cases)
    gain, offset = match.gain[0], match.offset[0]
    matched = gain * second + offset
    for n, k in enumerate(range(18, 22)):
        expected = ((4 - n) * first[0, :, :, k] + (n + 1) * matched[0, :, :, k]) / 5
        np.testing.assert_allclose(joined.data[0, :, :, k], expected, atol=1e-5)


def ramp(grid: Grid) -> np.ndarray:
    """``[I, J, K]``: z + 2x, in mm."""
    world = grid.world(np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1))
    return np.asarray(world[..., 2] + 2 * world[..., 0])


def test_a_ramp_stays_one_where_slices_of_one_station_lie_between_those_of_the_other() -> None:
    first = Grid.from_spacing((20, 20, 20), (2.0, 2.0, 4.0))
    second = Grid.from_spacing((20, 20, 15), (2.0, 2.0, 5.0), (0.0, 0.0, 47.0))
    cases = [Case(n, Volume(ramp(g)[None].astype(np.float32), g)) for n, g in (("a", first), ("b", second))]
    joined, _ = stitch(cases)
    assert joined.grid.extent_mm == pytest.approx((40, 40, 120))
    np.testing.assert_allclose(joined.data[0], ramp(joined.grid), atol=1e-3)


def test_what_no_station_covers_has_the_lowest_intensity() -> None:
    whole = scan()
    wide = station("wide", whole, 0, 20)
    narrow = Case("narrow", whole.crop(Box((4, 0, 12), (12, 10, 40))))
    joined, _ = stitch([wide, narrow])
    np.testing.assert_allclose(joined.data[:, 4:], whole.data[:, 4:], rtol=1e-4, atol=1e-2)
    lowest = min(wide.image.data.min(), narrow.image.data.min())
    np.testing.assert_allclose(joined.data[:, :4, :, 20:], lowest, rtol=1e-4)


def test_integers_are_joined() -> None:
    whole = scan()
    rounded = Volume(np.round(whole.data).astype(np.int16), whole.grid)
    parts = [Case(f"s{n}", rounded.crop(Box((0, 0, a), (*SHAPE[:2], b)))) for n, (a, b) in enumerate(CUTS)]
    joined, _ = stitch(parts)
    np.testing.assert_allclose(joined.data, rounded.data, atol=1e-2)


# --- refused --------------------------------------------------------------------------------------


def turned(case: Case, degrees: float) -> Case:
    turn = np.deg2rad(degrees)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    grid = Grid(case.image.grid.shape, rotation @ case.image.grid.affine)
    return dataclasses.replace(case, image=Volume(case.image.data, grid))


def other(start: int = 12, stop: int = 30, channels: int = 1) -> Case:
    return station("b", scan(channels), start, stop)


def unrelated() -> Case:
    data = np.random.default_rng(9).normal(200, 60, (1, *SHAPE)).astype(np.float32)
    return station("b", Volume(data, Grid(SHAPE, oblique())), 12, 30)


def thin() -> Case:
    affine = oblique()
    affine[:3, 3] += affine[:3, 2] / 2  # between two slices
    affine[:3, 2] /= 100
    return Case("b", Volume(scan().data[..., :2], Grid((*SHAPE[:2], 2), affine)))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (other(16, 30), r"station b does not overlap the first"),
        (other(30, 40), r"station b does not overlap the first"),
        (turned(other(), 2), r"stations a and b differ in orientation"),
        (other(channels=2), r"stations a and b have 1 and 2 channels"),
        (dataclasses.replace(other(), modality="CT"), r"stations a and b are MR and CT"),
        (station("b", scan(), 12, 30, gain=-1), r"differ where they overlap \(correlation -1\.00\)"),
        (unrelated(), r"differ where they overlap"),
        (station("b", scan(), 12, 30, gain=0, offset=5), r"their overlap has a constant intensity"),
        (thin(), r"station b is thinner than a voxel of station a"),
    ],
)
def test_what_is_no_station_of_the_scan_is_refused(second: Case, says: str) -> None:
    first = dataclasses.replace(station("a", scan(), 0, 16), modality="MR")
    with pytest.raises(ScanError, match=says) as refused:
        stitch([first, second])
    assert "\n" not in str(refused.value)


def test_a_station_that_only_lies_off_by_little_is_no_other_orientation() -> None:
    first = station("a", scan(), 0, 16)
    joined, _ = stitch([first, turned(other(), 0.02)])
    assert joined.grid.shape[2] == 30


def test_one_station_is_nothing_to_join() -> None:
    with pytest.raises(ScanError, match="1 station was found, and at least two are needed"):
        stitch([other()])


def test_one_of_several_that_overlaps_none_is_named() -> None:
    whole = scan()
    parts = [station("a", whole, 0, 16), station("b", whole, 12, 24), station("c", whole, 24, 40)]
    with pytest.raises(ScanError, match="station c does not overlap the others"):
        stitch(parts)


def test_intensities_that_overflow_are_refused() -> None:
    whole = scan()
    small = station("b", whole, 12, 30, 1e-30)
    small.image.data[0, 0, 0, -1] = 3e38  # outside of the overlap
    with pytest.raises(ScanError, match=r"station b: its intensities times .* overflow"):
        stitch([station("a", whole, 0, 16), small])


def test_what_does_not_fit_into_memory_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def refuse(needed: float, what: str) -> None:
        asked.append(needed)
        raise MemoryLimitError(what, int(needed))

    monkeypatch.setattr(module, "require_ram", refuse)
    with pytest.raises(MemoryLimitError, match="joining stations to 12 x 10 x 40 voxels"):
        stitch(cut(scan()))
    in_plane, slices = SHAPE[0] * SHAPE[1], 16 + 18 + 16 + 18 + 40 + 40
    assert asked == [4 * in_plane * slices]
