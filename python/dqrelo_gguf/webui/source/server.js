// What the server says of itself, looked at again and again while the page is seen.

import { apiKey, call, json, ServerError } from "./api.js";
import { tokensByDelta } from "./metrics.js";

const INTERVAL_MS = 2000;

// `phase` is connecting, ready, loading (the server reads its model), key (it wants one), down or failed.
export const server = Object.assign(new EventTarget(), {
  phase: "connecting",
  error: "",
  base: "",
  models: [], // the fine-tunes that one may ask, with their states
  deltas: [], // all that is known of them, where the server shows it
  blends: [],
  memory: { resident: 0, max: null },
  nWaiting: 0,
  nSlots: null,
  note: "", // why `deltas` is empty
  tokens: null, // by delta, where /metrics is open
  tokensNote: "",
  wantsTokens: false,
});

let timer = 0;
let isLooking = false;

// True where a call is closed or unknown, and not just late.
const isAbsent = (error) => [403, 404, 501].includes(error.status);

async function readModels() {
  const listed = await json("v1/models");
  const models = Array.isArray(listed.data) ? listed.data : [];
  server.base = models.find((model) => !("delta" in model) && !("blend" in model))?.id ?? "";
  if (server.note !== "") {
    server.models = models.filter((model) => "delta" in model).map((model) => ({ name: model.id, state: model.delta.state }));
    server.blends = models.filter((model) => "blend" in model).map((model) => ({ name: model.id, deltas: model.blend }));
  }
}

async function readOnce() {
  const props = await json("props").catch(() => ({}));
  server.nSlots = Number.isInteger(props.total_slots) ? props.total_slots : null;
  server.tokens = null;
  server.tokensNote = "";
}

async function readDeltas() {
  try {
    const listed = await json("deltas");
    server.deltas = listed.data ?? [];
    server.models = server.deltas;
    server.blends = listed.blends ?? [];
    server.memory = { resident: listed.bytes_resident ?? 0, max: listed.bytes_max ?? null };
    server.nWaiting = listed.requests_waiting ?? 0;
    server.note = "";
  } catch (error) {
    if (!(error instanceof ServerError) || !isAbsent(error)) {
      throw error;
    }
    server.deltas = [];
    server.note = `The server lists no deltas: ${error.message}`;
  }
}

async function readTokens() {
  if (!server.wantsTokens || server.tokensNote !== "") {
    return;
  }
  try {
    server.tokens = tokensByDelta(await (await call("metrics")).text());
  } catch (error) {
    server.tokensNote = error.message;
  }
}

function phaseOf(error) {
  if (!(error instanceof ServerError)) {
    return "failed";
  }
  return { 0: "down", 401: "key", 503: "loading" }[error.status] ?? "failed";
}

async function read() {
  const before = server.phase;
  try {
    await readDeltas();
    if (before !== "ready" || server.note !== "") {
      await readModels();
    }
    if (before !== "ready") {
      await readOnce();
    }
    await readTokens();
    server.phase = "ready";
    server.error = "";
  } catch (error) {
    server.phase = phaseOf(error);
    server.error = server.phase === "key" && !apiKey() ? "" : error.message;
  }
}

// Looks now, and then at intervals.
export async function look() {
  if (isLooking) {
    return;
  }
  clearTimeout(timer);
  isLooking = true;
  await read();
  isLooking = false;
  server.dispatchEvent(new Event("change"));
  if (!document.hidden) {
    timer = setTimeout(look, INTERVAL_MS);
  }
}

document.addEventListener("visibilitychange", () => document.hidden || look());
