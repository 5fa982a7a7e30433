"""References go backwards only; labels must be predicted; what is trained at once."""

from __future__ import annotations

import pytest

from zoomseg.core.errors import RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.recipe import graph
from zoomseg.recipe.graph import TrainingUnit
from zoomseg.recipe.spec import Recipe

SCHEMA = LabelSchema(
    ("liver", "left kidney", "right kidney"), (1, 2, 3), {"kidneys": ("left kidney", "right kidney")}
)


def stage(name: str, **changes: object) -> dict[str, object]:
    given: dict[str, object] = {
        "name": name,
        "grid": {"kind": "spacing", "mm": (2, 2, 2), "tile": (16, 16, 16)},
        "network": {"kind": "unet3d", "channels": (4, 8)},
        "training": {"patch": (16, 16, 16), "iterations": 10},
    }
    return given | changes


def reads(*names: str, labels: object = "all") -> tuple[dict[str, object], ...]:
    return ({"kind": "image"}, *({"kind": "prior", "of": n, "labels": labels} for n in names))


def recipe(*stages: dict[str, object], **changes: object) -> Recipe:
    given = {"name": "r", "intensity": {"kind": "zscore"}, "stages": stages}
    return Recipe.model_validate(given | changes)


BOX = {"kind": "box", "of": "one"}


def test_a_chain_is_valid() -> None:
    graph.validate(recipe(stage("one"), stage("two", roi=BOX), stage("three", inputs=reads("one", "two"))))


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ((stage("one"), stage("one")), r"stages\[1\]\.name: 'one' is taken"),
        ((stage("two", roi=BOX), stage("one")), "stage 'two', roi.of: 'one' is not an .* none, as this is"),
        ((stage("one", roi=BOX),), "stage 'one', roi.of: 'one' is not an earlier stage"),
        (
            (stage("zero"), stage("one"), stage("two", inputs=reads("one", "tree"))),
            r"stage 'two', inputs\[2\]\.of: 'tree' is not an earlier stage; allowed: zero, one$",
        ),
        (
            (stage("zero"), stage("two", roi={"kind": "dilated_foreground", "of": "one"})),
            "stage 'two', roi.of: 'one' is not an earlier stage; allowed: zero$",
        ),
        ((stage("one", fusion="none"),), "stage 'one', fusion: every stage says 'none'"),
    ],
)
def test_broken_graphs_are_refused(stages: tuple[dict[str, object], ...], line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        graph.validate(recipe(*stages))


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        ([["one", "tow"]], "unknown stage 'tow'; allowed: one, two, three"),
        ([["one"]], r"at least 2 stages, got \['one'\]"),
        ([["one", "three"]], "do not follow each other"),
        ([["two", "one"]], "do not follow each other"),
        ([["one", "two"], ["two", "three"]], "stage 'two' is named twice"),
        ([["two", "three"]], "stage 'three' has no prior input of two"),
    ],
)
def test_groups_without_a_gradient_are_refused(groups: list[list[str]], line: str) -> None:
    stages = stage("one"), stage("two", inputs=reads("one")), stage("three", inputs=reads("one"))
    with pytest.raises(RecipeError, match=f"train_together: .*{line}|train_together: {line}"):
        graph.validate(recipe(*stages, train_together=groups))


def test_training_units_keep_groups_whole_and_in_order() -> None:
    stages = (
        stage("one"),
        stage("two", inputs=reads("one")),
        stage("three", inputs=reads("two")),
        stage("four"),
    )
    alone = recipe(*stages)
    assert [u.trained for u in graph.training_units(alone)] == [("one",), ("two",), ("three",), ("four",)]
    grouped = recipe(*stages, train_together=[["two", "three"]])
    graph.validate(grouped)
    assert graph.training_units(grouped) == (
        TrainingUnit(("one",)),
        TrainingUnit(("two", "three")),
        TrainingUnit(("four",)),
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
