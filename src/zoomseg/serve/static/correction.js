// The brush: a label map is corrected in the picture and sent to the server, where it becomes a training case.

import { button, choice, element, request } from "./dom.js";

const HINT = "Left button: paint in a plane. Right button: window. Wheel: slices.";
const ERASE = "0";
const BRUSHES = [1, 3, 5, 9, 15].map((voxels) => [voxels, String(voxels)]);

// What stands below the bar while a map is corrected. `done` is called at the end: with true if it was sent.
export function correctionBar(viewer, organs, url, done) {
  const scene = viewer.scene;
  let size = 5;
  const values = [...organs].sort((a, b) => a.name.localeCompare(b.name));
  const organ = element(
    "select",
    { "aria-label": "Paint as", onchange: () => brush() },
    ...values.map(({ name, value }) => element("option", { value: String(value) }, name)),
    element("option", { value: ERASE }, "nothing (erase)"),
  );
  const here = values.find(({ name }) => name === viewer.at); // in which the crosshair is
  if (here) organ.value = String(here.value);
  const brush = () => scene.setBrush(Number(organ.value), size);
  const sizes = choice("Brush, in voxels", BRUSHES, size, (value) => {
    size = value;
    sizes.press(value);
    brush();
  });
  const said = element("span", { class: "note", role: "status" });
  const save = button("Save correction", async () => {
    save.disabled = true;
    said.textContent = "Saving";
    try {
      await request(url, {
        method: "PUT",
        headers: { "content-type": "application/gzip" },
        body: await scene.drawnMap(),
      });
      await done(true);
    } catch (error) {
      said.textContent = error.message;
      save.disabled = false;
    }
  }, { class: "show" });
  const bar = element(
    "div",
    { class: "bar correction", role: "group", "aria-label": "Correction" },
    element("label", { class: "slider" }, "Paint as ", organ),
    element("span", { class: "together" }, element("span", { class: "note" }, "Brush (voxels)"), sizes.group),
    button("Undo", () => scene.drawUndo()),
    save,
    button("Discard", () => done(false)),
    said,
  );
  scene.beginDrawing(viewer.shown);
  viewer.tools.group.inert = true;
  viewer.hint.textContent = HINT;
  brush();
  return bar;
}
