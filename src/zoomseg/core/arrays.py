"""Arrays of the pipeline: numpy's on a CPU, torch's on a GPU, one code for both.

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
"""A ``numpy.ndarray`` or ``torch.Tensor``: they share no base that a type checker could be told of."""
AnyNumpy = npt.NDArray[Any]


def namespace(array: Array) -> Any:
    """The array API functions of what an array is made with."""
    return array_api_compat.array_namespace(array)


def beside(values: Array, array: Array) -> Array:
    """``values`` as an array of the same library, on the same device as ``array``; nothing is copied where
    both are in this machine's memory."""
    if isinstance(array, np.ndarray):
        return to_numpy(values)
    return namespace(array).asarray(ascending(values), device=array.device)


def zeros_beside(shape: tuple[int, ...], array: Array) -> Array:
    """Float32 zeros of the same library, on the same device as ``array``."""
    if isinstance(array, np.ndarray):
        return np.zeros(shape, dtype=np.float32)
    xp = namespace(array)
    return xp.zeros(shape, dtype=xp.float32, device=array.device)


def ascending(values: Array) -> Array:
    """The same values without axes that run backwards in memory (of a flipped view), and not read-only, as
    torch knows neither; copied only where they are."""
    if isinstance(values, np.ndarray) and (min(values.strides, default=0) < 0 or not values.flags.writeable):
        order = np.argsort([-abs(stride) for stride in values.strides])
        return np.array(values.transpose(order), order="C").transpose(np.argsort(order))
    return values


def memory_order(array: Array) -> list[int]:
    """The axes of an array as they lie in memory, slowest first. The standard has no word for it."""
    strides = array.strides if isinstance(array, np.ndarray) else array.stride()
    return sorted(range(len(strides)), key=lambda axis: -abs(strides[axis]))


def to_numpy(array: Array) -> AnyNumpy:
    """The same values in this machine's memory; nothing is copied where they are."""
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
