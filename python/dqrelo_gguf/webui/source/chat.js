// One conversation: turns of a prompt and its answer, and the request that fetches an answer as it is written.

import { call, ServerError } from "./api.js";
import { events } from "./sse.js";
import { enter, leave } from "./turns.js";

const BROKEN = "The stream broke off.";

// `state` is waiting (for a connection), queued (for a slot), reading (the prompt), answering, done, stopped or failed.
export const isRunning = (turn) => ["waiting", "queued", "reading", "answering"].includes(turn?.state);

export function newTurn(prompt) {
  return { prompt, answer: "", thinking: "", state: "waiting", error: "", share: 0, firstMs: null, timings: null, finish: null, abort: new AbortController() };
}

// The messages up to a turn: turns without an answer are left out, since templates want users and assistants by turns.
export function messages(turns, turn, system) {
  const before = turns.slice(0, turns.indexOf(turn)).filter((past) => past.answer !== "");
  return [
    ...(system === "" ? [] : [{ role: "system", content: system }]),
    ...before.flatMap((past) => [
      { role: "user", content: past.prompt },
      { role: "assistant", content: past.answer },
    ]),
    { role: "user", content: turn.prompt },
  ];
}

// Takes a chunk of the stream into the turn.
function take(turn, chunk, startMs) {
  if (chunk.error) {
    throw new ServerError(String(chunk.error.message ?? chunk.error), chunk.error.code ?? 500);
  }
  const { total = 0, processed = 0, cache = 0 } = chunk.prompt_progress ?? {};
  if (chunk.prompt_progress) {
    turn.state = "reading";
    turn.share = total > cache ? Math.max(0, (processed - cache) / (total - cache)) : 1;
  }
  const choice = chunk.choices?.[0];
  const text = choice?.delta?.content ?? "";
  const thinking = choice?.delta?.reasoning_content ?? "";
  if (text !== "" || thinking !== "") {
    turn.firstMs ??= performance.now() - startMs;
    turn.state = "answering";
    turn.answer += text;
    turn.thinking += thinking;
  }
  turn.finish = choice?.finish_reason ?? turn.finish;
  turn.timings = chunk.timings ?? turn.timings;
}

async function stream(turn, body, changed) {
  turn.state = "queued";
  changed();
  const startMs = performance.now();
  const response = await call("v1/chat/completions", {
    body: { ...body, stream: true, timings_per_token: true, return_progress: true },
    signal: turn.abort.signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      return;
    }
    take(turn, JSON.parse(data), startMs);
    changed();
  }
  if (turn.finish === null) {
    throw new ServerError(BROKEN, 0);
  }
}

// Fetches the answer of a turn; `changed` is called whenever there is more of it. It never throws: the turn says what failed.
export async function fetchAnswer(turn, body, changed) {
  const { signal } = turn.abort;
  let hasTurn = false;
  try {
    await enter(signal);
    hasTurn = true;
    await stream(turn, body, changed);
    turn.state = "done";
  } catch (error) {
    turn.state = signal.aborted ? "stopped" : "failed";
    turn.error = signal.aborted ? "" : error instanceof ServerError ? error.message : BROKEN;
    turn.status = error.status;
  } finally {
    if (hasTurn) {
      leave();
    }
    changed();
  }
}
