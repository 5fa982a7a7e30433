"""Layers of networks with instance norm, for feature maps with channels last in memory, on a CPU.

There convolutions are fastest, but torch's own instance norm first reorders its input, and its gradient of a
transposed convolution, and average pooling, have no fast kernel (torch 2.13). Each function here equals the
given modules, up to rounding.

Shapes: B batch, C channels, I J K voxels, N = I * J * K.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAST = torch.channels_last_3d

FEW_VOXELS = 1000
"""Below this, torch's group norm takes longer than its batch norm of one patch after the other."""

WIDE = 512
"""Row length at which a sum over rows, which is a matrix product here, is fastest."""


def applies(x_BCIJK: Tensor) -> bool:
    """Whether the functions here apply to such a feature map."""
    return (
        x_BCIJK.dtype in (torch.bfloat16, torch.float32)
        and x_BCIJK.device.type == "cpu"
        and x_BCIJK.is_contiguous(memory_format=LAST)
    )


def norm_and_activation(x_BCIJK: Tensor, norm: nn.InstanceNorm3d, slope: float | None) -> Tensor:
    """``norm``, then a leaky ReLU of negative ``slope``, if there is one."""
    return cast(Tensor, _NormAndActivation.apply(x_BCIJK, norm.weight, norm.bias, norm.eps, slope))  # type: ignore[no-untyped-call]


def upsampled(x_BCIJK: Tensor, layer: nn.ConvTranspose3d) -> Tensor:
    """A transposed convolution with kernel = stride."""
    return _kernel_is_stride(x_BCIJK, layer.weight, layer.bias, transposed=True)


def averaged_and_projected(x_BCIJK: Tensor, pool: nn.AvgPool3d, layer: nn.Conv3d) -> Tensor:
    """Average pooling followed by a 1x1x1 convolution without bias, as one convolution with kernel =
    stride."""
    stride = cast("tuple[int, int, int]", pool.kernel_size)
    kernel = (layer.weight / math.prod(stride)).expand(-1, -1, *stride)
    return _kernel_is_stride(x_BCIJK, kernel, None, transposed=False)


def _kernel_is_stride(x_BCIJK: Tensor, weight: Tensor, bias_C: Tensor | None, transposed: bool) -> Tensor:
    """In the precision of autocast where that is on, as a module would be: its average pooling returns
    float32, so that a level that keeps the number of channels does so too. The gradients are computed outside
    autocast, and need both in one precision."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BCIJK.dtype
    weight = weight.to(dtype).contiguous(memory_format=LAST)
    bias_C = None if bias_C is None else bias_C.to(dtype)
    return cast(Tensor, _KernelIsStride.apply(x_BCIJK.to(dtype), weight, bias_C, transposed))  # type: ignore[no-untyped-call]


class _NormAndActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCIJK: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, slope: float | None
    ) -> Tensor:
        out_BCIJK, mean_BC, scale_BC = _normalised(x_BCIJK, weight_C, bias_C, eps)
        if slope is not None:
            out_BCIJK = F.leaky_relu_(out_BCIJK, slope)
        ctx.save_for_backward(x_BCIJK, out_BCIJK if slope is not None else None, weight_C, mean_BC, scale_BC)
        ctx.slope = slope
        return out_BCIJK

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With y = scale (x - mean) for each patch and channel, and g the gradient of weight * y + bias: the
        input's is scale * weight * (g - mean(g) - y * mean(g * y)), an affine function of g and x."""
        x_BCIJK, out_BCIJK, weight_C, mean_BC, scale_BC = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=LAST)
        if ctx.slope is not None:
            gradient = torch.ops.aten.leaky_relu_backward(gradient, out_BCIJK, ctx.slope, True)
        batch, channels = x_BCIJK.shape[:2]
        x_BNC, g_BNC = _rows(x_BCIJK), _rows(gradient)
        voxels, together = x_BNC.shape[1], x_BNC.shape[2] // channels
        sum_g_BC = _sum_of_rows(g_BNC, channels)
        sum_gy_BC = scale_BC * (_sum_of_rows(g_BNC * x_BNC, channels) - mean_BC * sum_g_BC)
        of_g_BC = scale_BC * weight_C
        of_x_BC = -of_g_BC * scale_BC * sum_gy_BC / (voxels * together)
        rest_BC = -of_g_BC * sum_g_BC / (voxels * together) - of_x_BC * mean_BC

        def per_channel(values_BC: Tensor) -> Tensor:
            return values_BC.to(x_BCIJK.dtype).view(batch, 1, channels).repeat(1, 1, together)

        found_BNC = torch.addcmul(per_channel(rest_BC), x_BNC, per_channel(of_x_BC))
        found_BNC = torch.addcmul(found_BNC, g_BNC, per_channel(of_g_BC))
        found_BCIJK = found_BNC.view(batch, *x_BCIJK.shape[2:], channels).permute(0, 4, 1, 2, 3)
        return found_BCIJK, sum_gy_BC.sum(0), sum_g_BC.sum(0), None, None


def _normalised(
    x_BCIJK: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Instance norm, its means and the inverse of its standard deviations ``[B, C]``."""
    batch, channels = x_BCIJK.shape[:2]
    voxels = math.prod(x_BCIJK.shape[2:])
    if voxels >= FEW_VOXELS:
        return torch.native_group_norm(x_BCIJK, weight_C, bias_C, batch, channels, voxels, channels, eps)
    parts = [
        torch.native_batch_norm(x_BCIJK[b : b + 1], weight_C, bias_C, None, None, True, 0.0, eps)
        for b in range(batch)
    ]
    out, mean, scale = zip(*parts, strict=True)
    return torch.cat(out), torch.stack(mean), torch.stack(scale)


def _rows(x_BCIJK: Tensor) -> Tensor:
    """``[B, N / n, n * C]``: voxels in rows of n, so that rows are wide."""
    batch, channels = x_BCIJK.shape[:2]
    voxels, together = math.prod(x_BCIJK.shape[2:]), 1
    while together * channels < WIDE and voxels % (2 * together) == 0:
        together *= 2
    return x_BCIJK.permute(0, 2, 3, 4, 1).reshape(batch, voxels // together, together * channels)


def _sum_of_rows(rows_BNC: Tensor, channels: int) -> Tensor:
    """``[B, C]`` in float32."""
    batch, count = rows_BNC.shape[:2]
    ones = torch.ones(batch, 1, count, dtype=rows_BNC.dtype)
    return torch.bmm(ones, rows_BNC).float().view(batch, -1, channels).sum(1)


class _KernelIsStride(torch.autograd.Function):
    """A convolution with kernel = stride, or the transposed one. Each gives the gradient of the other with
    respect to the input, and the weight's gradient is that of the convolution: for all there are fast
    kernels."""

    @staticmethod
    def forward(ctx: Any, x_BCIJK: Tensor, weight: Tensor, bias_C: Tensor | None, transposed: bool) -> Tensor:
        ctx.save_for_backward(x_BCIJK, weight)
        ctx.transposed = transposed
        return _convolved(x_BCIJK, weight, bias_C, transposed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x_BCIJK, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=LAST)
        of_x = _convolved(gradient, weight, None, not ctx.transposed)
        fine, coarse = (gradient, x_BCIJK) if ctx.transposed else (x_BCIJK, gradient)
        of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = _sum_of_rows(_rows(gradient), gradient.shape[1]).sum(0).to(gradient)
        return of_x, _of_weight(coarse, fine, weight), of_bias, None


def _convolved(x_BCIJK: Tensor, weight: Tensor, bias_C: Tensor | None, transposed: bool) -> Tensor:
    run = F.conv_transpose3d if transposed else F.conv3d
    return run(x_BCIJK, weight, bias_C, stride=weight.shape[2:])


def _of_weight(gradient_BCIJK: Tensor, given_BCIJK: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight of a convolution with kernel = stride, given that of its output."""
    stride = list(weight.shape[2:])
    backward = torch.ops.aten.convolution_backward
    rest = (None, stride, [0, 0, 0], [1, 1, 1], False, [0, 0, 0], 1, [False, True, False])
    return cast(Tensor, backward(gradient_BCIJK, given_BCIJK, weight, *rest)[1])
