"""HTML pages of ZoomSeg: templates with their provenance, and numbers for readers.

A page is one file without scripts or external resources. All text is escaped.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_NOTHING = "\N{EN DASH}"
_UTC = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\dZ")
_SECONDS = "seconds"
"""A key whose numbers are shown as a duration."""


def page(package: str, template: str, provenance: Mapping[str, object], **content: object) -> str:
    """A template of ``package`` filled in, with its provenance and date."""
    about = {
        "made by": f"ZoomSeg {importlib.metadata.version('zoomseg')}",
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        **provenance,
    }
    provenance = {key: readable(value) for key, value in about.items()}
    return environment(package).get_template(template).render(provenance=provenance, **content)


def environment(package: str) -> Environment:
    """The environment for the templates of a package, which may extend those of this one: all values are
    escaped and required."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("zoomseg.inference")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "signed": signed,
        "p_value": p_value,
        "png": lambda data: _data_uri("png", data),
        "jpeg": lambda data: _data_uri("jpeg", data),
    }
    return made


def number(value: float, digits: int) -> str:
    """A number for readers: a dash for a missing value, a sign for infinity."""
    if math.isnan(value):
        return _NOTHING
    return "∞" if math.isinf(value) else f"{value:,.{digits}f}"


def signed(value: float, digits: int) -> str:
    """As ``number``, with a sign unless it rounds to zero."""
    text = number(abs(value), digits)
    if not math.isfinite(value) or not any(c in "123456789" for c in text):
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+") + text


def p_value(value: float) -> str:
    """A p-value for readers: a dash if nothing was tested."""
    return "< 0.001" if value < 0.001 else number(value, 3)


def duration(seconds: float) -> str:
    """``9.4 s``, ``38 min``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def readable(value: object) -> str:
    """A JSON value for readers: lists with commas, a mapping's entries line by line, times without their
    ``T`` and ``Z``."""
    match value:
        case Mapping():
            return "\n".join(f"{_words(key)}: {_entry(key, item)}" for key, item in value.items())
        case list() | tuple():
            return ", ".join(_plain(item) for item in value)
        case _:
            return _plain(value)


def _entry(key: object, value: object) -> str:
    if key == _SECONDS and isinstance(value, int | float) and not isinstance(value, bool):
        return duration(value)
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, str):
        return _UTC.sub(r"\1 \2 UTC", value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _words(key: object) -> str:
    return "duration" if key == _SECONDS else str(key).replace("_", " ")


def _data_uri(kind: str, data: bytes) -> Markup:
    return Markup(f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii"))
