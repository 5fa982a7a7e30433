"""``resunet_aspp`` compared with the figures in the paper (FLARE 2022, Tables 2 and 3)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoomseg.networks import build as networks
from zoomseg.networks.aspp import ResUNetASPP
from zoomseg.recipe import network_shapes
from zoomseg.recipe import spec as specs
from zoomseg.recipe.load import load


def _shipped() -> specs.ResUNetASPP:
    recipe = load("flare22-whole-volume")
    assert isinstance(recipe, specs.Recipe)
    found = {stage.network for stage in recipe.stages}
    assert len(found) == 1  # Tables 2 and 3: the same architecture in all stages
    network = found.pop()
    assert isinstance(network, specs.ResUNetASPP)
    return network


SPEC = _shipped()
CLASSES = 14
"""Thirteen organs and background."""
GROUPS = {"liver, spleen, both kidneys": 5, "stomach, pancreas, duodenum": 4, "aorta, inferior vena cava": 3}


def module_of(classes: int, in_channels: int = 1) -> nn.Module:
    with torch.device("meta"):
        return networks.build(SPEC, in_channels, classes, "same").eval()


def billions(module: nn.Module, size: int) -> float:
    return networks.multiply_adds(module, (1, size, size, size)) / 1e9


def test_parameters() -> None:
    count = networks.parameters(module_of(CLASSES))
    assert count / 1e6 == pytest.approx(15.17, rel=0.05)
    assert count == 15_856_046


@pytest.mark.parametrize(("size", "published"), [(128, 93.43), (160, 182.49)])
def test_multiply_adds(size: int, published: float) -> None:
    """The ratio of the two figures is (160 / 128) ** 3, as for one network in both stages."""
    assert billions(module_of(CLASSES), size) == pytest.approx(published, rel=0.1)
    assert billions(module_of(CLASSES), size) == pytest.approx(
        published, rel=0.0025
    )  # the actual agreement is closer


def test_without_aspp_it_is_the_released_backbone() -> None:
    """Its file states 15 176 864 parameters, for three channels and without the last layer."""
    module = module_of(CLASSES, in_channels=3)
    assert isinstance(module, ResUNetASPP)
    beyond = networks.parameters(module.aspp) + networks.parameters(module.last)
    assert networks.parameters(module) - beyond == 15_176_864


@pytest.mark.parametrize("classes", GROUPS.values(), ids=GROUPS.keys())
def test_a_group_differs_in_its_last_layer_only(classes: int) -> None:
    """32 weights and a bias per class, at half the input's resolution."""
    group, whole = module_of(classes), module_of(CLASSES)
    fewer = CLASSES - classes
    assert networks.parameters(whole) - networks.parameters(group) == 33 * fewer
    assert networks.parameters(group) / 1e6 == pytest.approx(15.17, rel=0.05)
    shape = (1, 160, 160, 160)
    less = networks.multiply_adds(whole, shape) - networks.multiply_adds(group, shape)
    assert less == 32 * fewer * 80**3


def test_four_layers_down_and_four_up() -> None:
    assert network_shapes.divisor(SPEC) == (16, 16, 16)
    module = module_of(CLASSES)
    strided = [m for m in module.modules() if isinstance(m, nn.Conv3d) and m.stride == (2, 2, 2)]
    assert len(strided) == 4
    assert network_shapes.check_input_shape(SPEC, "same", (128, 128, 128)) == (128, 128, 128)
    assert network_shapes.check_input_shape(SPEC, "same", (160, 160, 160)) == (160, 160, 160)
    logits = module(torch.empty(1, 1, 160, 160, 160, device="meta"))
    assert [tuple(t.shape) for t in logits] == [(1, 14, 160, 160, 160)]


def test_initial_weights_are_he_normal() -> None:
    """Table 2: "he" normal initialisation: standard deviation (2 / fan in) ** 0.5."""
    torch.manual_seed(0)
    module = networks.build(specs.ResUNetASPP(channels=(16, 32, 64), dilations=(2,)), 1, 14, "same")
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv3d) and part.weight.numel() > 5000:
            fan_in = part.weight[0].numel()
            found = float(part.weight.detach().std()) * (fan_in / 2) ** 0.5
            assert found == pytest.approx(1, abs=0.05), name
