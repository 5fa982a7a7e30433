"""MONAI's usual inference: transforms, sliding window, inverse transforms of the logits, argmax.

Windows overlap by half, with Gaussian weights, as in nnU-Net. Everything else is MONAI's default (its
resampling computes in float64).
"""

from __future__ import annotations

import monai
import torch
from account import Clock
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import (
    AsDiscrete,
    LoadImage,
    Orientation,
    SaveImage,
    ScaleIntensityRange,
    Spacing,
)
from networks import PATCH, plain_unet
from peer import Counted, Job, clock_of, finish, parse

WINDOW_HU = (-125.0, 275.0)
OVERLAP = 0.5


def segment(job: Job, network: Counted, clock: Clock) -> None:
    orientation = Orientation(axcodes="RAS")
    spacing = Spacing(pixdim=(job.spacing_mm,) * 3, mode="bilinear")
    intensity = ScaleIntensityRange(*WINDOW_HU, b_min=-1.0, b_max=1.0, clip=True)
    with clock.step("load", "read"):
        image = LoadImage(image_only=True, ensure_channel_first=True)(job.scan)
    with clock.step("orientation", "prepare"):
        image = orientation(image)
    with clock.step("spacing", "prepare"):
        image = spacing(image)
    with clock.step("intensity", "prepare"):
        image = intensity(image).to(job.device)
    with clock.step("sliding window", "network"):
        logits = compute(image, network, job.device)
    with clock.step("inverse spacing of the logits", "merge"):
        logits = spacing.inverse(logits)
    with clock.step("inverse orientation of the logits", "merge"):
        logits = orientation.inverse(logits)
    with clock.step("argmax", "merge"):
        labels = AsDiscrete(argmax=True)(logits)
    del logits
    with clock.step("save", "write"):
        SaveImage(output_dir=job.out, output_dtype="uint8", separate_folder=False, print_log=False)(labels)


def compute(image: MetaTensor, network: Counted, device: torch.device) -> MetaTensor:
    """Logits ``[classes, I, J, K]`` with the transforms of the image, so that these can be inverted."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=device.type == "cuda"):
        logits = sliding_window_inference(image[None], PATCH, 1, network, OVERLAP, mode="gaussian")
    return MetaTensor(logits[0].as_tensor(), meta=image.meta, applied_operations=image.applied_operations)


def main() -> None:
    job = parse(__doc__)
    torch.manual_seed(0)
    network, clock = Counted(plain_unet(job.features, job.classes)).to(job.device), clock_of(job)
    segment(job, network, clock)
    finish(job, f"MONAI {monai.__version__}", clock, network.tiles)


if __name__ == "__main__":
    main()
