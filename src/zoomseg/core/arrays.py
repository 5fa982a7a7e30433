"""Arrays of the pipeline: numpy's on a CPU, torch's on a GPU, with the same code for both.

Code that takes ``Array`` uses the functions of the Python array API standard (data-apis.org/array-api)
through ``namespace``, and of methods only what numpy and torch share: operators, in-place ones included,
indexing and ``shape``. Torch is imported only where a tensor comes in.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import array_api_compat
import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any
"""A ``numpy.ndarray`` or ``torch.Tensor``: they share no base class for a type checker."""
AnyNumpy = npt.NDArray[Any]


def namespace(array: Array) -> Any:
    """The namespace of array API functions for the library of an array."""
    return array_api_compat.array_namespace(array)


def array_like(values: Array, array: Array) -> Array:
    """``values`` as an array of the same library, on the same device as ``array``; not copied if both are in
    this machine's memory."""
    if isinstance(array, np.ndarray):
        return to_numpy(values)
    return namespace(array).asarray(ascending(values), device=array.device)


def float32_zeros(shape: tuple[int, ...], array: Array) -> Array:
    """Float32 zeros of the same library, on the same device as ``array``."""
    if isinstance(array, np.ndarray):
        return np.zeros(shape, dtype=np.float32)
    xp = namespace(array)
    return xp.zeros(shape, dtype=xp.float32, device=array.device)


def ascending(values: Array) -> Array:
    """The same values without negative strides (of a flipped view) and writable, as torch supports neither
    negative strides nor read-only arrays; copied only if necessary."""
    if isinstance(values, np.ndarray) and (min(values.strides, default=0) < 0 or not values.flags.writeable):
        order = np.argsort([-abs(stride) for stride in values.strides])
        return np.array(values.transpose(order), order="C").transpose(np.argsort(order))
    return values


def memory_order(array: Array) -> list[int]:
    """The axes of an array by their order in memory, slowest first. The standard has no function for it."""
    strides = array.strides if isinstance(array, np.ndarray) else array.stride()
    return sorted(range(len(strides)), key=lambda axis: -abs(strides[axis]))


def to_numpy(array: Array) -> AnyNumpy:
    """The same values in this machine's memory; not copied if they are there."""
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
