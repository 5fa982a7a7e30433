"""Networks: the same logits as nnU-Net's, for any order of axes; unsupported ones are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from helpers import nnunet_models
from zoomseg.core.errors import ModelError
from zoomseg.importing.nnunet.network import axes_of, spec_of, turned, weights_of
from zoomseg.importing.nnunet.plans import Architecture
from zoomseg.networks import build as networks


def parsed(residual: bool, **changes: Any) -> Architecture:
    given = nnunet_models.architecture(residual)
    given["arch_kwargs"] |= changes
    return Architecture.model_validate(given)


@pytest.mark.parametrize("residual", [False, True])
def test_a_network_of_slices_has_kernels_of_one_voxel_across_them(residual: bool) -> None:
    theirs = nnunet_models.random_network(residual, dimensions=2)
    axes = axes_of((1, 0, 2))  # slices lie across j
    architecture = Architecture.model_validate(nnunet_models.architecture(residual, 2))
    spec = spec_of(architecture, axes, 2)
    module = networks.build(spec, 1, 3, "same").eval()
    weights = weights_of(nnunet_models.stored(theirs), spec, axes, 1, 3)
    module.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    slice_BCKI = torch.randn(1, 1, 8, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(slice_BCKI)
        found = module(slice_BCKI.permute(0, 1, 3, 2)[:, :, :, None])[0]
    torch.testing.assert_close(found[:, :, :, 0].permute(0, 1, 3, 2), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("residual", "transpose"), [(False, (0, 1, 2)), (False, (2, 0, 1)), (True, (1, 2, 0))]
)
def test_logits_are_those_of_nnunets_network(residual: bool, transpose: tuple[int, int, int]) -> None:
    theirs = nnunet_models.random_network(residual, channels=2)
    axes = axes_of(transpose)
    spec = spec_of(parsed(residual), axes)
    module = networks.build(spec, 2, 3, "same").eval()
    weights = weights_of(nnunet_models.stored(theirs), spec, axes, 2, 3)
    module.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    scan_BCIJK = torch.randn(1, 2, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    # nnU-Net reads k, j, i, and transposes that.
    seen = scan_BCIJK.permute(0, 1, 4, 3, 2).permute(0, 1, *(2 + a for a in transpose))
    with torch.no_grad():
        expected = (
            theirs(seen).permute(0, 1, *(2 + int(a) for a in np.argsort(transpose))).permute(0, 1, 4, 3, 2)
        )
        found = module(scan_BCIJK)[0]
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_axes_are_turned_from_transposed_k_j_i() -> None:
    assert turned([1, 2, 3], axes_of([0, 1, 2])) == (3, 2, 1)
    # transpose_forward (2, 0, 1): the network's first axis is i, its second k, its third j.
    assert turned([10, 20, 30], axes_of([2, 0, 1])) == (10, 30, 20)


@pytest.mark.parametrize(
    ("residual", "changes", "message"),
    [
        (
            False,
            {"norm_op": "torch.nn.BatchNorm3d"},
            "norm_op torch.nn.BatchNorm3d .*supported is InstanceNorm3d",
        ),
        (
            False,
            {"nonlin_kwargs": {"negative_slope": 0.2}},
            "of slope 0.2: supported is LeakyReLU of slope 0.01",
        ),
        (False, {"nonlin_first": True}, "after the norm"),
        (True, {"block": "x.BottleneckD"}, "block x.BottleneckD: supported is BasicBlockD"),
        (True, {"n_conv_per_stage_decoder": 2}, r"\[2, 2\] decoder convolutions"),
        (
            False,
            {"features_per_stage": [4, 8]},
            "features_per_stage has 2 entries, expected one per level .3.",
        ),
        (False, {"kernel_sizes": [[3, 3]] * 3}, "kernel_sizes must have one entry per level .3., of 3 axes"),
        (False, {"strides": 2}, r"strides: the first level has \[2, 2, 2\]"),
    ],
)
def test_what_is_not_read_is_named(residual: bool, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        spec_of(parsed(residual, **changes), (2, 1, 0))


def test_another_network_is_refused_by_its_class() -> None:
    other = parsed(False).model_copy(update={"network_class_name": "some.where.Primus"})
    with pytest.raises(
        ModelError, match=r"some\.where\.Primus: supported are PlainConvUNet and ResidualEncoderUNet"
    ):
        spec_of(other, (2, 1, 0))


@pytest.mark.parametrize("part", ["running_mean", "num_batches_tracked"])
@pytest.mark.parametrize(
    "module", ["encoder.stages.1.0.convs.0.norm", "decoder.encoder.stages.0.0.convs.0.norm"]
)
def test_a_norm_with_statistics_is_refused_whatever_the_plans_say(module: str, part: str) -> None:
    given = nnunet_models.stored(nnunet_models.random_network(False)) | {f"{module}.{part}": torch.zeros(4)}
    spec = spec_of(parsed(False), (2, 1, 0))
    with pytest.raises(ModelError, match=rf"{part}, .* batch norm .* its trainer nnUNetTrainerBN changed"):
        weights_of(given, spec, (2, 1, 0), 1, 3, trainer="nnUNetTrainerBN")


def test_weights_that_do_not_fit_are_named() -> None:
    given = nnunet_models.stored(nnunet_models.random_network(False))
    spec = spec_of(parsed(False), (2, 1, 0))
    with pytest.raises(
        ModelError, match=r"decoder\.seg_layers\.1\.weight has shape \[3, 4, 1, 1, 1\].*\[5, 4, 1"
    ):
        weights_of(given, spec, (2, 1, 0), 1, 5)
    with pytest.raises(ModelError, match=r"has a weight attention\.weight, which no PlainConvUNet"):
        weights_of(given | {"attention.weight": torch.zeros(1)}, spec, (2, 1, 0), 1, 3)
    del given["encoder.stages.1.0.convs.1.norm.weight"]
    with pytest.raises(ModelError, match=r"no weight encoder\.stages\.1\.0\.convs\.1\.norm\.weight"):
        weights_of(given, spec, (2, 1, 0), 1, 3)


STEM = "encoder.stages.0.0.convs.0.conv.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda own: torch.zeros(1, dtype=torch.half).expand(10**13),
        lambda own: torch.zeros(1).expand(own.shape),
        lambda own: own.to_sparse(),
        lambda own: own.to("meta"),
        lambda own: own.to(torch.complex64),
        lambda own: own.to(torch.int32),
    ],
    ids=["huge", "expanded", "sparse", "meta", "complex", "whole"],
)
def test_a_weight_that_is_no_array_of_real_numbers_is_refused(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    given = nnunet_models.stored(nnunet_models.random_network(False))
    given[STEM] = change(given[STEM])
    with pytest.raises(ModelError, match=rf"{STEM} is no array of real numbers that are in the file"):
        weights_of(given, spec_of(parsed(False), (2, 1, 0)), (2, 1, 0), 1, 3)


@pytest.mark.parametrize("regions", [False, True])
def test_a_number_instead_of_an_array_is_refused(regions: bool) -> None:
    given = nnunet_models.stored(nnunet_models.random_network(False, classes=2 if regions else 3))
    given["decoder.seg_layers.1.bias"] = torch.zeros(())
    with pytest.raises(ModelError, match=r"seg_layers\.1\.bias has shape \[\], the network"):
        weights_of(given, spec_of(parsed(False), (2, 1, 0)), (2, 1, 0), 1, 3, regions)


def test_weights_saved_as_parameters_are_read() -> None:
    """As a dictionary of ``named_parameters`` has them, and in half precision."""
    given = nnunet_models.stored(nnunet_models.random_network(False))
    spec = spec_of(parsed(False), (2, 1, 0))
    expected = weights_of(given, spec, (2, 1, 0), 1, 3)
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in given.items()}
    found = weights_of(parameters, spec, (2, 1, 0), 1, 3)
    half = weights_of({name: tensor.half() for name, tensor in given.items()}, spec, (2, 1, 0), 1, 3)
    for name, values in expected.items():
        assert np.array_equal(found[name], values)
        np.testing.assert_allclose(half[name], values, rtol=1e-3, atol=1e-4)
        assert half[name].dtype == np.float32
