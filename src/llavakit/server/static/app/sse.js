// Server-sent events of a chat completion, from bytes cut anywhere. No DOM.

/** Turns pieces of text into the `data` of whole events. */
export class EventParser {
  #rest = "";
  #data = [];

  /** Take a piece of text; return the data of the events that it completes. */
  push(piece) {
    // A line break may be cut between its two characters: a lone CR at the end waits for what follows.
    let text = this.#rest + piece;
    const held = text.endsWith("\r") ? "\r" : "";
    text = text.slice(0, text.length - held.length).replace(/\r\n?/g, "\n");
    const lines = text.split("\n");
    this.#rest = lines.pop() + held;
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  }
}

/**
 * What one event's data means.
 *
 * Returns `{kind: "done"}`, `{kind: "error", error}`, `{kind: "chunk", text, finish, usage, details, model}`; what is no
 * JSON object is an error as well, since an answer with a hole in it must not look whole.
 */
export function readChunk(data) {
  if (data.trim() === "[DONE]") return { kind: "done" };
  let found;
  try {
    found = JSON.parse(data);
  } catch {
    found = null;
  }
  if (found === null || typeof found !== "object") {
    return { kind: "error", error: { message: "The server sent something that is no event.", code: "stream" } };
  }
  if (found.error) {
    const { message, code, type } = found.error;
    return { kind: "error", error: { message: String(message ?? "The answer failed."), code: String(code ?? type ?? "error") } };
  }
  const choice = Array.isArray(found.choices) ? found.choices[0] : undefined;
  const text = typeof choice?.delta?.content === "string" ? choice.delta.content : "";
  return {
    kind: "chunk", text, finish: choice?.finish_reason ?? null, usage: found.usage ?? null,
    details: found.llavakit ?? null, model: typeof found.model === "string" ? found.model : null,
  };
}
