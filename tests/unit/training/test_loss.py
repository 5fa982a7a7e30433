from __future__ import annotations

import math

import pytest
import torch

from zoomseg.core.labels import IGNORE
from zoomseg.recipe.spec import DiceCrossEntropy, LossSpec, SoftDice, WeightedCrossEntropy
from zoomseg.training import loss
from zoomseg.training.loss import all_here

COUNTS = torch.tensor([[6, 2, 0]])
LOSSES = [
    WeightedCrossEntropy(),
    WeightedCrossEntropy(normalisation="weights"),
    DiceCrossEntropy(),
    DiceCrossEntropy(class_balance=0.5),
    SoftDice(),
]


def line(classes: list[int]) -> torch.Tensor:
    """A target ``[1, n, 1, 1]``."""
    return torch.tensor(classes, dtype=torch.uint8).reshape(1, -1, 1, 1)


def certain(classes: list[int], of: int = 3, strength: float = 50.0) -> torch.Tensor:
    """Logits ``[1, C, n, 1, 1]`` with these classes as argmax."""
    hot = torch.nn.functional.one_hot(torch.tensor(classes), of).T.float()
    return strength * hot.reshape(1, of, -1, 1, 1)


class TestWeightedCrossEntropy:
    def test_weights_are_equation_3(self) -> None:
        weights = loss.class_weights(torch.tensor([6, 2, 0]))
        assert weights.tolist() == pytest.approx([(1 - 6 / 8) / 2, (1 - 2 / 8) / 2, 1 / 2])
        assert float(weights.sum()) == pytest.approx(1)

    def test_value_is_equation_4(self) -> None:
        # Uniform probabilities: every voxel costs lambda_k * log 3, divided by the number of voxels.
        target = line([0, 0, 1, 2]).long()
        value = loss.weighted_cross_entropy(torch.zeros(1, 3, 4, 1, 1), target, COUNTS, all_here)
        expected = (2 * 0.125 + 0.375 + 0.5) * math.log(3) / 4
        assert float(value) == pytest.approx(expected)

    def test_divided_by_weights_it_is_the_released_layer_s_and_torch_s(self) -> None:
        target = line([0, 0, 1, 2]).long()
        logits = torch.randn(1, 3, 4, 1, 1, generator=torch.Generator().manual_seed(0))
        spec = WeightedCrossEntropy(normalisation="weights")
        value = loss.compute(spec, [logits], target.byte(), COUNTS, all_here)
        weights = torch.tensor([0.125, 0.375, 0.5])
        own = torch.nn.functional.cross_entropy(logits, target, weights, reduction="mean")
        assert float(value) == pytest.approx(float(own))
        by_voxels = loss.compute(WeightedCrossEntropy(), [logits], target.byte(), COUNTS, all_here)
        assert float(value / by_voxels) == pytest.approx(4 / (2 * 0.125 + 0.375 + 0.5))

    def test_a_patch_without_weight_costs_nothing(self) -> None:
        # A region of background alone: lambda_0 = (1 - 1) / (K - 1).
        spec, counts = WeightedCrossEntropy(normalisation="weights"), torch.tensor([[4, 0, 0]])
        logits = torch.zeros(1, 3, 4, 1, 1, requires_grad=True)
        value = loss.compute(spec, [logits], line([0, 0, 0, 0]), counts, all_here)
        (gradient,) = torch.autograd.grad(value, logits)
        assert float(value.detach()) == 0
        assert not bool(gradient.any())

    def test_counts_of_a_batch_are_summed(self) -> None:
        target, logits = line([0, 1]).long(), torch.zeros(1, 3, 2, 1, 1)
        split = torch.tensor([[4, 1, 0], [2, 1, 0]])
        one = loss.weighted_cross_entropy(logits, target, COUNTS, all_here)
        assert float(loss.weighted_cross_entropy(logits, target, split, all_here)) == pytest.approx(
            float(one)
        )

    def test_ignored_voxels_neither_cost_nor_count(self) -> None:
        logits = torch.zeros(1, 3, 4, 1, 1)
        all_of_it = loss.compute(WeightedCrossEntropy(), [logits[:, :, :2]], line([0, 1]), COUNTS, all_here)
        masked = loss.compute(
            WeightedCrossEntropy(), [logits], line([0, 1, IGNORE, IGNORE]), COUNTS, all_here
        )
        assert float(masked) == pytest.approx(float(all_of_it))


def soft_dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Without the cross-entropy."""
    counts = torch.ones(len(target), logits.shape[1])
    return loss.compute(DiceCrossEntropy(cross_entropy_weight=0), [logits], target, counts, all_here)


class TestSoftDice:
    def test_the_truth_costs_nothing_and_the_opposite_everything(self) -> None:
        target = line([0, 1, 1, 2]).long()
        assert float(soft_dice_loss(certain([0, 1, 1, 2]), target)) == pytest.approx(0, abs=1e-5)
        assert float(soft_dice_loss(certain([1, 2, 2, 0]), target)) == pytest.approx(1, abs=1e-5)

    def test_value_on_a_mixture(self) -> None:
        # Class 1: two of three found, none too many: Dice 2*2/(2+3); class 2 is found exactly.
        target = line([0, 1, 1, 1, 2]).long()
        value = soft_dice_loss(certain([0, 1, 1, 0, 2]), target)
        assert float(value) == pytest.approx(1 - (0.8 + 1) / 2, abs=1e-5)

    def test_classes_that_are_not_there_do_not_count(self) -> None:
        assert float(soft_dice_loss(certain([0, 1]), line([0, 1]).long())) == pytest.approx(0, abs=1e-5)

    def test_is_taken_over_the_batch_not_case_by_case(self) -> None:
        target = torch.cat([line([1, 1, 1, 0]), line([1, 0, 0, 0])]).long()
        logits = torch.cat([certain([1, 1, 1, 0]), certain([0, 0, 0, 0])])
        # 3 of 4 voxels found: Dice 2*3/(3+4). Case by case it would be (1 + 0) / 2.
        assert float(soft_dice_loss(logits, target)) == pytest.approx(1 - 6 / 7, abs=1e-5)

    def test_ignored_voxels_do_not_count(self) -> None:
        target = line([0, 1, IGNORE, IGNORE]).long()
        assert float(soft_dice_loss(certain([0, 1, 1, 2]), target)) == pytest.approx(0, abs=1e-5)


class TestDiceOfAllClasses:
    """Equation 1 of Roth et al. 2018 (MICCAI), by hand."""

    TARGET = torch.tensor([[0, 1, IGNORE, 1], [0, 0, 1, IGNORE]], dtype=torch.uint8).reshape(2, 4, 1, 1)
    P1 = torch.tensor([[0.1, 0.6, 0.9, 0.7], [0.3, 0.5, 0.2, 0.8]], dtype=torch.float64)
    """Probability of class 1 of 2."""

    @staticmethod
    def by_hand(p1: torch.Tensor) -> torch.Tensor:
        found, said = p1[0, 1] + p1[0, 3] + p1[1, 2], p1[0, [0, 1, 3]].sum() + p1[1, :3].sum()
        dice1 = 2 * found / (said + 3)
        rest = 3 - (p1[0, 0] + p1[1, 0] + p1[1, 1])
        dice0 = 2 * rest / ((6 - said) + 3)
        return 1 - (dice0 + dice1) / 2

    def logits(self) -> torch.Tensor:
        return torch.stack([(1 - self.P1).log(), self.P1.log()], dim=1).reshape(2, 2, 4, 1, 1)

    def test_value(self) -> None:
        # Class 1: 2 * 1.5 / (2.4 + 3); background: 2 * 2.1 / (3.6 + 3).
        value = loss.compute(SoftDice(), [self.logits()], self.TARGET, COUNTS, all_here)
        assert float(value) == pytest.approx(1 - (3 / 5.4 + 4.2 / 6.6) / 2, rel=1e-5)
        assert float(self.by_hand(self.P1)) == pytest.approx(float(value), rel=1e-5)

    def test_gradient(self) -> None:
        logits = self.logits().requires_grad_()
        (found,) = torch.autograd.grad(
            loss.compute(SoftDice(), [logits], self.TARGET, COUNTS, all_here), logits
        )
        p1 = self.P1.clone().requires_grad_()
        (by_p1,) = torch.autograd.grad(self.by_hand(p1), p1)
        by_logit = by_p1 * self.P1 * (1 - self.P1)
        wanted = torch.stack([-by_logit, by_logit], dim=1).reshape(2, 2, 4, 1, 1)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)

    def test_a_class_that_is_not_there_counts_as_missed_and_pulls_nothing(self) -> None:
        target, logits = (
            line([0, 1, 1]),
            torch.randn(1, 3, 3, 1, 1, generator=torch.Generator().manual_seed(0)),
        )
        perfect = loss.compute(SoftDice(), [certain([0, 1, 1])], target, COUNTS, all_here)
        assert float(perfect) == pytest.approx(1 / 3, abs=1e-5)
        dice, sizes = loss.soft_dice(logits, target.long(), all_here)
        assert (float(dice[2]), sizes.tolist()) == (0, [1, 2, 0])
        two = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss.soft_dice(two, target.long(), all_here)[0][2], two)
        assert not gradient.any()


class TestCompute:
    def test_dice_and_cross_entropy_are_weighed(self) -> None:
        target, logits = line([0, 1, 2, 2]), torch.zeros(1, 3, 4, 1, 1)
        entropy = loss.compute(DiceCrossEntropy(dice_weight=0), [logits], target, COUNTS, all_here)
        dice = loss.compute(DiceCrossEntropy(cross_entropy_weight=0), [logits], target, COUNTS, all_here)
        both = loss.compute(
            DiceCrossEntropy(dice_weight=2, cross_entropy_weight=3), [logits], target, COUNTS, all_here
        )
        assert float(entropy) == pytest.approx(math.log(3))
        assert float(both) == pytest.approx(2 * float(dice) + 3 * float(entropy))

    def test_every_level_weighs_half_of_the_finer_one(self) -> None:
        target = line([1, 1, 1, 1])
        spec = DiceCrossEntropy(dice_weight=0)
        right, unsure = certain([1, 1, 1, 1]), torch.zeros(1, 3, 2, 1, 1)
        value = loss.compute(spec, [right, unsure], target, COUNTS, all_here)
        assert float(value) == pytest.approx(math.log(3) / 3)
        value = loss.compute(spec, [torch.zeros(1, 3, 4, 1, 1), certain([1, 1])], target, COUNTS, all_here)
        assert float(value) == pytest.approx(2 * math.log(3) / 3)

    def test_nothing_that_counts_is_zero_with_a_gradient(self) -> None:
        logits = torch.zeros(1, 3, 2, 1, 1, requires_grad=True)
        for spec in LOSSES:
            value = loss.compute(spec, [logits], line([IGNORE, IGNORE]), COUNTS, all_here)
            (gradient,) = torch.autograd.grad(value, logits)
            assert float(value.detach()) == 0
            assert not gradient.any()

    @pytest.mark.parametrize("spec", LOSSES, ids=lambda s: s.kind)
    def test_ignored_voxels_have_no_gradient_and_all_others_have_one(self, spec: LossSpec) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 3, 4, 4, 4, generator=generator, requires_grad=True)
        target = torch.randint(0, 3, (2, 4, 4, 4), generator=generator).byte()
        ignored = torch.rand(2, 4, 4, 4, generator=generator) < 0.4
        target[ignored] = IGNORE
        (gradient,) = torch.autograd.grad(
            loss.compute(spec, [logits], target, COUNTS, all_here, progress=0.0), logits
        )
        per_voxel = gradient.abs().sum(dim=1)
        assert (per_voxel[ignored] == 0).all()
        assert (per_voxel[~ignored] > 0).all()

    def test_a_voxel_of_a_rare_class_pulls_harder(self) -> None:
        logits = torch.zeros(1, 3, 4, 1, 1, requires_grad=True)
        value = loss.compute(WeightedCrossEntropy(), [logits], line([0, 0, 1, 2]), COUNTS, all_here)
        (gradient,) = torch.autograd.grad(value, logits)
        pull = [-float(gradient[0, c, n]) for n, c in enumerate((0, 0, 1, 2))]
        # lambda_k (1 - p_k) / N, with p = 1/3, N = 4 and the lambdas of 6, 2 and no voxels of 8.
        assert pull == pytest.approx([x * 2 / 3 / 4 for x in (0.125, 0.125, 0.375, 0.5)])

    def test_balanced_cross_entropy_by_hand(self) -> None:
        # Halfway, weights are square roots; 6, 2 and (unseen: counted as one) 1 of 9 voxels are a class's.
        target, logits = line([0, 0, 1, IGNORE]), torch.log(torch.tensor([0.5, 0.2, 0.3]))
        large, small = (9 / 6) ** 0.5, (9 / 2) ** 0.5
        value = loss.compute(
            DiceCrossEntropy(dice_weight=0, class_balance=1.0),
            [logits.reshape(1, 3, 1, 1, 1).expand(1, 3, 4, 1, 1)],
            target,
            COUNTS,
            all_here,
            progress=0.5,
        )
        expected = -(2 * large * math.log(0.5) + small * math.log(0.2)) / (2 * large + small)
        assert float(value) == pytest.approx(expected)

    def test_balance_of_one_makes_classes_weigh_alike(self) -> None:
        spec = DiceCrossEntropy(dice_weight=0, class_balance=1.0)
        logits = torch.zeros(1, 3, 8, 1, 1, requires_grad=True)
        value = loss.compute(spec, [logits], line([0] * 6 + [1] * 2), COUNTS, all_here, progress=0.0)
        (gradient,) = torch.autograd.grad(value, logits)
        pull = -gradient[0, :, :, 0, 0]
        assert float(pull[0, :6].sum()) == pytest.approx(float(pull[1, 6:].sum()))
        assert float(value.detach()) == pytest.approx(math.log(3))

    def test_the_balance_is_gone_at_the_end(self) -> None:
        target, logits = line([0, 0, 1, 2]), torch.arange(12.0).reshape(1, 3, 4, 1, 1)
        found = loss.compute(DiceCrossEntropy(class_balance=0.5), [logits], target, COUNTS, all_here)
        assert float(found) == float(loss.compute(DiceCrossEntropy(), [logits], target, COUNTS, all_here))

    def test_half_precision_logits_are_summed_in_full(self) -> None:
        logits = torch.zeros(1, 3, 4, 1, 1, dtype=torch.float16)
        assert (
            loss.compute(DiceCrossEntropy(), [logits], line([0, 1, 2, 2]), COUNTS, all_here).dtype
            == torch.float32
        )


@pytest.mark.parametrize("ignored", [False, True])
def test_sums_and_gradients_equal_those_of_torch_s_functions(ignored: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 3, 2, 4), generator=generator)
    if ignored:
        target[:, 0] = IGNORE
    weights = loss.class_weights(COUNTS[0]).double()
    cost = torch.nn.functional.cross_entropy(logits, target, weights, ignore_index=IGNORE, reduction="sum")
    counted = int((target != IGNORE).sum())
    found = loss.weighted_cross_entropy(logits, target, COUNTS, all_here)
    assert float(found.detach()) == pytest.approx(float(cost.detach()) / counted, rel=1e-6)
    p, truth = logits.softmax(1).detach(), torch.nn.functional.one_hot(target.clamp_max(3), 4)[..., :3]
    within = (target != IGNORE)[:, None]
    axes = (0, 2, 3, 4)
    overlap = (p * truth.movedim(-1, 1) * within).sum(axes)
    sizes = (truth.movedim(-1, 1) * within).sum(axes)
    dice, voxels = loss.soft_dice(logits, target, all_here)
    torch.testing.assert_close(dice.detach(), 2 * overlap / ((p * within).sum(axes) + sizes))
    assert voxels.tolist() == sizes.tolist()
    assert torch.autograd.gradcheck(lambda x: loss.soft_dice(x, target, all_here)[0], logits)
    assert torch.autograd.gradcheck(
        lambda x: loss.weighted_cross_entropy(x, target, COUNTS.double(), all_here), logits, atol=1e-4
    )


PARTLY = torch.tensor([[True, True, False]])
"""One case, in which class 2 of 0, 1, 2 is not annotated."""


class TestPartialAnnotation:
    """Background of a case is background or any organ that is not annotated in it."""

    P = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64)
    """Probabilities of three voxels, whose reference is 0, 1, 0."""
    TARGET = line([0, 1, 0])

    def logits(self) -> torch.Tensor:
        return self.P.log().T.reshape(1, 3, 3, 1, 1).requires_grad_()

    def gradient(self, spec: LossSpec, annotated_BC: torch.Tensor | None = PARTLY) -> torch.Tensor:
        """``[voxels, classes]``."""
        logits = self.logits()
        value = loss.compute(spec, [logits], self.TARGET, COUNTS, all_here, annotated_BC=annotated_BC)
        (found,) = torch.autograd.grad(value, logits)
        return found.reshape(3, 3).T

    def test_probabilities_of_what_is_not_annotated_are_the_backgrounds(self) -> None:
        merged = loss.merge_unannotated(self.logits().detach(), PARTLY).softmax(dim=1).reshape(3, 3).T
        expected = [[0.8, 0.2, 0], [0.3, 0.7, 0], [0.8, 0.2, 0]]
        torch.testing.assert_close(merged, torch.tensor(expected, dtype=torch.float64))
        assert (merged[:, 2] == 0).all()

    def test_cross_entropy_by_hand(self) -> None:
        spec = DiceCrossEntropy(dice_weight=0)
        value = loss.compute(spec, [self.logits()], self.TARGET, COUNTS, all_here, annotated_BC=PARTLY)
        assert float(value.detach()) == pytest.approx(-(2 * math.log(0.8) + math.log(0.7)) / 3)

    def test_gradient_of_the_cross_entropy_by_hand(self) -> None:
        # Where the reference is background: p_j - p_j / (p_0 + p_2) for classes 0 and 2, p_1 for class 1.
        # Both logits are raised in proportion to their probabilities, as the correct one is not known.
        p = self.P
        background = torch.stack(
            [p[:, 0] - p[:, 0] / (1 - p[:, 1]), p[:, 1], p[:, 2] - p[:, 2] / (1 - p[:, 1])]
        )
        drawn = torch.stack([p[:, 0], p[:, 1] - 1, p[:, 2]])
        expected = torch.stack([background[:, 0], drawn[:, 1], background[:, 2]]) / 3
        found = self.gradient(DiceCrossEntropy(dice_weight=0))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert found[0, 2] < 0 < self.gradient(DiceCrossEntropy(dice_weight=0), None)[0, 2]

    def test_gradient_of_the_dice_by_hand(self) -> None:
        # Only class 1 has a Dice: D = 2 * p_1(b) / (sum p_1 + 1), and dp_1 / dz_2 = -p_1 p_2.
        p1, p2, size = self.P[:, 1], self.P[:, 2], float(self.P[:, 1].sum()) + 1
        by_p1 = torch.full((3,), 2 * 0.7 / size**2, dtype=torch.float64)  # derivative of 1 - D
        by_p1[1] -= 2 / size
        found = self.gradient(DiceCrossEntropy(cross_entropy_weight=0))
        torch.testing.assert_close(found[:, 2], -by_p1 * p1 * p2, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found[:, 1], by_p1 * p1 * (1 - p1), rtol=1e-5, atol=1e-7)

    def test_dice_of_all_classes_by_hand(self) -> None:
        # Merged background: 2 * 1.6 / (1.9 + 2). Class 2 does not count, as if missing from the batch.
        value = loss.compute(SoftDice(), [self.logits()], self.TARGET, COUNTS, all_here, annotated_BC=PARTLY)
        assert float(value.detach()) == pytest.approx(1 - (3.2 / 3.9 + 1.4 / 2.1) / 3, rel=1e-5)

    def test_weighted_cross_entropy_by_hand(self) -> None:
        spec = WeightedCrossEntropy()
        value = loss.compute(spec, [self.logits()], self.TARGET, COUNTS, all_here, annotated_BC=PARTLY)
        assert float(value.detach()) == pytest.approx(
            -(0.125 * 2 * math.log(0.8) + 0.375 * math.log(0.7)) / 3
        )

    def test_an_organs_dice_is_that_of_the_cases_in_which_it_is_annotated(self) -> None:
        both = torch.cat([self.logits(), certain([2, 2, 0]).double()]).detach()
        target = torch.cat([self.TARGET, line([2, 0, 0])])
        annotated = torch.tensor([[True, True, False], [True, True, True]])
        dice, sizes = loss.soft_dice(loss.merge_unannotated(both, annotated), target.long(), all_here)
        assert sizes.tolist() == [4, 1, 1]
        # From the second case alone: 2 voxels are predicted, 1 is in the reference.
        assert float(dice[2]) == pytest.approx(2 / 3)
        assert float(dice[1]) == pytest.approx(2 * 0.7 / (1.1 + 1))

    @pytest.mark.parametrize("spec", LOSSES, ids=lambda s: s.kind)
    def test_complete_annotation_is_the_same_to_the_last_bit(self, spec: LossSpec) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = [10 * torch.randn(2, 4, n, n, n, generator=generator) for n in (6, 3)]
        target = torch.randint(0, 4, (2, 6, 6, 6), generator=generator).byte()
        target[0, 0] = IGNORE
        results = []
        for annotated in (None, torch.ones(2, 4, dtype=torch.bool)):
            own = [level.clone().requires_grad_() for level in logits]
            counts = torch.tensor([[50, 9, 3, 1], [40, 8, 2, 0]])
            value = loss.compute(spec, own, target, counts, all_here, annotated_BC=annotated, progress=0.0)
            results.append([value, *torch.autograd.grad(value, own)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    @pytest.mark.parametrize("spec", LOSSES, ids=lambda s: s.kind)
    def test_where_nothing_is_annotated_nothing_is_learned(self, spec: LossSpec) -> None:
        logits = torch.full((1, 3, 2, 1, 1), 3.0).half().requires_grad_()
        nothing = torch.tensor([[True, False, False]])
        value = loss.compute(
            spec, [logits], line([0, 0]), COUNTS, all_here, annotated_BC=nothing, progress=0.0
        )
        (gradient,) = torch.autograd.grad(value, logits)
        assert gradient.abs().max() < 1e-6
        assert bool(torch.isfinite(value))

    @pytest.mark.parametrize("spec", LOSSES, ids=lambda s: s.kind)
    def test_every_level_is_merged(self, spec: LossSpec) -> None:
        """Moving probability between the background and what is not annotated changes no level's loss."""
        fine, coarse = torch.zeros(1, 3, 4, 1, 1), torch.zeros(1, 3, 2, 1, 1)
        target = line([0, 0, 1, 1])
        before = loss.compute(
            spec, [fine, coarse], target, COUNTS, all_here, annotated_BC=PARTLY, progress=0.0
        )
        moved = torch.tensor([1.5, 1.0, 0.5]).log().reshape(1, 3, 1, 1, 1)
        after = loss.compute(
            spec, [fine + moved, coarse + moved], target, COUNTS, all_here, annotated_BC=PARTLY, progress=0.0
        )
        assert float(after) == pytest.approx(float(before), abs=1e-6)


def test_shrink_target_takes_the_middle_of_each_coarse_voxel() -> None:
    target = line([0, 1, 2, 3, 4, 5])
    assert loss.shrink_target(target, (3, 1, 1)).flatten().tolist() == [1, 3, 5]
    assert loss.shrink_target(target, (2, 1, 1)).flatten().tolist() == [1, 4]
    assert loss.shrink_target(target, (6, 1, 1)) is target


class TestTaught:
    """Cross-entropy with the predictions of teachers, which makes up half of the loss."""

    P = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    Q = torch.tensor([[0.6, 0.3, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    """Voxels x classes."""

    @staticmethod
    def along(rows: torch.Tensor) -> torch.Tensor:
        return rows.T.reshape(1, 3, -1, 1, 1)

    def test_value_by_hand(self) -> None:
        first = -(0.6 * math.log(0.7) + 0.3 * math.log(0.2) + 0.1 * math.log(0.1))
        second = -math.log(0.5)
        value = loss.soft_cross_entropy(
            self.along(self.P.log()), self.along(self.Q), line([2, 0, IGNORE]).long(), all_here
        )
        assert value.item() == pytest.approx((first + second) / 2, rel=1e-6)

    def test_least_is_the_teachers_entropy(self) -> None:
        q = self.along(self.Q[[0, 2]])
        entropy = -float((self.Q[[0, 2]] * self.Q[[0, 2]].log()).sum()) / 2
        logits = q.log().requires_grad_()
        value = loss.soft_cross_entropy(logits, q, line([0, 0]).long(), all_here)
        assert value.item() == pytest.approx(entropy, rel=1e-6)
        (gradient,) = torch.autograd.grad(value, logits)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)

    def test_gradient_is_the_difference_of_probabilities(self) -> None:
        logits = self.along(self.P.log()).requires_grad_()
        target = line([0, IGNORE, 0]).long()
        (gradient,) = torch.autograd.grad(
            loss.soft_cross_entropy(logits, self.along(self.Q), target, all_here), logits
        )
        wanted = (self.P - self.Q) / 2
        wanted[1] = 0
        torch.testing.assert_close(gradient, self.along(wanted), rtol=1e-5, atol=1e-7)

    def test_nothing_counts(self) -> None:
        logits = self.along(self.P.log()).requires_grad_()
        value = loss.soft_cross_entropy(logits, self.along(self.Q), line([IGNORE] * 3).long(), all_here)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == 0
        assert not gradient.any()

    def test_half_is_the_references(self) -> None:
        target, logits, q = line([0, 1, 2]), self.along(self.P.log()), self.along(self.Q)
        hard = loss.compute(DiceCrossEntropy(), [logits], target, COUNTS, all_here)
        soft = loss.soft_cross_entropy(logits, q, target, all_here)
        both = loss.distilled(hard, logits, q, target, all_here)
        assert float(both) == pytest.approx((float(hard) + float(soft)) / 2, rel=1e-6)

    def test_shares_of_a_batch_add_up(self) -> None:
        """As with several processes: each knows the totals, and the gradients of the parts are added."""
        logits = torch.cat([self.along(self.P.log()), self.along(self.Q.clamp_min(0.05).log())])
        q = torch.cat([self.along(self.Q), self.along(self.P)])
        target = torch.cat([line([0, IGNORE, 1]), line([1, 1, 2])]).long()
        whole = logits.clone().requires_grad_()
        value = loss.soft_cross_entropy(whole, q, target, all_here)
        (wanted,) = torch.autograd.grad(value, whole)
        counted = torch.tensor(5)
        for n in range(2):
            part = logits[n : n + 1].clone().requires_grad_()

            def total(here: torch.Tensor) -> torch.Tensor:
                return here if here.requires_grad else counted

            share = loss.soft_cross_entropy(part, q[n : n + 1], target[n : n + 1], total)
            (found,) = torch.autograd.grad(share, part)
            torch.testing.assert_close(found, wanted[n : n + 1])
