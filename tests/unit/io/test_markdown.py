"""Names with markup stay text in their line and column."""

from __future__ import annotations

from zoomseg.io import markdown


def test_names_cannot_leave_their_cell() -> None:
    assert markdown.plain("a | b\n# <i>c`d*e[f](g)\\_h") == r"a \| b # \<i\>c\`d\*e\[f\](g)\\_h"
    assert markdown.table(["organ", "Dice"], [["sp|een", "0.8"]]) == (
        "| organ | Dice |\n| --- | ---: |\n| sp\\|een | 0.8 |\n"
    )
    assert markdown.table(["a", "b"], [], numbers=False) == "| a | b |\n| --- | --- |\n"
