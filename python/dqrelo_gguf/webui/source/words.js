// What is said under an answer.

import { duration, plural, rate } from "./format.js";

const STATES = {
  waiting: "waits for one of the browser's connections",
  queued: "waits for a slot or a load",
};

export function progress(turn) {
  return STATES[turn.state] ?? `reads the prompt, ${Math.round(100 * turn.share)} %`;
}

export function outcome(turn) {
  if (turn.state === "failed") {
    return "failed";
  }
  const n = turn.timings?.predicted_n ?? 0;
  return [
    ...(turn.state === "stopped" ? ["stopped"] : []),
    ...(turn.firstMs === null ? [] : [`first token ${duration(turn.firstMs)}`]),
    ...(n > 0 ? [plural(n, "token") + (n > 1 ? `, ${rate(turn.timings.predicted_per_second)}` : "")] : []),
    ...(turn.finish === "length" ? ["cut at max tokens"] : []),
  ].join(" · ");
}
