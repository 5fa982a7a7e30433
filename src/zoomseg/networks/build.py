"""Build a network's module from its spec.

Every network maps ``[B, in_channels, I, J, K]`` to a tuple of logits: first those at full resolution, then,
in training only, those of lower resolutions for deep supervision.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from zoomseg.networks.aspp import ResUNetASPP
from zoomseg.networks.dltk import ResidualFCN
from zoomseg.networks.plain import PlainConvUNet
from zoomseg.networks.residual import ResEncUNet
from zoomseg.networks.unet import UNet
from zoomseg.recipe import spec as specs
from zoomseg.recipe.network_shapes import FLAT_AXIS, INSTANCE_NORM, Padding, check


def build(spec: specs.NetworkSpec, in_channels: int, classes: int, padding: Padding) -> nn.Module:
    """The module of ``spec``, He-initialised from torch's generator. ``classes`` includes background.

    Raises:
        RecipeError: the network does not support this padding, or its numbers are invalid.
    """
    check(spec, padding)
    return laid_out(spec, _module(spec, in_channels, classes, padding))


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside have shapes, but no memory, and are not initialised: drawing random numbers for
    tensors without memory makes torch load its compiler, which takes seconds."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):  # of tensors and of torch.nn.init
            return given.get("tensor", args[0] if args else None)
        return func(*args, **given)


def fastest_layout(device: torch.device) -> torch.memory_format:
    """The memory layout in which convolutions are fastest: on a CPU, channels last, by a third or more."""
    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format


def laid_out(spec: specs.NetworkSpec, module: nn.Module) -> nn.Module:
    """The module with its weights in the fastest memory layout of the device that it is on. Networks with
    batch norm have channels last everywhere; those with instance norm have special layers for it on CPUs
    alone (see ``channels_last``)."""
    layout = torch.channels_last_3d
    if spec.kind in INSTANCE_NORM:
        layout = fastest_layout(next(module.parameters()).device)
    module.to(memory_format=layout)  # type: ignore[call-overload]
    return module


def _module(spec: specs.NetworkSpec, in_channels: int, classes: int, padding: Padding) -> nn.Module:
    match spec:
        case specs.UNet3D():
            return UNet(in_channels, classes, spec.channels, padding)
        case specs.UNet2D():
            return UNet(in_channels, classes, spec.channels, padding, FLAT_AXIS[spec.plane])
        case specs.ResEncUNet():
            return ResEncUNet(
                in_channels,
                classes,
                spec.channels,
                spec.strides,
                spec.kernels,
                spec.blocks,
                spec.deep_supervision,
            )
        case specs.PlainConvUNet():
            return PlainConvUNet(
                in_channels,
                classes,
                spec.channels,
                spec.strides,
                spec.kernels,
                spec.convolutions,
                spec.decoder_convolutions,
            )
        case specs.ResidualFCN():
            return ResidualFCN(in_channels, classes, spec.channels, spec.strides, spec.units, spec.activation)
        case specs.ResUNetASPP():
            return ResUNetASPP(in_channels, classes, spec.channels, spec.dilations)


def parameters(module: nn.Module) -> int:
    """Number of learnable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def multiply_adds(module: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Number of multiplications with a weight, each with its addition, in the convolutions of one forward
    pass over one input of ``shape`` (channels, then voxels), in the module's current mode (including training
    heads).

    Nothing is computed: a copy of the module runs on torch's meta device.
    """
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    weightless = {name: tensor.detach().to("meta") for name, tensor in tensors}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(module, weightless, (torch.empty(1, *shape, device="meta"),))
    return int(counter.get_total_flops()) // 2
