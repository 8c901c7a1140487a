// Dark and light: the system's choice, or the reader's.

import { find } from "./dom.js";
import { keep, recall } from "./storage.js";

const NAME = "dqrelo-theme";
const THEMES = ["system", "light", "dark"];

function apply(theme) {
  document.documentElement.dataset.theme = theme;
}

export function startTheme() {
  const kept = recall("localStorage", NAME);
  const select = find("theme");
  select.value = THEMES.includes(kept) ? kept : "system";
  apply(select.value);
  select.addEventListener("change", () => {
    apply(select.value);
    keep("localStorage", NAME, select.value);
  });
}
