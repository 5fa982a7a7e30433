"""Left and right in names: the only table of their spellings, and the part of a name that is a side.

A separate word, or a long one joined to another (``leftkidney``), certainly states a side. Letters joined to
a word (``RK``, ``rkid``) and the ``CLUES`` are ambiguous by themselves: only if two names differ in nothing
else they may mean sides. Such pairs are treated neither as sides nor as names without a side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Literal

Side = Literal["left", "right"]

WORDS: tuple[tuple[str, str], ...] = (
    ("left", "right"),
    ("lft", "rgt"),
    ("lt", "rt"),
    ("l", "r"),  # AAPM TG-263: Parotid_L; AAL: Precentral_L
    ("lh", "rh"),  # FreeSurfer's hemispheres: ctx-lh-insula
    ("sin", "dex"),
    ("sinister", "dexter"),
    ("sinistra", "dextra"),
    ("sinistrum", "dextrum"),
    ("sinistro", "destro"),
    ("sinistra", "destra"),
    ("links", "rechts"),
    ("linke", "rechte"),
    ("linker", "rechter"),
    ("linkes", "rechtes"),
    ("gauche", "droit"),
    ("gauche", "droite"),
    ("izquierdo", "derecho"),
    ("izquierda", "derecha"),
    ("esquerdo", "direito"),
    ("esquerda", "direita"),
    ("左", "右"),
)
"""Left and right, as words."""
CLUES: tuple[tuple[str, str], ...] = (("li", "re"), ("g", "d"), ("sx", "dx"), ("s", "d"))
"""Abbreviations that mean other things as well."""
_GLUED = ("left", "right", "links", "rechts", "sinister", "dexter", "sinistra", "dextra", "左", "右")
"""Long enough to be recognised when joined to another word."""
_REST_BEFORE, _REST_BEHIND = 3, 1
"""Minimum number of letters next to a joined side: ``kidneyleft``, but ``cleft`` and ``bright``;
``left1``."""
_SYMBOLS = re.compile(r"([~!+])")
"""Part of, without and with a margin, in names of radiotherapy (AAPM TG-263)."""

_UNLIKE_SIDES = {"heart", "cardiac", "coronary", "liver", "hepatic"}
_CHAMBERS = {"atrium", "atrial", "auricle", "ventricle", "ventricular"}
_OF_THE_BRAIN = {"brain", "cerebral", "lateral", "lat"}
"""The ventricles of the brain are symmetric, those of the heart are not."""

_SIDE_OF: dict[str, Side] = {}
for _left, _right in WORDS:
    _SIDE_OF[_left], _SIDE_OF[_right] = "left", "right"
_GLUED_BEFORE = re.compile(rf"({'|'.join(_GLUED)})(\w{{{_REST_BEHIND},}})")
_GLUED_BEHIND = re.compile(rf"(\w{{{_REST_BEFORE},}})({'|'.join(_GLUED)})")


@lru_cache(4096)
def name_tokens(name: str) -> tuple[str, ...]:
    """The words of a label's name in lower case, however they are joined; sides are separate words."""
    # LeftParotid -> Left Parotid, LKidney -> L Kidney, VertebraL1 -> Vertebra L1
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = (word.lower() for word in re.split(r"[\W_]+", spaced) if word)
    return tuple(part for word in words for part in _unglued(word))


def _unglued(word: str) -> tuple[str, ...]:
    if word in _SIDE_OF:
        return (word,)
    match = _GLUED_BEFORE.fullmatch(word) or _GLUED_BEHIND.fullmatch(word)
    return match.groups() if match else (word,)


def side_word(token: str) -> Side | None:
    """The side that a word of ``name_tokens`` states."""
    return _SIDE_OF.get(token)


def name_meaning(name: str) -> tuple[str, ...]:
    """A name's words independent of spelling: in alphabetical order, with sides as ``left``, ``right``. The
    symbols that distinguish structures in radiotherapy (``Brain~``, ``PTV!``, ``PTV+5``, ``Lung-GTV``) are
    words, and nothing changes places across a minus sign."""
    first, *others = (sorted(_SIDE_OF.get(word, word) for word in part) for part in _around_minus(name))
    return (*first, *(word for part in others for word in ("-", *part)))


@lru_cache(4096)
def _around_minus(name: str) -> tuple[tuple[str, ...], ...]:
    """A name's words and symbols, divided at its minus signs. A hyphen next to nothing but a side
    (``kidney-LEFT``, ``ctx-lh-insula``) is none."""
    pieces = [_words_and_symbols(piece) for piece in name.split("-")]
    parts = [pieces[0]]
    for before, piece in pairwise(pieces):
        if set(before) <= _SIDE_OF.keys() or set(piece) <= _SIDE_OF.keys():
            parts[-1] += piece
        else:
            parts.append(piece)
    return tuple(parts)


def _words_and_symbols(text: str) -> tuple[str, ...]:
    between = enumerate(_SYMBOLS.split(text))  # every second one is a symbol
    return tuple(word for n, part in between for word in ((part,) if n % 2 else name_tokens(part)))


def has_side(name: str) -> bool:
    """Whether a name states left or right."""
    return any(token in _SIDE_OF for token in name_tokens(name))


def side_of(name: str) -> Side | None:
    """The side that a name states; None if it states none, or more than one word does."""
    sides = [_SIDE_OF[token] for token in name_tokens(name) if token in _SIDE_OF]
    return sides[0] if len(sides) == 1 else None


def is_asymmetric(name: str) -> bool:
    """Whether a name means a part of an organ whose left is not the mirror image of its right, such as a
    chamber of the heart."""
    words = set(name_tokens(name))
    return bool(words & _UNLIKE_SIDES) or bool(words & _CHAMBERS and not words & _OF_THE_BRAIN)


def mirror_name(name: str, names: Iterable[str]) -> str | None:
    """The name among ``names`` that is ``name`` with its side swapped, or None. The side may be spelled
    differently or be elsewhere (``left kidney``, ``Kidney_R``); the same spelling has priority. The organ on
    the other side need not be its mirror image (see ``is_asymmetric``)."""
    side = side_of(name)
    if side is None:
        return None
    others = [n for n in names if side_of(n) not in (None, side) and _sideless(n) == _sideless(name)]
    order = [token in _SIDE_OF for token in name_tokens(name)]
    return min(others, key=lambda n: [token in _SIDE_OF for token in name_tokens(n)] != order, default=None)


def _sideless(name: str) -> list[list[str]]:
    return [sorted(word for word in part if word not in _SIDE_OF) for part in _around_minus(name)]


def doubtful_pairs(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of names that may be left and right (``LK``, ``RK``), left first: neither states a side, and they
    differ only in letters at the start or end of a word that spell sides, or in a word of ``CLUES``."""
    plain = {_letters(name): name for name in names if not has_side(name)}
    found: list[tuple[str, str]] = []
    for words, name in plain.items():
        for other in _respelled(words):
            if other in plain and (name, plain[other]) not in found:
                found.append((name, plain[other]))
    return tuple(found)


def _letters(name: str) -> tuple[str, ...]:
    """A name's words, with digits separated: ``RibL1`` -> rib, l, 1."""
    return tuple(part for token in name_tokens(name) for part in re.findall(r"\d+|\D+", token))


def _respelled(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words with one left spelling replaced by its right one."""
    for i, word in enumerate(words):
        before, behind = words[:i], words[i + 1 :]
        for left, right in WORDS:
            if word.startswith(left):
                yield (*before, right + word.removeprefix(left), *behind)
            if word.endswith(left):
                yield (*before, word.removesuffix(left) + right, *behind)
        for left, right in CLUES:
            if word == left:
                yield (*before, right, *behind)
