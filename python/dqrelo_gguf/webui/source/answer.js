// An answer as text, and what stands between fences as code. What a model writes is never anything but text.

import { el } from "./dom.js";

const FENCE = /^ {0,3}```.*$/m;

// Pieces of { text, isCode }; a fence that is not closed yet runs to the end.
export function pieces(answer) {
  const found = [];
  let rest = answer;
  let isCode = false;
  for (;;) {
    const fence = FENCE.exec(rest);
    const text = fence ? rest.slice(0, fence.index) : rest;
    if (text.trim() !== "") {
      found.push({ text: isCode ? text.replace(/^\n|\n$/g, "") : text.trim(), isCode });
    }
    if (!fence) {
      return found;
    }
    rest = rest.slice(fence.index + fence[0].length);
    isCode = !isCode;
  }
}

export function answerElements(answer) {
  return pieces(answer).map(({ text, isCode }) =>
    isCode ? el("pre", { tabIndex: 0, "aria-label": "Code" }, el("code", { textContent: text })) : el("p", { textContent: text }),
  );
}
