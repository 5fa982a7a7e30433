"""``loss``: how far logits are from the reference, over the voxels that count.

Shapes: B batch, C classes, I J K voxels. Targets hold class indices, IGNORE where nothing counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoomseg.core.labels import IGNORE
from zoomseg.recipe.spec import DiceCrossEntropy, LossSpec, SoftDice, WeightedCrossEntropy


def compute(spec: LossSpec, logits: Sequence[Tensor], target_BIJK: Tensor, counts_BC: Tensor) -> Tensor:
    """Loss over all supervision levels, each half as heavy as the finer one, weights summing to one.

    Args:
        logits: ``[B, C, I, J, K]`` at the target's resolution first, then coarser ones.
        target_BIJK: class indices (uint8); IGNORE where a voxel does not count.
        counts_BC: voxels of each class in the candidate regions that the patches were drawn from.
    """
    weights = [0.5**n for n in range(len(logits))]
    total = torch.zeros((), device=target_BIJK.device)
    for weight, level_BCIJK in zip(weights, logits, strict=True):
        target = shrink_target(target_BIJK, tuple(level_BCIJK.shape[2:])).long()
        total = total + weight / sum(weights) * _level(spec, level_BCIJK.float(), target, counts_BC)
    return total


def shrink_target(target_BIJK: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Nearest-neighbour target for a coarser supervision level."""
    if tuple(target_BIJK.shape[1:]) == shape:
        return target_BIJK
    for axis, n in enumerate(shape, start=1):
        size = target_BIJK.shape[axis]
        index = ((torch.arange(n, device=target_BIJK.device) + 0.5) * size / n).long()
        target_BIJK = target_BIJK.index_select(axis, index)
    return target_BIJK


def _level(spec: LossSpec, logits_BCIJK: Tensor, target_BIJK: Tensor, counts_BC: Tensor) -> Tensor:
    if not bool((target_BIJK != IGNORE).any()):
        return logits_BCIJK.sum() * 0.0  # nothing counts: zero, with a gradient of zero
    match spec:
        case WeightedCrossEntropy():
            return weighted_cross_entropy(logits_BCIJK, target_BIJK, counts_BC)
        case DiceCrossEntropy():
            return spec.cross_entropy_weight * F.cross_entropy(
                logits_BCIJK, target_BIJK, ignore_index=IGNORE
            ) + spec.dice_weight * soft_dice_loss(logits_BCIJK, target_BIJK)
        case SoftDice():
            return 1 - soft_dice(logits_BCIJK, target_BIJK)[0].mean()


def class_weights(counts_C: Tensor) -> Tensor:
    """lambda_k = (1 - N_k / N_C) / (K - 1), N_k voxels of class k among the N_C of the candidate region;
    the lambdas sum to one (Roth et al. 2018, equation 3)."""
    counts = counts_C.float()
    return (1 - counts / counts.sum()) / (len(counts) - 1)


def weighted_cross_entropy(logits_BCIJK: Tensor, target_BIJK: Tensor, counts_BC: Tensor) -> Tensor:
    """-1/N sum_k lambda_k sum_{x in S_k} log p_k(x) (Roth et al. 2018, equation 4)."""
    weights = class_weights(counts_BC.sum(dim=0)).to(logits_BCIJK.device)
    total = F.cross_entropy(logits_BCIJK, target_BIJK, weights, ignore_index=IGNORE, reduction="sum")
    return total / (target_BIJK != IGNORE).sum()


def soft_dice(logits_BCIJK: Tensor, target_BIJK: Tensor) -> tuple[Tensor, Tensor]:
    """Soft Dice ``[C]`` of every class over the whole batch, background included, and the reference's
    voxels of it. A class that the batch lacks has a Dice of zero, and no gradient."""
    counts = (target_BIJK != IGNORE)[:, None]
    probabilities = logits_BCIJK.softmax(dim=1) * counts
    safe = torch.where(target_BIJK == IGNORE, 0, target_BIJK)
    truth = torch.zeros_like(probabilities).scatter_(1, safe[:, None], 1.0) * counts
    axes = (0, 2, 3, 4)
    overlap, sizes = (probabilities * truth).sum(axes), truth.sum(axes)
    return 2 * overlap / (probabilities.sum(axes) + sizes).clamp_min(1e-5), sizes


def soft_dice_loss(logits_BCIJK: Tensor, target_BIJK: Tensor) -> Tensor:
    """One minus the soft Dice over the whole batch, averaged over the foreground classes in it."""
    dice, sizes = (x[1:] for x in soft_dice(logits_BCIJK, target_BIJK))
    present = sizes > 0
    if not bool(present.any()):
        return logits_BCIJK.sum() * 0.0
    return 1 - dice[present].mean()
