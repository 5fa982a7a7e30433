"""ZoomSeg in 3D Slicer: choose a volume, and get its organs as a segmentation.

The work is done by an installed ``zoomseg`` (see ``ZoomSegLib.segmenting``); this file is its panel. It was
tested with stand-ins for 3D Slicer's modules, and not yet tried inside 3D Slicer.
"""

# Copyright the ZoomSeg developers. SPDX-License-Identifier: Apache-2.0

import shutil
import tempfile
from pathlib import Path

import ctk
import qt
import slicer
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)
from ZoomSegLib.segmenting import SCAN, LocalRun, RemoteRun, SegmentationError, Server, find_command

POLL_MS = 500
SETTINGS = "ZoomSeg"


class ZoomSeg(ScriptedLoadableModule):
    """What 3D Slicer lists."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "ZoomSeg"
        parent.categories = ["Segmentation"]
        parent.dependencies = []
        parent.contributors = ["The ZoomSeg developers"]
        parent.helpText = (
            "Coarse-to-fine organ segmentation of CT and MR, by an installed zoomseg (in a clone of ZoomSeg: "
            "pip install .) or a zoomseg serve. Research software, not for diagnosis: inspect every result."
        )
        parent.acknowledgementText = ""


class ZoomSegWidget(ScriptedLoadableModuleWidget):
    """The panel: what to segment, where, and how far it is."""

    def setup(self):
        """Called by 3D Slicer when the module is first opened."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = ZoomSegLogic()
        self.timer = qt.QTimer()
        self.timer.setInterval(POLL_MS)
        self.timer.connect("timeout()", self.look)
        self._add_scan()
        self._add_places()
        self._add_buttons()
        self.layout.addStretch(1)
        self.show_state()

    def cleanup(self):
        """Called by 3D Slicer when the module is closed."""
        self.timer.stop()
        self.logic.cancel()

    def _section(self, title):
        box = ctk.ctkCollapsibleButton()
        box.text = title
        self.layout.addWidget(box)
        return qt.QFormLayout(box)

    def _add_scan(self):
        form = self._section("Scan")
        self.volume = slicer.qMRMLNodeComboBox()
        self.volume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.volume.addEnabled = self.volume.removeEnabled = False
        self.volume.noneEnabled = False
        self.volume.setMRMLScene(slicer.mrmlScene)
        form.addRow("Volume:", self.volume)

    def _add_places(self):
        form = self._section("Where")
        self.remote = qt.QCheckBox("a server (zoomseg serve)")
        self.remote.checked = self._setting("remote", "") == "yes"
        self.command = self._line(form, "Command:", "command", find_command() or "")
        self.organs = self._line(form, "Organs (all, if empty):", "organs", "")
        form.addRow("Segment on:", self.remote)
        self.address = self._line(form, "Server:", "address", "http://127.0.0.1:8000")
        self.token = qt.QLineEdit()
        self.token.echoMode = qt.QLineEdit.Password
        form.addRow("Token:", self.token)
        self.model = self._line(form, "Model (the built-in, if empty):", "model", "")

    def _line(self, form, title, key, default):
        line = qt.QLineEdit(self._setting(key, default))
        form.addRow(title, line)
        return line

    def _add_buttons(self):
        self.apply = qt.QPushButton("Segment")
        self.stop = qt.QPushButton("Cancel")
        self.told = qt.QLabel("")
        self.told.wordWrap = True
        self.apply.connect("clicked(bool)", self.begin)
        self.stop.connect("clicked(bool)", self.end)
        for widget in (self.apply, self.stop, self.told):
            self.layout.addWidget(widget)

    def _setting(self, key, default):
        return slicer.app.settings().value(f"{SETTINGS}/{key}", default)

    def _keep_settings(self):
        """The token is not kept: settings are a file that anybody may read."""
        kept = {
            "remote": "yes" if self.remote.checked else "",
            "command": self.command.text,
            "organs": self.organs.text,
            "address": self.address.text,
            "model": self.model.text,
        }
        for key, value in kept.items():
            slicer.app.settings().setValue(f"{SETTINGS}/{key}", value)

    def begin(self, *_):
        """Start a segmentation of the chosen volume."""
        self._keep_settings()
        organs = [name.strip() for name in self.organs.text.split(",") if name.strip()]
        try:
            if self.remote.checked:
                server = Server(self.address.text.strip(), self.token.text.strip())
                self.logic.start_remote(self.volume.currentNode(), server, self.model.text.strip())
            else:
                command, model = self.command.text.strip(), self.model.text.strip()
                self.logic.start_local(self.volume.currentNode(), command, model, organs)
        except SegmentationError as error:
            slicer.util.errorDisplay(str(error))
        else:
            self.timer.start()
        self.show_state()

    def look(self):
        """See how far it is, twice a second."""
        try:
            done = self.logic.look()
        except SegmentationError as error:
            self.timer.stop()
            self.show_state()
            slicer.util.errorDisplay(str(error))
            return
        if done:
            self.timer.stop()
        self.show_state("done; look at every organ" if done else self.logic.status())

    def end(self, *_):
        """Cancel."""
        self.timer.stop()
        try:
            self.logic.cancel()
        except SegmentationError as error:
            slicer.util.errorDisplay(str(error))
        self.show_state("cancelled")

    def show_state(self, text=""):
        """What can be pressed, and what is going on."""
        self.apply.enabled = not self.logic.running
        self.stop.enabled = self.logic.running
        self.told.text = text


class ZoomSegLogic(ScriptedLoadableModuleLogic):
    """One segmentation at a time, from a volume of the scene to a segmentation in it."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self._run = self._folder = self._volume = None

    @property
    def running(self):
        return self._run is not None

    def start_local(self, volume, command, model="", organs=()):
        """With the command on this machine.

        Raises:
            SegmentationError: no volume, or no such command.
        """
        if not command:
            raise SegmentationError(
                "no zoomseg command was found; install it (pip install . in a clone of ZoomSeg), or give its "
                "path"
            )
        # 3D Slicer's own environment would give zoomseg the wrong Python.
        environment = slicer.util.startupEnvironment()
        self._start(volume, lambda folder: LocalRun(command, folder, model, organs, environment))

    def start_remote(self, volume, server, model=""):
        """With a ``zoomseg serve``.

        Raises:
            SegmentationError: no volume, or the server refuses it.
        """
        self._start(volume, lambda folder: RemoteRun(server, folder, model))

    def _start(self, volume, run_in):
        if self.running:
            raise SegmentationError("a segmentation is running; cancel it, or wait")
        if volume is None:
            raise SegmentationError("choose a volume")
        folder = Path(tempfile.mkdtemp(prefix="zoomseg-"))
        try:
            if not slicer.util.saveNode(volume, str(folder / SCAN)):
                raise SegmentationError("the volume could not be saved")
            self._run = run_in(folder)
        except SegmentationError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._folder, self._volume = folder, volume

    def look(self):
        """Whether it is done; its segmentation is then in the scene.

        Raises:
            SegmentationError: it failed.
        """
        if not self.running:
            return False
        try:
            done = self._run.poll()
        except SegmentationError:
            self._forget()
            raise
        if done:
            try:
                self._load()
            finally:
                self._forget()
        return done

    def status(self):
        """What it says at the moment."""
        return self._run.status() if self.running else ""

    def cancel(self):
        """End it, if one runs.

        Raises:
            SegmentationError: the server does not answer.
        """
        if self.running:
            try:
                self._run.cancel()
            finally:
                self._forget()

    def _load(self):
        segmentation = slicer.util.loadSegmentation(str(self._run.segmentation()))
        segmentation.SetName(f"{self._volume.GetName()} ZoomSeg")
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(self._volume)
        # A volume that was moved takes its organs with it.
        segmentation.SetAndObserveTransformNodeID(self._volume.GetTransformNodeID())
        segmentation.CreateClosedSurfaceRepresentation()

    def _forget(self):
        shutil.rmtree(self._folder, ignore_errors=True)
        self._run = self._folder = self._volume = None
