// Calls of the server, below the address that the page has: a proxy may serve it under a prefix.

import { keep, recall } from "./storage.js";

const KEY = "dqrelo-api-key";
const SHOWN_CHARACTERS = 600;
const path = location.pathname.replace(/[^/]*\.html?$/, "");
const root = location.origin + (path.endsWith("/") ? path : `${path}/`);

// The server's own words, with the HTTP status; 0 where there was no answer.
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const apiKey = () => recall("sessionStorage", KEY);
export const setApiKey = (key) => keep("sessionStorage", KEY, key);

async function words(response) {
  const text = await response.text().catch(() => "");
  try {
    const found = JSON.parse(text).error;
    return String(found.message ?? found).slice(0, SHOWN_CHARACTERS);
  } catch {
    return `HTTP ${response.status} ${response.statusText}`.trim();
  }
}

// A response of the server, or a ServerError. What the caller aborts throws the abort.
export async function call(name, { body, signal } = {}) {
  const headers = {};
  if (apiKey()) {
    headers.Authorization = `Bearer ${apiKey()}`;
  }
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(new URL(name, root), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) {
      throw error;
    }
    throw new ServerError("The server does not answer.", 0);
  }
  if (!response.ok) {
    throw new ServerError(await words(response), response.status);
  }
  return response;
}

export async function json(name, options) {
  const response = await call(name, options);
  try {
    return await response.json();
  } catch {
    throw new ServerError(`${name}: the answer is not JSON.`, response.status);
  }
}
