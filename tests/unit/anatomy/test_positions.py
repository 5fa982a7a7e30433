"""Relative positions of organs: measured by hand on blocks, in every orientation."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from zoomseg.anatomy.positions import (
    MARGIN_MM,
    TypicalPosition,
    learn,
    misplaced,
    organ_positions,
    usual_volume,
)
from zoomseg.core.geometry import Grid, Orientation

NAMES = ("liver", "spleen", "stomach")
GRID = Grid.from_spacing((100, 80, 120), (3.0, 3.0, 5.0), (-150.0, -120.0, -300.0))


def block(classes: np.ndarray, c: int, start: tuple[int, int, int], size: int = 10) -> None:
    i, j, k = start
    classes[i : i + size, j : j + size, k : k + size] = c


def body(stomach: tuple[int, int, int] | None = (45, 40, 90)) -> np.ndarray:
    classes = np.zeros(GRID.shape, dtype=np.uint8)
    block(classes, 1, (60, 30, 90), 20)
    block(classes, 2, (20, 30, 90))
    if stomach is not None:
        block(classes, 3, stomach)
    return classes


def known(shifts: tuple[int, ...] = (-3, 0, 3, 0, 0)) -> dict[str, TypicalPosition]:
    """Of five cases whose stomachs are at slightly different positions."""
    seen = [organ_positions(body((45 + s, 40, 90 + s)), GRID) for s in shifts]
    return learn([{NAMES[c - 1]: place for c, place in case.items()} for case in seen], NAMES)


def test_places_by_hand() -> None:
    found = organ_positions(body(), GRID)
    assert set(found) == {1, 2, 3}
    stomach = found[3]
    # Voxels 45 to 54 of 3 mm, from -150 mm: centres at -15 to 12 mm.
    assert stomach.low_mm == pytest.approx((-16.5, -1.5, 147.5))
    assert stomach.high_mm == pytest.approx((13.5, 28.5, 197.5))
    assert stomach.median_mm == pytest.approx((-1.5, 13.5, 172.5))
    assert stomach.whole
    assert stomach.volume_ml == pytest.approx(45.0)


def test_a_few_voxels_elsewhere_do_not_move_the_median_much() -> None:
    classes = body()
    block(classes, 3, (45, 40, 5), 2)
    assert organ_positions(classes, GRID)[3].median_mm == pytest.approx((-1.5, 13.5, 172.5), abs=3.0)


def test_what_touches_the_end_of_the_scan_is_not_whole() -> None:
    classes = body(stomach=(45, 40, 110))
    assert [found.whole for found in organ_positions(classes, GRID).values()] == [True, True, False]
    assert organ_positions(classes, GRID)[3].cut == ((False, False), (False, False), (False, True))


def test_places_of_fine_voxels_are_taken_from_some_of_them() -> None:
    fine = Grid.from_spacing((200, 160, 240), (0.5, 0.5, 1.0), (-50.0, -40.0, -120.0))
    classes = np.zeros(fine.shape, dtype=np.uint8)
    classes[60:100, 60:100, 90:150] = 1
    found = organ_positions(classes, fine)[1]
    assert found.median_mm == pytest.approx((-10.25, -0.25, -0.5), abs=3.0)
    assert found.volume_ml == pytest.approx(24.0, rel=0.25)


def test_offsets_by_hand() -> None:
    stomach = known()["stomach"]
    (low_x, high_x), (low_y, high_y), (low_z, high_z) = stomach.offsets_mm["liver"]
    # The liver's median lies at (58.5, -1.5, 197.5).
    assert (low_x, high_x) == pytest.approx((-16.5 - 9 - 58.5, 13.5 + 9 - 58.5))
    assert (low_y, high_y) == pytest.approx((0.0, 30.0))
    assert (low_z, high_z) == pytest.approx((147.5 - 15 - 197.5, 197.5 + 15 - 197.5))
    assert stomach.volume_ml == pytest.approx((45.0, 45.0))


def test_cases_without_an_organ_say_nothing_of_it() -> None:
    place = organ_positions(body(), GRID)
    case = {"liver": place[1], "spleen": place[2]}
    assert set(learn([case] * 5, NAMES)) == {"liver", "spleen"}
    assert learn([case] * 4, NAMES) == {}  # too few
    assert learn([], NAMES) == {}


def test_organs_that_are_cut_off_are_no_anchors() -> None:
    place = organ_positions(body(), GRID)
    cut = replace(place[1], cut=((False, False), (False, False), (False, True)))
    found = learn([{"liver": cut, "spleen": place[2], "stomach": place[3]}] * 5, NAMES)
    assert set(found["stomach"].offsets_mm) == {"spleen"}
    assert found["liver"].volume_ml is None


def test_where_the_scan_cuts_an_organ_off_no_bound_is_learned() -> None:
    """An aorta continues above an abdomen."""
    place = organ_positions(body(), GRID)
    cut = replace(place[3], cut=((False, False), (False, False), (False, True)))
    found = learn([{"liver": place[1], "spleen": place[2], "stomach": cut}] * 5, NAMES)["stomach"]
    *across, (low, high) = found.offsets_mm["liver"]
    assert low == pytest.approx(147.5 - 197.5)
    assert high is None
    assert None not in [end for ends in across for end in ends]
    assert found.volume_ml is None
    long = body()
    block(long, 3, (45, 40, 108), 8)  # above, apart
    expected = long.copy()
    learned = learn([{"liver": place[1], "spleen": place[2], "stomach": cut}] * 5, NAMES)
    assert misplaced(long, GRID, NAMES, learned) == {}
    assert (long == expected).all()
    whole = learn([{"liver": place[1], "spleen": place[2], "stomach": place[3]}] * 5, NAMES)
    assert set(misplaced(long, GRID, NAMES, whole)) == {3}


def test_the_largest_volume_is_that_of_any_case() -> None:
    place = organ_positions(body(), GRID)
    larger = replace(place[3], volume_ml=90.0, cut=((False, True), (False, False), (False, False)))
    case = {"liver": place[1], "spleen": place[2]}
    found = learn([case | {"stomach": place[3]}] * 5 + [case | {"stomach": larger}], NAMES)
    assert found["stomach"].volume_ml == pytest.approx((45.0, 90.0))


def test_many_specks_are_no_matter() -> None:
    """Components are measured together: one by one, 50,000 took seconds."""
    classes = body()
    specks = np.random.default_rng(0).random((100, 80, 60)) < 0.02
    classes[:, :, :60][specks] = 3
    began = time.process_time()
    found = misplaced(classes, GRID, NAMES, known())
    assert time.process_time() - began < 2
    assert len(found[3].parts) > 5000
    assert not classes[:, :, :40].any()


ORIENTATIONS = [
    Orientation((0, 1, 2), (False, False, False)),
    Orientation((2, 0, 1), (True, False, True)),
    Orientation((1, 2, 0), (False, True, False)),
]


@pytest.mark.parametrize("turned", ORIENTATIONS)
def test_a_part_far_away_is_taken_out_whichever_way_the_scan_is_stored(turned: Orientation) -> None:
    classes = body()
    block(classes, 3, (45, 40, 10), 6)  # 400 mm below
    expected = body()
    grid = turned.grid(GRID)
    axes = [axis for axis in range(3) if turned.flip[axis]]
    stored = np.ascontiguousarray(np.flip(classes.transpose(turned.order), axes))
    found = misplaced(stored, grid, NAMES, known())
    assert (stored == np.flip(expected.transpose(turned.order), axes)).all()
    assert set(found) == {3}
    assert not found[3].alone
    (part,) = found[3].parts
    assert part.voxels == 216
    assert part.volume_ml == pytest.approx(216 * 45 / 1000)
    # Its upper end, above voxel 15, at -222.5 mm; training's lowest stomach began at 132.5 mm.
    assert part.distance_mm == pytest.approx(132.5 + 222.5 - MARGIN_MM)


def test_a_part_far_away_is_only_told_of_where_nothing_may_be_removed() -> None:
    classes = body()
    block(classes, 3, (45, 40, 10), 6)
    before = classes.copy()
    found = misplaced(classes, GRID, NAMES, known(), remove=False)
    assert (classes == before).all()
    assert found[3].note("stomach") == (
        "stomach: 1 part (9.7 ml) lies 325 mm from its position in the training scans"
    )
    removed = misplaced(classes, GRID, NAMES, known())
    assert removed[3].parts == found[3].parts
    assert removed[3].note("stomach").startswith("stomach: 1 part (9.7 ml) removed, 325 mm from")


def test_an_organ_that_lies_elsewhere_as_a_whole_stays_and_is_told_of() -> None:
    classes = body(stomach=(45, 40, 10))
    found = misplaced(classes, GRID, NAMES, known())
    assert (classes == body(stomach=(45, 40, 10))).all()
    assert found[3].alone


@pytest.mark.parametrize("up", [0, 3, 8])
def test_what_lies_as_in_training_or_within_the_margin_is_left_alone(up: int) -> None:
    """Training had it up to 15 mm higher; 30 mm more are tolerated."""
    classes = body((45, 40, 90 + up))
    assert misplaced(classes, GRID, NAMES, known()) == {}
    assert (classes == body((45, 40, 90 + up))).all()


def test_a_part_that_hangs_together_with_the_organ_is_never_cut() -> None:
    classes = body()
    classes[48:50, 44:46, 5:95] = 3
    before = classes.copy()
    assert misplaced(classes, GRID, NAMES, known()) == {}
    assert (classes == before).all()


def test_nothing_is_said_by_fewer_than_two_anchors() -> None:
    classes = body()
    classes[classes == 2] = 0
    block(classes, 3, (45, 40, 10), 6)
    assert misplaced(classes, GRID, NAMES, known()) == {}


def test_an_organ_of_an_impossible_size_is_no_anchor() -> None:
    """A "spleen" of 2 voxels may be anything, anywhere."""
    classes = body()
    classes[classes == 2] = 0
    block(classes, 2, (20, 30, 20), 2)
    block(classes, 3, (45, 40, 10), 6)
    found = misplaced(classes, GRID, NAMES, known())
    assert set(found) == {2}  # it is itself in no place for a spleen
    assert (classes == 3).sum() == 1000 + 216


def test_usual_volumes() -> None:
    organ = TypicalPosition((100.0, 300.0), {})
    assert [usual_volume(v, organ) for v in (49.0, 51.0, 599.0, 601.0)] == [False, True, True, False]
    assert [usual_volume(v, organ, whole=False) for v in (1.0, 601.0)] == [True, False]
    assert usual_volume(1.0, None)
    assert usual_volume(1.0, TypicalPosition(None, {}))
