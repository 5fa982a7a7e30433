"""``loss``: the difference between logits and reference, over the voxels that count.

Shapes: B batch, C classes, I J K voxels. Targets are class indices, IGNORE for voxels that do not count.

In partially annotated cases, background is background or one of the organs that were not annotated, and the
loss requires no more than that: see ``merge_unannotated``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoomseg.core.labels import IGNORE
from zoomseg.recipe.spec import DiceCrossEntropy, LossSpec, SoftDice, WeightedCrossEntropy

_NEVER = -1e6
"""Logit of an impossible class: its probability is exactly zero, but sums of such logits are finite, so that
zero times one is zero."""

DISTILLATION_WEIGHT = 0.5
"""Weight of the teachers' part of the loss. Hinton et al. gave the reference less weight; but its Dice keeps
small organs from being lost among the voxels of large ones."""

Total = Callable[[Tensor], Tensor]
"""From a sum over the local patches to that over the whole batch, if processes share a batch. Losses are
functions of such sums, so that they are independent of the distribution of a batch."""


def all_here(part: Tensor) -> Tensor:
    """The total if the whole batch is local."""
    return part


def compute(
    spec: LossSpec,
    logits: Sequence[Tensor],
    target_BIJK: Tensor,
    counts_BC: Tensor,
    total: Total,
    annotated_BC: Tensor | None = None,
    progress: float = 1.0,
) -> Tensor:
    """Loss over all supervision levels, each with half the weight of the next finer one, weights summing to
    one.

    Args:
        logits: ``[B, C, I, J, K]`` at the target's resolution first, then coarser ones.
        target_BIJK: class indices (uint8); IGNORE where a voxel does not count.
        counts_BC: voxels of each class in the candidate regions of the patches; those of organs that are not
            annotated count as background.
        total: called equally often, in the same order, by all processes that share a batch.
        annotated_BC: classes annotated in the patches' cases (bool, background always); None: all.
        progress: of the training, 0 to 1.
    """
    weights = [0.5**n for n in range(len(logits))]
    loss = torch.zeros((), device=target_BIJK.device)
    for weight, level_BCIJK in zip(weights, logits, strict=True):
        target = shrink_target(target_BIJK, tuple(level_BCIJK.shape[2:])).long()
        whole_BCIJK = level_BCIJK.float()
        if annotated_BC is not None:
            whole_BCIJK = merge_unannotated(whole_BCIJK, annotated_BC)
        loss = loss + weight / sum(weights) * _level(spec, whole_BCIJK, target, counts_BC, total, progress)
    return loss


def merge_unannotated(logits_BCIJK: Tensor, annotated_BC: Tensor) -> Tensor:
    """Logits whose softmax has, case by case, the probabilities of unannotated classes added to the
    background's, and zero in their place: the merged background of Fang & Yan 2020 and the marginal loss of
    Shi et al. 2021.

    Every loss of them is then a marginal one. A background voxel costs -log(p_0 + the sum of the unannotated
    p_u); an unannotated organ has neither overlap nor size in a Dice, which only includes the cases in which
    it is annotated. Logits of completely annotated cases are unchanged, bit for bit.
    """
    annotated = annotated_BC.to(logits_BCIJK.device)[:, :, None, None, None]
    others = annotated.clone()
    others[:, 0] = False
    background_BIJK = logits_BCIJK.masked_fill(others, -math.inf).logsumexp(dim=1)
    known_BCIJK = logits_BCIJK.masked_fill(~annotated, _NEVER)
    return torch.cat([background_BIJK[:, None], known_BCIJK[:, 1:]], dim=1)


def distilled(
    hard: Tensor,
    logits_BCIJK: Tensor,
    taught_BCIJK: Tensor,
    target_BIJK: Tensor,
    total: Total,
) -> Tensor:
    """Half the loss from the reference (``hard``), half that from the teachers' predictions (Hinton et al.
    2015, arXiv:1503.02531, Section 2, at temperature 1: with so many voxels, nothing has to be gained from
    the ratios of tiny probabilities, and the factor of temperature squared is one).

    Args:
        logits_BCIJK: the student's at full resolution, of all classes: teachers also predict those that are
            not annotated in the cases.
        taught_BCIJK: the teachers' probabilities.
    """
    soft = soft_cross_entropy(logits_BCIJK.float(), taught_BCIJK, target_BIJK, total)
    return (1 - DISTILLATION_WEIGHT) * hard + DISTILLATION_WEIGHT * soft


def soft_cross_entropy(
    logits_BCIJK: Tensor, taught_BCIJK: Tensor, target_BIJK: Tensor, total: Total
) -> Tensor:
    """-1/N sum_x sum_c q_c(x) log p_c(x) over the N voxels x that count; p are the logits' probabilities, q
    the teachers'. Its minimum, at p = q, is the mean entropy of q."""
    counts = target_BIJK != IGNORE
    counted = total(counts.sum())
    if not bool(counted):
        return logits_BCIJK.sum() * 0.0
    cost_BIJK = F.cross_entropy(logits_BCIJK, taught_BCIJK, reduction="none")
    return total((cost_BIJK * counts).sum()) / counted


def shrink_target(target_BIJK: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Nearest-neighbour target for a coarser supervision level."""
    if tuple(target_BIJK.shape[1:]) == shape:
        return target_BIJK
    for axis, n in enumerate(shape, start=1):
        size = target_BIJK.shape[axis]
        index = ((torch.arange(n, device=target_BIJK.device) + 0.5) * size / n).long()
        target_BIJK = target_BIJK.index_select(axis, index)
    return target_BIJK


def _level(
    spec: LossSpec,
    logits_BCIJK: Tensor,
    target_BIJK: Tensor,
    counts_BC: Tensor,
    total: Total,
    progress: float,
) -> Tensor:
    counted = total((target_BIJK != IGNORE).sum())
    if not bool(counted):
        return logits_BCIJK.sum() * 0.0  # no voxel counts: zero, with a gradient of zero
    match spec:
        case WeightedCrossEntropy():
            return weighted_cross_entropy(
                logits_BCIJK, target_BIJK, counts_BC, total, by_weights=spec.normalisation == "weights"
            )
        case DiceCrossEntropy():
            balance = (1 - progress) * spec.class_balance
            weights_C, weighed = _balanced(target_BIJK, counts_BC, balance, counted, total)
            sums = _sums(logits_BCIJK, target_BIJK, weights_C)
            entropy = total(sums.cost) / weighed
            return spec.cross_entropy_weight * entropy + spec.dice_weight * _dice_loss(
                *_dice(sums, target_BIJK, total)
            )
        case SoftDice():
            return 1 - soft_dice(logits_BCIJK, target_BIJK, total)[0].mean()


class _Sums(NamedTuple):
    """Over the voxels that count, p being the softmax of the logits, and k a voxel's class in the target."""

    cost: Tensor
    """Of -w_k log p_k."""
    overlap_C: Tensor
    """Of p_c where c = k."""
    predicted_C: Tensor
    """Of p_c."""


def _sums(logits_BCIJK: Tensor, target_BIJK: Tensor, weights_C: Tensor | None = None) -> _Sums:
    """Of which all losses from the reference are functions; without weights, w is one."""
    if weights_C is None:
        weights_C = logits_BCIJK.new_ones(logits_BCIJK.shape[1])
    return _Sums(*_SumsOfSoftmax.apply(logits_BCIJK, target_BIJK, weights_C))  # type: ignore[no-untyped-call]


class _SumsOfSoftmax(torch.autograd.Function):
    """One softmax for all of them: where convolutions are fast (AMX), a step of the default fine network
    takes a tenth less time than with torch's functions for cross-entropy and Dice."""

    @staticmethod
    def forward(
        ctx: Any, logits_BCIJK: Tensor, target_BIJK: Tensor, weights_C: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        counts_BIJK = target_BIJK != IGNORE
        class_BIJK = torch.where(counts_BIJK, target_BIJK, 0)
        logarithms_BCIJK = logits_BCIJK.log_softmax(dim=1)
        log_own_BIJK = logarithms_BCIJK.gather(1, class_BIJK[:, None])[:, 0]
        own_BIJK = log_own_BIJK.exp() * counts_BIJK
        p_BCIJK = logarithms_BCIJK.exp_()
        if not bool(counts_BIJK.all()):
            p_BCIJK *= counts_BIJK[:, None]
        weight_BIJK = weights_C.to(p_BCIJK)[class_BIJK] * counts_BIJK
        ctx.save_for_backward(p_BCIJK, own_BIJK, class_BIJK, weight_BIJK)
        # index_add_ adds voxel by voxel: in float32, small numbers would be lost.
        overlap_C = own_BIJK.new_zeros(p_BCIJK.shape[1], dtype=torch.float64)
        overlap_C.index_add_(0, class_BIJK.flatten(), own_BIJK.flatten().double())
        cost = -(weight_BIJK * log_own_BIJK).sum()
        return cost, overlap_C.to(p_BCIJK), p_BCIJK.sum((0, 2, 3, 4))

    @staticmethod
    def backward(ctx: Any, of_cost: Tensor, of_overlap_C: Tensor, of_predicted_C: Tensor) -> tuple[Any, ...]:
        """With a_c, b_c and g the given gradients of predicted_c, overlap_c and the cost, that of a logit z_c
        is p_c (a_c - sum_j a_j p_j - b_k p_k + g w_k), and for c = k in addition b_k p_k - g w_k."""
        p_BCIJK, own_BIJK, class_BIJK, weight_BIJK = ctx.saved_tensors
        of_own_B1IJK = (of_overlap_C[class_BIJK] * own_BIJK - of_cost * weight_BIJK)[:, None]
        mean_B1N = of_predicted_C[None, None] @ p_BCIJK.flatten(2)
        mean_B1IJK = mean_B1N.view_as(of_own_B1IJK) + of_own_B1IJK
        found_BCIJK = (of_predicted_C[:, None, None, None] - mean_B1IJK).mul_(p_BCIJK)
        return found_BCIJK.scatter_add_(1, class_BIJK[:, None], of_own_B1IJK), None, None


def class_weights(counts_C: Tensor) -> Tensor:
    """lambda_k = (1 - N_k / N_C) / (K - 1), N_k voxels of class k among the N_C of the candidate region;
    the lambdas sum to one (Roth et al. 2018, equation 3)."""
    counts = counts_C.float()
    return (1 - counts / counts.sum()) / (len(counts) - 1)


def weighted_cross_entropy(
    logits_BCIJK: Tensor,
    target_BIJK: Tensor,
    counts_BC: Tensor,
    total: Total,
    by_weights: bool = False,
) -> Tensor:
    """-1/N sum_k lambda_k sum_{x in S_k} log p_k(x) (Roth et al. 2018, equation 4).

    Args:
        by_weights: N is the sum of the voxels' lambdas, as in the authors' released layer, not their number.
    """
    weights = class_weights(total(counts_BC.sum(dim=0))).to(logits_BCIJK.device)
    cost = _sums(logits_BCIJK, target_BIJK, weights).cost
    voxels_C = voxels_by_class(target_BIJK, len(weights))
    weighed = total((weights * voxels_C).sum() if by_weights else voxels_C.sum())
    # A patch of a single class that fills its region has no weight, and no loss.
    return total(cost) / weighed.clamp_min(1e-12)


def _balanced(
    target_BIJK: Tensor, counts_BC: Tensor, balance: float, counted: Tensor, total: Total
) -> tuple[Tensor | None, Tensor]:
    """Weights ``[C]`` of the classes, (N_C / N_k) ** balance with N_k voxels of class k among the N_C of the
    candidate regions, and the sum of the weights of all voxels that count. A balance of 0 is plain
    cross-entropy (no weights); with 1 all classes have equal weight, regardless of their size.

    Where organs fill a few thousandths of a region, plain cross-entropy drives their probabilities to zero in
    the first steps, from which the gradient of a soft Dice does not recover.

    Args:
        counted: total number of voxels that count.
    """
    if not balance:
        return None, counted
    counts_C = total(counts_BC.sum(dim=0)).clamp_min(1).to(target_BIJK.device)
    weights_C = (counts_C.sum() / counts_C) ** balance
    return weights_C, total((weights_C * voxels_by_class(target_BIJK, len(weights_C))).sum())


def voxels_by_class(target_BIJK: Tensor, classes: int) -> Tensor:
    """``[classes]``, without those that do not count. Selecting these by a mask first takes ten times as
    long."""
    return torch.bincount(target_BIJK.flatten(), minlength=IGNORE + 1)[:classes]


def soft_dice(logits_BCIJK: Tensor, target_BIJK: Tensor, total: Total) -> tuple[Tensor, Tensor]:
    """Soft Dice ``[C]`` of every class over the whole batch, background included, and the reference's
    voxels of it. A class that the batch lacks has a Dice of zero, and no gradient."""
    return _dice(_sums(logits_BCIJK, target_BIJK), target_BIJK, total)


def _dice(sums: _Sums, target_BIJK: Tensor, total: Total) -> tuple[Tensor, Tensor]:
    voxels_C = voxels_by_class(target_BIJK, len(sums.overlap_C)).to(sums.overlap_C)
    overlap_C, sizes_C = total(sums.overlap_C), total(voxels_C)
    return 2 * overlap_C / (total(sums.predicted_C) + sizes_C).clamp_min(1e-5), sizes_C


def _dice_loss(dice_C: Tensor, sizes_C: Tensor) -> Tensor:
    """One minus the soft Dice, averaged over the foreground classes in the batch."""
    present = sizes_C[1:] > 0
    if not bool(present.any()):
        return dice_C.sum() * 0.0
    return 1 - dice_C[1:][present].mean()
