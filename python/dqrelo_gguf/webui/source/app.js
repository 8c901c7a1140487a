// The page: views, connection, key.

import { apiKey } from "./api.js";
import { startCompare } from "./compare.js";
import { startDeltas } from "./deltas.js";
import { askForKey } from "./dialogs.js";
import { find, write } from "./dom.js";
import { look, server } from "./server.js";
import { startTheme } from "./theme.js";

const VIEWS = ["compare", "deltas"];
const PHASES = {
  connecting: () => "Connecting",
  ready: () => "Connected",
  loading: () => server.error,
  key: () => (server.error === "" ? "The server wants an API key" : `The server refused the key: ${server.error}`),
  down: () => `${server.error} Trying again.`,
  failed: () => server.error,
};

function showView(view) {
  for (const name of VIEWS) {
    const isShown = name === view;
    find(`view-${name}`).hidden = !isShown;
    find(`tab-${name}`).setAttribute("aria-selected", String(isShown));
    find(`tab-${name}`).tabIndex = isShown ? 0 : -1;
  }
  server.wantsTokens = view === "deltas";
  look();
}

function startTabs() {
  VIEWS.forEach((view, i) => {
    const tab = find(`tab-${view}`);
    tab.addEventListener("click", () => showView(view));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        const next = VIEWS.at((i + step) % VIEWS.length);
        showView(next);
        find(`tab-${next}`).focus();
      }
    });
  });
}

let keyThatWasAskedFor; // The question is asked once for a key that does not do.

async function changeKey(error) {
  if (await askForKey(error)) {
    server.phase = "connecting"; // Another key may see other models.
    look();
  }
}

function showConnection() {
  const line = find("connection");
  line.dataset.phase = server.phase;
  write(line, PHASES[server.phase]());
  write(find("base-name"), server.base || "dqrelo");
  if (server.phase === "key" && keyThatWasAskedFor !== apiKey()) {
    keyThatWasAskedFor = apiKey();
    changeKey(server.error);
  }
}

function start() {
  startTheme();
  startTabs();
  server.addEventListener("change", showConnection);
  find("key-button").addEventListener("click", () => changeKey(""));
  startCompare();
  startDeltas();
  look();
}

// In a frame of another page, somebody could be led to press its buttons without seeing them.
if (window.top === window.self) {
  start();
} else {
  document.body.replaceChildren("This page does not work in a frame.");
}
