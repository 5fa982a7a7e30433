"""Mirroring swaps left and right names, and nothing else; names without a counterpart are detected."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zoomseg.core.labels import LabelSchema
from zoomseg.core.sides import mirror_name

ORGANS = ["kidney", "adrenal gland", "Parotid", "lung upper lobe", "hip"]
STYLES = [
    ("left {}", "right {}"),
    ("{}_left", "{}_right"),
    ("{} L", "{} R"),
    ("L_{}", "R_{}"),
    ("{} (lt)", "{} (rt)"),
    ("LEFT-{}", "RIGHT-{}"),
]
UNSIDED = ["liver", "vertebrae_L1", "aorta", "brainstem"]


@st.composite
def schemas(draw: st.DrawFn) -> tuple[LabelSchema, set[frozenset[str]], set[str]]:
    """A schema, the pairs of names in it, and the names without their counterpart."""
    pairs: set[frozenset[str]] = set()
    lone: set[str] = set()
    for organ in draw(st.lists(st.sampled_from(ORGANS), unique=True)):
        both = [side.format(organ) for side in draw(st.sampled_from(STYLES))]
        if draw(st.booleans()):
            pairs.add(frozenset(both))
        else:
            lone.add(draw(st.sampled_from(both)))
    names = [*UNSIDED, *lone, *(n for pair in pairs for n in pair)]
    return LabelSchema.consecutive(draw(st.permutations(names))), pairs, lone


@given(schemas())
def test_every_pair_is_found_and_every_lone_side_is_known(
    case: tuple[LabelSchema, set[frozenset[str]], set[str]],
) -> None:
    schema, pairs, lone = case
    assert {frozenset(pair) for pair in schema.pairs} == pairs
    assert len(schema.pairs) == len(pairs)
    assert set(schema.unpaired) == lone


@given(schemas())
def test_mirroring_twice_is_no_change(case: tuple[LabelSchema, set[frozenset[str]], set[str]]) -> None:
    schema, *_ = case
    for name in schema.names:
        other = mirror_name(name, schema.names)
        assert other is None or mirror_name(other, schema.names) == name
