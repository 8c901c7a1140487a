// The table of deltas: a row each, changed in place, so that nobody loses the button under the hand.

import { button, el, write } from "./dom.js";
import { ago, bytes, count, decimal, percent, plural } from "./format.js";
import { server } from "./server.js";

const CELLS = ["state", "memory", "ratio", "quality", "running", "served", "tokens", "used"];
const rows = new Map();

function quality(record) {
  if (!record) {
    return "not measured";
  }
  const kl = record.kl === undefined ? [] : [`KL ${decimal(record.kl)}${record.kl_base === undefined ? "" : ` (base ${decimal(record.kl_base)})`}`];
  const kept = record.retention === undefined ? [] : [`keeps ${percent(record.retention)} on ${plural(record.n_problems, "problem")}`];
  return [...kl, ...kept].join(", ") || "not measured";
}

function tokens(name) {
  const found = server.tokens?.get(name);
  return found ? `${count(found.prompt)} in, ${count(found.answered)} out` : "–";
}

const STATE_WORDS = { registered: "not in memory" };

function texts(delta) {
  return {
    state: STATE_WORDS[delta.state] ?? delta.state,
    memory: delta.bytes_resident > 0 ? Object.entries(delta.memory).map(([where, n]) => `${bytes(n)} ${where}`).join(", ") : `– (file ${bytes(delta.bytes)})`,
    ratio: delta.ratio === null ? "–" : decimal(delta.ratio),
    quality: quality(delta.quality),
    running: count(delta.requests_running),
    served: count(delta.requests_served),
    tokens: tokens(delta.name),
    used: delta.last_used === null ? "never" : ago(delta.last_used),
  };
}

function makeRow(name, act) {
  const cells = Object.fromEntries(CELLS.map((cell) => [cell, el("td", { className: cell })]));
  const parts = { label: el("span", { className: "name", textContent: name }), pin: el("span", { className: "badge" }), file: el("span", { className: "hint file" }) };
  const reason = el("span", { className: "error" });
  const state = el("span", { className: "badge" });
  cells.state.append(state, reason);
  const buttons = Object.fromEntries(["Load", "Reload", "Unload", "Pin"].map((verb) => [verb, button(verb, () => act(verb, name), { "aria-label": `${verb} ${name}` })]));
  const element = el(
    "tr",
    {},
    el("th", { scope: "row" }, parts.label, parts.pin, parts.file),
    ...CELLS.map((cell) => cells[cell]),
    el("td", {}, el("div", { className: "group" }, ...Object.values(buttons))),
  );
  return { element, cells, ...parts, state, reason, buttons };
}

function update(row, delta) {
  const { state, ...others } = texts(delta);
  write(row.state, state);
  row.state.dataset.state = delta.state;
  for (const [cell, text] of Object.entries(others)) {
    write(row.cells[cell], text);
  }
  row.cells.quality.title = delta.quality?.evaluator ?? "";
  write(row.reason, delta.reason ?? "");
  write(row.pin, delta.pinned ? "pinned" : "");
  write(row.file, delta.file.split(/[\\/]/).at(-1));
  row.file.title = delta.file;
  const isLoaded = delta.state === "loaded";
  row.buttons.Load.hidden = isLoaded;
  row.buttons.Reload.hidden = !isLoaded;
  row.buttons.Pin.disabled = delta.pinned;
}

// Brings the table to what the server has. `act(verb, name)` is called by the buttons.
export function showRows(table, act) {
  const names = new Set(server.deltas.map((delta) => delta.name));
  for (const [name, row] of rows) {
    if (!names.has(name)) {
      row.element.remove();
      rows.delete(name);
    }
  }
  server.deltas.forEach((delta, i) => {
    const row = rows.get(delta.name) ?? makeRow(delta.name, act);
    rows.set(delta.name, row);
    update(row, delta);
    if (table.children[i] !== row.element) {
      table.insertBefore(row.element, table.children[i] ?? null);
    }
  });
}
