// The scales of a column: one of its model, or one for each part of its blend. The next answer is computed with them.

import { MAX_PARTS } from "./choice.js";
import { button, el, option } from "./dom.js";

const RANGE = { min: -1, max: 2, step: 0.05 };

// A slider and a field with the same number. `moved` is called at every move, `settled` when the hand lets go.
function scaleRow(label, value, moved, settled) {
  const slider = el("input", { type: "range", ...RANGE, value, "aria-label": `Scale of ${label}` });
  const field = el("input", { type: "number", step: RANGE.step, value, "aria-label": `Scale of ${label} as a number` });
  slider.setAttribute("list", "scale-marks");
  const set = (from, to) => {
    const scale = Number(from.value);
    if (from.value !== "" && Number.isFinite(scale)) {
      to.value = scale;
      moved(scale);
    }
  };
  slider.addEventListener("input", () => set(slider, field));
  field.addEventListener("input", () => set(field, slider));
  for (const input of [slider, field]) {
    input.addEventListener("change", settled);
  }
  return el("div", { className: "scale" }, el("span", { className: "name", textContent: label, title: label }), slider, field);
}

// `on` has moved (a scale or the parts changed), settled, removed(i) and added(name).
export function sliders(choice, deltas, on) {
  if (choice.parts.length === 0) {
    const set = (scale) => {
      choice.scale = scale;
      on.moved();
    };
    return [choice.model === "" ? el("p", { className: "scale hint", textContent: "without a delta" }) : scaleRow("scale", choice.scale, set, on.settled)];
  }
  const rows = choice.parts.map((part, i) => {
    const set = (scale) => {
      part.scale = scale;
      on.moved();
    };
    const row = scaleRow(part.name, part.scale, set, on.settled);
    row.append(button("×", () => on.removed(i), { className: "icon", "aria-label": `Take ${part.name} out of the blend` }));
    return row;
  });
  const left = deltas.map((delta) => delta.name).filter((name) => !choice.parts.some((part) => part.name === name));
  if (left.length > 0 && choice.parts.length < MAX_PARTS) {
    const select = el("select", { "aria-label": "Add a delta to the blend" }, option("", "+ delta", ""), ...left.map((name) => option(name, name, "")));
    select.addEventListener("change", () => on.added(select.value));
    rows.push(select);
  }
  return rows;
}
