"""A network's ONNX form says what the network says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto

from packaged import lived
from zoomseg.backends.onnx_graph import to_onnx
from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Index3
from zoomseg.networks.build import build
from zoomseg.networks.unet import Padding
from zoomseg.recipe import spec

KINDS: dict[str, tuple[spec.NetworkSpec, Padding, Index3]] = {
    "unet3d": (spec.UNet3D(channels=(4, 8)), "same", (8, 12, 4)),
    "unet3d-valid": (spec.UNet3D(channels=(4, 8)), "valid", (20, 24, 20)),
    "unet2d": (spec.UNet2D(plane="coronal", channels=(4, 8)), "same", (8, 3, 12)),
    "residual_fcn": (
        spec.ResidualFCN(channels=(4, 8, 6), strides=((2, 1, 1), (2, 2, 2), (2, 2, 1))),
        "same",
        (16, 8, 6),
    ),
    "resunet_aspp": (spec.ResUNetASPP(channels=(4, 4), dilations=(1, 2)), "same", (12, 8, 8)),
    "resenc_unet": (
        spec.ResEncUNet(
            channels=(4, 8, 8),
            strides=((1, 1, 2), (2, 2, 1), (2, 2, 2)),
            kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
            blocks=(1, 1, 1),
        ),
        "same",
        (8, 12, 8),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_runtimes_say_what_the_network_says(kind: str) -> None:
    network, padding, shape = KINDS[kind]
    torch.manual_seed(1)
    module = lived(build(network, 2, 5, padding))
    inputs = torch.randn(1, 2, *shape)
    with torch.inference_mode():
        expected = module(inputs)[0].log_softmax(dim=1).numpy()
    model = to_onnx(module, 2, shape)
    assert b".py" not in model  # the exporter would note which files of this machine it all comes from
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for said in (session.run(None, {"inputs": inputs.numpy()})[0], compiled(inputs.numpy())[0]):
        assert said.shape == expected.shape
        # Logarithms, so that an error of a logit shows in full.
        assert np.abs(np.log(said) - expected).max() < 1e-4


class _Scale(torch.nn.Module):
    """One weight, so that it is clear what comes of it."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 2, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([0.0, weight]).reshape(2, 1, 1, 1, 1))

    def forward(self, x_BCIJK: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.conv(x_BCIJK),)


def test_half_stores_float16_and_computes_float32() -> None:
    weight = 1.0 + 2**-11 + 2**-14  # between two float16 numbers
    model = onnx.load_from_string(to_onnx(_Scale(weight), 1, (1, 1, 1), half=True))
    assert [t.data_type for t in model.graph.initializer] == [TensorProto.FLOAT16]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    said = session.run(None, {"inputs": np.ones((1, 1, 1, 1, 1), np.float32)})[0]
    assert said.dtype == np.float32
    logit = np.log(said[0, 1] / said[0, 0]).item()
    assert logit == pytest.approx(1.0 + 2**-10, abs=1e-6)


def test_a_weight_that_half_cannot_hold_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not fit in half precision.*without --half"):
        to_onnx(_Scale(1e5), 1, (1, 1, 1), half=True)
