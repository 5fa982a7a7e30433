from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume

GRID = Grid.from_spacing((2, 3, 4), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))
SCHEMA = LabelSchema.consecutive(["liver"])
VOXELS = np.arange(24).reshape(2, 3, 4)


def test_volume_refuses_another_shape_than_its_grid() -> None:
    with pytest.raises(GeometryError, match=r"volume of shape \(1, 2, 3, 5\) on a grid of shape \(2, 3, 4\)"):
        Volume(np.zeros((1, 2, 3, 5), dtype=np.float32), GRID)


def test_volume_refuses_a_missing_channel_axis() -> None:
    with pytest.raises(GeometryError, match="volume of shape"):
        Volume(np.zeros((2, 3, 4), dtype=np.float32), GRID)


def test_label_map_refuses_another_shape_than_its_grid() -> None:
    with pytest.raises(GeometryError, match="label map of shape"):
        LabelMap(np.zeros((2, 3, 5), dtype=np.uint8), GRID, SCHEMA)
    with pytest.raises(GeometryError, match="label map of shape"):
        LabelMap(np.zeros((1, 2, 3, 4), dtype=np.uint8), GRID, SCHEMA)


def test_label_map_refuses_what_is_no_class_index() -> None:
    with pytest.raises(GeometryError, match=r"uint8 class indices, got int64"):
        LabelMap(np.zeros((2, 3, 4), dtype=np.int64), GRID, SCHEMA)


def test_present_names_the_labels_that_have_voxels() -> None:
    classes = np.zeros((2, 3, 4), dtype=np.uint8)
    schema = LabelSchema(("spleen", "liver", "aorta"), (5, 3, 9))
    assert LabelMap(classes, GRID, schema).present == ()
    classes[1, 2, 3], classes[0, 0, 0] = 3, 1
    assert LabelMap(classes, GRID, schema).present == ("spleen", "aorta")


def test_channels() -> None:
    assert Volume(np.zeros((5, 2, 3, 4), dtype=np.float32), GRID).channels == 5


def test_reoriented_moves_values_with_their_place() -> None:
    volume = Volume(VOXELS[None].astype(np.float32), GRID)
    turned = volume.reoriented(Orientation((2, 0, 1), (True, False, False)))
    assert turned.data.shape == (1, 4, 2, 3)
    # Index (0, 1, 2) of the new volume is (1, 2, 3) of the old one: k backwards, then i, then j.
    assert turned.data[0, 0, 1, 2] == VOXELS[1, 2, 3]
    assert turned.grid.world((0, 1, 2)) == pytest.approx(GRID.world((1, 2, 3)))


def test_label_map_reorients_like_an_image() -> None:
    orientation = Orientation((1, 2, 0), (False, True, True))
    labels = LabelMap(VOXELS.astype(np.uint8), GRID, SCHEMA).reoriented(orientation)
    image = Volume(VOXELS[None].astype(np.float32), GRID).reoriented(orientation)
    assert np.array_equal(labels.data.astype(np.float32), image.data[0])
    assert labels.grid == image.grid
    assert labels.schema is SCHEMA


def test_crop_keeps_values_and_world_coordinates() -> None:
    box = Box((1, 1, 2), (2, 3, 4))
    image = Volume(VOXELS[None].astype(np.float32), GRID).crop(box)
    labels = LabelMap(VOXELS.astype(np.uint8), GRID, SCHEMA).crop(box)
    assert image.data[0].tolist() == [[[18, 19], [22, 23]]]
    assert labels.data.tolist() == [[[18, 19], [22, 23]]]
    assert image.grid.world((0, 0, 0)).tolist() == [11, 22, 36]
    assert labels.grid == image.grid


@pytest.mark.parametrize("box", [Box((0, 0, 0), (2, 3, 5)), Box((-1, 0, 0), (2, 3, 4))])
def test_crop_refuses_a_box_that_reaches_outside(box: Box) -> None:
    with pytest.raises(GeometryError):
        Volume(VOXELS[None].astype(np.float32), GRID).crop(box)
    with pytest.raises(GeometryError):
        LabelMap(VOXELS.astype(np.uint8), GRID, SCHEMA).crop(box)
