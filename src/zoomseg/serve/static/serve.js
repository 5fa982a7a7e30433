// The page of `zoomseg serve`: scans go up, jobs are watched, results are shown.

import { element, problem, showViewer } from "./viewer.js";

const at = (id) => document.getElementById(id);
const BUSY_MS = 700;
const IDLE_MS = 5000;
const DOWNLOADS = {
  "labels.nii.gz": "Label map (NIfTI)",
  "seg.nrrd": "3D Slicer (.seg.nrrd)",
  "seg.dcm": "DICOM SEG",
  "rtstruct.dcm": "DICOM RTSTRUCT",
  "summary.csv": "Table (CSV)",
  "run.json": "Account (JSON)",
  "scan.nii.gz": "Scan (NIfTI)",
};

const items = new Map(); // by job id: what is in the list, and from which words it was made
const mine = new Set(); // jobs of this page's uploads: the next one that is done is shown
let limits = { max_upload_bytes: Infinity, suffixes: [] };
let shown = null;
let timer = 0;

function complain(text) {
  at("problem").textContent = text;
  at("problem").hidden = text === "";
}

async function json(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw new Error("The server does not answer. Is `zoomseg serve` still running?");
  }
  if (!answer.ok) throw new Error(await problem(answer));
  return answer.status === 204 ? null : answer.json();
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
    if (current && job.progress > 0) entry.append(` ${Math.round(100 * job.progress)} %`);
    return entry;
  });
  const known = Math.max(0, now) + job.progress;
  const value = String(known / job.stages.length);
  const bar = element("progress", { max: "1", value, "aria-label": `Progress of ${job.name}` });
  return [bar, element("ol", { class: "stages" }, ...entries)];
}

function words(job) {
  switch (job.state) {
    case "queued":
      return job.ahead === 0 ? "next" : `waiting, ${job.ahead} before it`;
    case "running":
      return job.stage === null ? "starting" : "running";
    case "finished":
      return `done in ${job.seconds.toLocaleString("en", { maximumFractionDigits: 1 })} s`;
    default:
      return job.state;
  }
}

async function drop(job) {
  try {
    await json(`jobs/${job.id}`, { method: "DELETE" });
  } catch (error) {
    complain(error.message);
  }
  await watch();
}

function buttons(job) {
  const ended = !["queued", "running"].includes(job.state);
  const made = [];
  if (job.state === "finished") {
    const label = `Show ${job.name}`;
    const name = { type: "button", class: "show", "aria-label": label, onclick: () => show(job) };
    made.push(element("button", name, "Show"));
  }
  const what = ended ? "Delete" : "Cancel";
  const about = { type: "button", "aria-label": `${what} ${job.name}`, onclick: () => drop(job) };
  made.push(element("button", about, what));
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
    const text = JSON.stringify({ ...job, seconds: job.state === "finished" ? job.seconds : 0 });
    const known = items.get(job.id);
    if (known?.text === text) continue; // what has the focus keeps it
    const focused = known?.node.contains(document.activeElement) ?? false;
    const node = item(job);
    if (known) known.node.replaceWith(node);
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
    const jobs = await json("jobs");
    list(jobs);
    if (jobs.some((job) => ["queued", "running"].includes(job.state))) wait = BUSY_MS;
    const ready = jobs.filter((job) => mine.has(job.id) && job.state === "finished");
    if (ready.length) {
      for (const job of ready) mine.delete(job.id);
      await show(ready.at(-1));
    }
  } catch (error) {
    complain(error.message);
  }
  clearTimeout(timer);
  timer = setTimeout(watch, wait);
}

// --- the result -------------------------------------------------------------------------------------

function links(job) {
  const found = Object.keys(DOWNLOADS).filter((name) => job.results.includes(name));
  return found.map((name) =>
    element("a", { href: `jobs/${job.id}/${name}`, download: "", "data-result": name }, DOWNLOADS[name]),
  );
}

async function show(job) {
  shown = job.id;
  mark();
  at("title").textContent = job.name;
  at("downloads").replaceChildren(...links(job));
  at("notes").replaceChildren(...job.notes.map((note) => element("li", {}, note)));
  at("notes").hidden = job.notes.length === 0;
  const tell = (text) => (at("busy").textContent = text);
  try {
    const organs = await json(`jobs/${job.id}/organs`);
    const files = { scan: `jobs/${job.id}/scan.nii.gz`, labels: `jobs/${job.id}/labels.nii.gz` };
    await showViewer(at("viewer"), { ...files, organs }, tell);
    at("result").dataset.shown = job.id;
  } catch (error) {
    tell("");
    complain(error.message);
  }
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
}

main().catch((error) => complain(error.message));
