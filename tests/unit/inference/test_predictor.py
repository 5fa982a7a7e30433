"""A model loaded once: its networks predict any scan, alone or as an ensemble, or refuse it."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.known_networks import by_name, case, mean_of, with_stages
from helpers.onnx_models import converted
from helpers.tiny_dataset import CPU, SCHEMA, retrained, tiny_recipe
from helpers.untrained_models import untrained_bundle, valid_bundle
from zoomseg.anatomy.positions import TypicalPosition
from zoomseg.backends.torch_networks import as_network, build_network, state_dict, trained_network
from zoomseg.core.case import Case
from zoomseg.core.errors import GeometryError, ModelError, RecipeError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.evaluation.upper_bound import oracle
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.resource_usage import highest_ram_mb
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.pipeline.cascade import Cascade
from zoomseg.pipeline.sliding_window import StageNetwork
from zoomseg.recipe.spec import (
    ImageInput,
    PriorInput,
    UNet3D,
)

BESIDE = ((-200.0, 200.0), (-50.0, 50.0), (-10.0, 10.0))
DOMAIN = TrainingDomain(
    modality="CT",
    intensities=((-20.0,) * 6 + (0.0,) * 7 + (20.0,) * 6,),
    darkest=(-150.0, -20.0),
    cross_section_cm2=(1.0, 50.0),
    organs={
        "right kidney": TypicalPosition(
            volume_ml=(4.0, 5.0), offsets_mm={"left kidney": BESIDE, "liver": BESIDE}
        )
    },
)
"""Of scans of noise about 0."""


class TestPredictor:
    def test_drives_the_networks_of_the_bundle(self) -> None:
        bundle = untrained_bundle(3)
        modules = {s.name: build_network(s, bundle.recipe, SCHEMA, 1) for s in bundle.recipe.stages}
        for name, module in modules.items():
            module.load_state_dict(state_dict(bundle, name))
        networks = {name: as_network(module.eval(), CPU) for name, module in modules.items()}
        expected = Cascade(bundle.recipe, SCHEMA, by_name(networks), CPU).run(case())
        found = Predictor(bundle, CPU).predict(case())
        assert np.array_equal(found.labels.data, expected.labels.data)
        assert found.probabilities is not None
        assert expected.probabilities is not None
        assert np.array_equal(found.probabilities.probabilities, expected.probabilities.probabilities)

    def test_weights_that_the_networks_have_are_not_held_beside_them(self, tmp_path: Path) -> None:
        model = converted("plain_conv_unet", tmp_path)
        held = weakref.ref(model.weights["coarse"]["last.weight"])
        made = Predictor(model, CPU, backend="openvino")
        del model
        gc.collect()
        assert held() is None
        assert made.bundle.weights == {}
        assert made.bundle.schema == SCHEMA

    def test_a_scan_that_is_plainly_something_else_is_refused_or_not_trusted(self) -> None:
        bundle = replace(untrained_bundle(3), domain=DOMAIN)
        other = replace(case(), modality="MR", notes=("2 slices are missing",))
        with pytest.raises(ScanError, match=r"^the scan is of modality MR, the model was trained on CT"):
            Predictor(bundle, CPU).predict(other)
        found = Predictor(bundle, CPU, any_scan=True).predict(other)
        expected = Predictor(bundle, CPU).predict(replace(other, modality="CT"))
        assert np.array_equal(found.labels.data, expected.labels.data)
        assert found.confidence_factor == 0.0
        assert found.notes[:2] == (
            "2 slices are missing",
            "clearly unlike the training scans: the scan is of modality MR, the model was trained on CT",
        )
        assert (expected.confidence_factor, expected.notes[:1]) == (1.0, ("2 slices are missing",))
        unknown = Predictor(untrained_bundle(3), CPU).predict(other)
        assert (unknown.confidence_factor, unknown.notes) == (1.0, other.notes)

    def test_a_series_that_is_read_as_stored_has_a_note_with_its_axes(self) -> None:
        model = untrained_bundle(3)
        stored = replace(model, recipe=model.recipe.model_copy(update={"orientation": "stored"}))
        series = replace(case(), modality="CT")
        axes = series.image.grid.axes
        note = f"the model reads scans as stored, and this DICOM series has the axes {axes}: unless its"
        assert Predictor(stored, CPU).predict(series).notes[0].startswith(note)
        assert Predictor(stored, CPU).predict(case()).notes == ()
        assert Predictor(model, CPU).predict(series).notes == ()

    @pytest.mark.parametrize(("remove", "told"), [(True, "removed,"), (False, "lies")])
    def test_parts_of_organs_where_training_never_had_them_are_taken_out(
        self, remove: bool, told: str
    ) -> None:
        """Where the recipe says so, whether or not the organs that define their position were requested."""
        schema = LabelSchema(("left kidney", "right kidney", "liver"), (3, 7, 9))
        grid = Grid.from_spacing((40, 20, 80), (5.0, 5.0, 5.0))
        drawn = np.zeros(grid.shape, dtype=np.uint8)
        for c, i in ((1, 5), (2, 30), (3, 20)):
            drawn[i : i + 3, 5:8, 70:73] = c
        expected = drawn.copy()
        drawn[30:32, 5:7, 5:7] = 2
        if not remove:
            expected = drawn
        known = {"right kidney": TypicalPosition(None, {"left kidney": BESIDE, "liver": BESIDE})}
        truth = LabelMap(drawn, grid, schema)
        image = Volume(drawn[None].astype(np.float32) * 50, grid)
        recipe = tiny_recipe(together=True).model_copy(update={"remove_misplaced": remove})
        for organs in (None, ("right kidney",)):
            found = Cascade(recipe, schema, oracle(truth), CPU, typical_positions=known).run(
                Case("a", image, truth), organs
            )
            wanted = expected if organs is None else np.where(expected == 2, 2, 0)
            assert np.array_equal(found.labels.data, wanted)
            (note,) = found.notes
            assert note.startswith(f"right kidney: 1 part (1.0 ml) {told} ")
            assert found.misplaced == ()

    def test_several_models_answer_together(self) -> None:
        """Every stage gives the mean of the networks' predictions for the same input, including earlier
        means."""
        bundles = [untrained_bundle(seed) for seed in (3, 4, 5)]
        networks: dict[str, StageNetwork] = {}
        for stage in bundles[0].recipe.stages:
            modules = [trained_network(bundle, stage).eval() for bundle in bundles]
            networks[stage.name] = mean_of([as_network(module, CPU) for module in modules])
        expected = Cascade(bundles[0].recipe, SCHEMA, by_name(networks), CPU).run(case())
        found = Predictor(bundles[0], CPU, others=bundles[1:]).predict(case())
        alone = Predictor(bundles[0], CPU).predict(case())
        for name, prior in found.stages.items():
            np.testing.assert_allclose(
                prior.probabilities, expected.stages[name].probabilities, rtol=1e-5, atol=1e-7
            )
            assert not np.allclose(prior.probabilities, alone.stages[name].probabilities, atol=1e-3)
        assert found.records[1].flops == 3 * alone.records[1].flops

    def test_models_that_look_elsewhere_or_for_something_else_are_refused(self) -> None:
        bundle = untrained_bundle()
        coarse, fine = bundle.recipe.stages
        grid = fine.grid.model_copy(update={"tile": (8, 8, 8)})
        recipe = bundle.recipe.model_copy(update={"stages": (coarse, fine.model_copy(update={"grid": grid}))})
        others = {
            "stage 'fine'": replace(bundle, recipe=recipe),
            "channels": replace(bundle, channel_names=("MR",)),
            "labels": replace(bundle, schema=LabelSchema(SCHEMA.names, tuple(v + 1 for v in SCHEMA.values))),
        }
        for part, other in others.items():
            with pytest.raises(ModelError, match=rf"^models of an ensemble .*; the {part} of '"):
                Predictor(bundle, CPU, others=[other])

    def test_networks_and_training_may_differ(self) -> None:
        bundle = untrained_bundle()
        longer = retrained(bundle.recipe, iterations=7)
        other = replace(bundle, recipe=longer.model_copy(update={"name": "b"}))
        Predictor(bundle, CPU, others=[other])

    def test_networks_that_predict_other_voxels_of_a_tile_are_refused(self) -> None:
        one = valid_bundle()
        coarse, fine = one.recipe.stages
        deeper = coarse.model_copy(update={"network": UNet3D(channels=(8, 16, 32))})
        other = replace(one, recipe=one.recipe.model_copy(update={"stages": (deeper, fine)}))
        with pytest.raises(
            ModelError, match="; the margin of a tile that the network of stage 'coarse' does"
        ):
            Predictor(one, CPU, others=[other])

    def test_a_recipe_that_allows_no_mirroring_is_not_mirrored(self) -> None:
        bundle = untrained_bundle(3)
        with pytest.raises(RecipeError, match="allows no mirroring: no stage has mirror_axes"):
            Predictor(bundle, CPU, mirror=True)

    def test_wrong_number_of_channels(self) -> None:
        image = case().image
        two = Case("b", Volume(image.data.repeat(2, axis=0), image.grid))
        with pytest.raises(GeometryError, match=r"^scan b has 2 channel\(s\), the model needs 1: CT$"):
            Predictor(untrained_bundle(), CPU).predict(two)

    def test_weights_of_another_network_are_one_line_that_names_the_stage(self) -> None:
        bundle = untrained_bundle()
        swapped = {"coarse": bundle.weights["fine"], "fine": bundle.weights["coarse"]}
        with pytest.raises(ModelError, match=r"^weights of stage 'coarse' do not fit its network \(.*\)$"):
            Predictor(replace(bundle, weights=swapped), CPU)

    def test_a_recipe_that_wants_a_label_nobody_predicts(self) -> None:
        bundle = untrained_bundle()
        inputs = (ImageInput(), PriorInput(of="coarse", labels=("spleen",)))
        with pytest.raises(RecipeError, match="does not predict 'spleen'"):
            Predictor(replace(bundle, recipe=with_stages(fine={"inputs": inputs})), CPU)

    def test_a_tile_that_the_network_cannot_read(self) -> None:
        bundle = untrained_bundle()
        grid = bundle.recipe.stages[1].grid.model_copy(update={"tile": (1, 16, 12)})
        with pytest.raises(
            RecipeError, match=r"stage 'fine', grid\.tile: resenc_unet .* cannot take an input of 1x16x12"
        ):
            Predictor(replace(bundle, recipe=with_stages(fine={"grid": grid})), CPU)

    def test_a_network_takes_no_memory_before_there_are_weights_for_it(self) -> None:
        """With 4096 channels everywhere it would take 7 GB."""
        bundle = untrained_bundle()
        network = bundle.recipe.stages[1].network.model_copy(update={"channels": (4096, 4096)})
        with pytest.raises(ModelError, match="weights of stage 'fine' do not fit its network"):
            Predictor(replace(bundle, recipe=with_stages(fine={"network": network})), CPU)
        assert highest_ram_mb() < 3000

    def test_a_recipe_that_wants_a_channel_scans_do_not_have(self) -> None:
        bundle = untrained_bundle()
        recipe = with_stages(coarse={"inputs": (ImageInput(channel=1),)})
        with pytest.raises(RecipeError, match="stage 'coarse', inputs: scans have no channel 1"):
            Predictor(replace(bundle, recipe=recipe), CPU)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_an_answer_painted_slab_by_slab_is_the_same(overlap: float) -> None:
    """The last stage's prediction is not held as a whole, which changes neither labels nor confidence."""
    bundle = untrained_bundle(3)
    fine = bundle.recipe.stages[-1]
    grid = fine.grid.model_copy(update={"tile": (8, 8, 4), "overlap": overlap, "mm": (2.3, 1.9, 2.0)})
    stages = (*bundle.recipe.stages[:-1], fine.model_copy(update={"grid": grid}))
    predictor = Predictor(replace(bundle, recipe=bundle.recipe.model_copy(update={"stages": stages})), CPU)
    kept, painted = (predictor.predict(case(), keep=keep) for keep in (True, False))
    assert len(np.unique(kept.labels.data)) > 1
    assert np.array_equal(painted.labels.data, kept.labels.data)
    assert painted.confidence == pytest.approx(kept.confidence, abs=1e-6)
    assert [r.stage for r in painted.records] == [r.stage for r in kept.records]
    assert list(painted.stages) == []
    assert list(kept.stages) == ["coarse", "fine"]
