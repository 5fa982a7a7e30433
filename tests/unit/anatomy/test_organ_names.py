from __future__ import annotations

import pytest

from zoomseg.anatomy.organ_names import Match, find_organ, organ_words

TABLE = {organ_words(name): name for name in ("kidney", "left atrium", "gallbladder", "brain stem", "rib 3")}


@pytest.mark.parametrize(
    ("name", "row", "side"),
    [
        ("right_kidney", "kidney", "right"),
        ("LKidney", "kidney", "left"),
        ("kidney", "kidney", None),
        ("Gall Bladder", "gallbladder", None),
        ("Brainstem", "brain stem", None),
        ("rib_left_3", "rib 3", "left"),
        ("left atrium of the heart", None, None),
        ("atrium_left", "left atrium", None),  # a row of its own side
        ("right atrium", None, None),
        ("left right kidney", None, None),
        ("kidney tumour", None, None),
        ("bladder", None, None),
        ("", None, None),
    ],
)
def test_organs_are_found_in_any_spelling(name: str, row: str | None, side: str | None) -> None:
    assert find_organ(name, TABLE) == (None if row is None else Match(row, side))
