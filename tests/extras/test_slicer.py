"""The module for 3D Slicer, without 3D Slicer: its logic with stand-ins for Slicer's modules, its requests
against the real server, its command against the real options."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import click
import pytest
import uvicorn

from helpers.servers import Server as ServerUnderTest
from helpers.servers import scan_bytes, serving
from zoomseg.cli.main import cli
from zoomseg.serve.access import Access

MODULE = Path(__file__).parents[2] / "extras" / "slicer" / "ZoomSeg"


class Base:
    """Of Slicer's three base classes."""

    def __init__(self, parent: object = None) -> None:
        self.parent = parent
        self.layout = MagicMock()

    def setup(self) -> None:
        pass


@pytest.fixture
def slicer(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Slicer's modules, as far as they are used."""
    made = MagicMock()
    made.util.startupEnvironment.return_value = dict(os.environ)
    made.util.saveNode.side_effect = lambda node, path: Path(path).write_bytes(node.content) > 0
    made.app.settings.return_value.value.side_effect = lambda key, default: default
    names = ("ScriptedLoadableModule", "ScriptedLoadableModuleLogic", "ScriptedLoadableModuleWidget")
    scripted = ModuleType("slicer.ScriptedLoadableModule")
    for name in names:
        setattr(scripted, name, type(name, (Base,), {}))
    qt = MagicMock()
    for kind in (qt.QPushButton, qt.QLineEdit, qt.QLabel):
        kind.side_effect = lambda *given: MagicMock()
    stand_ins = {
        "slicer": made,
        "slicer.ScriptedLoadableModule": scripted,
        "qt": qt,
        "ctk": MagicMock(),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(MODULE)
    for name in ("ZoomSeg", "ZoomSegLib", "ZoomSegLib.segmenting"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return made


@pytest.fixture
def segmenting(slicer: MagicMock) -> Any:
    return importlib.import_module("ZoomSegLib.segmenting")


@pytest.fixture
def panel(slicer: MagicMock) -> Any:
    return importlib.import_module("ZoomSeg")


def volume(content: bytes = b"voxels") -> SimpleNamespace:
    return SimpleNamespace(content=content, GetName=lambda: "CT", GetTransformNodeID=lambda: "moved")


@pytest.fixture
def command(tmp_path: Path) -> str:
    """Replaces ``zoomseg``: writes the same files, or fails as requested."""
    script = tmp_path / "zoomseg"
    script.write_text(f"""#!{sys.executable}
import pathlib, sys, time
words = sys.argv[1:]
scan, out = pathlib.Path(words[1]), pathlib.Path(words[words.index("-o") + 1])
what = scan.read_bytes()
if what == b"bad":
    print("zoomseg: the scan: damaged", file=sys.stderr)
    sys.exit(2)
if what == b"slow":
    print("1 of 9 tiles", flush=True)
    time.sleep(60)
(out / "slicer").mkdir(parents=True)
(out / "slicer" / "scan.seg.nrrd").write_text(" ".join(words))
""")
    script.chmod(0o755)
    return str(script)


def until_done(logic: Any) -> None:
    ends = time.monotonic() + 60
    while not logic.look():
        assert time.monotonic() < ends
        time.sleep(0.02)


class TestCommand:
    def test_its_options_are_those_of_predict(self, segmenting: Any) -> None:
        words = segmenting.predict_command("zoomseg", Path("a.nii.gz"), Path("out"), "m", ["liver", "spleen"])
        assert words[:3] == ["zoomseg", "predict", "a.nii.gz"]
        predict = cli.get_command(click.Context(cli), "predict")
        assert predict is not None
        parsed = predict.make_context("predict", words[2:]).params
        given = (parsed["scans"], parsed["out"], parsed["models"], parsed["organs"], parsed["seg_nrrd"])
        assert given == ((Path("a.nii.gz"),), Path("out"), ("m",), "liver,spleen", True)
        assert segmenting.predict_command("z", Path("a"), Path("o"))[-1] == "--seg-nrrd"

    def test_a_segmentation_comes_into_the_scene(self, panel: Any, slicer: MagicMock, command: str) -> None:
        logic, loaded = panel.ZoomSegLogic(), []
        slicer.util.loadSegmentation.side_effect = lambda path: (
            loaded.append(Path(path).read_text()) or MagicMock()
        )
        logic.start_local(volume(), command, "m", ["liver"])
        assert logic.running
        folder = logic._folder
        until_done(logic)
        assert loaded == [f"predict {folder}/scan.nii.gz -o {folder}/out --seg-nrrd -m m --organs liver"]
        assert not logic.running
        assert not folder.exists()

    def test_a_failure_is_the_command_s_own_line(self, panel: Any, command: str) -> None:
        logic = panel.ZoomSegLogic()
        logic.start_local(volume(b"bad"), command)
        folder = logic._folder
        with pytest.raises(panel.SegmentationError, match=r"^zoomseg: the scan: damaged$"):
            until_done(logic)
        assert not logic.running
        assert not folder.exists()

    def test_it_can_be_cancelled(self, panel: Any, command: str) -> None:
        logic = panel.ZoomSegLogic()
        logic.start_local(volume(b"slow"), command)
        process, ends = logic._run._process, time.monotonic() + 60
        while logic.status() != "1 of 9 tiles":
            assert not logic.look()
            assert time.monotonic() < ends
        with pytest.raises(panel.SegmentationError, match="a segmentation is running"):
            logic.start_local(volume(), command)
        logic.cancel()
        assert process.poll() is not None
        assert not logic.running

    def test_what_cannot_begin_leaves_nothing(self, panel: Any, slicer: MagicMock, tmp_path: Path) -> None:
        logic = panel.ZoomSegLogic()
        for given, says in (
            ((volume(), ""), "no zoomseg command was found"),
            ((None, "zoomseg"), "choose a volume"),
            ((volume(), str(tmp_path / "none")), "cannot be started"),
        ):
            with pytest.raises(panel.SegmentationError, match=says):
                logic.start_local(*given)
            assert not logic.running
        slicer.util.saveNode.side_effect = lambda node, path: False
        with pytest.raises(panel.SegmentationError, match="could not be saved"):
            logic.start_local(volume(), "zoomseg")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[ServerUnderTest, str]]:
    """The real application behind a real socket, with a token."""
    with serving(tmp_path / "jobs", who=Access("secret", None)) as under_test:
        listening = uvicorn.Server(uvicorn.Config(under_test.client.app, port=0, log_level="error"))
        thread = threading.Thread(target=listening.run, daemon=True)
        thread.start()
        ends = time.monotonic() + 60
        while not listening.started:
            assert time.monotonic() < ends
            time.sleep(0.02)
        port = listening.servers[0].sockets[0].getsockname()[1]
        yield under_test, f"http://127.0.0.1:{port}/"
        listening.should_exit = True
        thread.join()


class TestServer:
    def test_a_segmentation_comes_from_a_server_which_keeps_nothing(
        self, panel: Any, slicer: MagicMock, server: tuple[ServerUnderTest, str], tmp_path: Path
    ) -> None:
        under_test, address = server
        logic, there, loaded = panel.ZoomSegLogic(), panel.Server(address, "secret"), []
        slicer.util.loadSegmentation.side_effect = lambda path: (
            loaded.append(Path(path).read_bytes()) or MagicMock()
        )
        assert there.models() == ["tiny"]
        logic.start_remote(volume(scan_bytes(tmp_path)), there, "tiny")
        assert not logic.look()
        (job,) = under_test.jobs.all()
        out = under_test.jobs.out(job)
        under_test.go.set()
        segmentation = out / "slicer" / f"{job.id}.seg.nrrd"
        ends = time.monotonic() + 60
        while not (out / "run.json").is_file():
            assert time.monotonic() < ends
        segmentation.parent.mkdir()
        segmentation.write_bytes(b"organs")
        until_done(logic)
        assert loaded == [b"organs"]
        assert under_test.jobs.all() == []

    def test_what_the_server_refuses_is_its_own_line(
        self, panel: Any, server: tuple[ServerUnderTest, str]
    ) -> None:
        under_test, address = server
        under_test.go.set()
        logic = panel.ZoomSegLogic()
        with pytest.raises(panel.SegmentationError, match="no model 'other'; there are: tiny"):
            logic.start_remote(volume(), panel.Server(address, "secret"), "other")
        with pytest.raises(panel.SegmentationError, match="a token is needed"):
            panel.Server(address).models()
        logic.start_remote(volume(b"bad"), panel.Server(address, "secret"))
        with pytest.raises(panel.SegmentationError, match="the scan: damaged"):
            until_done(logic)
        assert not logic.running

    def test_no_server(self, panel: Any) -> None:
        with pytest.raises(panel.SegmentationError, match="give an address such as"):
            panel.Server("file:///etc/passwd")
        with pytest.raises(panel.SegmentationError, match="does not answer"):
            panel.Server("http://127.0.0.1:1").models()


class TestPanel:
    def test_a_segmentation_from_the_first_click_to_the_last_look(
        self, panel: Any, slicer: MagicMock, command: str
    ) -> None:
        widget = panel.ZoomSegWidget()
        widget.setup()
        assert (widget.apply.enabled, widget.stop.enabled) == (True, False)
        widget.remote.checked = False
        widget.command, widget.model, widget.organs, widget.address = (
            SimpleNamespace(text=text) for text in (command, "", "liver, spleen", "")
        )
        widget.volume.currentNode.return_value = volume()
        widget.begin()
        assert (widget.apply.enabled, widget.stop.enabled) == (False, True)
        ends = time.monotonic() + 60
        while widget.logic.running:
            widget.look()
            assert time.monotonic() < ends
        assert widget.told.text == "done; look at every organ"
        slicer.util.errorDisplay.assert_not_called()
        kept = {call.args[0] for call in slicer.app.settings.return_value.setValue.call_args_list}
        assert "ZoomSeg/command" in kept
        assert not any("token" in key for key in kept)

    def test_what_goes_wrong_is_shown(self, panel: Any, slicer: MagicMock, command: str) -> None:
        widget = panel.ZoomSegWidget()
        widget.setup()
        widget.remote.checked = False
        widget.command, widget.model, widget.organs, widget.address = (
            SimpleNamespace(text=text) for text in (command, "", "", "")
        )
        widget.volume.currentNode.return_value = volume(b"bad")
        widget.begin()
        ends = time.monotonic() + 60
        while widget.logic.running:
            widget.look()
            assert time.monotonic() < ends
        slicer.util.errorDisplay.assert_called_once_with("zoomseg: the scan: damaged")
        assert widget.apply.enabled

    def test_3d_slicer_lists_it(self, panel: Any) -> None:
        parent = SimpleNamespace()
        panel.ZoomSeg(parent)
        assert (parent.title, parent.categories) == ("ZoomSeg", ["Segmentation"])
        assert "not for diagnosis" in parent.helpText
