// What the server has in memory, and what its administrator does with it.

import { json } from "./api.js";
import { specOf } from "./choice.js";
import { confirm } from "./dialogs.js";
import { button, el, find, notice, write } from "./dom.js";
import { bytes, count } from "./format.js";
import { showRows } from "./rows.js";
import { look, server } from "./server.js";

const QUESTIONS = {
  Load: ["deltas/load", "It is read into memory. Others that are idle may leave, where the budget wants it."],
  Reload: ["deltas/reload", "Its file is read again and takes the place of what is loaded. Requests that run keep what they have."],
  Unload: ["deltas/unload", "Running requests finish, then it leaves memory and its name is forgotten."],
  Pin: ["deltas/load", "It is loaded, and never leaves to make room. Only unloading it ends that."],
};

// One change of the server; its own words where it refuses.
async function change(path, body, done) {
  notice("");
  try {
    await json(path, { body });
    notice(done, false);
    return true;
  } catch (error) {
    notice(error.message);
    return false;
  } finally {
    look();
  }
}

async function act(verb, name) {
  const [path, question] = QUESTIONS[verb];
  if (await confirm(`${verb} ${name}?`, question, verb)) {
    await change(path, verb === "Pin" ? { name, pin: true } : { name }, `${name}: ${verb.toLowerCase()} done.`);
  }
}

async function load(event) {
  event.preventDefault();
  const [name, file, pin] = [find("load-name").value, find("load-file").value.trim(), find("load-pin").checked];
  const where = file === "" ? "its file in the server's folder" : file;
  if (await confirm(`Load ${name}?`, `The server reads ${where} into memory${pin ? " and pins it" : ""}.`, "Load")) {
    if (await change("deltas/load", { name, ...(file === "" ? {} : { file }), ...(pin ? { pin } : {}) }, `${name}: loaded.`)) {
      event.target.reset();
    }
  }
}

async function nameBlend(event) {
  event.preventDefault();
  const [name, spec] = [find("blend-name").value, find("blend-spec").value.trim()];
  if (await change("deltas/blend", { name, spec }, `${name}: named.`)) {
    event.target.reset();
  }
}

function tile(title, text, share = null) {
  const bar = el("div", { className: "bar-fill" });
  bar.style.width = `${100 * Math.min(share ?? 0, 1)}%`;
  const meter = { className: "bar-track", role: "meter", "aria-label": title, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * (share ?? 0)) };
  return el("div", { className: "tile" }, el("p", { className: "hint", textContent: title }), el("p", { className: "figure", textContent: text }), ...(share === null ? [] : [el("div", meter, bar)]));
}

function showTiles() {
  const { resident, max } = server.memory;
  const nLoaded = server.deltas.filter((delta) => delta.state === "loaded").length;
  const nRunning = server.deltas.reduce((sum, delta) => sum + delta.requests_running, 0);
  find("tiles").replaceChildren(
    tile("Memory of deltas", max === null ? `${bytes(resident)}, no limit` : `${bytes(resident)} of ${bytes(max)}`, max === null ? null : resident / max),
    tile("Loaded", `${count(nLoaded)} of ${count(server.deltas.length)}`),
    tile("Requests of deltas", `${count(nRunning)} running`),
    tile("Waiting for a load or a turn", count(server.nWaiting)),
    tile("Slots", server.nSlots === null ? "not told" : count(server.nSlots)),
  );
}

function showBlends() {
  const items = server.blends.map(({ name, deltas }) => {
    const forget = async () => {
      if (await confirm(`Forget ${name}?`, "The blend loses its name. Its deltas stay.", "Forget")) {
        await change("deltas/unload", { name }, `${name}: forgotten.`);
      }
    };
    return el("li", {}, el("span", { className: "name", textContent: name }), el("span", { className: "hint", textContent: specOf(deltas) }), button("Forget", forget, { "aria-label": `Forget ${name}` }));
  });
  find("blends").replaceChildren(...items);
}

let shownBlends = "";

function showDeltas() {
  showTiles();
  showRows(find("deltas-table").tBodies[0], act);
  const blends = JSON.stringify(server.blends);
  if (blends !== shownBlends) {
    shownBlends = blends;
    showBlends();
  }
  const tokens = server.tokensNote === "" ? "" : `Tokens are not counted here: ${server.tokensNote}`;
  const empty = server.phase === "ready" && server.deltas.length === 0 ? "The server has no deltas." : "";
  write(find("deltas-note"), [server.note || empty, tokens].filter(Boolean).join(" "));
}

export function startDeltas() {
  find("load-form").addEventListener("submit", load);
  find("blend-form").addEventListener("submit", nameBlend);
  server.addEventListener("change", showDeltas);
  showDeltas();
}
