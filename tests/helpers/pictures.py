"""A report's pictures as one grey pixel each, for tests that look at none: drawing takes most of the time of
an evaluation of tiny scans."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from zoomseg.evaluation import evaluate, figures


def pixel() -> bytes:
    out = io.BytesIO()
    Image.new("L", (1, 1), 128).save(out, format="png")
    return out.getvalue()


@contextmanager
def undrawn() -> Iterator[pytest.MonkeyPatch]:
    """No plot and no contour is drawn, until the patch that this yields is undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "overlay", lambda view: pixel())
        patch.setattr(figures, "_png", lambda figure, dpi: pixel())
        yield patch
