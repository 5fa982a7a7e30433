// The list of the organs: to switch them on and off, to go to one, to read what is known of it, to review it.

import { button, element, number, volume } from "./dom.js";

const FLAGS = {
  missing: "not found",
  touches_scan_border: "reaches the border of the scan and may extend beyond it",
  touches_region_border: "reaches the border of the region and may be cut",
  sides_swapped: "lies on the wrong side for its name",
  misplaced: "lies far from its position in the training scans",
  unusual_volume: "has a volume unlike any in the training scans",
};
const VERDICTS = { accepted: ["✓", "Accept"], rejected: ["✗", "Reject"] };
const MAX_COMMENT = 1000;

export function isMissing(organ) {
  return organ.volume_ml === 0 || (organ.volume_ml === null && organ.flags.includes("missing"));
}

// The list in an element. `shown`: the values of the organs that are; `onShown` is called when they change,
// `onOrgan` with the organ whose name was clicked. `review`: null, or { of, save }: what was said by value,
// and what keeps it, or throws an error.
export function organList(organs, shown, { onShown, onOrgan, review }) {
  const rows = organs.flatMap((organ) => organRows(organ, shown, { onShown, onOrgan, review }));
  const all = (on) => () => {
    for (const row of rows) {
      const box = row.querySelector("input[type=checkbox]:not(:disabled)");
      if (box && box.checked !== on) {
        box.checked = on;
        box.dispatchEvent(new Event("change"));
      }
    }
  };
  const heads = [
    element("th", { scope: "col" }, element("span", { class: "hidden" }, "Shown")),
    element("th", { scope: "col" }, "Organ"),
    element("th", { scope: "col", class: "number" }, "ml"),
    element("th", { scope: "col", class: "number", title: "Confidence: an estimate of the Dice" }, "Conf."),
  ];
  if (review) heads.push(element("th", { scope: "col" }, "Review"));
  const head = element("thead", {}, element("tr", {}, ...heads));
  const buttons = element("p", { class: "buttons" }, button("Show all", all(true)), button("Hide all", all(false)));
  return element("div", { class: "organs" }, buttons, element("table", {}, head, element("tbody", {}, ...rows)));
}

// A row, and one below it for what is long.
function organRows(organ, shown, { onShown, onOrgan, review }) {
  const missing = isMissing(organ);
  const toggle = element("input", {
    type: "checkbox",
    "aria-label": `Show ${organ.name}`,
    checked: shown.has(organ.value),
    disabled: missing,
    onchange: (event) => {
      if (event.target.checked) shown.add(organ.value);
      else shown.delete(organ.value);
      onShown();
    },
  });
  const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.backgroundColor = `rgb(${organ.colour.join(" ")})`;
  const title = missing ? null : `Go to ${organ.name}`;
  const name = button(organ.name, () => onOrgan(organ), { class: "name", disabled: missing, title });
  const cell = element("td", {}, element("span", { class: "organ" }, swatch, name));
  const row = element(
    "tr",
    { class: missing ? "missing" : null, "data-value": organ.value },
    element("td", {}, toggle),
    cell,
    element("td", { class: "number" }, volume(organ.volume_ml)),
    element("td", { class: "number" }, organ.confidence === null ? "–" : `${number(100 * organ.confidence, 0)} %`),
  );
  const said = new Set(organ.flags.map((flag) => FLAGS[flag] ?? flag.replaceAll("_", " ")));
  const below = element("td", { colspan: review ? "4" : "3" });
  if (said.size) below.append(element("small", { class: "flags" }, [...said].join("; ")));
  const more = element("tr", { class: missing ? "more missing" : "more" }, element("td", {}), below);
  if (review) row.append(reviewCell(organ, below, review, (filled) => (more.hidden = !said.size && !filled)));
  else more.hidden = !said.size;
  return [row, more];
}

// `onBelow` is told whether something of it stands below: a place for a comment, or a problem.
function reviewCell(organ, below, { of, save }, onBelow) {
  const said = { verdict: null, comment: "", ...of[organ.value] };
  const problem = element("small", { class: "problem", role: "alert", hidden: true });
  let saved = said.verdict; // the verdict that the server knows
  let saving = Promise.resolve();
  // One after the other, so that the last one stays.
  const keep = () => (saving = saving.then(saveNow));
  const saveNow = async () => {
    const { verdict } = said;
    try {
      await save(organ, said);
      saved = verdict;
      problem.textContent = "";
    } catch (error) {
      if (said.verdict === verdict) said.verdict = saved; // else it was changed meanwhile, and is saved next
      problem.textContent = `Not saved: ${error.message}`;
    }
    problem.hidden = problem.textContent === "";
    draw();
  };
  const comment = element("input", {
    type: "text",
    class: "comment",
    maxlength: String(MAX_COMMENT),
    placeholder: "Comment",
    "aria-label": `Comment on ${organ.name}`,
    value: said.comment,
    hidden: said.comment === "",
    onchange: () => {
      said.comment = comment.value;
      keep();
    },
  });
  below.append(comment, problem);
  const verdicts = Object.entries(VERDICTS).map(([verdict, [sign, word]]) => {
    const press = () => {
      said.verdict = said.verdict === verdict ? null : verdict;
      draw();
      keep();
    };
    return button(sign, press, { class: verdict, "aria-label": `${word} ${organ.name}`, title: word, "data-verdict": verdict });
  });
  const draw = () => {
    for (const made of verdicts) made.setAttribute("aria-pressed", String(made.dataset.verdict === said.verdict));
    onBelow(!comment.hidden || !problem.hidden);
  };
  draw();
  const write = () => {
    comment.hidden = !comment.hidden;
    draw();
    if (!comment.hidden) comment.focus();
  };
  const note = button("✎", write, { "aria-label": `Comment on ${organ.name}`, title: "Comment" });
  return element("td", {}, element("span", { class: "verdicts" }, ...verdicts, note));
}
