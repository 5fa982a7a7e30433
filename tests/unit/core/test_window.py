from __future__ import annotations

import pytest

from zoomseg.core.errors import ScanError
from zoomseg.core.window import check_within, line


def test_a_plain_window_is_one_line() -> None:
    shift, scale, gain = line(-100, 300, (-1, 1), None, 0.6)
    assert gain == 0
    assert [(x - shift) * scale for x in (-100, 0, 300)] == pytest.approx([-1, -0.5, 1])


def test_the_inner_part_gets_its_share_of_the_output() -> None:
    shift, scale, gain = line(-1000, 1600, (-1, 1), (0, 100), 0.5)
    found = [(x - shift) * scale + gain * min(max(x, 0), 100) for x in (-1000, -500, 0, 50, 100, 850, 1600)]
    assert found == pytest.approx([-1, -0.8, -0.6, -0.1, 0.4, 0.7, 1])


@pytest.mark.parametrize(("lowest", "highest"), [(-1100, -900), (-1100, -125), (275, 4000), (300, 300)])
def test_a_scan_on_one_side_of_the_window_is_refused(lowest: float, highest: float) -> None:
    with pytest.raises(
        ScanError, match=rf"^no voxel of a .* -125 to 275: they run from {lowest} to {highest};"
    ):
        check_within(-125, 275, lowest, highest, "a")


@pytest.mark.parametrize(
    ("lowest", "highest"), [(-1000, -124), (274, 4000), (-125, 275), (0, 10), (-3000, 3000)]
)
def test_a_scan_of_which_the_window_shows_something_is_not(lowest: float, highest: float) -> None:
    check_within(-125, 275, lowest, highest, "a")
