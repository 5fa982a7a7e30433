// What the pages' scripts share: elements, requests, numbers as they are shown.

export const at = (id) => document.getElementById(id);

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

export function button(text, onclick, attributes = {}) {
  return element("button", { type: "button", onclick, ...attributes }, text);
}

// Buttons of which one is pressed. `options`: pairs of a value and what stands on its button. Returns the
// group, and a function that presses another one.
export function choice(label, options, chosen, choose) {
  const buttons = new Map(
    options.map(([value, name]) => [value, button(name, () => choose(value), { "data-value": String(value) })]),
  );
  const press = (value) => {
    for (const [own, made] of buttons) made.setAttribute("aria-pressed", String(own === value));
  };
  press(chosen);
  const group = element("div", { class: "choice", role: "group", "aria-label": label }, ...buttons.values());
  return { group, press };
}

export async function request(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw new Error("The server does not respond. Is it still running?");
  }
  if (!answer.ok) throw new Error(await problem(answer));
  return answer;
}

export async function json(url, options) {
  const answer = await request(url, options);
  return answer.status === 204 ? null : answer.json();
}

export async function problem(answer) {
  const text = await answer.text();
  try {
    const { detail } = JSON.parse(text);
    return typeof detail === "string" ? detail : `the request is invalid (${answer.status})`;
  } catch {
    return text.trim() || `the server answered ${answer.status}`;
  }
}

// The body of an answer; `tell` gets the share that has come.
export async function bytes(url, tell) {
  const answer = await request(url);
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

export function number(value, digits, least = 0) {
  const format = { minimumFractionDigits: least, maximumFractionDigits: digits };
  return value === null ? "–" : value.toLocaleString("en", format);
}

// Millilitres: what is there is never "0".
export function volume(ml) {
  return ml !== null && ml > 0 && ml < 0.1 ? "< 0.1" : number(ml, 1, ml === 0 ? 0 : 1);
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${number(minutes / 60, 1)} h`;
}
