"""The residual-encoder U-Net: deep supervision, strides per axis, half precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoomseg.networks import build as networks
from zoomseg.recipe import network_shapes
from zoomseg.recipe import spec as specs

SPEC = specs.ResEncUNet(
    channels=(4, 6, 8, 10),
    strides=((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)),
    kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    blocks=(1, 2, 1, 1),
)


def module_of(spec: specs.ResEncUNet) -> nn.Module:
    torch.manual_seed(0)
    return networks.build(spec, 2, 3, "same")


def shapes(logits: tuple[torch.Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(t.shape[1:]) for t in logits]


def test_deep_supervision_answers_at_all_levels_but_the_lowest_in_training_only() -> None:
    module = module_of(SPEC)
    x = torch.randn(1, 2, 16, 24, 8)
    # Decoder levels: 16x24x8, 8x12x8 and the lowest, 4x6x4, which has no head.
    assert shapes(module.train()(x)) == [(3, 16, 24, 8), (3, 8, 12, 8)]
    assert shapes(module.eval()(x)) == [(3, 16, 24, 8)]
    assert len(module_of(SPEC.model_copy(update={"deep_supervision": False})).train()(x)) == 1


def test_the_first_answer_is_the_same_in_training_and_evaluation() -> None:
    """Instance norm keeps no running statistics: nothing may depend on the mode but the extra heads."""
    module = module_of(SPEC)
    x = torch.randn(2, 2, 16, 16, 8)
    with torch.no_grad():
        torch.testing.assert_close(module.train()(x)[0], module.eval()(x)[0])


def test_two_levels_have_one_head() -> None:
    spec = specs.ResEncUNet(
        channels=(4, 6), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3), (3, 3, 3)), blocks=(1, 1)
    )
    assert shapes(module_of(spec).train()(torch.randn(1, 2, 8, 8, 8))) == [(3, 8, 8, 8)]


@pytest.mark.parametrize("stem", [(2, 2, 1), (4, 2, 2)])
def test_a_strided_stem_still_answers_at_input_resolution(stem: tuple[int, int, int]) -> None:
    spec = SPEC.model_copy(update={"strides": (stem, *SPEC.strides[1:])})
    module = module_of(spec)
    x = torch.randn(1, 2, 32, 16, 16)
    assert network_shapes.check_input_shape(spec, "same", (32, 16, 16)) == (32, 16, 16)
    logits = module.train()(x)
    assert shapes(logits)[0] == (3, 32, 16, 16)
    small = tuple(n // s // d for n, s, d in zip((32, 16, 16), stem, SPEC.strides[1], strict=True))
    assert shapes(logits)[1] == (3, *small)


def test_strides_of_one_keep_an_axis_at_full_resolution() -> None:
    """With strides 1 and kernels 1 along k, slices only affect each other through the norms."""
    flat = specs.ResEncUNet(
        channels=(4, 6), strides=((1, 1, 1), (2, 2, 1)), kernels=((3, 3, 1), (3, 3, 1)), blocks=(1, 1)
    )
    module = module_of(flat)
    for part in [m for m in module.modules() if isinstance(m, nn.InstanceNorm3d)]:
        part.eval()
        part.track_running_stats = True
        part.running_mean, part.running_var = torch.zeros(part.num_features), torch.ones(part.num_features)
    module.eval()
    x = torch.randn(1, 2, 8, 8, 4)
    changed = x.clone()
    changed[..., 2] += 1
    with torch.no_grad():
        difference = (module(x)[0] - module(changed)[0]).abs().amax(dim=(0, 1, 2, 3))
    assert difference[2] > 0
    assert difference[[0, 1, 3]].tolist() == [0, 0, 0]


def test_gradients_reach_every_parameter() -> None:
    module = module_of(SPEC).train()
    loss = torch.zeros(())
    for logits in module(torch.randn(1, 2, 16, 16, 8)):
        loss = loss + F.cross_entropy(logits, torch.randint(0, 3, (1, *logits.shape[2:])))
    loss.backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


def test_the_residual_path_skips_no_voxel() -> None:
    """Averaged, not strided: without the convolutions, each input voxel still has the same weight."""
    from zoomseg.networks.blocks import ResidualBlock

    block = ResidualBlock(1, 1, (3, 3, 3), (2, 2, 2))
    for part in block.second.modules():
        if isinstance(part, nn.InstanceNorm3d):
            nn.init.zeros_(part.weight)
    x = torch.rand(1, 1, 4, 4, 4, requires_grad=True)
    block(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 8))


def test_bfloat16_stays_near_float32() -> None:
    module = module_of(SPEC).eval()
    x = torch.randn(1, 2, 16, 16, 8)
    with torch.no_grad():
        exact = module(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module(x)[0]
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_traces_to_one_graph() -> None:
    """torch.export (what ONNX and compilation start from) must see no data-dependent control flow."""
    module = module_of(SPEC).eval()
    x = torch.randn(1, 2, 16, 16, 8)
    exported = torch.export.export(module, (x,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x)[0], module(x)[0])


def test_he_initialisation_keeps_the_scale_of_activations() -> None:
    """Variance in equals variance out for the transposed convolutions, whose fan-in torch miscounts."""
    torch.manual_seed(0)
    from zoomseg.networks.blocks import initialise

    up = nn.ConvTranspose3d(64, 64, 2, stride=2, bias=False)
    initialise(up, slope=0.0)
    x = torch.randn(1, 64, 12, 12, 12).relu()
    with torch.no_grad():
        assert up(x).std().item() == pytest.approx(1.0, abs=0.05)
