from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from zoomseg.networks.blocks import (
    LEAKY_SLOPE,
    ConvNormAct,
    ResidualBlock,
    TwoConvolutions,
    concatenate,
    crop_margin,
    initialise,
    same_padding,
    upsample,
)


def test_same_padding_keeps_the_shape() -> None:
    assert same_padding((1, 3, 5)) == (0, 1, 2)
    out = ConvNormAct(1, 2, (1, 3, 5))(torch.rand(1, 1, 4, 5, 6))
    assert out.shape == (1, 2, 4, 5, 6)


def test_crop_margin_takes_both_sides() -> None:
    x = torch.arange(5.0**3).reshape(1, 1, 5, 5, 5)
    assert crop_margin(x, (2, 2, 2)).item() == 62
    assert torch.equal(crop_margin(x, (1, 0, 2)), x[:, :, 1:4, :, 2:3])
    assert crop_margin(x, (0, 0, 0)) is x


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_upsampled_ramps_keep_their_place(factor: int) -> None:
    """Half-voxel exact: a ramp over the low resolution stays the same ramp at the high one."""
    centres = (torch.arange(8.0) + 0.5) * factor  # in small voxels, from the first one's outer face
    ramp = centres[None, None, :, None, None].expand(1, 1, 8, 3, 4)
    out = upsample(ramp, (factor, 1, 2))
    assert out.shape == (1, 1, 8 * factor, 3, 8)
    expected = torch.arange(8.0 * factor) + 0.5
    inside = slice(factor, -factor)
    torch.testing.assert_close(out[0, 0, inside, 1, 2], expected[inside])


def test_upsampled_constants_stay_up_to_the_border() -> None:
    assert torch.equal(
        upsample(torch.full((1, 1, 2, 3, 2), 7.0), (2, 2, 2)), torch.full((1, 1, 4, 6, 4), 7.0)
    )
    x = torch.rand(1, 1, 2, 2, 2)
    assert upsample(x, (1, 1, 1)) is x


def test_two_convolutions_stride_once() -> None:
    block = TwoConvolutions(2, 3, 5, (3, 3, 1), (1, 1, 0), (2, 2, 1))
    assert block(torch.rand(2, 2, 8, 6, 3)).shape == (2, 5, 4, 3, 3)
    valid = TwoConvolutions(2, 3, 5, (3, 3, 1), (0, 0, 0))
    assert valid(torch.rand(2, 2, 8, 6, 3)).shape == (2, 5, 4, 2, 3)


def test_the_norm_may_be_another() -> None:
    """Batch norm in evaluation: unlike with instance norm, a case's output does not depend on its own
    mean."""
    block = ResidualBlock(2, 4, (3, 3, 3), norm=nn.BatchNorm3d, slope=0.0)
    kinds = {type(m) for m in block.modules() if "Norm3d" in type(m).__name__}
    assert kinds == {nn.BatchNorm3d}
    assert block(torch.randn(2, 2, 4, 4, 4)).min() == 0  # ReLU, without a leak


def test_instance_norm_sees_each_case_alone() -> None:
    torch.manual_seed(0)
    block = ConvNormAct(1, 3, (3, 3, 3))
    cases = torch.rand(2, 1, 6, 6, 6)
    cases[1] *= 1000
    alone = torch.cat([block(case[None]) for case in cases])
    assert torch.allclose(block(cases), alone, atol=1e-5)


def test_without_activation_negative_values_pass() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 1, 6, 6, 6)
    block = ConvNormAct(1, 1, (3, 3, 3), slope=None)
    plain = block(x)
    assert plain.min() < -0.5
    active = ConvNormAct(1, 1, (3, 3, 3), slope=LEAKY_SLOPE)
    active.load_state_dict(block.state_dict())
    assert torch.allclose(active(x), nn.functional.leaky_relu(plain, LEAKY_SLOPE))


def test_residual_block_adds_its_input() -> None:
    block = ResidualBlock(2, 2, (3, 3, 3))
    for parameter in block.second.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 2, 4, 4, 4)
    assert torch.equal(block(x), x)  # what is added is zero, and the input is positive
    assert len(block.skip) == 0


def test_a_strided_block_averages_its_input_so_that_no_voxel_is_skipped() -> None:
    block = ResidualBlock(1, 1, (3, 3, 3), stride=(2, 2, 1))
    for parameter in block.second.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 1, 4, 4, 2)
    assert torch.allclose(block(x), nn.functional.avg_pool3d(x, (2, 2, 1)))


def test_a_block_with_other_channels_projects_its_input() -> None:
    block = ResidualBlock(1, 4, (3, 3, 3))
    assert block(torch.rand(1, 1, 4, 4, 4)).shape == (1, 4, 4, 4, 4)
    assert sum(isinstance(part, nn.Conv3d) for part in block.skip.modules()) == 1


@pytest.mark.parametrize("slope", [0.0, LEAKY_SLOPE])
def test_he_initialisation_keeps_the_variance(slope: float) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(32, 64, 3)
    up = nn.ConvTranspose3d(32, 64, 2, stride=2)
    initialise(nn.ModuleList([conv, up]), slope)
    gain = math.sqrt(2 / (1 + slope**2))
    assert float(conv.weight.detach().std()) == pytest.approx(gain / math.sqrt(32 * 27), rel=0.02)
    assert float(up.weight.detach().std()) == pytest.approx(gain / math.sqrt(32), rel=0.02)
    assert not conv.bias.any()
    assert not up.bias.any()


def test_initialisation_repeats_with_the_seed() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        conv = nn.Conv3d(2, 2, 3)
        initialise(conv, 0.0)
        weights.append(conv.weight.detach().clone())
    assert torch.equal(*weights)


def test_concatenate_puts_the_skip_first() -> None:
    out = concatenate(torch.ones(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2))
    assert out[0, :, 0, 0, 0].tolist() == [0, 0, 1]
