// A set-up as the fragment of an address, which a browser does not send. Whoever made a link is not trusted: everything has bounds.

import { MAX_PARTS } from "./choice.js";

const PREFIX = "#setup=";
const MAX_LENGTH = 64000;
const MAX_COLUMNS = 32;
const MAX_NAME = 200;
const MAX_TEXT = 8000;
const MAX_SCALE = 1000;
export const PARAMETERS = ["temperature", "top_p", "max_tokens", "seed"];

export class LinkError extends Error {}

function need(condition, what) {
  if (!condition) {
    throw new LinkError(`This link has no set-up that can be read: ${what}.`);
  }
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function text(value, max, what) {
  need(typeof value === "string" && value.length <= max, `${what} is not a text of at most ${max} characters`);
  return value;
}

function scale(value) {
  need(Number.isFinite(value) && Math.abs(value) <= MAX_SCALE, "a scale is not a number within its bounds");
  return value;
}

function choice(value) {
  need(isObject(value) && Array.isArray(value.parts) && value.parts.length <= MAX_PARTS, "a column is not one");
  const parts = value.parts.map((part) => {
    need(isObject(part), "a part is not one");
    return { name: text(part.name, MAX_NAME, "a name"), scale: scale(part.scale) };
  });
  return { model: text(value.model, MAX_NAME, "a name"), scale: scale(value.scale), parts };
}

function parameter(value) {
  need(value === null || Number.isFinite(value), "a parameter is not a number");
  return value;
}

// `setup` is { columns, prompt, system, parameters }.
export function fragment(setup) {
  const raw = new TextEncoder().encode(JSON.stringify(setup));
  const binary = Array.from(raw, (byte) => String.fromCharCode(byte)).join("");
  return PREFIX + btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// The set-up of a fragment, null where it has none. Throws LinkError.
export function setupOf(hash) {
  if (!hash.startsWith(PREFIX)) {
    return null;
  }
  need(hash.length <= MAX_LENGTH, "it is too long");
  let found;
  try {
    const binary = atob(hash.slice(PREFIX.length).replaceAll("-", "+").replaceAll("_", "/"));
    found = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(binary, (c) => c.charCodeAt(0))));
  } catch {
    need(false, "it is cut or changed");
  }
  need(isObject(found) && isObject(found.parameters), "parts are missing");
  need(Array.isArray(found.columns) && found.columns.length >= 1 && found.columns.length <= MAX_COLUMNS, "its columns are too few or too many");
  return {
    columns: found.columns.map(choice),
    prompt: text(found.prompt, MAX_TEXT, "the prompt"),
    system: text(found.system, MAX_TEXT, "the system message"),
    parameters: Object.fromEntries(PARAMETERS.map((name) => [name, parameter(found.parameters[name] ?? null)])),
  };
}
