from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from zoomseg.backends import blas

BEFORE = 2


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(BEFORE, "blas"):
        yield


def threads() -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


def test_products_have_one_thread_inside_and_as_many_as_before_outside() -> None:
    assert threads() == {BEFORE}
    with blas.single_threaded():
        assert threads() == {1}
    assert threads() == {BEFORE}


def test_the_last_one_out_restores_them() -> None:
    first, second = blas.single_threaded(), blas.single_threaded()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert threads() == {1}
    second.__exit__(None, None, None)
    assert threads() == {BEFORE}


def test_they_are_restored_after_an_error() -> None:
    with pytest.raises(KeyError), blas.single_threaded():
        raise KeyError
    assert threads() == {BEFORE}
