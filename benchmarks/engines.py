"""Speed of a model's last network in several libraries on one thread, and the effect of int8 quantisation.

    python benchmarks/engines.py MODEL SCAN [SCAN ...]

Five tiles of the last scan are computed by PyTorch, ONNX Runtime and OpenVINO, in float32, in bfloat16 where
the library supports it, and in int8. The other scans are used to calibrate the quantisation (four or more
are advisable; if there is only one scan, other tiles of it are used). Prints a Markdown table: processor
seconds per tile (best of three), and the share of voxels with the same class as in PyTorch with float32,
among all voxels and among those that either of the two assigns to an organ. Needs `onnxruntime` and
`openvino`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import openvino as ov
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from zoomseg.backends.device import Device, resolve
from zoomseg.backends.torch_networks import as_network, trained_network
from zoomseg.core.case import Case
from zoomseg.core.tiling import Tile
from zoomseg.io import bundle
from zoomseg.io.scans import read_image
from zoomseg.networks.build import laid_out
from zoomseg.pipeline.cascade import Cascade
from zoomseg.pipeline.sliding_window import StageNetwork
from zoomseg.pipeline.stage_input import StageView
from zoomseg.recipe.spec import Stage

Array = npt.NDArray[np.float32]
Engine = Callable[[Array], Array]
"""Computes probabilities from a tile ``[1, C, I, J, K]``."""

CALIBRATING, COMPARED, REPEATS = 20, 5, 3
QUANTISED = ["Conv", "ConvTranspose"]
"""These make up nearly all of the computation. Normalisation and softmax stay in float32."""


def as_predicted(model: bundle.Bundle, stage: Stage) -> torch.nn.Module:
    return laid_out(stage.network, trained_network(model, stage)).eval()


def tiles_of(model: bundle.Bundle, scan: Path) -> list[Array]:
    """The input tiles of the last network for a scan. The network itself is replaced by one that predicts
    background everywhere."""
    device, last = resolve("cpu"), model.recipe.stages[-1]
    seen: list[Array] = []

    def look_on(x_BCIJK: Array, tiles: tuple[Tile, ...]) -> Array:
        seen.extend(x[None].copy() for x in x_BCIJK)
        shape = (len(x_BCIJK), 1 + len(model.schema.names), *x_BCIJK.shape[2:])
        answer = np.zeros(shape, dtype=np.float32)
        answer[:, 0] = 1
        return answer

    def network(view: StageView) -> StageNetwork:
        if view.stage.name == last.name:
            return look_on
        return as_network(as_predicted(model, view.stage), device)

    Cascade(model.recipe, model.schema, network, device).run(Case(scan.name, read_image(scan)))
    return seen


class Probabilities(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        logits: Tensor = self.network(x_BCIJK)[0]
        return logits.softmax(dim=1)


def to_onnx(network: torch.nn.Module, tile: Tensor, path: Path) -> None:
    """Export for this tile shape only and with embedded weights, as required by the quantisation."""
    torch.onnx.export(
        Probabilities(network).eval(), (tile,), path, dynamo=True, input_names=["inputs"], external_data=False
    )


def spread(tiles: Sequence[Array], count: int) -> list[Array]:
    """``count`` of the tiles, evenly spaced from the first to the last."""
    chosen = np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(int)
    return [tiles[n] for n in chosen]


class Tiles(CalibrationDataReader):  # type: ignore[misc]  # untyped
    def __init__(self, tiles: Sequence[Array]) -> None:
        self._rest: Iterator[Array] = iter(tiles)

    def get_next(self) -> dict[str, Array] | None:
        tile = next(self._rest, None)
        return None if tile is None else {"inputs": tile}


def in_eight_bits(network: Path, folder: Path, calibrating: Sequence[Array]) -> Path:
    """Quantise statically: weights per channel, activations by their range on the calibration tiles, both as
    pairs of QuantizeLinear and DequantizeLinear (QDQ)."""
    prepared, out = folder / "prepared.onnx", folder / "int8.onnx"
    quant_pre_process(network, prepared)
    quantize_static(
        prepared,
        out,
        Tiles(calibrating),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=QUANTISED,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    return out


def of_torch(module: torch.nn.Module, precision: torch.dtype | None) -> Engine:
    network = as_network(module, Device("cpu", precision is not None))
    return lambda tile: network(torch.from_numpy(tile), ()).numpy()


def of_onnxruntime(network: Path) -> Engine:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    return lambda tile: np.asarray(session.run(None, {"inputs": tile})[0])


def of_openvino(network: Path, precision: str) -> Engine:
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(network, "CPU", settings | {"NUM_STREAMS": 1})
    return lambda tile: np.asarray(compiled([tile])[0])


def seconds(engine: Engine, tile: Array) -> float:
    """Processor seconds per tile, best of ``REPEATS``; wall-clock time would depend on other processes."""
    engine(tile)
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        engine(tile)
        found.append(time.process_time() - began)
    return min(found)


def agreement(engine: Engine, tiles: Sequence[Array], truth: Sequence[npt.NDArray[np.int64]]) -> str:
    alike = organs = organs_alike = voxels = 0
    for tile, expected in zip(tiles, truth, strict=True):
        found = engine(tile)[0].argmax(axis=0)
        same, either = found == expected, (found > 0) | (expected > 0)
        alike, voxels = alike + int(same.sum()), voxels + same.size
        organs, organs_alike = organs + int(either.sum()), organs_alike + int(same[either].sum())
    return f"{100 * alike / voxels:.2f} | {100 * organs_alike / max(organs, 1):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("scans", type=Path, nargs="+", metavar="SCAN")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = bundle.load(options.model)
    *others, of_last = [tiles_of(model, scan) for scan in options.scans]
    compared = spread(of_last, COMPARED)
    if others:
        calibrating = [t for tiles in others for t in spread(tiles, -(-CALIBRATING // len(others)))]
    else:
        chosen = {id(tile) for tile in compared}
        calibrating = spread([t for t in of_last if id(t) not in chosen], CALIBRATING)
    module = as_predicted(model, model.recipe.stages[-1])
    with tempfile.TemporaryDirectory() as name:
        network = Path(name) / "float32.onnx"
        channels, tile = compared[0].shape[1], model.recipe.stages[-1].grid.tile
        to_onnx(module, torch.zeros(1, channels, *tile), network)
        eight = in_eight_bits(network, Path(name), calibrating)
        engines: dict[str, Callable[[], Engine]] = {
            "PyTorch | float32": lambda: of_torch(module, None),
            "PyTorch | bfloat16": lambda: of_torch(module, torch.bfloat16),
            "ONNX Runtime | float32": lambda: of_onnxruntime(network),
            "ONNX Runtime | int8": lambda: of_onnxruntime(eight),
            "OpenVINO | float32": lambda: of_openvino(network, "f32"),
            "OpenVINO | bfloat16": lambda: of_openvino(network, "bf16"),
            "OpenVINO | int8, rest float32": lambda: of_openvino(eight, "f32"),
            "OpenVINO | int8, rest bfloat16": lambda: of_openvino(eight, "bf16"),
        }
        truth = [of_torch(module, None)(t)[0].argmax(axis=0) for t in compared]
        print(
            f"{len(calibrating)} tiles of {list(tile)} calibrate, {len(compared)} are compared; float32 ONNX"
        )
        print(f"{os.path.getsize(network) / 1e6:.1f} MB, int8 {os.path.getsize(eight) / 1e6:.1f} MB\n")
        print("| engine | precision | s | voxels alike, % | of organs', % |\n|---|---|---:|---:|---:|")
        for label, make in engines.items():
            engine = make()
            print(f"| {label} | {seconds(engine, compared[0]):.3f} | {agreement(engine, compared, truth)} |")


if __name__ == "__main__":
    main()
