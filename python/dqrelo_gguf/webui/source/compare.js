// One prompt, any number of models side by side.

import { Column } from "./column.js";
import { baseChoice, modelChoice } from "./choice.js";
import { copy } from "./copy.js";
import { find, notice, write } from "./dom.js";
import { plural } from "./format.js";
import { fragment, LinkError, PARAMETERS, setupOf } from "./link.js";
import { server } from "./server.js";

const FIRST_COLUMNS = 4;
let columns = [];
let isArranged = false; // by a link or by hand, so that the server's list does not do it

const host = {
  settings: () => ({ system: find("system").value.trim(), parameters: parameters() }),
  follows: () => find("follow").checked,
  removed(column) {
    column.clear();
    column.element.remove();
    columns = columns.filter((other) => other !== column);
    find("add-column").focus();
    showState();
  },
  changed: showState,
};

// Fields that are empty are left to the server.
function parameters() {
  const filled = PARAMETERS.filter((name) => find(name).value !== "");
  return Object.fromEntries(filled.map((name) => [name, Number(find(name).value)]));
}

function add(choice) {
  const column = new Column(choice, host);
  columns.push(column);
  find("columns").append(column.element);
  showState();
  return column;
}

// The next model that has no column yet.
function nextChoice() {
  const used = new Set(columns.filter((column) => column.choice.parts.length === 0).map((column) => column.choice.model));
  const next = ["", ...server.models.map((delta) => delta.name)].find((name) => !used.has(name));
  return next === undefined ? baseChoice() : modelChoice(next);
}

function clearColumns() {
  for (const column of columns) {
    column.clear();
  }
  find("columns").replaceChildren();
  columns = [];
}

// Before anybody chose: the base, and the first fine-tunes.
function arrange() {
  if (isArranged || server.phase !== "ready") {
    return;
  }
  isArranged = true;
  clearColumns();
  const usable = server.models.filter((delta) => delta.state !== "failed");
  const base = server.base === "" ? [] : [baseChoice()]; // A key may be one for some fine-tunes only.
  const choices = [...base, ...usable.map((delta) => modelChoice(delta.name))];
  choices.slice(0, FIRST_COLUMNS).forEach(add);
}

function showState() {
  const nRunning = columns.filter((column) => column.running).length;
  write(find("send"), columns.length < 2 ? "Ask" : `Ask all ${columns.length}`);
  find("send").disabled = columns.length === 0;
  find("stop-all").disabled = nRunning === 0;
  const { nSlots } = server;
  const tooMany = nSlots !== null && columns.length > nSlots;
  const slots = tooMany ? `The server answers ${plural(nSlots, "request")} at a time (--parallel); other columns wait for a slot. ` : "";
  write(find("queue"), `${slots}Enter asks, Shift and Enter begin a line, Escape stops.`);
}

function askAll(event) {
  event?.preventDefault();
  const prompt = find("prompt").value;
  if (prompt.trim() === "" || !find("settings").reportValidity() || columns.some((column) => column.running)) {
    return;
  }
  notice("");
  find("prompt").value = "";
  for (const column of columns) {
    column.ask(prompt);
  }
}

function stopAll() {
  for (const column of columns) {
    column.stop();
  }
}

function share() {
  const filled = parameters();
  const setup = {
    columns: columns.map((column) => column.choice),
    prompt: find("prompt").value || columns[0]?.last()?.prompt || "",
    system: find("system").value.trim(),
    parameters: Object.fromEntries(PARAMETERS.map((name) => [name, filled[name] ?? null])),
  };
  history.replaceState(null, "", fragment(setup));
  try {
    setupOf(location.hash);
  } catch (error) {
    notice(error.message.replace("This link has no set-up that can be read", "This set-up does not fit into a link"));
    history.replaceState(null, "", location.pathname);
    return;
  }
  const content = "It has the models, the scales, the settings and the prompt; no key and no answers.";
  copy(location.href, `The link to this set-up was copied. ${content}`, `The link to this set-up is in the address bar. ${content}`);
}

// Takes the set-up of the address, if it has one. Nothing is asked by itself.
function openLink() {
  let setup;
  try {
    setup = setupOf(location.hash);
  } catch (error) {
    notice(error instanceof LinkError ? error.message : "This link cannot be read.");
    return;
  }
  if (setup) {
    isArranged = true;
    clearColumns();
    setup.columns.forEach(add);
    find("prompt").value = setup.prompt;
    find("system").value = setup.system;
    for (const name of PARAMETERS) {
      find(name).value = setup.parameters[name] ?? "";
    }
  }
}

function onKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    askAll(event);
  }
}

export function startCompare() {
  find("add-column").addEventListener("click", () => add(nextChoice()).menu.focus());
  find("new-chat").addEventListener("click", () => {
    columns.forEach((column) => column.clear());
    showState();
    find("prompt").focus();
  });
  find("share").addEventListener("click", share);
  find("composer").addEventListener("submit", askAll);
  find("settings").addEventListener("submit", (event) => event.preventDefault());
  find("stop-all").addEventListener("click", stopAll);
  find("prompt").addEventListener("keydown", onKey);
  document.addEventListener("keydown", (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && stopAll());
  window.addEventListener("hashchange", openLink);
  server.addEventListener("change", () => {
    arrange();
    columns.forEach((column) => column.refresh());
    showState();
  });
  openLink();
  showState();
}
