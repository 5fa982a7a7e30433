// The page of `zoomseg view`: the two files it serves.

import { at, element, json } from "./dom.js";
import { Viewer } from "./viewer.js";

async function main() {
  const view = await json("view.json");
  at("title").textContent = view.title;
  for (const note of view.notes) at("notes").append(element("li", {}, note));
  at("notes").hidden = view.notes.length === 0;
  document.title = `${view.title} · ZoomSeg`;
  await new Viewer(at("viewer"), (text) => (at("busy").textContent = text)).show(view);
}

main().catch((error) => {
  at("busy").textContent = "";
  at("problem").textContent = error.message;
  at("problem").hidden = false;
});
