"""Numpy and torch behind one set of functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoomseg.core.arrays import Array, array_like, namespace, to_numpy


@pytest.mark.parametrize("array", [np.ones((2, 3)), torch.ones(2, 3)], ids=["numpy", "torch"])
def test_values_go_beside_an_array_and_back(array: Array) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    put = array_like(values, array)
    assert type(put) is type(array)
    assert namespace(put).sum(put * 2) == 30
    np.testing.assert_array_equal(to_numpy(put), values)
    put += 1
    assert values[0, 0] == 1  # the same memory


@pytest.mark.parametrize("view", ["flipped", "read-only", "repeated"])
def test_what_torch_cannot_share_goes_beside_a_tensor_as_a_copy(view: str) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    shown = {"flipped": values[::-1, :, ::-1], "read-only": values.view(), "repeated": values[:1]}[view]
    if view == "repeated":
        shown = np.broadcast_to(shown, values.shape)
    shown.flags.writeable = view == "flipped"
    put = array_like(shown, torch.ones(1))
    np.testing.assert_array_equal(put.numpy(), shown)
    put += 1
    assert values.sum() == 276


def test_what_is_learned_from_is_read_without_its_history() -> None:
    assert to_numpy(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
