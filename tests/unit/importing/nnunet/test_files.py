"""Folders and zips: their contents, and refusals."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import nnunet_models
from zoomseg.core.errors import ModelError
from zoomseg.importing.nnunet import files
from zoomseg.io.zips import ZipLimits


def zipped(folder: Path, path: Path, inside: str = "Dataset007/trainer") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{inside}/{file.relative_to(folder)}")
    return path


def test_a_zip_is_read_like_its_folder(tmp_path: Path) -> None:
    folder = nnunet_models.write(tmp_path / "model", folds=("0", "2"))
    with files.opened(zipped(folder, tmp_path / "a.zip")) as found:
        unpacked = files.read(found, None)
        assert unpacked.checkpoints["2"].read_bytes() == (folder / "fold_2/checkpoint_final.pth").read_bytes()
    with files.opened(tmp_path / "model") as found:
        assert files.read(found, None).plans == unpacked.plans


def test_folds_are_those_wanted_and_all_cases_fold_only_alone(tmp_path: Path) -> None:
    folder = nnunet_models.write(tmp_path / "model", folds=("0", "1", "all"))
    assert list(files.read(folder, None).checkpoints) == ["0", "1"]
    assert list(files.read(folder, ("all",)).checkpoints) == ["all"]
    with pytest.raises(
        ModelError, match=r"no checkpoint_final\.pth of fold 3; it has: checkpoint_final\.pth of 0, 1, all"
    ):
        files.read(folder, ("3",))


def test_the_final_checkpoint_goes_before_the_best(tmp_path: Path) -> None:
    folder = nnunet_models.write(tmp_path / "model")
    final = folder / "fold_0" / "checkpoint_final.pth"
    best = folder / "fold_0" / "checkpoint_best.pth"
    best.write_bytes(b"")
    assert files.read(folder, None).checkpoints == {"0": final}
    final.unlink()
    assert files.read(folder, None).checkpoints == {"0": best}


def test_a_fold_that_is_still_trained_is_left_out_of_the_finished_ones(tmp_path: Path) -> None:
    folder = nnunet_models.write(tmp_path / "model", folds=("0", "1", "2", "all"))
    for fold in ("1", "all"):
        (folder / f"fold_{fold}" / "checkpoint_final.pth").rename(folder / f"fold_{fold}/checkpoint_best.pth")
    given = files.read(folder, None)
    assert (list(given.checkpoints), given.left_out) == (["0", "2"], ("1",))
    with pytest.raises(
        ModelError, match=r"no checkpoint_final\.pth of fold 1; .* checkpoint_best\.pth of 1, all"
    ):
        files.read(folder, ("0", "1"))
    chosen = files.read(folder, ("1",))
    assert (chosen.checkpoints["1"].name, chosen.left_out) == ("checkpoint_best.pth", ())


@pytest.mark.parametrize("name", ["fold_0_old", "fold_all_backup"])
def test_a_backup_is_no_fold(name: str, tmp_path: Path) -> None:
    folder = nnunet_models.write(tmp_path / "model")
    shutil.copytree(folder / "fold_0", folder / name)
    given = files.read(folder, None)
    assert (list(given.checkpoints), given.no_folds) == (["0"], (name.removeprefix("fold_"),))
    with pytest.raises(ModelError, match=r"no checkpoint_final\.pth of fold .*; it has: .* of 0$"):
        files.read(folder, (name.removeprefix("fold_"),))


def evaluated(folder: Path) -> Path:
    """With the copies of plans.json that nnU-Net writes beside other results."""
    for place in ("crossval_results_folds_0", "../ensembles/both", "../predictions"):
        (folder / place).mkdir(parents=True)
        for name in ("plans.json", "dataset.json"):
            shutil.copy(folder / name, folder / place / name)
    return folder


def test_a_copy_of_the_plans_is_no_model(tmp_path: Path) -> None:
    folder = evaluated(
        nnunet_models.write(tmp_path / "Dataset007_Tiny/nnUNetTrainer__nnUNetPlans__3d_fullres")
    )
    for source in (folder, folder.parent, tmp_path):
        with files.opened(source) as found:
            assert found == folder
    with files.opened(zipped(folder.parent, tmp_path / "a.zip")) as found:
        assert found.name == folder.name
        assert list(files.read(found, None).checkpoints) == ["0"]


def test_plans_are_found_at_any_depth_of_a_zip_and_at_some_of_a_folder(tmp_path: Path) -> None:
    folder = nnunet_models.write(tmp_path / "a/b/c/d/model")
    with files.opened(zipped(folder, tmp_path / "a.zip", "home/u/nnUNet_results/D/m")) as found:
        assert found.name == "m"
    with files.opened(tmp_path / "a/b") as found:
        assert found == folder
    with (
        pytest.raises(ModelError, match=r"holds no plans\.json, up to 3 folders deep"),
        files.opened(tmp_path / "a"),
    ):
        pass


def test_a_zip_with_backslashes_is_read(tmp_path: Path) -> None:
    folder, path = nnunet_models.write(tmp_path / "model"), tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.writestr("D\\m\\" + str(file.relative_to(folder)).replace("/", "\\"), file.read_bytes())
    with files.opened(path) as found:
        assert files.read(found, None).plans == files.read(folder, None).plans


def test_what_is_not_unpacked_may_have_any_name(tmp_path: Path) -> None:
    path = zipped(nnunet_models.write(tmp_path / "model"), tmp_path / "a.zip", "m")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/fold_0/validation/a:b.json", "{}")
        archive.writestr("../progress.png", "")
        link = zipfile.ZipInfo("m/fold_0/progress.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with files.opened(path) as found:
        assert list(files.read(found, None).checkpoints) == ["0"]


def test_of_a_zip_only_the_checkpoints_of_the_folds_wanted_are_unpacked(tmp_path: Path) -> None:
    folder = nnunet_models.write(tmp_path / "model", folds=("0", "1", "all"))
    shutil.copy(folder / "fold_0/checkpoint_final.pth", folder / "fold_0/checkpoint_best.pth")
    (folder / "fold_1/checkpoint_final.pth").rename(folder / "fold_1/checkpoint_best.pth")
    path = zipped(folder, tmp_path / "a.zip")

    def unpacked(folds: tuple[str, ...] | None) -> set[str]:
        with files.opened(path, None, folds) as found:
            assert files.read(found, folds).left_out == (() if folds else ("1",))
            weights = [file for file in found.glob("fold_*/*.pth") if file.stat().st_size]
            return {str(file.relative_to(found)) for file in weights}

    assert unpacked(None) == {"fold_0/checkpoint_final.pth"}
    assert unpacked(("1",)) == {"fold_1/checkpoint_best.pth"}
    assert unpacked(("all",)) == {"fold_all/checkpoint_final.pth"}
    with (
        pytest.raises(ModelError, match=r"no checkpoint_final\.pth of fold 3"),
        files.opened(path, None, ("3",)),
    ):
        pass


def test_a_zip_that_the_disk_cannot_hold_is_refused_before_its_checkpoints_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(nnunet_models.write(tmp_path / "model"), tmp_path / "a.zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with (
        pytest.raises(ModelError, match=r"has 0 MB free; free some space, set TMPDIR to a folder"),
        files.opened(path),
    ):
        pass


def test_a_zip_damaged_in_transfer_is_refused(tmp_path: Path) -> None:
    folder, path = nnunet_models.write(tmp_path / "model"), tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, str(file.relative_to(folder)))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("plans.json").header_offset + 30 + len("plans.json")
    data = bytearray(path.read_bytes())
    data[start : start + 3] = bytes(255 - byte for byte in data[start : start + 3])
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"cannot be unpacked \(.*; copy it again"), files.opened(path):
        pass


@pytest.mark.parametrize("name", ["../plans.json", "/tmp/plans.json", "a\\..\\plans.json", "C:/plans.json"])
def test_a_zip_that_would_write_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "{}")
    with pytest.raises(ModelError, match="would be written outside its own folder"), files.opened(path):
        pass


def test_a_zip_of_too_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(nnunet_models.write(tmp_path / "model"), tmp_path / "a.zip")
    monkeypatch.setattr(files, "_LIMITS", ZipLimits("models", 100, 1000, 1000))
    with pytest.raises(ModelError, match=r"inflates to \d+ bytes; at most 1000 are read"), files.opened(path):
        pass


def test_small_files_that_would_fill_the_disk_are_not_unpacked(tmp_path: Path) -> None:
    """Each of them is within the limit of a file; a compressed blank takes a thousandth."""
    path = zipped(nnunet_models.write(tmp_path / "model"), tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2):
            archive.writestr(f"{number}/plans.json", b" " * 30_000_000)
    with pytest.raises(ModelError, match=r"have 57 MB, and at most 48 MB are read"), files.opened(path):
        pass


def test_what_holds_no_model_or_several_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file or folder"), files.opened(tmp_path / "a"):
        pass
    (tmp_path / "text").write_text("plans")
    with pytest.raises(ModelError, match="is no zip"), files.opened(tmp_path / "text"):
        pass
    with pytest.raises(ModelError, match=r"holds no plans\.json"), files.opened(tmp_path):
        pass
    for name in ("a", "b"):
        nnunet_models.write(tmp_path / name)
    with pytest.raises(ModelError, match=r"holds 2 models \(a, b\)"), files.opened(tmp_path):
        pass


def test_a_half_copied_folder_is_refused_by_what_lacks(tmp_path: Path) -> None:
    folder = nnunet_models.write(tmp_path / "model")
    (folder / "dataset.json").write_text('{"labels": ')
    with pytest.raises(ModelError, match=r"dataset\.json cannot be read"):
        files.read(folder, None)
    (folder / "dataset.json").unlink()
    with pytest.raises(ModelError, match=r"dataset\.json is missing"):
        files.read(folder, None)
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(ModelError, match=r"has no fold_\*/checkpoint_final\.pth"):
        files.read(folder, None)


def exported(path: Path, *configurations: str) -> Path:
    """A zip as of ``nnUNetv2_export_model_to_zip``: several configurations of one data set."""
    known = nnunet_models.plans()
    known["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "spacing": [3.0, 2.5, 2.4]}
    known["configurations"]["3d_cascade_fullres"] = {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
    }
    for name in configurations:
        own = path / f"nnUNetTrainer__nnUNetPlans__{name}"
        nnunet_models.write(own, known=known, configuration=name)
    return zipped(path, path.with_suffix(".zip"), "Dataset007_Tiny")


ALL = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")


@pytest.mark.parametrize(
    ("configuration", "unpacked"),
    [
        ("2d", {"2d"}),
        ("3d_lowres", {"3d_lowres"}),
        ("3d_fullres", {"3d_fullres"}),
        ("3d_cascade_fullres", {"3d_lowres", "3d_cascade_fullres"}),
    ],
)
def test_of_a_zip_of_all_configurations_one_is_unpacked(
    configuration: str, unpacked: set[str], tmp_path: Path
) -> None:
    with files.opened(exported(tmp_path / "all", *ALL), configuration) as found:
        assert found.name.endswith(f"__{configuration}")
        every = found.parent.glob("*/fold_0/checkpoint_final.pth")
        weights = [path for path in every if path.stat().st_size]
        assert {path.parents[1].name.rpartition("__")[2] for path in weights} == unpacked
        assert list(files.read(found, None).checkpoints) == ["0"]
    with files.opened(tmp_path / "all", configuration) as folder:  # and so of the folder
        assert folder.name == found.name


def test_several_configurations_are_listed_before_a_checkpoint_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(tmp_path / "all", *ALL)
    monkeypatch.setattr(files, "_needed", None)  # checkpoints are not looked for
    with (
        pytest.raises(
            ModelError, match=r"holds 3 models \(.*2d, .*\); choose one .* --configuration 3d_full"
        ),
        files.opened(path),
    ):
        pass
    with (
        pytest.raises(ModelError, match=r"holds no model of 3d_large; it holds .*__2d, .*3d_lowres"),
        files.opened(path, "3d_large"),
    ):
        pass
