// A scan with organs over it: three planes and 3D, and a list of the organs beside them.

import { createScene, Volume } from "./niivue-host.js";

const MULTIPLANAR = 3;
const RENDER = 4;
const VIEWS = { "Planes and 3D": MULTIPLANAR, Axial: 0, Coronal: 1, Sagittal: 2, "3D": RENDER };
const GRID_LAYOUT = 2;
const ALWAYS = 1;
const OPACITY = 0.6;
// Colours go to the graphics card as one row of a picture, which may be no longer.
const MAX_LABEL = 8191;
const FLAGS = {
  missing: "not found",
  touches_scan_border: "reaches the end of the scan: it may go on outside",
  touches_region_border: "reaches the end of where the model looked: it may be cut",
  sides_swapped: "lies on the other side than its name says",
  misplaced: "lies far from where the model's training had it",
  unusual_volume: "is of a size far from any in the model's training",
};

const canvas = element("div", { class: "canvas" });
let scene = null; // one for the page, in `canvas`
let shows = 0;
let onLocation = () => {};

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

async function bytes(url, tell) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(await problem(answer));
  const total = Number(answer.headers.get("content-length")) || 0;
  const pieces = [];
  let received = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    received += value.length;
    tell(total ? received / total : 0);
  }
  return new Blob(pieces).arrayBuffer();
}

export async function problem(answer) {
  const text = await answer.text();
  try {
    const { detail } = JSON.parse(text);
    return typeof detail === "string" ? detail : `the request is not right (${answer.status})`;
  } catch {
    return text.trim() || `the server answered ${answer.status}`;
  }
}

// Red, green, blue and opacity of every value from 0 to the largest.
function colours(organs, shown) {
  const largest = Math.max(1, ...organs.map((organ) => organ.value));
  const lut = new Array(4 * (largest + 1)).fill(0);
  for (const { value, colour } of organs) {
    if (shown.has(value)) lut.splice(4 * value, 4, ...colour, 255);
  }
  return { lut, min: 0, max: largest, labels: [] };
}

function number(value, digits) {
  return value === null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
}

function organRow(organ, shown, update) {
  const missing = organ.flags.includes("missing") || organ.volume_ml === 0;
  const toggle = element("input", {
    type: "checkbox",
    id: `organ-${organ.value}`,
    checked: !missing,
    disabled: missing,
    onchange: (event) => {
      if (event.target.checked) shown.add(organ.value);
      else shown.delete(organ.value);
      update();
    },
  });
  if (!missing) shown.add(organ.value);
  const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.backgroundColor = `rgb(${organ.colour.join(" ")})`;
  const flags = organ.flags.map((flag) => FLAGS[flag] ?? flag.replaceAll("_", " "));
  const name = element("label", { for: `organ-${organ.value}` }, swatch, organ.name);
  const cell = element("td", {}, name);
  if (flags.length) cell.append(element("small", { class: "flags" }, flags.join("; ")));
  return element(
    "tr",
    { class: missing ? "missing" : null },
    element("td", {}, toggle),
    cell,
    element("td", { class: "number" }, number(organ.volume_ml, 1)),
    element("td", { class: "number" }, confidence(organ.confidence)),
  );
}

function confidence(value) {
  return value === null ? "–" : `${Math.round(100 * value)} %`;
}

function organTable(organs, update) {
  const shown = new Set();
  const draw = () => update(colours(organs, shown));
  const rows = organs.map((organ) => organRow(organ, shown, draw));
  const all = (on) => () => {
    for (const row of rows) {
      const box = row.querySelector("input:not(:disabled)");
      if (box && box.checked !== on) {
        box.checked = on;
        box.dispatchEvent(new Event("change"));
      }
    }
  };
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, element("span", { class: "hidden" }, "Shown")),
    element("th", { scope: "col" }, "Organ"),
    element("th", { scope: "col", class: "number" }, "ml"),
    element("th", { scope: "col", class: "number" }, "Confidence"),
  );
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  const buttons = element(
    "p",
    { class: "buttons" },
    element("button", { type: "button", onclick: all(true) }, "Show all"),
    element("button", { type: "button", onclick: all(false) }, "Hide all"),
  );
  return { table: element("div", { class: "organs" }, buttons, table), first: colours(organs, shown) };
}

function viewButtons(image) {
  const group = element("div", { class: "views", role: "group", "aria-label": "View" });
  for (const [name, type] of Object.entries(VIEWS)) {
    const choose = () => {
      for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
      image.change("opacity", type === RENDER ? 0 : 1); // in 3D the skin would hide the organs
      scene.change("opts", { sliceType: type });
      scene.command("draw_scene");
    };
    const pressed = String(type === MULTIPLANAR);
    const button = element("button", { type: "button", "aria-pressed": pressed, onclick: choose }, name);
    group.append(button);
  }
  return group;
}

function opacitySlider(labels) {
  const slider = element("input", {
    type: "range",
    min: "0",
    max: "1",
    step: "0.05",
    value: String(OPACITY),
    oninput: (event) => labels.change("opacity", Number(event.target.value)),
  });
  return element("label", { class: "slider" }, "Opacity ", slider);
}

async function theScene() {
  if (scene === null) {
    const opts = {
      sliceType: MULTIPLANAR,
      multiplanarLayout: GRID_LAYOUT,
      multiplanarShowRender: ALWAYS,
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.35, 0.75, 1, 0.9],
      crosshairWidth: 1,
      isOrientCube: true,
      isNearestInterpolation: false,
      isRadiologicalConvention: true,
      isResizeCanvas: true,
      dragAndDropEnabled: false,
      show3Dcrosshair: true,
      loadingText: "",
    };
    scene = await createScene(canvas, opts, { location_change: (data) => onLocation(data) });
  }
  return scene;
}

// Show { scan, labels, organs }, two addresses and what is in the label map, within `place`.
// `tell` gets what is being done, in words, and "" at the end.
export async function showViewer(place, { scan, labels, organs }, tell) {
  if (Math.max(...organs.map((organ) => organ.value)) > MAX_LABEL) {
    throw new Error(`label values above ${MAX_LABEL} cannot be shown here; download the label map`);
  }
  const loaded = [0, 0];
  const progress = (i) => (share) => {
    loaded[i] = share;
    tell(`Loading ${Math.round(50 * (loaded[0] + loaded[1]))} %`);
  };
  const [scanBytes, labelBytes] = await Promise.all([bytes(scan, progress(0)), bytes(labels, progress(1))]);
  tell("Drawing");
  const overlay = new Volume(`labels-${++shows}`, labels, labelBytes, { opacity: OPACITY });
  const list = organTable(organs, (lut) => overlay.change("colormap_label", lut));
  overlay.set("colormap_label", list.first);
  const image = new Volume(`scan-${shows}`, scan, scanBytes);

  const where = element("output", { class: "where", "aria-live": "off" });
  const names = new Map(organs.map((organ) => [organ.value, organ.name]));
  onLocation = ({ mm, values }) => {
    const [grey, label] = values.map((value) => value.value);
    const at = [...mm].slice(0, 3).map((value) => Math.round(value)).join(", ");
    where.textContent = `${at} mm · ${number(grey ?? null, 1)} · ${names.get(label) ?? "no organ"}`;
  };
  const picture = element("div", { class: "picture" }, canvas);
  const bar = element("div", { class: "bar" }, viewButtons(image), opacitySlider(overlay), where);
  place.replaceChildren(element("div", { class: "stage" }, bar, picture), list.table);
  const drawn = await theScene();
  await drawn.show([image, overlay]);
  drawn.change("opts", { sliceType: MULTIPLANAR });
  drawn.command("move_crosshair_in_vox", 0, 0, 0); // says where it is
  tell("");
}
