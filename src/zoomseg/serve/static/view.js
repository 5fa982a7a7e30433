// The page of `zoomseg view`: the two files it serves.

import { problem, showViewer } from "./viewer.js";

const at = (id) => document.getElementById(id);

async function main() {
  const answer = await fetch("view.json");
  if (!answer.ok) throw new Error(await problem(answer));
  const view = await answer.json();
  at("title").textContent = view.title;
  document.title = `${view.title} · ZoomSeg`;
  await showViewer(at("viewer"), view, (text) => (at("busy").textContent = text));
}

main().catch((error) => {
  at("busy").textContent = "";
  at("problem").textContent = error.message;
  at("problem").hidden = false;
});
