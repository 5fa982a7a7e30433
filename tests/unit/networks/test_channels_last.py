"""Layers with channels last: gradients compared with finite differences, values with torch's modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoomseg.networks import channels_last
from zoomseg.networks.build import build, laid_out
from zoomseg.recipe.network_shapes import INSTANCE_NORM
from zoomseg.recipe.spec import NetworkSpec, PlainConvUNet, ResEncUNet

LAST = torch.channels_last_3d
ONE, TWO, THREE = (1, 1, 1), (2, 2, 2), (3, 3, 3)


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    return values.contiguous(memory_format=LAST).requires_grad_()


@pytest.mark.parametrize("voxels", [(3, 2, 3), (10, 10, 10)], ids=["few", "many"])
@pytest.mark.parametrize("slope", [None, 0.01])
def test_norm_and_activation_equal_the_modules_and_so_do_gradients(
    voxels: tuple[int, int, int], slope: float | None
) -> None:
    assert (voxels == (10, 10, 10)) == (voxels[0] ** 3 >= channels_last.FEW_VOXELS)
    norm = nn.InstanceNorm3d(4, affine=True, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.5, -2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.3]))
    x = maps(2, 4, *voxels)
    expected = norm(x) if slope is None else nn.functional.leaky_relu(norm(x), slope)
    found = channels_last.norm_and_activation(x, norm, slope)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn(found.shape, dtype=torch.float64)
    wanted = (x, norm.weight, norm.bias)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        # Sums over voxels are added up in float32.
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_upsampling_equals_the_transposed_convolution() -> None:
    layer = nn.ConvTranspose3d(3, 2, (2, 1, 2), stride=(2, 1, 2), dtype=torch.float64)
    x = maps(2, 3, 2, 3, 2)
    assert torch.allclose(channels_last.upsampled(x, layer), layer(x), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda *_: channels_last.upsampled(x, layer), (x, layer.weight, layer.bias)
    )


def test_pooling_and_projection_are_one_convolution() -> None:
    pool, layer = nn.AvgPool3d((2, 1, 2)), nn.Conv3d(3, 2, 1, bias=False, dtype=torch.float64)
    x = maps(2, 3, 4, 3, 2)
    found = channels_last.averaged_and_projected(x, pool, layer)
    assert torch.allclose(found, layer(pool(x)), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda *_: channels_last.averaged_and_projected(x, pool, layer), (x, layer.weight)
    )


def test_it_is_for_maps_with_channels_last_alone() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        assert channels_last.applies(maps(1, 4, 3, 3, 3, dtype=dtype))
        assert not channels_last.applies(torch.zeros(1, 4, 3, 3, 3, dtype=dtype))


def test_networks_built_on_a_cpu_have_channels_last() -> None:
    for kind in INSTANCE_NORM:
        weight = next(p for p in build(spec_of(kind), 3, 4, "same").parameters() if p.ndim == 5)
        assert weight.is_contiguous(memory_format=LAST)
        assert not weight.is_contiguous()


def test_elsewhere_networks_with_instance_norm_have_channels_first() -> None:
    for kind in INSTANCE_NORM:
        spec = spec_of(kind)
        module = laid_out(spec, build(spec, 3, 4, "same").to("meta"))
        assert all(p.is_contiguous() for p in module.parameters())


@pytest.mark.parametrize("kind", INSTANCE_NORM)
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("channels", [(8, 16, 24), (8, 16, 16), (8, 8, 16)])
def test_a_network_with_channels_last_says_and_learns_the_same(
    kind: str, bfloat16: bool, channels: tuple[int, int, int]
) -> None:
    """Up to rounding in float32; in bfloat16 within its difference to float32, which is the same for the
    network with channels first. A level that keeps the number of channels has no projection after its average
    pooling, which autocast computes in float32."""
    x, target = torch.randn(2, 3, 16, 16, 16), torch.randn(2, 4, 16, 16, 16)

    def learned(bfloat16: bool, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        module = build(spec_of(kind, channels), 3, 4, "same").to(memory_format=layout)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            logits = module(x)[0].float()
        ((logits - target) ** 2).mean().backward()
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        return logits.detach(), torch.cat(gradients)

    exact = learned(False, torch.contiguous_format)
    usual, found = (learned(bfloat16, layout) for layout in (torch.contiguous_format, LAST))
    for reference, before, now in zip(exact, usual, found, strict=True):
        error = (now - reference).norm() / reference.norm()
        assert error < max(1.2 * (before - reference).norm() / reference.norm(), 1e-5)
        assert error < 0.1
        assert (error > 1e-3) == bfloat16


def spec_of(kind: str, channels: tuple[int, int, int] = (8, 16, 24)) -> NetworkSpec:
    numbers: dict[str, Any] = {
        "channels": channels,
        "strides": (ONE, TWO, TWO),
        "kernels": (THREE,) * 3,
    }
    if kind == "resenc_unet":
        return ResEncUNet(**numbers, blocks=(1, 1, 2), deep_supervision=False)
    return PlainConvUNet(**numbers, convolutions=(1, 1, 2), decoder_convolutions=(1, 1))
