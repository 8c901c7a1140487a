// The menu of a column: the base, fine-tunes, blends with a name, and one's own blend.

import { el, option } from "./dom.js";
import { server } from "./server.js";

export const OWN = "own";
const MODEL = "model:";

export const modelOf = (value) => value.slice(MODEL.length);

function group(label, options) {
  return options.length === 0 ? [] : [el("optgroup", { label }, ...options)];
}

// Fills the menu where its entries changed; true if it did.
export function modelMenu(menu, choice) {
  const chosen = choice.parts.length > 0 ? OWN : MODEL + choice.model;
  const names = (list) => list.map(({ name }) => name);
  const [deltas, blends] = [names(server.models), names(server.blends)];
  const isUnknown = choice.parts.length === 0 && choice.model !== "" && ![...deltas, ...blends].includes(choice.model);
  const entries = JSON.stringify([server.base, deltas, blends, isUnknown ? choice.model : "", chosen]);
  if (menu.dataset.entries === entries) {
    return false;
  }
  menu.dataset.entries = entries;
  const entry = (name) => option(MODEL + name, name, chosen);
  menu.replaceChildren(
    option(MODEL, ["", "base"].includes(server.base) ? "base" : `${server.base} (base)`, chosen),
    ...group("Fine-tunes", deltas.map(entry)),
    ...group("Blends", [...blends.map(entry), ...(deltas.length > 0 || chosen === OWN ? [option(OWN, "Own blend", chosen)] : [])]),
    ...(isUnknown ? [option(MODEL + choice.model, `${choice.model} (not on this server)`, chosen)] : []),
  );
  return true;
}
