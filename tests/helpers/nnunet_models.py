"""Small models in the format of nnU-Net v2: its networks reimplemented, with its names of weights and its
order of axes, and random weights in plans, data set description and checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEVELS, FEATURES = 3, [4, 8, 8]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
LABELS = {"background": 0, "liver": 1, "spleen": 2}
PATCH = [4, 8, 12]
CONV = {2: nn.Conv2d, 3: nn.Conv3d}
UPSAMPLING = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
POOLING = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
"""By the number of axes."""


class _Conv(nn.Module):
    """``ConvDropoutNormReLU``: convolution with bias, instance norm, leaky ReLU."""

    def __init__(
        self, before: int, after: int, kernel: list[int], stride: list[int], act: bool = True
    ) -> None:
        super().__init__()
        self.conv = CONV[len(kernel)](before, after, kernel, stride, [n // 2 for n in kernel])  # type: ignore[arg-type]
        self.norm = NORM[len(kernel)](after, affine=True)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return nn.functional.leaky_relu(x, 0.01) if self.act else x


class _Convs(nn.Module):
    def __init__(self, count: int, before: int, after: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        ones = [1] * len(kernel)
        rest = [_Conv(after, after, kernel, ones) for _ in range(count - 1)]
        self.convs = nn.Sequential(_Conv(before, after, kernel, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convs(x)
        return out


class _Block(nn.Module):
    """``BasicBlockD``."""

    def __init__(self, before: int, after: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        self.conv1 = _Conv(before, after, kernel, stride)
        ones = [1] * len(kernel)
        self.conv2 = _Conv(after, after, kernel, ones, act=False)
        parts: list[nn.Module] = []
        if stride != ones:
            parts.append(POOLING[len(kernel)](stride, stride))  # type: ignore[arg-type]
        if before != after:
            projection = _Conv(before, after, ones, ones, act=False)
            projection.conv.bias = None
            parts.append(projection)
        self.skip = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), 0.01)


class _Blocks(nn.Module):
    def __init__(self, count: int, before: int, after: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        rest = [_Block(after, after, kernel, [1] * len(kernel)) for _ in range(count - 1)]
        self.blocks = nn.Sequential(_Block(before, after, kernel, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


class Network(nn.Module):
    """``PlainConvUNet``, or ``ResidualEncoderUNet``, with its heads of deep supervision; for slices, if it
    has 2 ``dimensions``."""

    def __init__(
        self, residual: bool, channels: int = 1, classes: int = len(LABELS), dimensions: int = 3
    ) -> None:
        super().__init__()
        kernels, strides = _of_axes(KERNELS, dimensions), _of_axes(STRIDES, dimensions)
        self.encoder, self.decoder = nn.Module(), nn.Module()
        inputs = [channels, *FEATURES[:-1]]
        if residual:
            self.encoder.stem = _Convs(1, channels, FEATURES[0], kernels[0], strides[0])
            inputs[0] = FEATURES[0]
        levels = list(zip([1, 2, 2], inputs, FEATURES, kernels, strides, strict=True))
        stages = [_Blocks(*n) if residual else nn.Sequential(_Convs(*n)) for n in levels]
        self.encoder.stages = nn.Sequential(*stages)
        up, down, heads = [], [], []
        for n in reversed(range(LEVELS - 1)):
            after = FEATURES[n]
            up.append(UPSAMPLING[dimensions](FEATURES[n + 1], after, strides[n + 1], strides[n + 1]))  # type: ignore[arg-type]
            down.append(_Convs(1 if residual else 2, 2 * after, after, kernels[n], strides[0]))
            heads.append(CONV[dimensions](after, classes, 1))
        self.decoder.transpconvs, self.decoder.stages = nn.ModuleList(up), nn.ModuleList(down)
        self.decoder.seg_layers = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        skips = []
        x = self.encoder.stem(x) if hasattr(self.encoder, "stem") else x
        for stage in self.encoder.stages:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, convs in zip(self.decoder.transpconvs, self.decoder.stages, strict=True):
            x = convs(torch.cat([up(x), skips.pop()], dim=1))
        out: Tensor = self.decoder.seg_layers[-1](x)
        return out


def _of_axes(sizes: list[list[int]], dimensions: int) -> list[list[int]]:
    """The last axes of every level."""
    return [size[-dimensions:] for size in sizes]


def random_network(
    residual: bool, channels: int = 1, seed: int = 0, classes: int = len(LABELS), dimensions: int = 3
) -> Network:
    """A network in which weights, biases and norms all have an effect."""
    torch.manual_seed(seed)
    network = Network(residual, channels, classes, dimensions)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.2, 0.4)
    for head in network.decoder.seg_layers:  # type: ignore[union-attr]
        nn.init.zeros_(head.bias)
        head.weight.data -= head.weight.data.mean(dim=0)  # so that every class wins somewhere
    return network.eval()


def architecture(residual: bool, dimensions: int = 3) -> dict[str, Any]:
    count = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": LEVELS,
            "features_per_stage": FEATURES,
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": _of_axes(KERNELS, dimensions),
            "strides": _of_axes(STRIDES, dimensions),
            count: [1, 2, 2],
            "n_conv_per_stage_decoder": [1, 1] if residual else [2, 2],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def old_numbers() -> dict[str, Any]:
    """The numbers of ``architecture(False)`` in plans before nnU-Net 2.4."""
    return {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [1, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": STRIDES,
        "conv_kernel_sizes": KERNELS,
    }


def plans(
    residual: bool = False, scheme: str = "CTNormalization", transpose: tuple[int, ...] = (0, 1, 2)
) -> Any:
    """Plans as a dictionary, to be changed and written."""
    function = "resample_data_or_seg_to_shape"
    options = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset007_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": 60.0,
                "std": 50.0,
                "percentile_00_5": -100.0,
                "percentile_99_5": 200.0,
                "median": 55.0,
            }
        },
        "configurations": {
            "3d_fullres": {
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": PATCH,
                "spacing": [3.0, 1.5, 1.25],
                "normalization_schemes": [scheme],
                "use_mask_for_norm": [False],
                "resampling_fn_data": function,
                "resampling_fn_data_kwargs": options | {"order": 3},
                "resampling_fn_seg": function,
                "resampling_fn_seg_kwargs": options | {"is_seg": True, "order": 1},
                "resampling_fn_probabilities": function,
                "resampling_fn_probabilities_kwargs": options | {"order": 1},
                "architecture": architecture(residual),
            },
            "2d": {
                "inherits_from": "3d_fullres",
                "patch_size": PATCH[1:],
                "spacing": [1.5, 1.25],
                "architecture": architecture(residual, 2),
            },
            "3d_child": {"inherits_from": "3d_fullres", "spacing": [6.0, 3.0, 2.5]},
        },
    }


def stored(network: nn.Module) -> dict[str, Tensor]:
    """The state dict with the additional names that nnU-Net's modules have for the same weights."""
    own = dict(network.state_dict())
    for name in list(own):
        module, _, part = name.rpartition(".")
        if module.endswith((".conv", ".norm")):
            place = 0 if module.endswith(".conv") else 1
            own[f"{module[:-5]}.all_modules.{place}.{part}"] = own[name]
    return own | {f"decoder.{name}": value for name, value in own.items() if name.startswith("encoder.")}


def checkpoint(network: nn.Module, configuration: str = "3d_fullres") -> dict[str, Any]:
    """In the format of ``nnUNetTrainer.save_checkpoint``, including numpy's numbers."""
    return {
        "network_weights": stored(network),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "epochs": np.int64(3)},
        "_best_ema": np.float64(0.75),
        "current_epoch": 1000,
        "init_args": {"configuration": configuration, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainerOfSomebody",
        "inference_allowed_mirroring_axes": (0, 1) if configuration == "2d" else (0, 1, 2),
    }


def write(
    folder: Path,
    network: nn.Module | None = None,
    known: Any = None,
    folds: tuple[str, ...] = ("0",),
    labels: dict[str, Any] | None = None,
    configuration: str = "3d_fullres",
    order: list[int] | None = None,
) -> Path:
    """A trained model's folder; every fold has the same weights."""
    for fold in folds:
        (folder / f"fold_{fold}").mkdir(parents=True)
        own = checkpoint(network or random_network(False), configuration)
        torch.save(own, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(known or plans()))
    dataset: dict[str, Any] = {
        "channel_names": {"0": "CT"},
        "labels": labels or LABELS,
        "file_ending": ".nii.gz",
    }
    if order is not None:
        dataset["regions_class_order"] = order
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder
