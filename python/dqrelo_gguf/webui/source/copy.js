// Copies a text. Browsers have their clipboard for pages over HTTPS or on this machine only, so there is an older way behind it.

import { el, notice } from "./dom.js";

function copyBySelection(text) {
  const area = el("textarea", { value: text, className: "hidden" });
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  return isDone;
}

export async function copy(text, done, failed = "The browser does not let this page copy.") {
  const focused = document.activeElement;
  let isDone = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    isDone = copyBySelection(text);
    focused?.focus();
  }
  notice(isDone ? done : failed, !isDone);
}
