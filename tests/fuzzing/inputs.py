"""One input for each seed: a mutated file, and the command that reads it."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shlex
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fuzzing.dicom import dicom_changed
from fuzzing.headers import nifti_changed, text_changed, zipped
from fuzzing.mutation import Mutation, damaged, shown
from fuzzing.samples import CASES, Samples
from fuzzing.trees import json_changed, yaml_changed
from fuzzing.zips import packed, zip_changed

ZOOMSEG = "zoomseg.cli.main:main"
PACKAGE = "fuzzing.packages:main"
IMPORT = "fuzzing.imports:main"

SOUND = "sound"
"""Name of the valid case that some batches contain."""

NAMES = (
    *(
        "a" * 135,
        "a" * 240,
        "a b",
        "[red]a",
        "a\nb",
        "a.b.c",
        "-x",
        "äöü",
        "a\udcff",
        "%s{0}",
        "..a",
        "~",
    ),
    *("a\x1b[31m", "CON", "a,b", "a'b", "case_0000", "case_0001", "=1+1", "."),
)
"""Names for files with valid content, without suffixes that indicate their type."""


@dataclass(frozen=True)
class Input:
    """``entry`` is a function of a list of arguments, as ``module:function``. The command reads the files in
    ``given``, and may write to the folder of ``out`` and to ``temporary``."""

    seed: int
    kind: str
    mutation: tuple[str, ...]
    folder: Path
    entry: str
    arguments: tuple[str, ...]
    sound: bool = False
    """Whether the batch contains the case ``SOUND``, which must succeed regardless of the other case."""

    @property
    def given(self) -> Path:
        return self.folder / "given"

    @property
    def out(self) -> Path:
        return out_of(self.folder)

    @property
    def temporary(self) -> Path:
        return self.folder / "temporary"

    @property
    def command(self) -> str:
        """The command as typed in a shell."""
        program = "zoomseg" if self.entry == ZOOMSEG else self.entry
        return f"{program} {shlex.join(self.arguments)}"


def out_of(folder: Path) -> Path:
    return folder / "results" / "out"


@dataclass(frozen=True, eq=False)
class _Making:
    """An input under construction."""

    m: Mutation
    samples: Samples
    folder: Path

    @property
    def given(self) -> Path:
        return self.folder / "given"

    @property
    def out(self) -> str:
        return str(out_of(self.folder))


@dataclass(frozen=True)
class _Command:
    arguments: tuple[str, ...]
    sound: bool = False
    entry: str = ZOOMSEG


def make(seed: int, samples: Samples, folder: Path) -> Input:
    """Make the input of a seed in ``folder``, which must not exist."""
    kind = kind_of(seed)
    m = Mutation(random.Random(seed))
    (folder / "given").mkdir(parents=True)
    for name in ("results", "temporary"):
        (folder / name).mkdir()
    command = KINDS[kind](_Making(m, samples, folder))
    return Input(seed, kind, tuple(m.notes), folder, command.entry, command.arguments, command.sound)


def kind_of(seed: int) -> str:
    """The kind of a seed; kinds alternate."""
    return list(KINDS)[seed % len(KINDS)]


# --- scans ----------------------------------------------------------------------------------------


def _predict(making: _Making, scan: Path, dicom: bool = False, model: Path | None = None) -> _Command:
    """Segment a scan, sometimes in a batch with a valid one, or with additional output."""
    m, scans, sound = making.m, [str(scan)], False
    if m.chance(0.3):
        scans.insert(
            m.rng.randrange(2), str(shutil.copy(making.samples.scan, making.given / f"{SOUND}.nii.gz"))
        )
        sound = True
    options = [
        "-m",
        str(model or making.samples.model),
        "-o",
        making.out,
        "--device",
        "cpu",
        "--max-ram",
        "3G",
    ]
    if m.chance(0.3):
        options += ["--dicom-seg", "--rtstruct"] if dicom and not sound else ["--seg-nrrd"]
    if m.chance(0.1):
        options.append("--keep-stages")
    return _Command(("predict", *scans, *options), sound)


def _named(m: Mutation, suffix: str) -> str:
    if m.chance(0.9):
        return f"scan{suffix}"
    name = m.pick(NAMES) + suffix
    m.note(f"file called {shown(name)}")
    return name


def _nifti(making: _Making) -> _Command:
    m = making.m
    version, gz = m.pick(("nifti1", "nifti1", "nifti2")), m.chance(0.5)
    data = nifti_changed(m, making.samples.scans[version]["scan.nii"])
    path = making.given / _named(m, ".nii.gz" if gz else ".nii")
    path.write_bytes(zipped(m, data) if gz else data)
    return _predict(making, path)


def _nrrd(making: _Making) -> _Command:
    m = making.m
    data = making.samples.scans["nrrd"]["scan.nrrd"]
    path = making.given / _named(m, ".nrrd")
    path.write_bytes(text_changed(m, data, data.index(b"\n\n") + 1))
    return _predict(making, path)


def _metaimage(making: _Making) -> _Command:
    m = making.m
    suffix = m.pick(("mha", "mhd"))
    files = making.samples.scans[suffix]
    data = files[f"scan.{suffix}"]
    mark = data.index(b"ElementDataFile")
    path = making.given / _named(m, f".{suffix}")
    path.write_bytes(text_changed(m, data, data.index(b"\n", mark) + 1))
    if suffix == "mhd":
        raw = files["scan.raw"]
        (making.given / "scan.raw").write_bytes(damaged(m, raw) if m.chance(0.2) else raw)
    return _predict(making, path)


def _series(m: Mutation, objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """A series in which one object, several (differently) or all (equally) have errors."""
    changed = dict(objects)
    way = m.pick(("one", "one", "some", "all", "all", "twice"))
    m.note(f"objects: {way}")
    if way == "all":
        state = m.rng.getstate()
        for name, data in objects.items():
            m.rng.setstate(state)
            notes = list(m.notes)
            changed[name] = dicom_changed(m, data)
            if name != list(objects)[-1]:
                m.notes[:] = notes
        return changed
    for name in m.rng.sample(list(objects), 3 if way == "some" else 1):
        data = dicom_changed(m, objects[name])
        changed[f"again-{name}" if way == "twice" else name] = data
    return changed


def _dicom(making: _Making) -> _Command:
    folder = making.given / "series"
    _write(folder, _series(making.m, making.samples.series))
    return _predict(making, folder, dicom=True)


def _drawn(making: _Making) -> _Command:
    """Convert annotations of a series to a data set."""
    m = making.m
    drawn = dict(making.samples.drawn)
    name = m.pick(sorted(drawn))
    if m.chance(0.5):
        drawn = {name: drawn[name]}
    _write(making.given / "study" / "ct", dict(making.samples.series))
    drawn[name] = dicom_changed(m, drawn[name])
    _write(making.given / "study" / "drawn", drawn)
    fix = ("--fix", making.out) if m.chance(0.7) else ()
    return _Command(("check", str(making.given / "study"), *fix))


def _zip(making: _Making) -> _Command:
    m = making.m
    path = making.given / "study.zip"
    path.write_bytes(zip_changed(m, making.samples.series))
    return _predict(making, path, dicom=True)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


# --- data sets ------------------------------------------------------------------------------------


def _dataset(making: _Making) -> _Command:
    """An invalid description of a data set, or of predictions for it."""
    m, folder = making.m, making.samples.copied(making.samples.dataset, making.given / "dataset")
    if m.chance(0.15):
        predictions = making.samples.copied(making.samples.predictions, making.given / "predictions")
        file = predictions / m.pick(("run.json", "labels.json", "dataset.json"))
        file.write_bytes(json_changed(m, json.loads((predictions / "run.json").read_text())))
        m.note(f"in {file.name} of the predictions")
        return _evaluate(making, predictions, folder)
    tree = json.loads((folder / "dataset.json").read_text())
    if m.chance(0.4):
        tree = _decathlon(tree)
    elif m.chance(0.3):
        tree["cases"] = {"case_1": {"annotated": ["left kidney"]}}
    (folder / "dataset.json").write_bytes(json_changed(m, tree))
    return _use_dataset(making, folder)


def _decathlon(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": tree["name"],
        "modality": {"0": "CT"},
        "labels": {"0": "background", "3": "left kidney", "7": "right kidney"},
        "training": [
            {"image": f"./imagesTr/case_{n}_0000.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"}
            for n in range(CASES)
        ],
    }


def _use_dataset(making: _Making, folder: Path) -> _Command:
    m = making.m
    data, out = str(folder), making.out
    match m.pick(("check",) * 4 + ("fix",) * 4 + ("plan",) * 2 + ("evaluate",) * 2 + ("ceiling",)):
        case "check":
            return _Command(("check", data))
        case "fix":
            return _Command(("check", data, "--fix", out))
        case "plan":
            return _Command(("recipes", "default", "--for", data, "--device", "cpu", "-o", out))
        case "evaluate":
            return _evaluate(making, making.samples.predictions, folder)
        case _:
            return _Command(("ceiling", data, "-r", str(_recipe_file(making)), "-o", out, "--cases", "1"))


def _evaluate(making: _Making, predictions: Path, reference: Path) -> _Command:
    return _Command(("evaluate", str(predictions), str(reference), "-o", making.out))


def _recipe_file(making: _Making) -> Path:
    path = making.given / "recipe.yaml"
    path.write_text(json.dumps(making.samples.recipes[0]))  # JSON is valid YAML
    return path


def _labels(making: _Making) -> _Command:
    """An image or label file of a data set, or a prediction for it."""
    m, samples = making.m, making.samples
    folder = samples.copied(samples.dataset, making.given / "dataset")
    predictions = samples.copied(samples.predictions, making.given / "predictions")
    places = (folder / "imagesTr", folder / "labelsTr", folder / "labelsTr", predictions)
    file = m.pick(sorted(m.pick(places).glob("*.nii.gz")))
    m.note(f"in {file.relative_to(making.given)}")
    file.write_bytes(zipped(m, nifti_changed(m, gzip.decompress(file.read_bytes()))))
    if file.parent == predictions:
        return _evaluate(making, predictions, folder)
    return _use_dataset(making, folder)


# --- models, recipes, packages --------------------------------------------------------------------


def _model(making: _Making) -> _Command:
    m, folder = making.m, making.samples.copied(making.samples.model, making.given / "model")
    way = m.pick(("manifest",) * 6 + ("weights",) * 4 + ("unnamed",))
    if way == "manifest":
        tree = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_bytes(json_changed(m, tree))
    else:
        _change_weights(m, folder, named=way == "weights")
    if m.chance(0.1):
        package = Path(making.out).with_name("package.zip")
        return _Command(("export", str(folder), "-o", str(package)))
    scan = shutil.copy(making.samples.scan, making.given / "scan.nii.gz")
    return _predict(making, Path(scan), model=folder)


def _change_weights(m: Mutation, folder: Path, named: bool) -> None:
    """Change the weights of one stage; with ``named``, ``model.json`` contains the correct hash."""
    manifest = json.loads((folder / "model.json").read_text())
    stage = m.pick(sorted(manifest["weights"]))
    file = folder / manifest["weights"][stage]["file"]
    m.note(f"weights of stage {stage}, hash {'right' if named else 'wrong'}")
    data = _weights_changed(m, file.read_bytes())
    file.write_bytes(data)
    if named:
        manifest["weights"][stage]["sha256"] = sha256(data).hexdigest()
        (folder / "model.json").write_text(json.dumps(manifest))


def _weights_changed(m: Mutation, data: bytes) -> bytes:
    """Change a safetensors file, which consists of 8 bytes of length, a JSON header and numbers."""
    (length,) = struct.unpack("<Q", data[:8])
    if m.chance(0.3):
        header = json_changed(m, json.loads(data[8 : 8 + length]))
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    numbers = (8 + length, len(data))
    return damaged(m, data, *m.pick(((0, 8), (8, 8 + length), numbers, numbers, numbers)))


def _nnunet(making: _Making) -> _Command:
    """An invalid model of nnU-Net, as a folder or a zip."""
    m, members = making.m, dict(making.samples.nnunet)
    checkpoint = next(name for name in members if name.endswith(".pth"))
    way = m.pick(
        (*("plans.json",) * 5, *("dataset.json",) * 4, *("pickle",) * 3, "checkpoint", *("zip",) * 4)
    )
    m.note(f"in {way}")
    match way:
        case "zip":
            pass
        case "pickle":
            members[checkpoint] = _pickle_changed(m, members[checkpoint])
        case "checkpoint":
            members[checkpoint] = damaged(m, members[checkpoint])
        case _:
            members[way] = json_changed(m, json.loads(members[way]))
    source = making.given / "trained"
    if way == "zip" or m.chance(0.3):
        source = source.with_suffix(".zip")
        inside = {f"trained/{name}": data for name, data in members.items()}
        source.write_bytes(zip_changed(m, inside) if way == "zip" else packed(inside))
    else:
        for name, data in members.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
    return _Command(("import", "nnunet", str(source), "-o", making.out), entry=IMPORT)


def _pickle_changed(m: Mutation, data: bytes) -> bytes:
    """Change the pickle in a checkpoint, which is a zip of uncompressed members."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(changed, "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            new = damaged(m, content) if name.endswith("/data.pkl") else content
            other.writestr(zipfile.ZipInfo(name), new)
    return changed.getvalue()


def _recipe(making: _Making) -> _Command:
    m, samples = making.m, making.samples
    tiny = m.chance(0.5)
    tree = samples.recipes[0] if tiny else m.pick(samples.recipes)
    path = making.given / "recipe.yaml"
    path.write_bytes(yaml_changed(m, tree))
    recipe, data, out = str(path), str(samples.dataset), making.out
    match m.pick(("print",) * 4 + ("plan",) * 5 + ("ceiling",) + ("train",)):
        case "print":
            return _Command(("recipes", recipe))
        case "plan":
            return _Command(("recipes", recipe, "--for", data, "--device", "cpu", "-o", out))
        case "train" if tiny:
            return _Command(("train", data, "-r", recipe, "-o", out, "--device", "cpu"))
        case _:
            return _Command(("ceiling", data, "-r", recipe, "-o", out, "--cases", "1"))


def _package(making: _Making) -> _Command:
    """An invalid package. Its Python files are unchanged: Python reports errors in them before the command
    runs."""
    m, members = making.m, dict(making.samples.package)
    data = {name: content for name, content in members.items() if not name.endswith(".py")}
    # Any change of the manifest is detected by its checksum.
    way = m.pick(("manifest", "manifest", "changed", "missing", *("zip",) * 4))
    if way == "manifest":
        members["model/model.json"] = json_changed(m, json.loads(members["model/model.json"]))
    elif way == "zip":
        members = data
    else:
        name = m.pick(sorted(data))
        m.note(f"{name}: {way}")
        changed = damaged(m, members.pop(name))
        if way == "changed":
            members[name] = changed
    path = making.given / "package.zip"
    path.write_bytes(zip_changed(m, members) if way == "zip" else packed(members))
    labels = Path(making.out).with_name("labels.nii.gz")
    return _Command((str(path), str(making.samples.scan), "-o", os.fspath(labels)), entry=PACKAGE)


KINDS: dict[str, Callable[[_Making], _Command]] = {
    "NIfTI": _nifti,
    "NRRD": _nrrd,
    "MetaImage": _metaimage,
    "DICOM": _dicom,
    "SEG and RTSTRUCT": _drawn,
    "zip": _zip,
    "dataset.json": _dataset,
    "label file": _labels,
    "model": _model,
    "nnU-Net": _nnunet,
    "recipe": _recipe,
    "package": _package,
}
"""Name of a kind -> function that makes an input of it."""
