"""The table of tasks: numbers of labels and positions from TotalSegmentator's own documentation."""

from __future__ import annotations

from zoomseg.importing.totalsegmentator.tasks import TASKS


def test_total_has_117_structures_of_five_parts() -> None:
    total = TASKS["total"]
    assert [(part.dataset, len(part.labels)) for part in total.parts] == [
        (291, 24),
        (292, 26),
        (293, 18),
        (294, 23),
        (295, 26),
    ]
    assert len(set(total.labels)) == 117
    # Values of class_details.md.
    value = {name: n for n, name in enumerate(total.labels, start=1)}
    some = ("spleen", "sacrum", "vertebrae_C1", "heart", "humerus_left", "skull", "rib_left_1", "sternum")
    assert [value[name] for name in some] == [1, 25, 50, 51, 69, 91, 92, 116]
    assert TASKS["total_fast"].labels == TASKS["total_fastest"].labels == total.labels


def test_mr_has_50_structures_of_two_parts() -> None:
    task = TASKS["total_mr"]
    assert [(part.dataset, len(part.labels)) for part in task.parts] == [(850, 29), (851, 21)]
    value = {name: n for n, name in enumerate(task.labels, start=1)}
    assert (value["heart"], value["humerus_left"], value["brain"]) == (22, 30, 50)


def test_names_and_data_sets_are_each_of_one_task() -> None:
    numbers = [part.dataset for task in TASKS.values() for part in task.parts]
    assert len(set(numbers)) == len(numbers)
    assert all(len(set(task.labels)) == len(task.labels) for task in TASKS.values())
