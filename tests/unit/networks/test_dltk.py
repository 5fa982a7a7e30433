"""The residual FCN of DLTK: counts, residual units and upscores by hand, and that it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoomseg.networks import build as networks
from zoomseg.networks.blocks import upsample
from zoomseg.networks.dltk import ResidualUnit, UpScore
from zoomseg.recipe import network_shapes
from zoomseg.recipe import spec as specs

SMALL = specs.ResidualFCN(channels=(4, 6, 8), strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)))


def module_of(spec: specs.ResidualFCN, in_channels: int = 1, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return networks.build(spec, in_channels, classes, "same")


def test_parameters_of_the_published_layout() -> None:
    """16, 32, 64, 128 filters, one unit per scale, counted by hand from DLTK's layers; C classes."""
    classes = 8
    first = 27 * 1 * 16
    units = 0
    for before, after in ((16, 32), (32, 64), (64, 128)):
        strided = 2 * before + 4**3 * before * after  # batch norm, then a kernel of twice the stride
        units += strided + 2 * after + 3**3 * after * after
    scores = 128 * classes + (64 + 32 + 16) * classes + 3 * 2 * classes + classes * classes
    with torch.device("meta"):
        module = networks.build(specs.ResidualFCN(), 1, classes, "same")
    assert first + units + scores == 1_271_872
    assert networks.parameters(module) == 1_271_872


def test_further_units_of_a_scale_keep_its_shape() -> None:
    with torch.device("meta"):
        one = networks.build(SMALL, 1, 3, "same")
        three = networks.build(SMALL.model_copy(update={"units": 3}), 1, 3, "same")
    more = sum(2 * (2 * c + 2 * c + 2 * 27 * c * c) for c in (6, 8))
    assert networks.parameters(three) - networks.parameters(one) == more
    with torch.no_grad():
        x = torch.randn(1, 1, 8, 8, 4)
        assert module_of(SMALL.model_copy(update={"units": 3})).eval()(x)[0].shape == (1, 3, 8, 8, 4)


def test_no_convolution_has_a_bias() -> None:
    module = module_of(SMALL)
    assert [m for m in module.modules() if isinstance(m, nn.Conv3d) and m.bias is not None] == []


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu6", [0.0, 0.0, 3.0, 6.0]),  # tf.nn.relu6, the default of releases 0.2.0 and 0.2.1
        ("leaky_relu", [-0.2, -0.1, 3.0, 8.0]),  # relu_leakiness=0.1 of release 0.1.1
    ],
)
def test_what_a_residual_unit_s_activation_lets_through(
    activation: specs.ResidualFCNActivation, expected: list[float]
) -> None:
    """Batch norm of a new unit does not change its input (except for its epsilon), the convolution copies
    it."""
    first = ResidualUnit(1, 1, activation).eval().first
    conv = first[2]
    assert isinstance(conv, nn.Conv3d)
    nn.init.dirac_(conv.weight)
    x = torch.tensor([-2.0, -1.0, 3.0, 8.0]).reshape(1, 1, 4, 1, 1)
    with torch.no_grad():
        assert first(x).flatten().tolist() == pytest.approx(expected, rel=1e-4)


def test_models_saved_before_the_activation_had_a_key_keep_theirs() -> None:
    saved = {"kind": "residual_fcn", "channels": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]], "units": 1}
    spec = specs.ResidualFCN.model_validate(saved)
    slopes = [m.negative_slope for m in module_of(spec).modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.1, 0.1]


def test_a_wider_unit_adds_its_pooled_input_amid_zeros() -> None:
    unit = ResidualUnit(2, 5, "relu6", (2, 1, 2))
    last = unit.second[2]
    assert isinstance(last, nn.Conv3d)
    nn.init.zeros_(last.weight)
    x = torch.randn(1, 2, 4, 3, 4)
    out = unit(x)
    assert torch.equal(out[:, 1:3], F.max_pool3d(x, (2, 1, 2)))  # one zero channel before, two behind
    assert not out[:, [0, 3, 4]].any()


def test_a_narrower_unit_projects_its_input() -> None:
    unit = ResidualUnit(4, 2, "relu6")
    assert isinstance(unit.project, nn.Conv3d)
    last = unit.second[2]
    assert isinstance(last, nn.Conv3d)
    nn.init.zeros_(last.weight)
    x = torch.randn(1, 4, 4, 4, 4)
    assert torch.equal(unit(x), F.conv3d(x, unit.project.weight, padding=1))


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_a_strided_kernel_sees_all_voxels_alike(stride: int) -> None:
    """Twice the stride wide: with weights of one, each voxel inside counts in two outputs per axis."""
    conv = ResidualUnit(1, 1, "relu6", (stride, stride, stride)).first[2]
    assert isinstance(conv, nn.Conv3d)
    nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, *(4 * stride,) * 3, requires_grad=True)
    out = conv(x)
    assert tuple(out.shape[2:]) == (4, 4, 4)
    out.sum().backward()
    assert x.grad is not None
    inside = x.grad[(0, 0, *(slice(stride, -stride),) * 3)]
    assert torch.equal(inside, torch.full_like(inside, 8))


def test_upscore_adds_the_upsampled_scores_to_the_projected_skip() -> None:
    torch.manual_seed(0)
    score = UpScore(6, 4, 3, (2, 2, 1)).eval()
    low, skip = torch.randn(1, 6, 2, 2, 4), torch.randn(1, 4, 4, 4, 4)
    assert isinstance(score.low, nn.Conv3d)
    projected = score.skip[0]
    assert isinstance(projected, nn.Conv3d)
    scores = torch.einsum("oc,bcijk->boijk", score.low.weight[..., 0, 0, 0], low)
    features = torch.einsum("oc,bcijk->boijk", projected.weight[..., 0, 0, 0], skip)
    expected = upsample(scores, (2, 2, 1)) + features / (1 + 1e-5) ** 0.5  # a new batch norm's statistics
    with torch.no_grad():
        torch.testing.assert_close(score(low, skip), expected)


def test_scores_are_not_projected_again() -> None:
    """A lower scale that already has one channel per class is added as it is, as in DLTK."""
    assert isinstance(UpScore(3, 4, 3, (2, 2, 2)).low, nn.Identity)
    module = module_of(SMALL)
    assert [isinstance(up.low, nn.Identity) for up in module.upscore] == [True, False]  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_is_the_toolkits_away_from_the_border(factor: int) -> None:
    """DLTK upsamples by a transposed convolution with a fixed linear kernel of twice the factor."""
    x = torch.randn(1, 1, 6, 6, 6)
    ramp = 1 - (torch.arange(2.0 * factor) - (factor - 0.5)).abs() / factor
    kernel = torch.einsum("i,j,k->ijk", ramp, ramp, ramp)[None, None]
    theirs = F.conv_transpose3d(x, kernel, stride=factor, padding=factor // 2)
    inside = (0, 0, *(slice(factor, -factor),) * 3)
    torch.testing.assert_close(upsample(x, (factor,) * 3)[inside], theirs[inside])


@pytest.mark.parametrize("first", [(1, 1, 1), (2, 2, 1)])
def test_answers_at_the_inputs_resolution(first: tuple[int, int, int]) -> None:
    spec = SMALL.model_copy(update={"strides": (first, *SMALL.strides[1:])})
    assert network_shapes.divisor(spec) == tuple(n * f for n, f in zip((4, 4, 2), first, strict=True))
    shape = network_shapes.check_input_shape(spec, "same", (16, 8, 6))
    with torch.no_grad():
        logits = module_of(spec, in_channels=2).eval()(torch.randn(1, 2, *shape))
    assert [tuple(t.shape) for t in logits] == [(1, 3, *shape)]


def test_gradients_reach_every_parameter() -> None:
    module = module_of(SMALL, in_channels=2).train()
    x = torch.randn(2, 2, 8, 8, 8)
    F.cross_entropy(module(x)[0], torch.randint(0, 3, (2, 8, 8, 8))).backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


def test_it_learns_where_a_bright_ball_is() -> None:
    module = module_of(SMALL, classes=2).train()
    axes = torch.arange(16.0) - 7.5
    distance = (axes[:, None, None] ** 2 + axes[:, None] ** 2 + axes**2).sqrt()
    truth = (distance < 5).long().expand(2, 16, 16, 16)
    x = truth[:, None].float() + 0.5 * torch.randn(2, 1, 16, 16, 16)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        loss = F.cross_entropy(module(x)[0], truth)
        loss.backward()
        optimiser.step()
    found = module(x)[0].argmax(dim=1)
    dice = 2 * (found * truth).sum() / (found.sum() + truth.sum())
    assert dice > 0.9
