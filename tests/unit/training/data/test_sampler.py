from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from zoomseg.core.labels import IGNORE
from zoomseg.recipe.spec import ClassBalanced, ClassWeighted, Foreground, SamplerSpec, UniformInRegion
from zoomseg.training.data.sampler import LISTED_VOXELS, Candidates, Sampler, list_candidates

RNG_SEED = 7
CHI_SQUARED = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 6: 22.5}
"""Quantiles of the chi-squared distribution at 0.999, by degrees of freedom."""


def fits(counts: Counter, shares: dict) -> bool:
    """Whether counts agree with the shares expected (Pearson's test)."""
    n = sum(counts.values())
    assert set(counts) <= set(shares)
    assert sum(shares.values()) == pytest.approx(1)
    statistic = sum((counts[k] - n * share) ** 2 / (n * share) for k, share in shares.items())
    return statistic < CHI_SQUARED[len(shares) - 1]


def labels(**at: tuple[int, int, int]) -> np.ndarray:
    """A 6x6x6 map with single voxels of class 1, 2, ... named ``c1``, ``c2``, ..."""
    out = np.zeros((6, 6, 6), dtype=np.uint8)
    for name, index in at.items():
        out[index] = int(name[1:])
    return out


def listed(classes: np.ndarray, mask: np.ndarray | None = None, origin: tuple = (0, 0, 0)) -> Candidates:
    return list_candidates(classes, mask, origin, np.random.default_rng(RNG_SEED))


def sampler_of(spec: SamplerSpec, *maps: np.ndarray, classes: int = 5) -> Sampler:
    return Sampler(spec, [listed(m) for m in maps], [np.bincount(m.ravel(), minlength=classes) for m in maps])


class TestCandidates:
    def test_voxels_are_listed_by_class_in_indices_of_the_grid(self) -> None:
        found = listed(labels(c1=(0, 1, 2), c3=(5, 5, 5)), origin=(10, 20, 30))
        organs = {c: v.tolist() for c, v in found.classes.items() if c > 0}
        assert organs == {1: [[10, 21, 32]], 3: [[15, 25, 35]]}
        background = {tuple(v) for v in found.classes[0].tolist()}
        everything = {tuple(v) for v in found.region.tolist()}
        assert background == everything - {(10, 21, 32), (15, 25, 35)}
        assert len(found.region) == 216

    @pytest.mark.parametrize(("first", "bits"), [(0, 16), (2**15 - 6, 16), (2**15 - 5, 32)])
    def test_indices_take_little_memory(self, first: int, bits: int) -> None:
        found = listed(labels(c1=(5, 1, 2)), origin=(first, 0, 0))
        assert found.classes[1].tolist() == [[first + 5, 1, 2]]
        assert {8 * found.region.itemsize, 8 * found.classes[1].itemsize} == {bits}

    def test_a_mask_leaves_out_what_is_not_in_the_region(self) -> None:
        mask = np.zeros((6, 6, 6), dtype=bool)
        mask[:2, 0, 0] = True
        found = listed(labels(c1=(0, 0, 0), c2=(5, 5, 5)), mask)
        assert found.region.tolist() == [[0, 0, 0], [1, 0, 0]]
        assert {c: v.tolist() for c, v in found.classes.items()} == {0: [[1, 0, 0]], 1: [[0, 0, 0]]}

    def test_ignored_voxels_are_no_centres(self) -> None:
        classes = np.full((6, 6, 6), IGNORE, dtype=np.uint8)
        classes[1, 2, 3] = 4
        found = listed(classes)
        assert found.region.tolist() == [[1, 2, 3]]
        assert {c: v.tolist() for c, v in found.classes.items()} == {4: [[1, 2, 3]]}

    def test_large_classes_are_thinned_out_evenly(self) -> None:
        classes = np.ones((30, 30, 30), dtype=np.uint8)
        found = listed(classes)
        assert len(found.classes[1]) == LISTED_VOXELS
        assert len({tuple(v) for v in found.classes[1].tolist()}) == LISTED_VOXELS
        assert found.classes[1].mean(axis=0) == pytest.approx([14.5] * 3, abs=0.5)


class TestSampler:
    def draws(self, sampler: Sampler, count: int = 3000) -> list:
        rng = np.random.default_rng(RNG_SEED)
        return [sampler.draw(rng) for _ in range(count)]

    def test_small_organs_are_not_drowned(self) -> None:
        big = np.ones((20, 20, 20), dtype=np.uint8)
        big[3, 4, 5] = 2
        sampler = sampler_of(ClassBalanced(background_share=0), big)
        hits = sum(draw.centre == (3, 4, 5) for draw in self.draws(sampler))
        assert hits / 3000 == pytest.approx(0.5, abs=0.03)

    def test_classes_are_balanced_over_the_data_set_not_within_a_case(self) -> None:
        # Class 2 is in the last of ten cases only, and still gets half of the draws.
        cases = [labels(c1=(1, 1, 1)) for _ in range(9)] + [labels(c2=(2, 2, 2))]
        sampler = sampler_of(ClassBalanced(background_share=0), *cases)
        found = Counter((draw.case == 9, draw.centre) for draw in self.draws(sampler))
        assert set(found) == {(False, (1, 1, 1)), (True, (2, 2, 2))}
        assert found[True, (2, 2, 2)] / 3000 == pytest.approx(0.5, abs=0.03)

    def test_background_share_is_drawn_anywhere_in_the_region(self) -> None:
        sampler = sampler_of(ClassBalanced(background_share=0.3), labels(c1=(1, 1, 1)))
        elsewhere = sum(draw.centre != (1, 1, 1) for draw in self.draws(sampler))
        assert elsewhere / 3000 == pytest.approx(0.3 * 215 / 216, abs=0.03)

    def test_uniform_does_not_look_at_classes(self) -> None:
        sampler = sampler_of(UniformInRegion(), labels(c1=(1, 1, 1)))
        assert len({draw.centre for draw in self.draws(sampler)}) == 216

    def test_a_class_that_no_case_has_is_not_drawn(self) -> None:
        sampler = sampler_of(ClassBalanced(background_share=0), labels(c1=(1, 1, 1)))
        assert {draw.centre for draw in self.draws(sampler, 50)} == {(1, 1, 1)}

    @pytest.mark.parametrize("spec", [ClassBalanced(background_share=0), Foreground()], ids=lambda s: s.kind)
    def test_without_any_class_the_region_is_drawn_from(self, spec: SamplerSpec) -> None:
        assert len({draw.centre for draw in self.draws(sampler_of(spec, labels()), 500)}) > 100

    def test_a_case_without_a_region_is_not_drawn(self) -> None:
        nowhere = listed(labels(), np.zeros((6, 6, 6), dtype=bool))
        counts = [np.array([0, 0]), np.array([216, 0])]
        for spec in (UniformInRegion(), ClassBalanced(), Foreground(), ClassWeighted()):
            sampler = Sampler(spec, [nowhere, listed(labels())], counts)
            assert {draw.case for draw in self.draws(sampler, 50)} == {1}

    def test_the_same_randomness_draws_the_same(self) -> None:
        sampler = sampler_of(ClassBalanced(), labels(c1=(1, 1, 1)))
        assert self.draws(sampler, 20) == self.draws(sampler, 20)


class TestFrequencies:
    """Three cases: 0 has a large organ (1) and 5 voxels of a gland (2), 1 the large organ, 2 organ 3."""

    @pytest.fixture
    def cases(self) -> list[np.ndarray]:
        maps = [np.zeros((20, 20, 20), dtype=np.uint8) for _ in range(3)]
        maps[0][2:18, 2:18, 2:18] = 1
        maps[0][9:14, 3, 3] = 2
        maps[1][5:15] = 1
        maps[2][:, 3:6] = 3
        return maps

    def draws(self, cases: list[np.ndarray], spec: SamplerSpec) -> list[tuple[int, int, tuple]]:
        """(case, class of the centre voxel, centre)."""
        sampler = sampler_of(spec, *cases)
        rng = np.random.default_rng(RNG_SEED)
        drawn = [sampler.draw(rng) for _ in range(3000)]
        return [(d.case, int(cases[d.case][d.centre]), d.centre) for d in drawn]

    def test_the_centre_has_the_class_and_all_classes_come_equally_often(
        self, cases: list[np.ndarray]
    ) -> None:
        drawn = self.draws(cases, ClassBalanced(background_share=0.0))
        assert fits(Counter(c for _, c, _ in drawn), {1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
        assert fits(Counter(case for case, c, _ in drawn if c == 1), {0: 1 / 2, 1: 1 / 2})
        gland = Counter(centre for _, c, centre in drawn if c == 2)
        assert fits(gland, {(i, 3, 3): 1 / 5 for i in range(9, 14)})

    def test_the_background_share_falls_on_whatever_is_there(self, cases: list[np.ndarray]) -> None:
        drawn = self.draws(cases, ClassBalanced(background_share=0.4))
        shares = {
            (case, int(c)): 0.4 / 3 * n / m.size
            for case, m in enumerate(cases)
            for c, n in zip(*np.unique(m, return_counts=True), strict=True)
        }
        shares[0, 1] += 0.6 / 3 / 2
        shares[1, 1] += 0.6 / 3 / 2
        shares[0, 2] += 0.6 / 3
        shares[2, 3] += 0.6 / 3
        assert fits(Counter((case, c) for case, c, _ in drawn), shares)

    def test_foreground_is_every_labelled_voxel_alike(self, cases: list[np.ndarray]) -> None:
        drawn = self.draws(cases, Foreground())
        voxels = {
            (case, int(c)): n
            for case, m in enumerate(cases)
            for c, n in zip(*np.unique(m[m > 0], return_counts=True), strict=True)
        }
        total = sum(voxels.values())
        assert fits(Counter((case, c) for case, c, _ in drawn), {k: n / total for k, n in voxels.items()})

    @pytest.mark.parametrize("exponent", [-1.0, -0.25, 0.0, 0.5])
    def test_class_weights_are_a_power_of_the_voxels_in_the_data_set(
        self, cases: list[np.ndarray], exponent: float
    ) -> None:
        drawn = self.draws(cases, ClassWeighted(exponent=exponent))
        sizes = np.bincount(np.concatenate([m.ravel() for m in cases]), minlength=4).astype(float)
        assert (sizes == [24000 - 4091 - 5 - 4000 - 1200, 8091, 5, 1200]).all()
        shares = dict(enumerate(sizes**exponent / (sizes**exponent).sum()))
        assert fits(Counter(c for _, c, _ in drawn), shares)

    def test_a_weighted_class_comes_from_all_cases_that_have_it_alike(self, cases: list[np.ndarray]) -> None:
        drawn = self.draws(cases, ClassWeighted(exponent=0.0))
        assert [(m == 0).sum() for m in cases] == [3904, 4000, 6800]
        assert fits(Counter(case for case, c, _ in drawn if c == 0), dict.fromkeys(range(3), 1 / 3))


class TestDistinctCases:
    SPECS = (UniformInRegion(), Foreground(), ClassBalanced(), ClassWeighted())

    def batches(
        self, spec: SamplerSpec, maps: list[np.ndarray], size: int, count: int
    ) -> list[list[tuple[int, int]]]:
        """(case, class of the centre voxel) of every draw."""
        sampler, rng = sampler_of(spec, *maps), np.random.default_rng(RNG_SEED)
        batches = [sampler.draw_distinct(size, rng) for _ in range(count)]
        return [[(d.case, int(maps[d.case][d.centre])) for d in batch] for batch in batches]

    @pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
    def test_no_case_comes_twice_and_every_one_comes(self, spec: SamplerSpec) -> None:
        maps = [labels(c1=(1, 1, n), c2=(2, 2, n)) for n in range(5)]
        batches = self.batches(spec, maps, 3, 200)
        assert all(len({case for case, _ in batch}) == 3 for batch in batches)
        assert {case for batch in batches for case, _ in batch} == set(range(5))
        assert all(len({case for case, _ in b}) == 5 for b in self.batches(spec, maps, 5, 20))

    @pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
    def test_fewer_cases_than_patches_come_equally_often(self, spec: SamplerSpec) -> None:
        maps = [labels(c1=(1, 1, n)) for n in range(2)]
        for batch in self.batches(spec, maps, 5, 50):
            assert sorted(Counter(case for case, _ in batch).values()) == [2, 3]

    @pytest.mark.parametrize(
        ("spec", "shares"),
        [
            (ClassBalanced(background_share=0.0), {1: 1 / 2, 2: 1 / 2}),
            (ClassWeighted(exponent=0.0), {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}),
        ],
        ids=lambda s: getattr(s, "kind", ""),
    )
    def test_classes_that_enough_cases_have_keep_their_probability(
        self, spec: SamplerSpec, shares: dict[int, float]
    ) -> None:
        """Class 2 is in 3 of 10 cases. If cases were assigned in the order of sampling, class 1 would often
        use these three."""
        maps = [labels(c1=(1, 1, 1), c2=(2, 2, 2)) for _ in range(3)] + [labels(c1=(1, 1, 1))] * 7
        drawn = Counter(c for batch in self.batches(spec, maps, 3, 1000) for _, c in batch)
        assert fits(drawn, shares)

    def test_a_class_without_cases_left_gives_its_place_to_those_that_have(self) -> None:
        maps = [labels(c2=(2, 2, 2)), labels(c1=(1, 1, 1)), labels(c1=(1, 1, 1))]
        for batch in self.batches(ClassBalanced(background_share=0.0), maps, 3, 50):
            assert sorted(batch) == [(0, 2), (1, 1), (2, 1)]

    def test_cases_without_an_organ_are_left_out_of_foreground(self) -> None:
        maps = [labels(), labels(c1=(1, 1, 1)), labels(c3=(1, 1, 1))]
        for batch in self.batches(Foreground(), maps, 3, 20):
            assert sorted(batch) in ([(1, 1), (1, 1), (2, 3)], [(1, 1), (2, 3), (2, 3)])

    def test_the_same_randomness_draws_the_same(self) -> None:
        maps = [labels(c1=(1, 1, n), c2=(2, 2, n)) for n in range(5)]
        one, two = (self.batches(ClassWeighted(), maps, 3, 20) for _ in range(2))
        assert one == two
