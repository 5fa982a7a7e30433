import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from zoomseg.atlas import register as registration
from zoomseg.atlas.fuse import fuse
from zoomseg.atlas.library import Atlas, AtlasLibrary, atlas_grid
from zoomseg.atlas.register import RegistrationError, Warp
from zoomseg.core.errors import DatasetError, LabelError, ModelError
from zoomseg.core.extras import MissingPackageError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.resample import affine_coordinates
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.recipe.spec import ATLAS, AtlasSpec, IntensityFusion, MajorityFusion

SCHEMA = LabelSchema(("liver", "spleen"), (6, 1), {"both": ("liver", "spleen")})
GRID = Grid.from_spacing((16, 14, 12), (2.0, 2.0, 5.0))
SPEC = AtlasSpec(number=3, fusion=MajorityFusion())


def case(seed: int, low: int = 4) -> tuple[str, Volume, LabelMap]:
    """A patient whose liver starts at ``low`` along the first axis."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[low : low + 6, 4:10, 3:9] = 1
    labels[low + 6 : low + 8, 4:10, 3:9] = 2
    image = labels.astype(np.float32) + 0.1 * rng.random(GRID.shape, dtype=np.float32)
    return f"case_{seed}", Volume(image[None], GRID), LabelMap(labels, GRID, SCHEMA)


@pytest.fixture
def library() -> AtlasLibrary:
    return AtlasLibrary.build(SPEC, [case(seed) for seed in range(5)])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the registration library: scans are aligned by their world coordinates. Records the calls."""
    made: list[int] = []

    def register(fixed: Volume, moving: Volume, kind: str) -> Warp:
        made.append(1)
        matrix = fixed.grid.to_index_of(moving.grid)
        return Warp(fixed.grid, moving.grid, affine_coordinates(matrix, fixed.grid.shape))

    monkeypatch.setattr(registration, "register", register)
    return made


# --- building and choosing -------------------------------------------------------------------------


def test_atlases_lie_on_the_coarse_grid(library: AtlasLibrary) -> None:
    atlas = library.atlases[0]
    # 2 mm become 4, 5 mm stay.
    assert np.allclose(atlas.image.grid.spacing_mm, (4, 4, 5))
    assert atlas.image.grid.shape == (8, 7, 12)
    assert atlas.image.data.dtype == np.float16
    assert np.unique(atlas.labels.data[2:5, 2:5, 3:9]).tolist() == [1]
    assert atlas.image.data[0, 3, 3, 5].item() == pytest.approx(1.05, abs=0.06)


def test_first_channel_is_kept() -> None:
    id, image, labels = case(0)
    two = Volume(np.concatenate([image.data, image.data + 7]), GRID)
    built = AtlasLibrary.build(SPEC, [(id, two, labels)])
    assert built.atlases[0].image.data.shape == (1, 8, 7, 12)
    assert built.atlases[0].image.data.max() < 3


def test_chosen_are_evenly_spread_and_never_the_scan_itself() -> None:
    library = AtlasLibrary.build(SPEC, [case(seed) for seed in range(10)])
    assert [a.id for a in library.chosen()] == ["case_1", "case_5", "case_8"]
    assert [a.id for a in library.chosen("case_5")] == ["case_1", "case_4", "case_8"]
    assert [a.id for a in library.reduced().atlases] == ["case_1", "case_5", "case_8"]
    few = AtlasLibrary.build(SPEC, [case(0), case(1)])
    assert [a.id for a in few.chosen("case_0")] == ["case_1"]


def test_what_cannot_be_atlases_is_refused() -> None:
    id, image, labels = case(0)
    with pytest.raises(DatasetError, match="there is none"):
        AtlasLibrary.build(SPEC, [])
    with pytest.raises(DatasetError, match="distinct cases"):
        AtlasLibrary.build(SPEC, [case(0), case(0)])
    other = LabelMap(labels.data, GRID, LabelSchema.consecutive(("a", "b")))
    with pytest.raises(LabelError, match="same labels"):
        AtlasLibrary.build(SPEC, [case(1), (id, image, other)])
    unannotated = LabelMap(np.full_like(labels.data, 255), GRID, SCHEMA)
    with pytest.raises(DatasetError, match="atlas case_0: class 255 is beyond the 3 classes"):
        AtlasLibrary.build(SPEC, [(id, image, unannotated)])
    with pytest.raises(DatasetError, match="not finite in float16"):
        AtlasLibrary.build(SPEC, [(id, Volume(image.data * 1e6, GRID), labels)])


# --- the prior -------------------------------------------------------------------------------------


def test_prior_is_the_fused_labels_on_the_atlas_grid(calls: list[int]) -> None:
    library = AtlasLibrary.build(SPEC, [case(0, low=4), case(1, low=4), case(2, low=6)])
    image = case(9)[1]
    prior = library.prior(image)
    assert prior.source == ATLAS
    assert prior.labels == ("liver", "spleen")
    assert prior.grid == atlas_grid(GRID, SPEC)
    assert prior.region.voxels == 8 * 7 * 12
    # Liver of two atlases at voxels 2..4 of the first axis, of the third at 3..5; then spleen, one voxel.
    liver = prior.probabilities[prior.channel("liver"), :, 3, 5]
    assert np.allclose(liver, np.array([0, 0, 2, 3, 3, 1, 0, 0]) / 3)
    spleen = prior.probabilities[prior.channel("spleen"), :, 3, 5]
    assert np.allclose(spleen, np.array([0, 0, 0, 0, 0, 2, 1, 0]) / 3)


def test_progress_counts_atlases_and_fusion(library: AtlasLibrary, calls: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    library.prior(case(9)[1], on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_registered_atlases_come_from_the_cache(
    library: AtlasLibrary, calls: list[int], tmp_path: Path
) -> None:
    image = case(9)[1]
    first = library.prior(image, cache=tmp_path)
    assert len(calls) == 3
    second = library.prior(image, cache=tmp_path)
    assert len(calls) == 3
    assert np.array_equal(first.probabilities, second.probabilities)


def test_what_was_fused_comes_from_the_cache(
    library: AtlasLibrary, calls: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = case(9)[1]
    first = library.prior(image, cache=tmp_path)
    asked = []
    monkeypatch.setattr("zoomseg.atlas.library.fuse", lambda *given: asked.append(given) or fuse(*given))
    assert np.array_equal(first.probabilities, library.prior(image, cache=tmp_path).probabilities)
    assert asked == []
    other = library.spec.model_copy(update={"fusion": IntensityFusion()})
    AtlasLibrary(other, library.schema, library.atlases).prior(image, cache=tmp_path)
    assert len(asked) == 1


def test_cache_knows_scan_atlas_and_kind_of_registration(
    library: AtlasLibrary, calls: list[int], tmp_path: Path
) -> None:
    image = case(9)[1]
    library.prior(image, cache=tmp_path)
    library.prior(Volume(image.data + 0.5, GRID), cache=tmp_path)
    assert len(calls) == 6
    moved = Grid.from_spacing(GRID.shape, GRID.spacing_mm, (1.0, 0.0, 0.0))
    library.prior(Volume(image.data, moved), cache=tmp_path)
    assert len(calls) == 9
    affine = AtlasLibrary(SPEC.model_copy(update={"registration": "affine"}), SCHEMA, library.atlases)
    affine.prior(image, cache=tmp_path)
    assert len(calls) == 12


def test_damaged_cache_is_made_again(library: AtlasLibrary, calls: list[int], tmp_path: Path) -> None:
    image = case(9)[1]
    good = library.prior(image, cache=tmp_path)
    fused = [f for f in tmp_path.iterdir() if "probabilities" in load(f.read_bytes())]
    assert len(fused) == 1
    broken = np.full_like(good.probabilities, float("nan"))
    for content in (
        b"rubbish",
        save({"probabilities": np.zeros(1, dtype=np.float32)}),
        save({"probabilities": broken}),
    ):
        fused[0].write_bytes(content)
        assert np.array_equal(good.probabilities, library.prior(image, cache=tmp_path).probabilities)
    assert len(calls) == 3
    fused[0].unlink()
    files = sorted(tmp_path.iterdir())
    files[0].write_bytes(b"rubbish")
    files[1].write_bytes(
        save(
            {
                "image": np.zeros((1, 2, 2, 2), dtype=np.float16),
                "labels": np.zeros((2, 2, 2), dtype=np.float32),
            }
        )
    )
    broken = np.full((1, *good.grid.shape), np.nan, dtype=np.float16)
    files[2].write_bytes(save({"image": broken, "labels": np.zeros(good.grid.shape, dtype=np.uint8)}))
    again = library.prior(image, cache=tmp_path)
    assert len(calls) == 6
    assert np.array_equal(good.probabilities, again.probabilities)


def fail_on(monkeypatch: pytest.MonkeyPatch, bad: set[int], calls: list[int]) -> None:
    working = registration.register
    seen: list[int] = []

    def register(fixed: Volume, moving: Volume, kind: str) -> Warp:
        seen.append(1)
        if len(seen) in bad:
            raise RegistrationError("it would not")
        return working(fixed, moving, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(registration, "register", register)


def test_an_atlas_that_fails_is_dropped_with_a_warning(
    library: AtlasLibrary, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on(monkeypatch, {2}, calls)
    warnings: list[str] = []
    prior = library.prior(case(9)[1], on_warning=warnings.append)
    assert warnings == ["atlas case_2 is left out: it would not"]
    assert prior.probabilities[1, 3, 3, 5] == 1.0  # of the two remaining atlases


def test_an_atlas_whose_transform_explodes_is_dropped(
    library: AtlasLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(fixed: Volume, moving: Volume, kind: str) -> Warp:
        coordinates = np.zeros((*fixed.grid.shape, 3), dtype=np.float32)
        if moving.data[0, 0, 0, 0] == library.atlases[2].image.data[0, 0, 0, 0]:
            coordinates += float("nan")
        return Warp(fixed.grid, moving.grid, coordinates)

    monkeypatch.setattr(registration, "register", register)
    warnings: list[str] = []
    library.prior(case(9)[1], on_warning=warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith("atlas case_2 is left out: no transform")


def test_all_failing_is_one_clear_error(
    library: AtlasLibrary, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on(monkeypatch, {1, 2, 3}, calls)
    with pytest.raises(RegistrationError, match="none of the 3 atlases could be registered"):
        library.prior(case(9)[1])
    with pytest.raises(RegistrationError, match="the only atlas is the scan 'case_0' itself"):
        AtlasLibrary.build(SPEC, [case(0)]).prior(case(0)[1], exclude="case_0")


def test_a_missing_library_is_no_failing_atlas(
    library: AtlasLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(fixed: Volume, moving: Volume, kind: str) -> Warp:
        raise MissingPackageError("install it")

    monkeypatch.setattr(registration, "register", register)
    with pytest.raises(MissingPackageError):
        library.prior(case(9)[1])


# --- on disk ---------------------------------------------------------------------------------------


def test_comes_back_as_it_was_saved(library: AtlasLibrary, tmp_path: Path) -> None:
    library.save(tmp_path)
    back = AtlasLibrary.load(tmp_path)
    assert back.spec == library.spec
    assert back.schema == library.schema
    assert back.schema.groups == library.schema.groups
    for a, b in zip(library.atlases, back.atlases, strict=True):
        assert a.id == b.id
        assert a.image.grid == b.image.grid
        assert np.array_equal(a.image.data, b.image.data)
        assert np.array_equal(a.labels.data, b.labels.data)


def test_saving_again_leaves_one_library(library: AtlasLibrary, tmp_path: Path) -> None:
    library.save(tmp_path)
    library.reduced().save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(AtlasLibrary.load(tmp_path).atlases) == 3


def rewrite(folder: Path, **changes: object) -> None:
    file = folder / "atlases.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_damaged_libraries_are_refused(library: AtlasLibrary, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no atlases"):
        AtlasLibrary.load(tmp_path)
    library.save(tmp_path)
    whole = (tmp_path / "atlases.json").read_text()
    entries = json.loads(whole)["atlases"]

    def refused(match: str, **changes: object) -> None:
        (tmp_path / "atlases.json").write_text(whole)
        rewrite(tmp_path, **changes)
        with pytest.raises(ModelError, match=match):
            AtlasLibrary.load(tmp_path)

    refused("update ZoomSeg", format=99)
    refused(r"have format 10{60,70}\.\.\.0+, this ZoomSeg", format=10**250)
    refused("file: String should match", file="../../etc/passwd")
    refused("SHA-256 differs", sha256="0" * 64)
    refused("at least one", atlases=[])
    refused("volume of shape", atlases=[entries[0] | {"shape": [7, 7, 12]}])
    refused("affine is singular", atlases=[entries[0] | {"affine": np.diag([0, 1, 1, 1.0]).tolist()}])
    refused("no 4x4 affine", atlases=[entries[0] | {"affine": [[1.0]]}])
    refused("no float16 image", atlases=[*entries, entries[0] | {"id": "sixth"}])
    refused("class 2 is beyond the 2 classes", names=["liver"], values=[6], groups={})
    refused("number", spec={"number": 0})
    refused("Extra inputs", surprise=1)


def test_broken_files_are_refused(library: AtlasLibrary, tmp_path: Path) -> None:
    library.save(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"are damaged .*No such file"):
        AtlasLibrary.load(tmp_path)
    (tmp_path / "atlases.json").write_bytes(b"\xff{")
    with pytest.raises(ModelError, match="are damaged"):
        AtlasLibrary.load(tmp_path)


def test_an_atlas_is_checked_when_made() -> None:
    _, image, labels = case(0)
    with pytest.raises(DatasetError, match="not finite"):
        Atlas("x", Volume(np.full_like(image.data, float("inf")), GRID), labels)
