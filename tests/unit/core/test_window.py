from __future__ import annotations

import pytest

from zoomseg.core.window import line


def test_a_plain_window_is_one_line() -> None:
    shift, scale, gain = line(-100, 300, (-1, 1), None, 0.6)
    assert gain == 0
    assert [(x - shift) * scale for x in (-100, 0, 300)] == pytest.approx([-1, -0.5, 1])


def test_the_inner_part_gets_its_share_of_the_output() -> None:
    shift, scale, gain = line(-1000, 1600, (-1, 1), (0, 100), 0.5)
    found = [(x - shift) * scale + gain * min(max(x, 0), 100) for x in (-1000, -500, 0, 50, 100, 850, 1600)]
    assert found == pytest.approx([-1, -0.8, -0.6, -0.1, 0.4, 0.7, 1])
