// The server's endpoints. Errors carry its message and code; `code` is "offline" where it cannot be reached.

import { EventParser, readChunk } from "./sse.js";

const KEY = "llavakit.key";

export class ApiError extends Error {
  constructor(message, code, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

/** The key lives as long as the tab. */
export function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function writeKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch { /* storage switched off: the key is asked for again */ }
}

async function call(path, { body, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (readKey()) headers.Authorization = `Bearer ${readKey()}`;
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", "offline");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let found = null;
  try {
    found = (await response.json()).error;
  } catch { /* no JSON: a proxy's page, say */ }
  const message = typeof found === "string" ? found : found?.message;
  const code = found?.code ?? found?.type ?? `http-${response.status}`;
  return new ApiError(String(message ?? `The server answered with status ${response.status}.`), String(code), response.status);
}

export async function fetchInfo() {
  return (await call("/api/llavakit/info")).json();
}

export async function fetchModels() {
  const found = await (await call("/v1/models")).json();
  return Array.isArray(found.data) ? found.data.map((model) => String(model.id)) : [];
}

export async function fetchAttention(body) {
  return (await call("/api/llavakit/attention", { body })).json();
}

/**
 * Stream an answer; `onText` is called with each piece of text.
 *
 * Returns `{finish, usage, details, model, timing}`: `details` are the server's own timings, `timing` is in milliseconds
 * as this page measured them. Throws an ApiError, or an AbortError after `signal`.
 */
export async function streamAnswer(body, signal, onText) {
  const asked = performance.now();
  let first = null;
  let last = asked;
  let finish = null;
  let usage = null;
  let details = null;
  let model = null;
  let isDone = false;
  const response = await call("/v1/chat/completions", {
    body: { ...body, stream: true, stream_options: { include_usage: true } }, signal,
  });
  const take = (event) => {
    if (event.kind === "error") throw new ApiError(event.error.message, event.error.code);
    if (event.kind === "done") {
      isDone = true;
      return;
    }
    if (event.text) {
      last = performance.now();
      first ??= last;
      onText(event.text);
    }
    finish = event.finish ?? finish;
    usage = event.usage ?? usage;
    details = event.details ?? details;
    model = event.model ?? model;
  };
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    while (!isDone) {
      const { value, done } = await reader.read();
      if (done) break;
      for (const data of parser.push(value)) take(readChunk(data));
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The connection broke while the answer was coming.", "offline");
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!isDone && finish === null) throw new ApiError("The answer broke off: the server closed the connection.", "offline");
  const timing = { first: first === null ? null : first - asked, rest: first === null ? 0 : last - first };
  return { finish, usage, details, model, timing };
}
