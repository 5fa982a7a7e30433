"""A simulated second device, for machines without one: CPU memory under another name, to which data must be
copied. An operation on tensors of both devices fails, as between a GPU and the CPU; the CPU computes the
results.

    python tests/helpers/simulated_device.py FOLDER

trains and predicts on it and on the CPU, and prints their differences. It needs a separate process: torch
supports one such device at most, and never unregisters it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.tiny_dataset import CPU, retrained, tiny_case, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.datasets.layouts import Dataset
from zoomseg.inference.predictor import Predictor
from zoomseg.io.bundle import Bundle
from zoomseg.networks import build
from zoomseg.recipe.spec import SGD, Augmentation, Recipe
from zoomseg.training import loop
from zoomseg.training.log import NullObserver

NAME = "other"
PLACE = torch.device("privateuseone:0")
COPIES = ("copy_", "_to_copy")
AUGMENTATION = Augmentation(
    rotation_deg=(10.0, 10.0, 10.0),
    scale=(0.9, 1.1),
    translation_vox=1.0,
    elastic_vox=1.0,
    elastic_grid_vox=6.0,
    flip_axes=("R", "A"),
    brightness=0.2,
    contrast=0.2,
    gamma=(0.8, 1.2),
    organ_brightness=0.3,
    noise=0.1,
    blur_vox=0.8,
    probability=0.7,
    shorter_scan=0.4,
)


class Elsewhere(Tensor):
    """A tensor on the other device; ``held`` contains its values."""

    held: Tensor

    @staticmethod
    def __new__(cls: type[Elsewhere], held: Tensor) -> Elsewhere:
        out = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=PLACE,
        )
        out.held = held
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, *args, **(kwargs or {}))

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        moved = tuple(torch.tensor(k, device=PLACE) if isinstance(k, list) else k for k in keys)
        return super().__getitem__(moved)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("the other device's memory is none of NumPy's; use .cpu() first")


def held_by_cpu(argument: Any) -> Any:
    """The values of a tensor on the other device, or the CPU instead of a device."""
    if isinstance(argument, Elsewhere):
        return argument.held
    return torch.device("cpu") if isinstance(argument, torch.device) else argument


def compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    name = func.overloadpacket.__name__
    # As with a GPU, scalars may be on the CPU.
    strangers = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim > 0]
    if there and strangers and name not in COPIES:
        raise RuntimeError(f"{func} on tensors of two devices: {[tuple(x.shape) for x in tensors]}")
    # In inference mode, ``to`` is dispatched here unchanged, with the device as positional argument.
    asked = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.device)]
    stays = asked[0].type == PLACE.type if asked else bool(there)
    own = tree_map(held_by_cpu, (args, kwargs))
    out = func(*own[0], **own[1])
    written = func._schema.arguments[0].alias_info if func._schema.arguments else None
    if written is not None and written.is_write and isinstance(args[0], Tensor):
        return args[0]
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) and stays else x, out)


class Generator(torch.Generator):
    """Generators of the other device are those of the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _generator("cpu")


_tensor, _generator = torch.tensor, torch.Generator
_everywhere = torch.library.Library("_", "IMPL")


def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
    """``torch.tensor`` fills a tensor without a dispatched operation, so it is replaced."""
    made = _tensor(data, **kwargs)
    return made if device is None else made.to(device)


def set_up() -> None:
    _setup_privateuseone_for_python_backend(NAME)
    torch.get_device_module(NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]  # autocast queries it
    _everywhere.fallback(compute, "PrivateUse1")
    torch.tensor, torch.Generator = tensor, Generator
    # The CPU too computes as a GPU would, so that results can be equal to the last bit.
    build.fastest_layout = lambda place: torch.contiguous_format
    loop.convert = lambda out, observer: None  # weights and labels are compared, no graphs


class Other(Device):
    """A device that is treated as a GPU, with data on it and prefetched batches."""

    batches_ahead = 2
    room_for_data = 1 << 30


class Crowded(Other):
    """A simulated GPU without space for data."""

    room_for_data = 0


def augmented(together: bool) -> Recipe:
    """A recipe with SGD, as AdamW would turn a gradient that consists of rounding errors into a full step."""
    made = tiny_recipe(together, iterations=8)
    return retrained(made, augmentation=AUGMENTATION, ema_decay=0.0, optimiser=SGD(lr=0.02))


def trained(data: Dataset, recipe: Recipe, device: Device, out: Path) -> Bundle:
    split = loop.Split(("case_0", "case_1", "case_2"), ("case_3",))
    return loop.train(data, split, recipe, out, loop.LoopSettings(device, seed=1), NullObserver())


def apart(one: Bundle, two: Bundle) -> float:
    """The largest absolute difference between weights."""
    return max(
        float(np.abs(weight - two.weights[stage][name]).max())
        for stage, weights in one.weights.items()
        for name, weight in weights.items()
    )


def mixed() -> bool:
    """Whether tensors of both devices can be added, in which case the tests would not detect mixing them."""
    try:
        torch.ones(2) + torch.ones(2, device=PLACE)
    except RuntimeError:
        return False
    return True


def main(folder: Path) -> None:
    set_up()
    other, model, case = Other(str(PLACE)), untrained_bundle(3), Case("a", tiny_case(0)[0])
    labels = [Predictor(model, device).predict(case).labels.data for device in (CPU, other)]
    found: dict[str, object] = {"mixed": mixed(), "labels": int((labels[0] != labels[1]).sum())}
    data = tiny_dataset(folder / "data")
    for together in (True, False):
        recipe, name = augmented(together), "together" if together else "apart"
        devices = {"cpu": CPU, "held": other, "read": Crowded(str(PLACE))}
        models = {key: trained(data, recipe, device, folder / name / key) for key, device in devices.items()}
        found[name] = {key: apart(models["cpu"], models[key]) for key in ("held", "read")}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
