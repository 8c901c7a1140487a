"use strict";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

function unitOf(most) {
  let power = 0;
  while (most >= 1024 && power < UNITS.length - 1) {
    most /= 1024;
    power += 1;
  }
  return { name: UNITS[power], size: 1024 ** power };
}

function bytesText(n) {
  const unit = unitOf(n);
  return `${(n / unit.size).toFixed(unit.size === 1 ? 0 : 1)} ${unit.name}`;
}

function number(value) {
  if (value === 0) {
    return "0";
  }
  return Math.abs(value) >= 1e-4 && Math.abs(value) < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(3);
}

function powerOfTen(power) {
  return power > -4 && power < 5 ? number(10 ** power) : `10<sup>${String(power).replace("-", "−")}</sup>`;
}

// A logarithmic axis around values: labels at 1, 2 and 5 times powers of ten where there are few of these, else at the powers.
function logAxis(title, values) {
  const positive = values.filter((value) => value > 0);
  const range = [Math.log10(Math.min(...positive)) - 0.1, Math.log10(Math.max(...positive)) + 0.1];
  const factors = range[1] - range[0] < 3 ? [1, 2, 5] : [1];
  const tickvals = [];
  const ticktext = [];
  for (let power = Math.floor(range[0]); power <= Math.ceil(range[1]); power += 1) {
    for (const factor of factors) {
      tickvals.push(factor * 10 ** power);
      ticktext.push(factor === 1 ? powerOfTen(power) : number(factor * 10 ** power));
    }
  }
  return axis(title, { type: "log", range, tickmode: "array", tickvals, ticktext });
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function fraction(ratio) {
  return ratio > 0 ? `1/${(1 / ratio).toFixed(2)}` : "0";
}

// A trace for each delta or whole model: its size, its value with an interval where there is one.
function pointTraces(data, points, format) {
  const unit = unitOf(Math.max(...data.compared.map((d) => d.n_bytes)));
  return data.compared.flatMap((model, i) => {
    const point = points[i];
    if (point === null) {
      return [];
    }
    const style = modelStyle(i);
    const ratio = model.ratio === null ? "a whole model" : `${fraction(model.ratio)} of 16 bits`;
    const interval = point.low === null ? "" : `<br>95 %: ${format(point.low)} to ${format(point.high)}`;
    return [
      {
        type: "scatter",
        mode: "markers",
        name: plotText(shortened(model.name, 40)),
        x: [model.n_bytes / unit.size],
        y: [point.value],
        error_y: {
          type: "data",
          symmetric: false,
          array: [point.high === null ? 0 : point.high - point.value],
          arrayminus: [point.low === null ? 0 : point.value - point.low],
          thickness: 1.5,
          width: 6,
          color: style.color,
        },
        marker: { color: style.color, symbol: model.ratio === null ? `${style.symbol}-open` : style.symbol, size: 11, line: { width: model.ratio === null ? 2 : 0 } },
        text: [`<b>${plotText(shortened(model.name, 80))}</b><br>${bytesText(model.n_bytes)}, ${ratio}<br>${format(point.value)}${interval}`],
        hovertemplate: "%{text}<extra></extra>",
      },
    ];
  });
}

function sizeAxis(data) {
  const most = Math.max(...data.compared.map((d) => d.n_bytes));
  const unit = unitOf(most);
  return axis(`size, ${unit.name}`, { range: [0, (1.12 * most) / unit.size] });
}

// A horizontal line across the plot with its interval as a band, in the legend under its name.
function reference(data, point, name, dash, format) {
  const t = theme();
  const most = (1.12 * Math.max(...data.compared.map((d) => d.n_bytes))) / unitOf(Math.max(...data.compared.map((d) => d.n_bytes))).size;
  const traces = [
    {
      type: "scatter",
      mode: "lines",
      name,
      x: [0, most / 2, most],
      y: [point.value, point.value, point.value],
      line: { color: t.faint, dash, width: 2 },
      text: Array(3).fill(`<b>${name}</b><br>${format(point.value)}`),
      hovertemplate: "%{text}<extra></extra>",
    },
  ];
  if (point.low !== null && point.high > point.low) {
    traces.push({
      type: "scatter",
      mode: "lines",
      x: [0, most, most, 0],
      y: [point.low, point.low, point.high, point.high],
      fill: "toself",
      fillcolor: isDark() ? "rgba(162,169,181,0.15)" : "rgba(92,99,110,0.12)",
      line: { width: 0 },
      hoverinfo: "skip",
      showlegend: false,
    });
  }
  return traces;
}

function drawKl(data) {
  const isLog = document.getElementById("kl-scale").value === "log";
  const nats = (value) => `${number(value)} nats`;
  const [base, ...points] = data.kl;
  // An interval that reaches 0 has no lower end on a logarithmic scale: it is drawn to a tenth of the value.
  const shown = points.map((p) => (isLog && p.low !== null ? { ...p, low: Math.max(p.low, p.value / 10) } : p));
  const traces = [...reference(data, base, "base", "dash", nats), ...pointTraces(data, shown, nats)];
  if (!isLog) {
    traces.push(...reference(data, { value: 0, low: null, high: null }, data.tuned, "dot", nats));
  }
  const ends = [base, ...shown].flatMap((p) => [p.value, p.low, p.high]);
  const y = isLog ? logAxis("mean KL, nats", ends) : axis("mean KL, nats", { rangemode: "tozero" });
  draw("kl-plot", traces, { xaxis: sizeAxis(data), yaxis: y });
}

function drawScores(data) {
  const score = data.scores[Number(document.getElementById("score-choice").value)];
  const traces = [
    ...reference(data, score.tuned, data.tuned, "dot", percent),
    ...reference(data, score.base, "base", "dash", percent),
    ...pointTraces(data, score.points, percent),
  ];
  draw("score-plot", traces, { xaxis: sizeAxis(data), yaxis: axis(score.axis, { tickformat: ".0%" }) });
}

const MAP_TITLES = { error_delta: "|D − D̂| / |D|", error_weight: "|D − D̂| / |W|", ratio: "of 16 bits" };

function drawMap(data) {
  const figure = document.getElementById("map-figure").value;
  const map = data.errors[Number(document.getElementById("map-delta").value)];
  const values = data.errors.flatMap((own) => own[figure].flat()).filter((value) => value !== null);
  const t = theme();
  const kinds = map.kinds.map((kind) => plotText(shortened(kind, narrow.matches ? 14 : 32)));
  const text = map[figure].map((row, k) =>
    row.map((value, l) => {
      const place = map.layers[l] === "none" ? "in no layer" : `layer ${map.layers[l]}`;
      return `<b>${plotText(map.kinds[k])}</b>, ${place}<br>${MAP_TITLES[figure]}: ${value === null ? "" : number(value)}`;
    }),
  );
  document.getElementById("map-plot").style.height = `${Math.max(260, 110 + 30 * map.kinds.length)}px`;
  draw(
    "map-plot",
    [
      {
        type: "heatmap",
        x: map.layers.map((_, i) => i),
        y: map.kinds.map((_, i) => i),
        z: map[figure],
        zmin: 0,
        zmax: Math.max(...values, 1e-9),
        colorscale: isDark() ? "Viridis" : "YlOrRd",
        reversescale: !isDark(),
        xgap: 1,
        ygap: 1,
        text,
        hoverongaps: false,
        hovertemplate: "%{text}<extra></extra>",
        colorbar: { title: { text: MAP_TITLES[figure], side: "right" }, thickness: 14, outlinewidth: 0, tickcolor: t.line },
      },
    ],
    {
      xaxis: axis("layer (“none”: outside the layers)", {
        tickmode: "array",
        ...sparse(map.layers),
        showgrid: false,
        zeroline: false,
      }),
      yaxis: axis("", { tickmode: "array", tickvals: kinds.map((_, i) => i), ticktext: kinds, autorange: "reversed", showgrid: false, zeroline: false }),
      margin: { l: 60, r: 10, t: 32, b: 50 },
      modebar: { ...layout({}).modebar, orientation: "h" },
    },
  );
}

// As many labels of layers as there is room for; "none" is always among them.
function sparse(labels) {
  const step = Math.ceil(labels.length / (narrow.matches ? 9 : 24));
  const shown = labels.map((_, i) => i).filter((i) => i % step === 0 && (labels[i] === "none" || i < labels.length - (step > 1 ? 2 : 0)));
  const last = labels.length - 1;
  if (labels[last] === "none" && !shown.includes(last)) {
    shown.push(last);
  }
  return { tickvals: shown, ticktext: shown.map((i) => labels[i]) };
}

function drawSpectra(data) {
  const weight = data.spectra.weights[Number(document.getElementById("spectra-weight").value)];
  const t = theme();
  const least = 1e-7 * weight.delta[0];
  const line = (name, values, style) => ({
    type: "scatter",
    mode: "lines",
    name,
    x: weight.numbers,
    y: values.map((value) => (value > least ? value : null)),
    line: style,
    text: values.map((value, i) => `${name}<br>number ${weight.numbers[i]}: ${number(value)}`),
    hovertemplate: "%{text}<extra></extra>",
  });
  const traces = [line("D, the whole delta", weight.delta, { color: t.ink, width: 2.5 })];
  weight.residuals.forEach((residual, i) => {
    const delta = data.compared[i];
    const name = `D − D̂ of ${plotText(shortened(delta.name, 40))} (${percent(weight.errors[i])} of |D|)`;
    traces.push(line(name, residual, { color: modelStyle(i).color, width: 2, dash: i % 2 ? "dash" : "solid" }));
  });
  draw("spectra-plot", traces, {
    xaxis: axis("number of the singular value", { rangemode: "tozero" }),
    yaxis: logAxis("singular value", [weight.delta, ...weight.residuals].flat().filter((value) => value > least)),
  });
}
