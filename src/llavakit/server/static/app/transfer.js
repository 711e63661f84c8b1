// All conversations as one JSON file, and back. A file may come from anywhere: it is rebuilt field by field. No DOM.

const FORMAT = "llavakit-conversations";
const MAX_WHOLE = 2 ** 27; // bytes
const PICTURE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"];
const STATES = ["done", "stopped", "failed"];

/**
 * Make the file's content, in pieces: one text could become longer than a browser can hold.
 *
 * `pictures` gives `{id, name, type, width, height, orientation, data}` one after the other, data in base64.
 */
export async function* pack(conversations, pictures, now) {
  yield `{"format":"${FORMAT}","version":1,"exported":"${new Date(now).toISOString()}","conversations":[`;
  let gap = "\n";
  for (const conversation of conversations) {
    yield gap + JSON.stringify(conversation);
    gap = ",\n";
  }
  yield '\n],"pictures":[';
  gap = "\n";
  for await (const picture of pictures) {
    yield gap + JSON.stringify(picture);
    gap = ",\n";
  }
  yield "\n]}\n";
}

/**
 * Read a file, a Blob: `{conversations, pictures, problems}`. What is damaged is left out, and a problem says what.
 *
 * One of more than `maxWhole` bytes is read line by line, as `pack` wrote it: it may be longer than a text can be.
 * Throws an Error that says what is wrong where nothing can be read.
 */
export async function unpack(file, maxWhole = MAX_WHOLE) {
  let found;
  try {
    found = file.size > maxWhole ? await parseLines(file) : JSON.parse(await file.text());
  } catch (error) {
    throw new Error(error instanceof SyntaxError ? "This file is not JSON." : `This file cannot be read (${error.name}).`);
  }
  return check(found);
}

async function parseLines(file) {
  let found = null;
  let entries;
  for await (const line of linesOf(file)) {
    if (found === null) {
      found = { ...JSON.parse(`${line}]}`), pictures: [] };
      entries = found.conversations;
    } else if (line === '],"pictures":[') entries = found.pictures;
    else if (line !== "]}") entries.push(JSON.parse(line.replace(/,$/, "")));
  }
  return found;
}

async function* linesOf(file) {
  const reader = file.stream().pipeThrough(new TextDecoderStream()).getReader();
  let pieces = []; // of a line that goes on
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = value.split("\n");
    for (const end of lines.splice(0, lines.length - 1)) {
      yield [...pieces, end].join("");
      pieces = [];
    }
    pieces.push(...lines);
  }
  if (pieces.join("")) yield pieces.join("");
}

function check(found) {
  if (found?.format !== FORMAT) throw new Error("This file holds no conversations of llavakit.");
  if (found.version !== 1) throw new Error(`This file is of version ${Number(found.version)}; version 1 can be read here.`);
  if (!Array.isArray(found.conversations) || !Array.isArray(found.pictures)) throw new Error("This file is damaged.");
  const problems = [];
  const readAll = (entries, kind, read) => entries.flatMap((entry, idx) => {
    try {
      if (entry === null || typeof entry !== "object") throw new Error("it is no record");
      return [read(entry)];
    } catch (error) {
      problems.push(`${kind} ${idx + 1}${nameOf(entry)} was left out: ${error.message}.`);
      return [];
    }
  });
  const pictures = readAll(found.pictures, "Picture", readPicture);
  const known = new Set(pictures.map((picture) => picture.id));
  const conversations = readAll(found.conversations, "Conversation", (entry) => readConversation(entry, known));
  return { conversations, pictures, problems };
}

function nameOf(entry) {
  const name = entry?.title || entry?.name;
  return typeof name === "string" && name ? ` (“${[...name.slice(0, 100)].slice(0, 40).join("")}”)` : "";
}

function string(value, what, limit = Infinity) {
  if (typeof value !== "string" || value.length > limit) throw new Error(`${what} is no text, or too long a one`);
  return value;
}

function identifier(value, what) {
  if (!/^[\w-]{1,64}$/.test(string(value, what)) || value === "__proto__") throw new Error(`${what} is none`);
  return value;
}

function number(value, what) {
  if (typeof value !== "number" || !Number.isFinite(value) || value < 0) throw new Error(`${what} is no number`);
  return value;
}

function readPicture(found) {
  const type = string(found.type, "its type");
  if (!PICTURE_TYPES.includes(type)) throw new Error(`it is of the type ${type.slice(0, 40)}`);
  const data = string(found.data, "its data");
  if (!data || data.length % 4 || !/^[A-Za-z0-9+/]*={0,2}$/.test(data)) throw new Error("its data is not base64");
  return {
    id: identifier(found.id, "its id"), name: string(found.name, "its name", 1000), type, data,
    width: number(found.width, "its width"), height: number(found.height, "its height"),
    orientation: number(found.orientation ?? 1, "its orientation"),
  };
}

function readConversation(found, known) {
  const nodes = {};
  for (const node of Object.values(found.nodes ?? {})) {
    if (node === null || typeof node !== "object") throw new Error("a message is no record");
    const read = readNode(node, known);
    nodes[read.id] = read;
  }
  for (const node of Object.values(nodes)) checkPlace(node, nodes[node.parent]);
  const chosen = {};
  for (const [parent, child] of Object.entries(found.chosen ?? {})) {
    if (typeof child === "string" && nodes[child]?.parent === parent) chosen[parent] = child;
  }
  return {
    id: identifier(found.id, "its id"), title: string(found.title ?? "", "its title", 1000),
    created: number(found.created, "its date"), updated: number(found.updated, "its date"), nodes, chosen,
  };
}

/** A question begins, or follows an answer; an answer follows a question. */
function checkPlace(node, parent) {
  if (node.parent !== "" && !parent) throw new Error("what a message follows is missing");
  if ((parent?.role ?? "assistant") === node.role) throw new Error("questions and answers do not take turns");
  // A child is younger than its parent: so there are no circles.
  if (parent && parent.order >= node.order) throw new Error("its messages have no order");
}

function readNode(found, known) {
  const role = found?.role;
  if (role !== "user" && role !== "assistant") throw new Error("a message has no role");
  const pictures = Array.isArray(found.pictures) ? found.pictures : [];
  const node = {
    id: identifier(found.id, "a message's id"), parent: found.parent === "" ? "" : identifier(found.parent, "a message's id"), role,
    order: number(found.order, "a message's place"), text: string(found.text, "a message"),
    pictures: pictures.filter((id) => known.has(id)), state: STATES.includes(found.state) ? found.state : "stopped",
  };
  for (const name of ["model", "preset", "finish"]) {
    if (typeof found[name] === "string") node[name] = found[name].slice(0, 200);
  }
  if (typeof found.system === "string") node.system = found.system;
  if (found.error) node.error = readError(found.error);
  if (found.timing) {
    node.timing = {};
    for (const name of ["firstMs", "perSecond", "promptTokens", "cachedTokens", "answerTokens"]) {
      if (Number.isFinite(found.timing[name])) node.timing[name] = found.timing[name];
    }
  }
  return node;
}

function readError({ message, code, status }) {
  return {
    message: typeof message === "string" ? message.slice(0, 2000) : "The answer failed.",
    code: typeof code === "string" ? code.slice(0, 100) : "page", status: Number.isInteger(status) ? status : 0,
  };
}
