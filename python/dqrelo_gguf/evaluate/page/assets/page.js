"use strict";

function fill(id, labels) {
  const select = document.getElementById(id);
  labels.forEach((label, i) => select.append(new Option(label, String(i))));
  return select;
}

// Draws a part now and whenever its choosers or the colours change; a part that fails says so and leaves the others alone.
const redraws = [];

function part(selects, redraw) {
  const safely = () => {
    try {
      redraw();
    } catch (error) {
      document.getElementById("failure").hidden = false;
      console.error(error);
    }
  };
  selects.forEach((select) => select.addEventListener("change", safely));
  redraws.push(safely);
  safely();
}

function absent(name) {
  document.getElementById(`${name}-figure`).hidden = true;
  document.getElementById(`${name}-absent`).hidden = false;
}

function addSize(data) {
  if (data.kl === null) {
    absent("kl");
  } else {
    part([document.getElementById("kl-scale")], () => drawKl(data));
  }
  if (data.scores.length === 0) {
    absent("score");
  } else {
    part([fill("score-choice", data.scores.map((score) => score.title))], () => drawScores(data));
  }
}

function addWeights(data) {
  const names = data.errors.map((_, i) => data.compared[i].name);
  part([fill("map-delta", names), document.getElementById("map-figure")], () => drawMap(data));
  const { weights, left_out } = data.spectra;
  if (weights.length === 0) {
    absent("spectra");
    return;
  }
  const note = `Measured for ${weights.length} weights: of each kind of matrix that of the middle layer, then of the first and the last.`;
  const more = left_out.length ? ` Too large, and left out: ${left_out.join(", ")}.` : "";
  document.getElementById("spectra-note").textContent = note + more;
  part([fill("spectra-weight", weights.map((weight) => `${weight.name} (${weight.shape})`))], () => drawSpectra(data));
}

function addTokens(data) {
  if (data.tokens === null) {
    absent("tokens");
    return;
  }
  const view = new TokenView(data);
  document.getElementById("tokens-note").textContent =
    `The first ${view.records.length} of ${data.tokens.n_all} tokens that count, each coloured by KL(${data.tuned} ‖ model) of the distributions before it. ` +
    "Point at a token, or use the arrow keys; grey tokens are context.";
  const select = fill("tokens-model", data.names);
  select.value = String(Math.min(1, data.names.length - 1));
  part([select], () => view.show(Number(select.value)));
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([document.getElementById("report").textContent], { type: "application/json" }));
  link.download = "report.json";
  link.click();
}

// Paper is light, and shows what a closed part would hide. This must be done before the browser lays the sheets out.
function setPrinting(value, redraw) {
  isPrinting = value;
  document.documentElement.classList.toggle("printing", value);
  document.querySelectorAll("details.printed").forEach((details) => {
    details.open = value;
  });
  redraw();
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  document.getElementById("save").addEventListener("click", save);
  addSize(data);
  addWeights(data);
  addTokens(data);
  const redraw = () => redraws.forEach((draw_) => draw_());
  dark.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => setPrinting(true, redraw));
  window.addEventListener("afterprint", () => setPrinting(false, redraw));
}

start();
