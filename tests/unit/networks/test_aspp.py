"""The residual U-Net with ASPP: branches, resolution, and training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoomseg.networks import build as networks
from zoomseg.networks.aspp import ASPP, ResUNetASPP
from zoomseg.networks.blocks import upsample
from zoomseg.recipe import network_shapes
from zoomseg.recipe import spec as specs

SMALL = specs.ResUNetASPP(channels=(4, 6, 8), dilations=(1, 2))


def module_of(in_channels: int = 1, classes: int = 3) -> ResUNetASPP:
    torch.manual_seed(0)
    module = networks.build(SMALL, in_channels, classes, "same")
    assert isinstance(module, ResUNetASPP)
    return module


def silenced(aspp: ASPP, but: nn.Module) -> ASPP:
    """All branches but one have a zero output."""
    for branch in (aspp.point, *aspp.dilated, aspp.mean):
        if branch is not but:
            for parameter in branch.parameters():
                nn.init.zeros_(parameter)
    return aspp


def reach(aspp: ASPP) -> list[tuple[int, int, int]]:
    """Offsets along I, from the middle, of the voxels on which the middle's output depends."""
    x = torch.rand(1, 16, 13, 13, 13, requires_grad=True)
    aspp(x)[0, :, 6, 6, 6].sum().backward()
    assert x.grad is not None
    i, j, k = torch.nonzero(x.grad[0].abs().amax(dim=0), as_tuple=True)
    return sorted({(a - 6, b - 6, c - 6) for a, b, c in zip(i.tolist(), j.tolist(), k.tolist(), strict=True)})


@pytest.mark.parametrize("index", [0, 1])
def test_a_dilated_branch_sees_27_voxels_at_its_distance(index: int) -> None:
    torch.manual_seed(0)
    aspp = ASPP(16, (2, 5)).eval()
    rate = (2, 5)[index]
    steps = (-rate, 0, rate)
    expected = sorted((a, b, c) for a in steps for b in steps for c in steps)
    assert reach(silenced(aspp, aspp.dilated[index])) == expected


def test_the_pointwise_branch_sees_one_voxel_and_the_mean_all() -> None:
    torch.manual_seed(1)
    aspp = ASPP(16, (2,)).eval()
    assert reach(silenced(aspp, aspp.point)) == [(0, 0, 0)]
    torch.manual_seed(1)
    aspp = ASPP(16, (2,)).eval()
    assert len(reach(silenced(aspp, aspp.mean))) == 13**3


def test_separable_convolutions_have_the_weights_they_should() -> None:
    """Per dilation 27 taps per channel and one matrix, two batch norms; matrices for the rest."""
    c = 8
    aspp = ASPP(c, (2, 4, 8))
    separable = 27 * c + c * c + 2 * 2 * c
    assert networks.parameters(aspp) == (c * c + 2 * c) + 3 * separable + (c * c + c) + (5 * c * c + 2 * c)


def test_one_case_alone_can_be_trained() -> None:
    """The global mean has no statistics over one case: that branch must not normalise."""
    aspp = ASPP(4, (1,)).train()
    assert torch.isfinite(aspp(torch.randn(1, 4, 2, 1, 1))).all()


def test_the_last_layer_at_half_resolution_is_the_last_layer_at_full() -> None:
    module = module_of().eval()
    caught: list[torch.Tensor] = []
    module.last.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    with torch.no_grad():
        logits = module(torch.randn(1, 1, 16, 16, 8))[0]
        torch.testing.assert_close(logits, module.last(upsample(caught[0], (2, 2, 2))), rtol=1e-4, atol=1e-5)
    assert tuple(logits.shape) == (1, 3, 16, 16, 8)


def test_every_level_halves() -> None:
    assert network_shapes.divisor(SMALL) == (8, 8, 8)
    four = specs.ResUNetASPP(channels=(32, 64, 128, 256), dilations=(2, 4, 8))
    assert network_shapes.divisor(four) == (16, 16, 16)
    module = module_of().eval()
    seen: list[tuple[int, ...]] = []
    module.aspp.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    with torch.no_grad():
        module(torch.randn(1, 1, 16, 24, 32))
    assert seen == [(1, 8, 2, 3, 4)]


def test_skips_and_bottom_both_reach_the_answer() -> None:
    """Silencing the bottom or any skip changes the logits."""
    module = module_of().eval()
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        whole = module(x)[0]
        for part in (module.stem, module.encoder[0], module.aspp):
            hook = part.register_forward_hook(lambda _m, _given, out: torch.zeros_like(out))
            assert (module(x)[0] - whole).abs().max() > 0.01
            hook.remove()
        torch.testing.assert_close(module(x)[0], whole)


def test_gradients_reach_every_weight() -> None:
    """Except the biases of convolutions, which the following batch norm removes."""
    module = module_of(in_channels=2).train()
    x = torch.randn(2, 2, 16, 16, 16)
    F.cross_entropy(module(x)[0], torch.randint(0, 3, (2, 16, 16, 16))).backward()
    weights = [(n, p) for n, p in module.named_parameters() if p.ndim > 1]
    assert [n for n, p in weights if p.grad is None or not p.grad.abs().any()] == []


def test_it_learns_where_a_bright_ball_is() -> None:
    module = module_of(classes=2).train()
    axes = torch.arange(16.0) - 7.5
    distance = (axes[:, None, None] ** 2 + axes[:, None] ** 2 + axes**2).sqrt()
    truth = (distance < 5).long().expand(2, 16, 16, 16)
    x = truth[:, None].float() + 0.5 * torch.randn(2, 1, 16, 16, 16)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        loss = F.cross_entropy(module(x)[0], truth)
        loss.backward()
        optimiser.step()
    found = module(x)[0].argmax(dim=1)
    dice = 2 * (found * truth).sum() / (found.sum() + truth.sum())
    assert dice > 0.9


def test_bfloat16_stays_near_float32() -> None:
    """The paper's runs are in mixed precision throughout."""
    module = module_of().eval()
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        exact = module(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module(x)[0]
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_traces_to_one_graph() -> None:
    module = module_of().eval()
    x = torch.randn(1, 1, 16, 16, 8)
    exported = torch.export.export(module, (x,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x)[0], module(x)[0])
