// A scan with organs over it: three planes and 3D, the tools above, and the list of the organs beside them.

import { button, bytes, choice, element, number } from "./dom.js";
import { isMissing, organList } from "./organs.js";
import { DISTANCE, ELLIPSE, MAX_LABEL, MOVE, MULTIPLANAR, OPACITY, RENDER, Scene } from "./scene.js";

const VIEWS = [[MULTIPLANAR, "Planes, 3D"], [0, "Axial"], [1, "Coronal"], [2, "Sagittal"], [RENDER, "3D"]];
const TOOLS = [[MOVE, "Move"], [DISTANCE, "Distance"], [ELLIPSE, "Circle"]];
const HINTS = {
  [MOVE]: "Left button: move the crosshair. Right button: window. Wheel: slices.",
  [DISTANCE]: "Draw a line in a plane: its length in mm.",
  [ELLIPSE]: "Draw a circle in a plane: mean and standard deviation of the intensities in it.",
};
const WINDOWS = {
  abdomen: ["Abdomen", 40, 400],
  lung: ["Lung", -600, 1500],
  bone: ["Bone", 400, 1800],
};
const OWN_WINDOW = "own";
const MANUAL_WINDOW = "manual";
// What two pictures do together: of one scan, and of two.
const OF_ONE_SCAN = { "2d": true, "3d": true };
const OF_TWO_SCANS = { "3d": true };

export class Viewer {
  // `place`: the element that it fills; `tell` gets what is being done, in words, and "" at the end.
  constructor(place, tell) {
    this.place = place;
    this.tell = tell;
    this.scenes = []; // of the scan, and of what it is compared with
    this.shows = 0; // counts what is to be shown: only the last is
    this.shown = new Set();
  }

  get scene() {
    return this.scenes[0];
  }

  // Show { scan, labels, organs }, two addresses and what is in the label map. `review` as in organs.js;
  // `tools`: more elements for the bar. If something else is to be shown meanwhile, this is not.
  async show({ scan, labels, organs }, { review = null, tools = [] } = {}) {
    this.empty();
    const files = await this.#load(scan, labels, organs);
    if (!files.isWanted()) return;
    this.shown = new Set(organs.filter((organ) => !isMissing(organ)).map((organ) => organ.value));
    const list = organList(organs, this.shown, {
      onShown: () => this.#showOrgans(),
      onOrgan: (organ) => this.goTo(organ),
      review,
    });
    this.where = element("output", { class: "where", "aria-live": "off" });
    this.measured = element("ul", { class: "measured", "aria-label": "Measured", hidden: true });
    this.hint = element("p", { class: "note" }, HINTS[MOVE]);
    this.pictures = element("div", { class: "pictures" });
    const stage = element("div", { class: "stage" });
    this.place.inert = true; // and its pictures hidden, which are still those of the scan before
    this.place.replaceChildren(stage, list);
    const scene = await this.#sceneIn(0, "");
    if (!files.isWanted()) return;
    const below = element("div", { class: "below" }, this.where, this.hint);
    stage.append(this.#bar(tools), this.pictures, below, this.measured);
    await scene.show(files.scan, files.labels, organs, this.shown, files.isWanted);
    if (!files.isWanted()) return;
    scene.setSliceType(MULTIPLANAR);
    this.useTool(MOVE);
    this.#fillWindows();
    this.#begin(scene);
    this.place.inert = false;
    this.tell("");
  }

  // Show nothing, also not what is being loaded.
  empty() {
    this.endComparing();
    this.scene?.endDrawing();
    this.place.replaceChildren();
    this.tell("");
  }

  // Show another label map beside the first, or another scan with its own: then each has its own place.
  async compare({ scan, labels, organs, title, sameScan }, firstTitle) {
    const files = await this.#load(scan, labels, organs);
    if (!files.isWanted()) return;
    const first = this.scene;
    const second = await this.#sceneIn(1, title);
    if (!files.isWanted()) return;
    first.caption.textContent = firstTitle;
    first.caption.hidden = false;
    const shown = new Set(organs.filter((organ) => !isMissing(organ)).map((organ) => organ.value));
    await second.show(files.scan, files.labels, organs, shown, files.isWanted);
    if (!files.isWanted()) return;
    second.setSliceType(first.opts.sliceType);
    second.opts.dragModePrimary = first.opts.dragModePrimary;
    second.showCrosshair(first.crosshairShown);
    const { level, width } = first.window;
    second.setWindow(level, width);
    const together = sameScan ? OF_ONE_SCAN : OF_TWO_SCANS;
    first.broadcastTo([second], together);
    second.broadcastTo([first], together);
    if (sameScan) second.goTo(first.place);
    else this.#goToNamed(second, this.at) || this.#begin(second);
    this.tell("");
  }

  endComparing() {
    this.shows++;
    this.tell("");
    this.scene?.broadcastTo([]);
    if (this.scene) this.scene.caption.hidden = true;
    this.scenes[1]?.figure.remove();
  }

  goTo(organ) {
    for (const scene of this.#visible()) this.#goToNamed(scene, organ.name);
  }

  // Whether there is an organ of this name.
  #goToNamed(scene, name) {
    const organ = scene.organs.find((one) => one.name === name);
    const mm = organ ? scene.placeIn(organ.value) : null;
    if (mm !== null) scene.goTo(mm);
    return mm !== null;
  }

  // --- the files -----------------------------------------------------------------------------------

  // `isWanted` tells whether nothing else is to be shown since.
  async #load(scan, labels, organs) {
    if (Math.max(...organs.map((organ) => organ.value)) > MAX_LABEL) {
      throw new Error(`label values above ${MAX_LABEL} cannot be shown here; download the label map`);
    }
    const show = ++this.shows;
    const isWanted = () => show === this.shows;
    const loaded = [0, 0];
    const progress = (i) => (share) => {
      loaded[i] = share;
      if (isWanted()) this.tell(`Loading ${Math.round(50 * (loaded[0] + loaded[1]))} %`);
    };
    const [scanBytes, labelBytes] = await Promise.all([bytes(scan, progress(0)), bytes(labels, progress(1))]);
    if (isWanted()) this.tell("Drawing");
    return { scan: { name: scan, bytes: scanBytes }, labels: { name: labels, bytes: labelBytes }, isWanted };
  }

  // --- pictures ------------------------------------------------------------------------------------

  async #sceneIn(n, title) {
    if (!this.scenes[n]) {
      const canvas = element("canvas", { role: "img", "aria-label": "Scan with organs" });
      const picture = element("div", { class: "picture" }, canvas);
      const caption = element("figcaption", {});
      const figure = element("figure", {}, caption, picture);
      this.pictures.append(figure);
      const made = new Scene({
        onLocationChange: (at) => made === this.scene && this.#tellWhere(at),
        onIntensityChange: () => made === this.scene && this.#tellWindow(),
        onOptsChange: (name, value) => this.#optionChanged(name, value),
        onDistance: (mm) => this.#tellMeasured(`${number(mm, 1)} mm`),
        onEllipse: (statistics) => this.#tellEllipse(statistics),
      });
      Object.assign(made, { caption, figure, attached: made.attachToCanvas(canvas, true) });
      this.scenes[n] = made;
    }
    const scene = this.scenes[n];
    scene.caption.textContent = title;
    scene.caption.hidden = title === "";
    this.pictures.append(scene.figure);
    await scene.attached;
    return scene;
  }

  #visible() {
    return this.scenes.filter((scene) => scene.figure.isConnected);
  }

  #showOrgans() {
    this.scene.showOrgans(this.shown);
  }

  // Whether the map is being painted in.
  get isDrawn() {
    return this.scene?.drawBitmap != null;
  }

  // In the largest organ: what the scan was segmented for can be seen at once.
  #begin(scene) {
    const bySize = [...scene.organs].sort((a, b) => (b.volume_ml ?? 0) - (a.volume_ml ?? 0));
    if (!bySize.some((organ) => this.#goToNamed(scene, organ.name))) scene.createOnLocationChange();
  }

  // --- the bar -------------------------------------------------------------------------------------

  #bar(tools) {
    this.views = choice("View", VIEWS, MULTIPLANAR, (value) => {
      for (const scene of this.#visible()) scene.setSliceType(value);
    });
    this.tools = choice("Tool", TOOLS, MOVE, (value) => this.useTool(value));
    this.clear = button("Clear", () => this.#clearMeasurements(), { hidden: true });
    const crosshair = button("Crosshair", () => {
      const on = crosshair.getAttribute("aria-pressed") !== "true";
      crosshair.setAttribute("aria-pressed", String(on));
      for (const scene of this.scenes) scene.showCrosshair(on);
    }, { "aria-pressed": String(this.scene.crosshairShown) });
    this.windows = element("select", { "aria-label": "Window", onchange: (event) => this.#useWindow(event.target.value) });
    this.windowText = element("output", { class: "where" });
    const opacity = element("input", {
      type: "range",
      min: "0",
      max: "1",
      step: "0.05",
      value: String(OPACITY),
      oninput: (event) => {
        for (const scene of this.#visible()) scene.setLabelOpacity(Number(event.target.value));
      },
    });
    return element(
      "div",
      { class: "bar" },
      this.views.group,
      element("span", { class: "together" }, this.tools.group, this.clear),
      element("span", { class: "together" }, this.windows, this.windowText),
      crosshair,
      element("label", { class: "slider" }, "Opacity ", opacity),
      ...tools,
    );
  }

  // NiiVue has keys of its own, as V for the next view.
  #optionChanged(name, value) {
    if (name === "sliceType") this.views?.press(value);
    if (name === "dragModePrimary") this.tools?.press(value);
  }

  useTool(mode) {
    for (const scene of this.#visible()) scene.opts.dragModePrimary = mode;
    this.hint.textContent = HINTS[mode];
    if (mode !== MOVE) this.clear.hidden = false;
  }

  // --- the window ----------------------------------------------------------------------------------

  #fillWindows() {
    const presets = this.scene.isHounsfield ? Object.entries(WINDOWS).map(([key, [name]]) => [key, name]) : [];
    const all = [...presets, [OWN_WINDOW, "2nd to 98th percentile"], [MANUAL_WINDOW, "By hand"]];
    this.windows.replaceChildren(...all.map(([value, name]) => element("option", { value, disabled: value === MANUAL_WINDOW }, name)));
    this.#useWindow(all[0][0]);
  }

  #useWindow(key) {
    for (const scene of this.#visible()) {
      if (key === OWN_WINDOW) scene.setOwnWindow();
      else scene.setWindow(WINDOWS[key][1], WINDOWS[key][2]);
    }
    this.windows.value = key;
  }

  #tellWindow() {
    if (!this.windowText || !this.scene?.image) return;
    const { level, width } = this.scene.window;
    this.windowText.textContent = `L ${number(level, width < 10 ? 2 : 0)} W ${number(width, width < 10 ? 2 : 0)}`;
    this.windows.value = MANUAL_WINDOW;
  }

  // --- what is read --------------------------------------------------------------------------------

  #tellWhere({ mm, values }) {
    const [grey, label] = values.map((value) => value.value);
    this.at = this.scene.organs.find((organ) => organ.value === label)?.name ?? "no organ";
    const at = [...mm].slice(0, 3).map((value) => Math.round(value)).join(", ");
    const unit = this.scene.isHounsfield ? " HU" : "";
    this.where.textContent = `${at} mm · ${number(grey ?? null, 1)}${unit} · ${this.at}`;
  }

  #tellEllipse({ mean, sd, min, max, area_mm2, voxels }) {
    const unit = this.scene.isHounsfield ? " HU" : "";
    this.#tellMeasured(
      `Mean ${number(mean, 1)}${unit}, SD ${number(sd, 1)}, ${number(min, 0)} to ${number(max, 0)}, ` +
        `${number(area_mm2 / 100, 2)} cm², ${voxels} voxels`,
    );
  }

  #tellMeasured(text) {
    this.measured.append(element("li", {}, text));
    this.measured.hidden = false;
  }

  #clearMeasurements() {
    for (const scene of this.#visible()) scene.clearMeasurements();
    this.measured.replaceChildren();
    this.measured.hidden = true;
  }
}
