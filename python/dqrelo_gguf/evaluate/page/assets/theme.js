"use strict";

// The colours of the page, for the library of the plots, which does not read style sheets.

const MODEL_COLOURS = {
  light: ["#0072b2", "#d55e00", "#00865f", "#b0508f", "#8c6d00", "#4a4fb5", "#a23b3b", "#5d6770"],
  dark: ["#56b4e9", "#ff9d57", "#3ccf9e", "#e79fca", "#e8c84a", "#a3a7ff", "#ff8f8f", "#b4bdc7"],
};
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star", "hexagon"];

const narrow = window.matchMedia("(max-width: 640px)");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const PRINT_WIDTH = 680; // pixels of 1/96 inch between the margins of a sheet
let isPrinting = false;

function isDark() {
  return dark.matches && !isPrinting;
}

function cssColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function theme() {
  return {
    paper: cssColour("--paper"),
    ink: cssColour("--ink"),
    faint: cssColour("--faint"),
    grid: cssColour("--grid"),
    line: cssColour("--line"),
    panel: cssColour("--panel"),
  };
}

function modelStyle(i) {
  const colours = MODEL_COLOURS[isDark() ? "dark" : "light"];
  return { color: colours[i % colours.length], symbol: SYMBOLS[i % SYMBOLS.length] };
}

// The library reads a few tags and entities in texts, so what comes from files is escaped for it.
function plotText(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function shortened(text, n) {
  const characters = Array.from(text);
  return characters.length <= n ? text : characters.slice(0, n - 1).join("") + "…";
}

function axis(title, options) {
  const t = theme();
  return Object.assign(
    {
      title: { text: title, standoff: 12 },
      gridcolor: t.grid,
      linecolor: t.line,
      zerolinecolor: t.line,
      automargin: true,
    },
    options,
  );
}

function layout(options) {
  const t = theme();
  return Object.assign(
    {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: t.ink, size: 13, family: 'system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif' },
      margin: { l: 60, r: 40, t: 16, b: 50 },
      hoverlabel: { bgcolor: t.panel, bordercolor: t.line, font: { color: t.ink }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", xanchor: "left" },
      modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: t.faint, activecolor: t.ink },
      separators: ".,",
    },
    options,
  );
}

function draw(id, traces, options) {
  // On paper a plot has a size of its own: the library would measure the screen.
  const size = isPrinting ? { width: PRINT_WIDTH, height: document.getElementById(id).clientHeight } : {};
  return Plotly.react(id, traces, layout({ ...options, ...size }), {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg", filename: id },
  });
}
