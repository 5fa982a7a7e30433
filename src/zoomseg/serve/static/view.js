// The page of `zoomseg view`: the two files it serves.

import { element, problem, showViewer } from "./viewer.js";

const at = (id) => document.getElementById(id);

async function main() {
  const answer = await fetch("view.json");
  if (!answer.ok) throw new Error(await problem(answer));
  const view = await answer.json();
  at("title").textContent = view.title;
  for (const note of view.notes) at("notes").append(element("li", {}, note));
  at("notes").hidden = view.notes.length === 0;
  document.title = `${view.title} · ZoomSeg`;
  await showViewer(at("viewer"), view, (text) => (at("busy").textContent = text));
}

main().catch((error) => {
  at("busy").textContent = "";
  at("problem").textContent = error.message;
  at("problem").hidden = false;
});
