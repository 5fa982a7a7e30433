"""Choice of the library, and errors if there is none."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.onnx_models import doubling
from zoomseg.backends import compilers
from zoomseg.backends.compilers import COMPILERS, BackendError, Compiler


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_network_computes(compiler: Compiler) -> None:
    network = compilers.load(compiler, doubling(), "float32")
    for start in (0, 5):
        inputs = np.arange(start, start + 8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
        assert np.array_equal(network(inputs), 2 * inputs)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_network_that_is_none(compiler: Compiler) -> None:
    (other,) = set(COMPILERS) - {compiler}
    with pytest.raises(BackendError, match=f"{compiler} cannot load the network .*; try {other}") as error:
        compilers.load(compiler, b"hello")
    assert "\n" not in str(error.value)
