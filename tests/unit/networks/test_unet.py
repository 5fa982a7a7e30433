"""The 3D U-Net of Cicek et al. 2016 against the paper's own figures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoomseg.networks import build as networks
from zoomseg.networks.unet import UNet
from zoomseg.recipe import network_shapes
from zoomseg.recipe import spec as specs
from zoomseg.recipe.network_shapes import in_plane

TINY = specs.UNet3D(channels=(4, 6, 8))


def test_parameter_count_of_the_paper() -> None:
    """Cicek et al. 2016, Section 2.1: 19 069 955 parameters for three channels and three classes;
    that count leaves batch norm's scales and shifts out."""
    with torch.device("meta"):
        module = networks.build(specs.UNet3D(), 3, 3, "valid")
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm3d)]
    assert networks.parameters(module) - sum(networks.parameters(n) for n in norms) == 19_069_955


def test_parameter_count_for_eight_classes() -> None:
    with torch.device("meta"):
        count = networks.parameters(networks.build(specs.UNet3D(), 1, 8, "valid"))
    assert count == 19_073_224


def test_channels_of_the_figure() -> None:
    """Cicek et al. 2016, Fig. 2: numbers over the feature maps."""
    with torch.device("meta"):
        module = networks.build(specs.UNet3D(), 1, 8, "valid")
    assert isinstance(module, UNet)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
    pairs = {(m.in_channels, m.out_channels) for m in convolutions}
    down = {(1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)}
    up = {(512, 512), (768, 256), (256, 256), (384, 128), (128, 128), (192, 64), (64, 64), (64, 8)}
    assert pairs == down | up


@pytest.mark.parametrize("shape", [(132, 132, 116), (92, 92, 92)])
def test_shape_of_the_paper_on_the_meta_device(shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        module = networks.build(specs.UNet3D(), 1, 8, "valid").eval()
        logits = module(torch.zeros(1, 1, *shape))
    assert len(logits) == 1
    expected = tuple(n - 88 for n in shape)
    assert tuple(logits[0].shape) == (1, 8, *expected)


def test_four_valid_levels_really_run() -> None:
    module = networks.build(specs.UNet3D(channels=(2, 2, 2, 2)), 1, 2, "valid").eval()
    with torch.no_grad():
        logits = module(torch.randn(1, 1, 92, 92, 92))[0]
    assert tuple(logits.shape) == (1, 2, 4, 4, 4)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("channels", [(4, 6), (4, 6, 8)])
def test_a_valid_voxel_depends_on_its_receptive_field_only(channels: tuple[int, ...]) -> None:
    """The gradient of one output voxel with respect to the input must be nonzero for the voxels around it,
    centred on the SAME position of the scan (a crop off by one would shift it), and for no others."""
    torch.manual_seed(0)
    spec = specs.UNet3D(channels=channels)
    module = networks.build(spec, 1, 2, "valid").double().eval()
    halo = network_shapes.halo(spec, "valid")[0]
    size = network_shapes.check_input_shape(spec, "valid", (2 * halo + 12,) * 3)[0]
    x = torch.randn(
        1, 1, 2 * halo + size, 2 * halo + size, 2 * halo + size, dtype=torch.double, requires_grad=True
    )
    at = size // 2
    module(x)[0][0, 0, at, at, at].backward()
    assert x.grad is not None
    touched = torch.nonzero(x.grad[0, 0])
    low, high = touched.amin(dim=0), touched.amax(dim=0)
    centre = at + halo  # where this answer lies in the input
    # A pooling window may reach its size minus one further on one of the sides.
    slack = network_shapes.divisor(spec)[0] - 1
    assert (low >= centre - halo - slack).all()
    assert (high <= centre + halo + slack).all()
    assert x.grad[0, 0, centre, centre, centre] != 0


def test_tiles_agree_where_they_overlap() -> None:
    """Valid convolutions: shifting the tile by a multiple of the divisor shifts the output, exactly."""
    torch.manual_seed(0)
    module = networks.build(TINY, 1, 3, "valid").double().eval()
    x = torch.randn(1, 1, 60, 52, 44, dtype=torch.double)
    with torch.no_grad():
        whole = module(x)[0]
        part = module(x[:, :, 8:])[0]
    assert tuple(whole.shape[2:]) == (20, 12, 4)
    torch.testing.assert_close(part, whole[:, :, 8:], rtol=1e-12, atol=1e-12)


def test_same_padding_agrees_with_valid_far_from_the_border() -> None:
    """Two levels: with more, valid convolutions shift the phase of the lower poolings."""
    torch.manual_seed(0)
    spec = specs.UNet3D(channels=(4, 6))
    valid = networks.build(spec, 1, 3, "valid").double().eval()
    same = networks.build(spec, 1, 3, "same").double().eval()
    same.load_state_dict(valid.state_dict())
    x = torch.randn(1, 1, 28, 24, 20, dtype=torch.double)
    with torch.no_grad():
        inner, full = valid(x)[0], same(x)[0]
    assert full.shape[2:] == x.shape[2:]
    torch.testing.assert_close(inner, full[:, :, 8:-8, 8:-8, 8:-8], rtol=1e-10, atol=1e-10)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    module = networks.build(TINY, 2, 3, "valid").train()
    module(torch.randn(1, 2, 44, 44, 44))[0].square().sum().backward()
    dead = [n for n, p in module.named_parameters() if p.grad is None]
    # A convolution's bias is taken away again by the batch norm that follows it.
    silent = [
        n
        for n, p in module.named_parameters()
        if p.grad is not None and p.ndim > 1 and not p.grad.abs().any()
    ]
    assert dead == []
    assert silent == []


FLAT = specs.UNet2D(plane="axial", channels=(4, 6, 8))


def flat_axis(plane: str) -> int:
    return {"sagittal": 2, "coronal": 3, "axial": 4}[plane]  # of [B, C, I, J, K]


def randomised(module: nn.Module) -> nn.Module:
    """Running statistics and shifts as after training: those of a new batch norm would hide mistakes."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.bias, std=0.3)
    return module.double().eval()


def in_two_dimensions(module: nn.Module, slices_NCXY: torch.Tensor) -> torch.Tensor:
    """The U-Net computed by 2D operations from the weights of ``module``, flat along K, same padding."""
    assert isinstance(module, UNet)

    def convolve(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for part in block.children():
            if isinstance(part, nn.Conv3d):
                x = F.conv2d(x, part.weight[..., 0], part.bias, padding=1)
            elif isinstance(part, nn.BatchNorm3d):
                x = F.batch_norm(x, part.running_mean, part.running_var, part.weight, part.bias)
            else:
                x = x.relu()
        return x

    skips = []
    x = slices_NCXY
    for level, block in enumerate(module.encoder):
        x = convolve(block, x if level == 0 else F.max_pool2d(x, 2))
        skips.append(x)
    for level in reversed(range(len(module.decoder))):
        up = module.up[level]
        assert isinstance(up, nn.ConvTranspose3d)
        x = F.conv_transpose2d(x, up.weight[..., 0], stride=2)
        x = convolve(module.decoder[level], torch.cat((skips[level], x), dim=1))
    return F.conv2d(x, module.last.weight[..., 0], module.last.bias)


def test_flat_along_an_axis_is_the_two_dimensional_network() -> None:
    torch.manual_seed(0)
    module = randomised(networks.build(FLAT, 2, 3, "same"))
    x = torch.randn(2, 2, 8, 12, 5, dtype=torch.double)
    slices = x.movedim(4, 1).flatten(0, 1)
    with torch.no_grad():
        expected = in_two_dimensions(module, slices).unflatten(0, (2, 5)).movedim(1, 4)
        torch.testing.assert_close(module(x)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_slices_of_a_plane_do_not_see_each_other(plane: str, padding: networks.Padding) -> None:
    torch.manual_seed(0)
    spec = specs.UNet2D.model_validate({"plane": plane, "channels": (4, 6)})
    module = randomised(networks.build(spec, 1, 3, padding))
    axis = flat_axis(plane)
    x = torch.randn(1, 1, 20, 20, 20, dtype=torch.double).narrow(axis, 0, 5)
    changed = x.clone()
    changed.select(axis, 2)[:] += 1
    others = [d for d in range(5) if d != axis]
    with torch.no_grad():
        whole = module(x)[0]
        one_by_one = torch.cat([module(part)[0] for part in x.split(1, dim=axis)], dim=axis)
        touched = (module(changed)[0] - whole).abs().amax(dim=others)
    torch.testing.assert_close(whole, one_by_one, rtol=1e-12, atol=1e-12)
    assert touched[2] > 0.01
    assert touched[[0, 1, 3, 4]].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_valid_slices_lose_their_margin_in_plane_only(plane: str) -> None:
    spec = specs.UNet2D.model_validate({"plane": plane, "channels": (2, 2, 2)})
    axis = flat_axis(plane) - 2
    shape = list(network_shapes.check_input_shape(spec, "valid", in_plane(44, axis, flat=3)))
    assert shape == [3 if a == axis else 4 for a in range(3)]
    module = networks.build(spec, 1, 2, "valid").eval()
    with torch.no_grad():
        found = module(torch.zeros(1, 1, *in_plane(44, axis, flat=3)))[0].shape[2:]
    assert list(found) == shape


def test_two_dimensional_network_has_a_third_of_the_taps() -> None:
    """Convolutions 9 taps instead of 27, transposed ones 4 instead of 8; all else is equal."""
    with torch.device("meta"):
        flat = networks.build(FLAT, 1, 3, "same")
        solid = networks.build(TINY, 1, 3, "same")

    def weights(module: nn.Module, kind: type[nn.Module], size: int) -> int:
        found = [
            m.weight.numel() for m in module.modules() if isinstance(m, kind) and m.kernel_size[0] == size
        ]
        return sum(found)

    assert 3 * weights(flat, nn.Conv3d, 3) == weights(solid, nn.Conv3d, 3) > 0
    assert 2 * weights(flat, nn.ConvTranspose3d, 2) == weights(solid, nn.ConvTranspose3d, 2) > 0
    difference = 2 * weights(flat, nn.Conv3d, 3) + weights(flat, nn.ConvTranspose3d, 2)
    assert networks.parameters(solid) - networks.parameters(flat) == difference


def test_two_dimensional_gradients_reach_every_weight() -> None:
    torch.manual_seed(0)
    module = networks.build(FLAT, 2, 3, "same").train()
    module(torch.randn(1, 2, 8, 8, 3))[0].square().sum().backward()
    weights = [(n, p) for n, p in module.named_parameters() if p.ndim > 1]
    assert [n for n, p in weights if p.grad is None or not p.grad.abs().any()] == []
