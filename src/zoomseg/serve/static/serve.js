// The page of `zoomseg serve`: scans go up, jobs are watched, results are shown, reviewed and corrected.

import { correctionBar } from "./correction.js";
import { at, button, duration, element, json, problem } from "./dom.js";
import { MOVE } from "./scene.js";
import { Viewer } from "./viewer.js";

const BUSY_MS = 700;
const IDLE_MS = 5000;
const NARROW = "(max-width: 60rem)";
const DOWNLOADS = {
  "labels.nii.gz": "Label map (NIfTI)",
  "corrected.nii.gz": "Corrected map (NIfTI)",
  "seg.nrrd": "3D Slicer (.seg.nrrd)",
  "seg.dcm": "DICOM SEG",
  "rtstruct.dcm": "DICOM RTSTRUCT",
  "summary.csv": "Volumes (CSV)",
  "review.csv": "Review (CSV)",
  "review.json": "Review (JSON)",
  "run.json": "Run record (JSON)",
  "scan.nii.gz": "Scan (NIfTI)",
};
const OF_EVERY_RESULT = ["review.csv", "review.json"];
const NOTHING = "";
const BEFORE = "before";

const viewer = new Viewer(at("viewer"), (text) => (at("busy").textContent = text));
const items = new Map(); // by job id: what is in the list, and from which words it was made
const mine = new Set(); // jobs of this page's uploads that were not shown yet
let limits = { max_upload_bytes: Infinity, suffixes: [] };
let known = []; // the jobs as the server told last
let shown = null;
let opened = 0; // counts what is to be shown: only the last is
let timer = 0;
let unanswered = ""; // what was said when the server did not respond

function complain(text) {
  at("problem").textContent = text;
  at("problem").hidden = text === "";
}

function answered() {
  if (unanswered !== "" && at("problem").textContent === unanswered) complain("");
  unanswered = "";
}

// --- going up ---------------------------------------------------------------------------------------

function refused(file) {
  if (!limits.suffixes.some((suffix) => file.name.toLowerCase().endsWith(suffix))) {
    return `${file.name} is not a scan. One file is needed: ${limits.suffixes.join(", ")}.`;
  }
  if (file.size > limits.max_upload_bytes) {
    const most = (limits.max_upload_bytes / 2 ** 30).toLocaleString("en", { maximumFractionDigits: 1 });
    return `${file.name} is too large: this server takes files up to ${most} GB.`;
  }
  return "";
}

// XMLHttpRequest, as fetch does not tell how much has gone up.
function send(file, tell) {
  const query = new URLSearchParams({ name: file.name, model: at("model").value });
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `jobs?${query}`);
    request.upload.onprogress = (event) => tell(event.loaded / event.total);
    request.onload = async () => {
      const answer = new Response(request.responseText, { status: request.status });
      if (answer.ok) resolve(await answer.json());
      else reject(new Error(await problem(answer)));
    };
    request.onerror = () => reject(new Error(`${file.name} did not arrive. Is the server still running?`));
    request.setRequestHeader("content-type", "application/octet-stream");
    request.send(file);
  });
}

async function upload(file) {
  const reason = refused(file);
  if (reason) return complain(reason);
  const bar = element("progress", { max: "1", value: "0", "aria-label": `Uploading ${file.name}` });
  const item = element("li", { class: "job" }, element("span", { class: "name" }, file.name), bar);
  at("jobs").prepend(item);
  try {
    mine.add((await send(file, (share) => (bar.value = share))).id);
  } catch (error) {
    complain(error.message);
  } finally {
    item.remove();
    await watch();
  }
}

async function uploadAll(files) {
  complain("");
  for (const file of files) await upload(file);
}

// --- the list ---------------------------------------------------------------------------------------

function stages(job) {
  const now = job.stages.indexOf(job.stage);
  const extra = job.stage !== null && now < 0 ? [job.stage] : [];
  const entries = [...extra, ...job.stages].map((stage) => {
    const i = job.stages.indexOf(stage);
    const current = stage === job.stage;
    const state = current ? "now" : i >= 0 && i < now ? "done" : "next";
    const entry = element("li", { class: state, "aria-current": current ? "step" : null }, stage);
    // A stage whose tiles are computed is not over: their results are put together.
    if (current && job.progress > 0 && job.progress < 1) entry.append(` ${Math.floor(100 * job.progress)} %`);
    return entry;
  });
  const passed = Math.max(0, now) + job.progress;
  const value = String(passed / job.stages.length);
  const bar = element("progress", { max: "1", value, "aria-label": `Progress of ${job.name}` });
  return [bar, element("ol", { class: "stages" }, ...entries)];
}

function words(job) {
  switch (job.state) {
    case "queued":
      return job.ahead === 0 ? "next" : `waiting, ${job.ahead} before it`;
    case "running": {
      if (job.stage === null) return "starting";
      const so_far = `running for ${duration(job.seconds)}`;
      return job.remaining === null ? so_far : `about ${duration(job.remaining)} left`;
    }
    case "finished":
      return `${mine.has(job.id) ? "new: " : ""}done in ${duration(job.seconds)}`;
    default:
      return job.state;
  }
}

async function drop(job) {
  try {
    await json(`jobs/${job.id}`, { method: "DELETE" });
    if (shown === job.id) close();
  } catch (error) {
    complain(error.message);
  }
  await watch();
}

function buttons(job) {
  const ended = !["queued", "running"].includes(job.state);
  const made = [];
  if (job.state === "finished") {
    made.push(button("Show", () => open(job), { class: "show", "aria-label": `Show ${job.name}` }));
  }
  const what = ended ? "Delete" : "Cancel";
  made.push(button(what, () => drop(job), { "aria-label": `${what} ${job.name}` }));
  return element("span", { class: "buttons" }, ...made);
}

function item(job) {
  const when = new Date(1000 * job.created).toLocaleString();
  const made = element(
    "li",
    { class: `job ${job.state}`, "data-job": job.id, title: `${job.model}, ${when}` },
    element("span", { class: "name" }, job.name),
    element("span", { class: "state" }, words(job)),
  );
  if (job.state === "running") made.append(...stages(job));
  if (job.error) made.append(element("p", { class: "problem" }, job.error));
  made.append(buttons(job));
  return made;
}

function list(jobs) {
  at("none").hidden = jobs.length > 0;
  const ids = new Set(jobs.map((job) => job.id));
  for (const [id, { node }] of items) {
    if (!ids.has(id)) {
      node.remove();
      items.delete(id);
    }
  }
  for (const job of jobs) {
    const text = JSON.stringify({ ...job, seconds: null, remaining: null, words: words(job) });
    const before = items.get(job.id);
    if (before?.text === text) continue; // what has the focus keeps it
    const focused = before?.node.contains(document.activeElement) ?? false;
    const node = item(job);
    if (before) before.node.replaceWith(node);
    else at("jobs").prepend(node);
    if (focused) node.querySelector("button")?.focus();
    items.set(job.id, { node, text });
  }
  mark();
}

function mark() {
  for (const [id, { node }] of items) {
    if (id === shown) node.setAttribute("aria-current", "true");
    else node.removeAttribute("aria-current");
  }
}

async function watch() {
  clearTimeout(timer);
  let wait = IDLE_MS;
  try {
    const jobs = (known = await json("jobs"));
    answered();
    list(jobs);
    if (jobs.some((job) => ["queued", "running"].includes(job.state))) wait = BUSY_MS;
    const ready = jobs.filter((job) => mine.has(job.id) && job.state === "finished");
    // Somebody may be reviewing what is shown; the others are marked in the list.
    if (ready.length && shown === null) await open(ready.at(-1));
  } catch (error) {
    unanswered = error.message;
    complain(unanswered);
  }
  clearTimeout(timer);
  timer = setTimeout(watch, wait);
}

// --- the result -------------------------------------------------------------------------------------

function links(job) {
  const there = [...job.results, ...OF_EVERY_RESULT];
  const found = Object.keys(DOWNLOADS).filter((name) => there.includes(name));
  return found.map((name) =>
    element("a", { href: `jobs/${job.id}/${name}`, download: "", "data-result": name }, DOWNLOADS[name]),
  );
}

// The page's address says which scan is open: it can be reloaded, and sent to a colleague.
function address(id) {
  shown = id;
  const url = new URL(location.href);
  if (id === null) url.searchParams.delete("scan");
  else url.searchParams.set("scan", id);
  history.replaceState(null, "", url);
}

// A result's files and organs. `corrected`: as somebody corrected it.
async function result(job, corrected) {
  const labels = `jobs/${job.id}/${corrected ? "corrected" : "labels"}.nii.gz`;
  const organs = await json(`jobs/${job.id}/organs?corrected=${corrected}`);
  return { scan: `jobs/${job.id}/scan.nii.gz`, labels, organs };
}

// Nothing is shown, and what is being loaded will not be.
function close() {
  opened++;
  viewer.empty();
  address(null);
  delete at("result").dataset.shown;
  for (const place of [at("title"), at("downloads").parentElement, at("notes")]) place.hidden = true;
  document.title = "ZoomSeg";
}

// What stands on the page is of one job, also while another one is being loaded, or if it cannot be.
async function open(job) {
  if (viewer.isDrawn && !confirm("Discard what was painted?")) return;
  close();
  const opening = opened;
  const isWanted = () => opening === opened;
  address(job.id);
  mine.delete(job.id);
  list(known); // it is not new any more
  complain("");
  at("busy").textContent = "Loading";
  at("title").textContent = job.name;
  at("title").hidden = false;
  document.title = `${job.name} · ZoomSeg`;
  at("downloads").replaceChildren(...links(job));
  at("downloads").parentElement.hidden = false;
  at("notes").replaceChildren(...job.notes.map((note) => element("li", {}, note)));
  at("notes").hidden = job.notes.length === 0;
  try {
    const corrected = job.results.includes("corrected.nii.gz");
    const [found, review] = await Promise.all([result(job, corrected), reviewOf(job)]);
    if (!isWanted()) return;
    await viewer.show(found, { review, tools: [correctButton(job, found), comparison(job, corrected)] });
    if (!isWanted()) return;
    at("result").dataset.shown = job.id;
    if (matchMedia(NARROW).matches) at("title").scrollIntoView();
  } catch (error) {
    if (!isWanted()) return;
    at("busy").textContent = "";
    complain(error.message);
  }
}

async function reviewOf(job) {
  const { organs } = await json(`jobs/${job.id}/review.json`);
  const of = Object.fromEntries(organs.map(({ value, verdict, comment }) => [value, { verdict, comment }]));
  const save = async (organ, { verdict, comment }) => {
    const body = JSON.stringify({ verdict, comment });
    const headers = { "content-type": "application/json" };
    await json(`jobs/${job.id}/review/${organ.value}`, { method: "PUT", headers, body });
  };
  return { of, save };
}

function correctButton(job, { organs }) {
  const made = button("Correct", () => {
    if (!viewer.scene.canBeDrawn) return complain("This label map cannot be corrected here: its values are above 255.");
    made.disabled = true;
    viewer.endComparing();
    viewer.useTool(MOVE);
    const bar = correctionBar(viewer, organs, `jobs/${job.id}/corrected.nii.gz`, async (sent) => {
      if (!bar.isConnected) return; // another scan is shown since
      bar.remove();
      viewer.scene.endDrawing();
      viewer.tools.group.inert = false;
      viewer.useTool(MOVE);
      made.disabled = false;
      if (!sent) return;
      await watch();
      await open(await json(`jobs/${job.id}`));
    });
    viewer.pictures.before(bar);
  });
  return made;
}

// What can stand beside the scan: its own map before the correction, and other results.
function comparison(job, corrected) {
  const others = known.filter(({ id, state }) => id !== job.id && state === "finished").reverse();
  const options = [[NOTHING, "nothing"], ...others.map(({ id, name }) => [id, name])];
  if (corrected) options.splice(1, 0, [BEFORE, "its map before the correction"]);
  const choose = async (chosen) => {
    if (chosen === NOTHING) return viewer.endComparing();
    const isWanted = () => select.isConnected && select.value === chosen;
    const other = chosen === BEFORE ? job : known.find(({ id }) => id === chosen);
    if (!other) return complain("This scan no longer exists.");
    const sameScan = chosen === BEFORE;
    const itsOwn = !sameScan && other.results.includes("corrected.nii.gz");
    const title = sameScan ? "before the correction" : other.name;
    try {
      const found = await result(other, itsOwn);
      if (!isWanted()) return;
      await viewer.compare({ ...found, title, sameScan }, corrected ? `${job.name}, corrected` : job.name);
    } catch (error) {
      if (!isWanted()) return;
      at("busy").textContent = "";
      complain(error.message);
    }
  };
  const select = element(
    "select",
    { id: "compare", onchange: (event) => choose(event.target.value) },
    ...options.map(([value, text]) => element("option", { value }, text)),
  );
  return element("label", { class: "slider", hidden: options.length < 2 }, "Compare with ", select);
}

// --- the beginning ----------------------------------------------------------------------------------

function listen() {
  const zone = at("drop");
  at("file").addEventListener("change", async (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // the same file may be chosen again
    await uploadAll(files);
  });
  // Wherever on the page a file is dropped, the browser must not leave the page for it.
  for (const type of ["dragover", "drop"]) document.addEventListener(type, (event) => event.preventDefault());
  document.addEventListener("dragover", () => zone.classList.add("over"));
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) zone.classList.remove("over");
  });
  window.addEventListener("beforeunload", (event) => viewer.isDrawn && event.preventDefault());
  document.addEventListener("drop", (event) => {
    zone.classList.remove("over");
    uploadAll([...event.dataTransfer.files]);
  });
}

async function main() {
  listen();
  const [models, allowed] = await Promise.all([json("models"), json("limits")]);
  limits = allowed;
  at("formats").textContent = `${limits.suffixes.slice(0, -1).join(", ")}, or a DICOM series as .zip`;
  at("file").accept = [...limits.suffixes, ".gz"].join(",");
  at("model").append(...models.map((model) => element("option", { value: model.name }, model.name)));
  at("model").parentElement.hidden = models.length < 2;
  await watch();
  const asked = new URL(location.href).searchParams.get("scan");
  if (asked === null) return;
  // Not from the list, which has the latest jobs.
  const job = await json(`jobs/${encodeURIComponent(asked)}`).catch(() => null);
  if (job?.state === "finished") await open(job);
  else complain("The scan of this address does not exist, or is not segmented yet.");
}

main().catch((error) => complain(error.message));
