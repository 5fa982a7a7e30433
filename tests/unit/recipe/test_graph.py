"""References only go backwards; labels must be predicted; stages trained together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from zoomseg.core.errors import RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.recipe import graph
from zoomseg.recipe.graph import TrainingGroup
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import ATLAS, BoxAround, Presence, PriorInput, Recipe

SCHEMA = LabelSchema(
    ("liver", "left kidney", "right kidney"), (1, 2, 3), {"kidneys": ("left kidney", "right kidney")}
)


TRAINING = {"patch": (16, 16, 16), "iterations": 10}


def stage(name: str, **changes: object) -> dict[str, object]:
    given: dict[str, object] = {
        "name": name,
        "grid": {"kind": "spacing", "mm": (2, 2, 2), "tile": (16, 16, 16)},
        "network": {"kind": "unet3d", "channels": (4, 8)},
        "training": TRAINING,
    }
    return given | changes


def reads(*names: str, labels: object = "all") -> tuple[dict[str, object], ...]:
    return ({"kind": "image"}, *({"kind": "prior", "of": n, "labels": labels} for n in names))


def recipe(*stages: dict[str, object], **changes: object) -> Recipe:
    given = {"name": "r", "intensity": {"kind": "zscore"}, "stages": stages}
    return Recipe.model_validate(given | changes)


BOX = {"kind": "box", "of": "one"}
APART = {"kind": "spacing", "mm": (2, 2, 2), "tile": (16, 16, 16), "slices_apart_above": 3}
TIMES_ATLAS = {"kind": "probability_times_atlas", "of": "one"}


@pytest.mark.parametrize("fusion", ["replace_in_roi", "paste"])
def test_fusions_that_interpolate_as_the_stage_says_are_valid(fusion: str) -> None:
    graph.validate(recipe(stage("one", grid=APART, mean="geometric", fusion=fusion)))


def test_a_chain_is_valid() -> None:
    graph.validate(recipe(stage("one"), stage("two", roi=BOX), stage("three", inputs=reads("one", "two"))))
    graph.validate(recipe(stage("region"), stage("other-region")))


def test_what_is_decided_on_the_stages_grid_is_not_interpolated() -> None:
    own = {"argmax_on": "stage_grid", "fusion": "majority_vote"}
    graph.validate(recipe(stage("one", mean="geometric", **own), stage("two", grid=APART, **own)))
    graph.validate(recipe(stage("one", mean="geometric", grid=APART, fusion="paste")))


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ((stage("one"), stage("one")), r"stages\[1\]\.name: 'one' is taken"),
        (
            (stage("one"), stage("one-region", roi=BOX)),
            r"stages\[1\]\.name: 'one-region' is also the name of the file with the region of stage 'one'",
        ),
        ((stage("one-region"), stage("one")), r"stages\[0\]\.name: 'one-region' is also the name of the"),
        ((stage("two", roi=BOX), stage("one")), "stage 'two', roi.of: 'one' is not an .* none, as this is"),
        ((stage("one", roi=BOX),), "stage 'one', roi.of: 'one' is not an earlier stage"),
        (
            (stage("one", labels_overlap=True, mean="geometric", fusion="majority_vote"),),
            "stage 'one', fusion: 'majority_vote' is not for labels that overlap; allowed: none, replace",
        ),
        ((stage("one", labels_overlap=True),), "labels_overlap needs geometric, got 'arithmetic'"),
        (
            (stage("one", mean="geometric", fusion="majority_vote"),),
            "stage 'one', mean: fusion 'majority_vote' interpolates .* linearly; allowed with argmax_on",
        ),
        (
            (stage("one", grid=APART, fusion="most_probable"),),
            r"stage 'one', grid\.slices_apart_above: fusion 'most_probable' inter.* or fusion: none, re",
        ),
        (
            (stage("zero"), stage("one"), stage("two", inputs=reads("one", "tree"))),
            r"stage 'two', inputs\[2\]\.of: 'tree' is not an earlier stage; allowed: zero, one$",
        ),
        (
            (stage("zero"), stage("two", roi={"kind": "dilated_foreground", "of": "one"})),
            "stage 'two', roi.of: 'one' is not an earlier stage; allowed: zero$",
        ),
        ((stage("one", fusion="none"),), "stage 'one', fusion: all stages have 'none'"),
        ((stage("one"), stage("atlas")), r"stages\[1\]\.name: 'atlas' is the atlas prior's; choose another"),
        (
            (stage("one", per_label=True), stage("two", roi=BOX)),
            "stage 'two', roi.of: 'one' becomes one stage per label, so only a stage with per_label: true",
        ),
        (
            (stage("one", per_label=True), stage("two", inputs=reads("one"))),
            r"stage 'two', inputs\[1\]\.of: 'one' becomes one stage per label",
        ),
        (
            (stage("one"), stage("two", roi=TIMES_ATLAS)),
            "stage 'two' uses the atlas prior, but .* no 'atlas'",
        ),
        (
            (stage("one", inputs=({"kind": "image"}, {"kind": "atlas"})),),
            "stage 'one' uses the atlas prior, but .* no 'atlas'",
        ),
        (
            (stage("one", fusion="replace_times_atlas"),),
            "stage 'one' uses the atlas prior, but .* no 'atlas'",
        ),
    ],
)
def test_broken_graphs_are_refused(stages: tuple[dict[str, object], ...], line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        graph.validate(recipe(*stages))


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        ([["one", "tow"]], "unknown stage 'tow'; allowed: one, two, three"),
        ([[]], r"at least 1 stage, got \[\]"),
        ([["one", "three"]], "do not follow each other"),
        ([["two", "one"]], "do not follow each other"),
        ([["one", "one"]], "do not follow each other"),
        ([["two", "three"]], "stage 'three' has no prior input of two"),
    ],
)
def test_groups_without_a_gradient_are_refused(groups: list[list[str]], line: str) -> None:
    stages = stage("one"), stage("two", inputs=reads("one")), stage("three", inputs=reads("one"))
    with pytest.raises(RecipeError, match=f"train_together: .*{line}|train_together: {line}"):
        graph.validate(recipe(*stages, train_together=groups))


def test_a_stage_is_in_several_groups_only_with_live_priors() -> None:
    stages = stage("one"), stage("two", inputs=reads("one"))
    twice = recipe(*stages, train_together=[["one"], ["one", "two"]])
    graph.validate(twice)
    line = "stage 'one' is in several groups, with prior_from: predictions; allowed with: live"
    with pytest.raises(RecipeError, match=f"train_together: {line}"):
        graph.validate(twice.model_copy(update={"prior_from": "predictions"}))


@pytest.mark.parametrize(
    "groups", [(("one",), ("one", "two")), (("one", "two"), ("one",)), (("one", "two"), ("two",))]
)
def test_a_stage_in_several_groups_is_trained_in_their_order(groups: tuple[tuple[str, ...], ...]) -> None:
    stages = stage("one"), stage("two", inputs=reads("one")), stage("three")
    made = recipe(*stages, train_together=groups)
    assert [group.trained for group in graph.training_groups(made)] == [*groups, ("three",)]


def test_training_groups_stay_whole_and_in_order() -> None:
    stages = (
        stage("one"),
        stage("two", inputs=reads("one")),
        stage("three", inputs=reads("two")),
        stage("four"),
    )
    alone = recipe(*stages)
    assert [u.trained for u in graph.training_groups(alone)] == [("one",), ("two",), ("three",), ("four",)]
    grouped = recipe(*stages, train_together=[["two", "three"]])
    graph.validate(grouped)
    assert graph.training_groups(grouped) == (
        TrainingGroup(("one",)),
        TrainingGroup(("two", "three")),
        TrainingGroup(("four",)),
    )


def test_ancestors_are_transitive_and_skip_the_unread() -> None:
    built = recipe(
        stage("one"),
        stage("other"),
        stage("two", roi=BOX),
        stage("three", inputs=reads("two")),
        stage("four"),
    )
    assert graph.ancestors(built, "three") == ("one", "two")
    assert graph.ancestors(built, "two") == ("one",)
    assert graph.ancestors(built, "four") == ()
    with pytest.raises(RecipeError, match="no stage 'five'; allowed: one, other, two, three, four"):
        graph.ancestors(built, "five")


def test_the_region_of_a_stage_is_determined_by_another_or_by_none() -> None:
    rois = (BOX, TIMES_ATLAS, {"kind": "dilated_foreground", "of": "one"}, {"kind": "body_mask"})
    stages = [stage(f"s{n}", roi=roi, inputs=reads("two")) for n, roi in enumerate(rois)]
    made = recipe(stage("one"), stage("two"), *stages)
    assert [graph.region_source(one) for one in made.stages] == [None, None, "one", "one", "one", None]


def test_a_stage_that_is_not_fused_does_not_separate_those_that_vote_together() -> None:
    fusions = ("majority_vote", "none", "majority_vote", "paste", "none", "majority_vote")
    made = recipe(*(stage(f"s{n}", fusion=fusion) for n, fusion in enumerate(fusions)))
    groups = [(kind, [one.name for one in group]) for kind, group in graph.fused_groups(made.stages)]
    assert groups == [("majority_vote", ["s0", "s2"]), ("paste", ["s3"]), ("majority_vote", ["s5"])]


@pytest.mark.parametrize(
    ("fusions", "last"),
    [
        (("none", "replace_in_roi"), ("s1",)),
        (("replace_in_roi", "replace_in_roi"), ("s1",)),
        (("replace_in_roi", "majority_vote", "majority_vote"), ("s1", "s2")),
        (("majority_vote", "none", "majority_vote"), ("s0", "s2")),
        (("majority_vote", "majority_vote", "paste"), ("s2",)),
        (("replace_in_roi", "none"), ("s0",)),
    ],
)
def test_who_answers_last(fusions: tuple[str, ...], last: tuple[str, ...]) -> None:
    made = recipe(*(stage(f"s{n}", fusion=fusion) for n, fusion in enumerate(fusions)))
    assert graph.deciding_stages(made, SCHEMA) == dict.fromkeys(SCHEMA.names, last)


def test_organs_that_no_stage_writes_to_the_label_map_are_omitted() -> None:
    made = recipe(
        stage("one", labels=("liver",), fusion="none"),
        stage("two", labels=("left kidney", "right kidney"), fusion="most_probable"),
        stage("three", labels=("right kidney",), fusion="most_probable"),
    )
    assert graph.deciding_stages(made, SCHEMA) == {"left kidney": ("two",), "right kidney": ("two", "three")}


def test_stages_may_be_renamed_also_where_they_name_each_other() -> None:
    box = {"kind": "box", "of": "a"}
    before = recipe(
        stage("a"),
        stage("b", inputs=reads("a")),
        stage("c", roi=box),
        train_together=[["a", "b"]],
        presence={"of": "a"},
    )
    after = graph.renamed(before, {"a": "x-a", "b": "x-b", "c": "x-c"})
    assert [one.name for one in after.stages] == ["x-a", "x-b", "x-c"]
    assert [graph.ancestors(after, name) for name in ("x-b", "x-c")] == [("x-a",), ("x-a",)]
    assert after.train_together == (("x-a", "x-b"),)
    assert after.presence == Presence(of="x-a")
    assert [graph.is_read(after, name) for name in ("x-a", "x-b", "x-c")] == [True, False, False]


def test_tiles_may_share_less_but_not_more() -> None:
    def tiled(overlap: object) -> dict[str, object]:
        return {"kind": "spacing", "mm": (2, 2, 2), "tile": (16, 16, 16), "overlap": overlap}

    before = recipe(stage("a", grid=tiled(0.5)), stage("b", grid=tiled((0.0, 0.1, 0.4))), stage("c"))
    after = graph.with_less_overlap(before, 0.25)
    assert [one.grid.overlap for one in after.stages] == [(0.25, 0.25, 0.25), (0.0, 0.1, 0.25), 0.0]
    assert graph.with_less_overlap(before, 0.5) == before
    with pytest.raises(RecipeError, match=r"share up to 0\.5 of themselves.*allowed: 0 to 0\.5"):
        graph.with_less_overlap(before, 0.6)


def test_labels_resolve_in_schema_order_groups_taken_apart() -> None:
    built = recipe(
        stage("one", labels=("kidneys", "liver")), stage("two", labels=("right kidney",)), stage("three")
    )
    found = [graph.resolve_labels(s, SCHEMA) for s in built.stages]
    assert found == [("liver", "left kidney", "right kidney"), ("right kidney",), SCHEMA.names]


def test_unknown_or_no_labels_are_refused() -> None:
    spleen, none = recipe(stage("one", labels=("spleen",)), stage("two", labels=())).stages
    with pytest.raises(RecipeError, match="stage 'one', labels: unknown label 'spleen'; allowed: liver"):
        graph.resolve_labels(spleen, SCHEMA)
    with pytest.raises(RecipeError, match="stage 'two', labels: got none"):
        graph.resolve_labels(none, SCHEMA)


def test_labels_wanted_of_a_stage_must_be_predicted_by_it() -> None:
    kidneys = stage("one", labels=("kidneys",))
    good = recipe(kidneys, stage("two", roi=BOX | {"labels": ("left kidney",)}, inputs=reads("one")))
    graph.validate_labels(good, SCHEMA)
    for reader, field in (
        (stage("two", roi=BOX | {"labels": ("liver",)}), "roi"),
        (stage("two", inputs=reads("one", labels=("liver",))), r"inputs\[1\]"),
    ):
        bad = recipe(kidneys, reader)
        graph.validate(bad)
        line = (
            f"stage 'two', {field}.labels: stage 'one' does not predict 'liver'; allowed: left kidney, right"
        )
        with pytest.raises(RecipeError, match=line):
            graph.validate_labels(bad, SCHEMA)


# --- the atlas prior ------------------------------------------------------------------------------


def test_a_reference_box_needs_a_grid_that_fills_it_and_a_finished_stage() -> None:
    around = {"kind": "box", "of": "one", "reference_margin_mm": (10, 30)}
    filling = {"kind": "shape", "shape": (16, 16, 16), "tile": (16, 16, 16)}
    with pytest.raises(ValidationError, match="needs a grid of kind shape"):
        recipe(stage("one"), stage("two", roi=around), prior_from="predictions")
    boxed = recipe(stage("one"), stage("two", roi=around, grid=filling), prior_from="predictions")
    graph.validate(boxed)
    assert [s.reference_margin_mm is not None for s in boxed.stages] == [False, True]
    with pytest.raises(RecipeError, match=r"'two', roi\.reference_margin_mm: with prior_from: live"):
        graph.validate(boxed.model_copy(update={"prior_from": "live"}))


def test_who_uses_the_atlas_may_where_there_is_one() -> None:
    stages = (
        stage("one", inputs=({"kind": "image"}, {"kind": "atlas"})),
        stage("two", roi=TIMES_ATLAS),
        stage("three", fusion="replace_times_atlas"),
        stage("four", roi=BOX),
    )
    built = recipe(*stages, atlas={})
    graph.validate(built)
    assert [graph.uses_atlas(s) for s in built.stages] == [True, True, True, False]
    assert graph.ancestors(built, "two") == ("one",)


# --- a published recipe on another data set ---------------------------------------------------------

FOUND = LabelSchema(
    ("Liver", "kidney left", "kidney right"), (1, 2, 3), {"kidneys": ("kidney left", "kidney right")}
)


def test_label_names_become_the_data_set_s_spelling_wherever_they_stand() -> None:
    published = recipe(
        stage("one", labels=("liver", "left_kidney", "right_kidney")),
        stage("two", labels=("kidneys",), roi=BOX | {"labels": ("left_kidney", "right_kidney")}),
        stage(
            "three", roi=TIMES_ATLAS | {"labels": ("liver",)}, inputs=reads("one", labels=("right_kidney",))
        ),
        stage("four", inputs=({"kind": "atlas", "labels": ("LIVER",)}, *reads("one", labels="own"))),
        largest_component=("left_kidney",),
        islands={"labels": ("LIVER", "spleen")},
        presence={"of": "one", "labels": ("right_kidney", "pancreas")},
        atlas={},
    )
    fitted, notes = graph.fit(published, FOUND)
    assert notes == (
        "islands.labels: the data set has no spleen; dropped",
        "presence.labels: the data set has no pancreas; dropped",
    )
    _, two, three, four = fitted.stages
    assert [s.labels for s in fitted.stages] == [
        ("Liver", "kidney left", "kidney right"),
        ("kidneys",),
        "all",
        "all",
    ]
    assert isinstance(two.roi, BoxAround)
    assert two.roi.labels == ("kidney left", "kidney right")
    assert three.roi.labels == ("Liver",)  # type: ignore[union-attr]
    assert three.inputs[1].labels == ("kidney right",)  # type: ignore[union-attr]
    assert [s.labels for s in four.inputs if s.kind != "image"] == [("Liver",), "own"]
    assert fitted.largest_component == ("kidney left",)
    assert fitted.islands is not None
    assert fitted.islands.labels == ("Liver",)
    assert fitted.presence == Presence(of="one", labels=("kidney right",))
    graph.validate_labels(graph.expand(fitted, FOUND), FOUND)


def test_a_published_recipe_keeps_its_organs_in_any_spelling() -> None:
    names = "Liver, RK, LK, Spleen, Pancreas, arota, postcava, RAG, LAG, gall bladder, Eso, Stomach, Duodenum"
    abbreviated = LabelSchema.consecutive(names.split(", "))
    published = load("flare22-whole-volume")
    assert isinstance(published, Recipe)
    fitted, notes = graph.fit(published, abbreviated)
    assert notes == ()
    assert [s.labels for s in fitted.stages] == [
        "all",
        ("Liver", "Spleen", "LK", "RK"),
        ("Stomach", "Pancreas", "Duodenum"),
        ("arota", "postcava"),
        ("LAG", "RAG", "gall bladder", "Eso"),
        ("LAG", "RAG", "gall bladder", "Eso"),
    ]


def test_labels_that_the_data_set_lacks_are_dropped_and_told() -> None:
    published = recipe(
        stage("one", labels=("liver", "spleen", "left_kidney")),
        stage("two", labels=("spleen", "pancreas"), roi=BOX | {"labels": "own"}),
        stage("three", inputs=reads("two")),
        stage("four", roi=BOX, inputs=reads("one")),
        train_together=[["one", "two"], ["one", "four"]],
        largest_component=("spleen", "liver"),
    )
    fitted, notes = graph.fit(published, FOUND)
    assert [s.name for s in fitted.stages] == ["one", "four"]
    assert fitted.stages[0].labels == ("Liver", "kidney left")
    assert fitted.train_together == (("one", "four"),)
    assert fitted.largest_component == ("Liver",)
    assert notes == (
        "stage 'one': the data set has no spleen; dropped",
        "stage 'two': the data set has no spleen, pancreas; dropped",
        "stage 'two' is left out: nothing that it needs is in the data set",
        "stage 'three' is left out: nothing that it needs is in the data set",
        "largest_component: the data set has no spleen; dropped",
    )


def test_a_recipe_that_fits_stays_as_it_is() -> None:
    plain = recipe(stage("one"), stage("two", roi=BOX, inputs=reads("one")), largest_component="all")
    fitted, notes = graph.fit(plain, FOUND)
    assert (fitted, notes) == (plain, ())
    assert graph.expand(plain, FOUND) == plain


def test_a_recipe_of_which_nothing_is_left_is_refused() -> None:
    line = "recipe 'r' predicts none of the data set's labels: Liver, kidney left, kidney right"
    with pytest.raises(RecipeError, match=line):
        graph.fit(recipe(stage("one", labels=("spleen",)), stage("two", roi=BOX)), FOUND)


# --- one stage per label ----------------------------------------------------------------------------


def test_a_stage_per_label_becomes_one_stage_for_each() -> None:
    built = recipe(
        stage("coarse"),
        stage(
            "find", labels=("kidneys",), per_label=True, roi={"kind": "box", "of": "coarse", "labels": "own"}
        ),
        stage(
            "fine",
            labels=("right kidney",),
            per_label=True,
            roi={"kind": "box", "of": "find", "labels": "own"},
            inputs=reads("find", "coarse", labels="own"),
        ),
    )
    graph.validate(built)
    made = graph.expand(built, SCHEMA)
    assert [s.name for s in made.stages] == [
        "coarse",
        "find-left_kidney",
        "find-right_kidney",
        "fine-right_kidney",
    ]
    assert [s.labels for s in made.stages] == ["all", ("left kidney",), ("right kidney",), ("right kidney",)]
    assert not any(s.per_label for s in made.stages)
    assert [(s.roi.of, s.roi.labels) for s in made.stages if isinstance(s.roi, BoxAround)] == [
        ("coarse", ("left kidney",)),
        ("coarse", ("right kidney",)),
        ("find-right_kidney", ("right kidney",)),
    ]
    priors = [source for source in made.stages[-1].inputs if isinstance(source, PriorInput)]
    assert [(p.of, p.labels) for p in priors] == [
        ("find-right_kidney", ("right kidney",)),
        ("coarse", ("right kidney",)),
    ]
    graph.validate_labels(made, SCHEMA)
    assert graph.ancestors(made, "fine-right_kidney") == ("coarse", "find-right_kidney")
    assert graph.expand(made, SCHEMA) == made


def test_own_labels_are_those_that_the_stage_predicts() -> None:
    built = recipe(stage("one"), stage("two", labels=("kidneys",), roi=BOX | {"labels": "own"}))
    roi = graph.expand(built, SCHEMA).stages[1].roi
    assert isinstance(roi, BoxAround)
    assert roi.labels == ("left kidney", "right kidney")


@pytest.mark.parametrize(
    ("label", "name"),
    [("left kidney", "fine-left_kidney"), ("Kidney (L)", "fine-kidney_l"), ("VertebraL1", "fine-vertebral1")],
)
def test_names_of_parts_are_names_of_stages(label: str, name: str) -> None:
    assert graph.part_name("fine", label) == name
    assert recipe(stage(name)).stages[0].name == name


@pytest.mark.parametrize(
    ("stages", "changes", "line"),
    [
        (
            (stage("one", per_label=True), stage("one-liver")),
            {},
            "two stages would be named 'one-liver'; rename",
        ),
        (
            (
                stage("one", labels=("liver",), per_label=True),
                stage("two", labels=("liver", "kidneys"), per_label=True, roi=BOX | {"labels": "own"}),
            ),
            {},
            "stage 'two-left_kidney', roi.of: 'one-left_kidney' is not an earlier stage; allowed: one-liver",
        ),
        (
            (stage("one"), stage("two", per_label=True, inputs=reads("one"))),
            {"train_together": [["one", "two"]]},
            "train_together: unknown stage 'two'; allowed: one, two-liver, two-left_kidney, two-right_kidney",
        ),
        (
            (stage("one", labels=("spleen",), per_label=True),),
            {},
            "stage 'one', labels: unknown label 'spleen'",
        ),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(
    stages: tuple[dict[str, object], ...], changes: dict[str, object], line: str
) -> None:
    built = recipe(*stages, **changes)
    graph.validate(built)
    with pytest.raises(RecipeError, match=line):
        graph.expand(built, SCHEMA)


def test_a_recipe_whose_only_fused_stage_is_dropped_is_refused() -> None:
    fitted, _ = graph.fit(recipe(stage("one", fusion="none"), stage("two", labels=("spleen",))), FOUND)
    with pytest.raises(RecipeError, match="all stages have 'none', so no label map would result"):
        graph.expand(fitted, FOUND)


def test_a_prior_has_its_stage_s_labels_and_the_atlas_s_all() -> None:
    built = recipe(stage("one", labels=("liver",)), stage("two"))
    schema = LabelSchema.consecutive(["spleen", "liver"])
    assert graph.prior_labels(built, "one", schema) == ("liver",)
    assert graph.prior_labels(built, "two", schema) == ("spleen", "liver")
    assert graph.prior_labels(built, ATLAS, schema) == ("spleen", "liver")


MIRRORED = stage("one", training={**TRAINING, "augmentation": {"flip_axes": ("R",)}})
SHORTER = stage("one", training={**TRAINING, "augmentation": {"shorter_scan": 0.3}})
SLICES = stage("one", network={"kind": "unet2d", "plane": "axial", "channels": (4, 8)})


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (MIRRORED, r"training\.augmentation\.flip_axes"),
        (SHORTER, r"training\.augmentation\.shorter_scan"),
        (SLICES, r"network\.plane"),
    ],
)
def test_directions_of_the_body_need_axes_that_run_along_them(given: dict[str, object], field: str) -> None:
    """Mirroring along R mirrors along i: with PIR, from front to back. As before, such a model predicts."""
    for along in ("canonical", "RAS", "LAS", "LPI"):
        graph.require_trainable(recipe(given, orientation=along))
    for across in ("stored", "PIR", "ARS", "RSA"):
        other = recipe(given, orientation=across)
        graph.validate(other)
        line = f"stage 'one', {field}: with orientation: {across}, the axes .*; allowed with canonical, or"
        with pytest.raises(RecipeError, match=line):
            graph.require_trainable(other)
        graph.require_trainable(recipe(stage("one"), orientation=across))


def test_tiles_and_patches_are_those_that_the_network_accepts() -> None:
    odd = {"kind": "spacing", "mm": (2, 2, 2), "tile": (15, 16, 16)}
    graph.require_trainable(recipe(stage("one")))
    with pytest.raises(RecipeError, match=r"stage 'one', grid\.tile: .*axis i: 15 \(nearest: 14 or 16\)"):
        graph.require_trainable(recipe(stage("one", grid=odd)))
    with pytest.raises(RecipeError, match=r"'one', training\.patch: .*axis k: 17 \(nearest: 16 or 18\)"):
        graph.require_trainable(recipe(stage("one", training={**TRAINING, "patch": (16, 16, 17)})))


def test_a_recipe_is_completed_and_checked_for_training() -> None:
    pair = stage("two", labels=("kidneys",), per_label=True, roi=BOX | {"labels": "own"})
    made = graph.trainable(recipe(stage("one"), pair), SCHEMA)
    assert [s.name for s in made.stages] == ["one", "two-left_kidney", "two-right_kidney"]
    liver = stage("one", labels=("liver",))
    with pytest.raises(RecipeError, match="stage 'one' does not predict 'left kidney'"):
        graph.trainable(recipe(liver, pair), SCHEMA)
    with pytest.raises(RecipeError, match="labels_overlap"):
        graph.trainable(recipe(stage("one", labels_overlap=True, mean="geometric")), SCHEMA)


def test_labels_that_overlap_cannot_be_trained() -> None:
    own = recipe(stage("one"), stage("two", labels_overlap=True, mean="geometric"))
    graph.validate(own)
    with pytest.raises(RecipeError, match="stage 'two', labels_overlap: such a network is imported"):
        graph.require_trainable(own)
    graph.require_trainable(recipe(stage("one")))


def test_a_prior_that_is_a_label_map_cannot_be_trained() -> None:
    prior = {"kind": "prior", "of": "one", "form": "label_map"}
    own = recipe(stage("one"), stage("two", inputs=({"kind": "image"}, prior)))
    assert [graph.label_map_is_read(own, name) for name in ("one", "two")] == [True, False]
    assert not graph.label_map_is_read(recipe(stage("one"), stage("two", inputs=reads("one"))), "one")
    with pytest.raises(RecipeError, match="stage 'two', inputs: a prior of form label_map has no gradient"):
        graph.require_trainable(own)


def test_misspelled_labels_of_regions_and_post_processing_are_told() -> None:
    published = recipe(
        stage("one"),
        stage("two", roi=BOX | {"labels": ("liver", "spleeen")}),
        largest_component=("livr",),
        islands={"labels": ("Liver", "pancraes")},
    )
    _, notes = graph.fit(published, FOUND)
    assert notes == (
        "stage 'two': the data set has no spleeen; dropped",
        "largest_component: the data set has no livr; dropped",
        "islands.labels: the data set has no pancraes; dropped",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"largest_component": ("livr",)}, "largest_component: .*livr"),
        ({"islands": {"labels": ("livr",)}}, "islands.labels: .*livr"),
        ({"presence": {"of": "one", "labels": ("livr",)}}, "presence.labels: .*livr"),
    ],
)
def test_post_processing_of_unknown_labels_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        graph.validate_labels(recipe(stage("one"), **changes), FOUND)


def test_the_presence_of_organs_is_decided_by_a_stage_of_the_whole_scan_that_predicts_them() -> None:
    def deciding(of: str, labels: object = "all", **changes: object) -> Recipe:
        stages = stage("one", labels=("kidneys",), **changes), stage("two", roi=BOX)
        return recipe(*stages, presence={"of": of, "labels": labels})

    graph.validate(deciding("one"))
    for bad, allowed in ((deciding("two"), "one"), (deciding("three"), "one")):
        with pytest.raises(RecipeError, match=rf"presence.of: .*not a stage of the whole scan.*: {allowed}$"):
            graph.validate(bad)
    with pytest.raises(RecipeError, match=r"presence.of: 'one' .* allowed: none"):
        graph.validate(recipe(stage("one", per_label=True), presence={"of": "one"}))
    graph.validate_labels(deciding("one", ("kidneys",)), SCHEMA)
    with pytest.raises(RecipeError, match=r"presence.labels: stage 'one' does not predict 'liver'"):
        graph.validate_labels(deciding("one", ("liver",)), SCHEMA)


def test_a_recipe_restricted_to_some_stages_has_nothing_that_needs_others() -> None:
    stages = stage("one"), stage("two", inputs=reads("one")), stage("three")
    whole = recipe(*stages, train_together=[["one", "two"], ["three"]], presence={"of": "one"})
    last = graph.restricted(whole, whole.stages[2:])
    assert ([s.name for s in last.stages], last.train_together, last.presence) == (
        ["three"],
        (("three",),),
        None,
    )
    assert graph.restricted(whole, whole.stages[:1]).presence == Presence(of="one")
    assert graph.restricted(whole, whole.stages) == whole


def test_without_the_stage_that_decides_nothing_is_decided() -> None:
    stages = stage("one", labels=("spleen",)), stage("two", labels=("liver",))
    fitted, _ = graph.fit(recipe(*stages, presence={"of": "one"}), FOUND)
    assert ([s.name for s in fitted.stages], fitted.presence) == (["two"], None)


def test_groups_of_labels_are_not_read_from_atlases() -> None:
    inputs = ({"kind": "image"}, {"kind": "atlas", "labels": ("kidneys",)})
    with pytest.raises(RecipeError, match=r"stage 'one', inputs\[1\].labels: the atlases have no 'kidneys'"):
        graph.validate_labels(recipe(stage("one", inputs=inputs)), FOUND)


@pytest.mark.parametrize("inputs", [reads("one")[1:], ({"kind": "atlas"},)])
def test_a_stage_that_does_not_read_the_scan_is_refused(inputs: tuple[dict[str, object], ...]) -> None:
    with pytest.raises(ValueError, match="inputs needs at least one of kind image"):
        recipe(stage("one"), stage("two", inputs=inputs))
