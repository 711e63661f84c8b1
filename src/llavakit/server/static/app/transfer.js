// All conversations as one JSON file, and back. A file may come from anywhere: it is rebuilt field by field. No DOM.

const FORMAT = "llavakit-conversations";
const PICTURE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"];
const STATES = ["done", "stopped", "failed"];

/** Make the file's content. `pictures` are `{id, name, type, width, height, orientation, data}`, data in base64. */
export function pack(conversations, pictures, now) {
  return { format: FORMAT, version: 1, exported: new Date(now).toISOString(), conversations, pictures };
}

/** Read a file's content; throws an Error that says what is wrong. */
export function unpack(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (found?.format !== FORMAT) throw new Error("This file holds no conversations of llavakit.");
  if (found.version !== 1) throw new Error(`This file is of version ${Number(found.version)}; version 1 can be read here.`);
  if (!Array.isArray(found.conversations) || !Array.isArray(found.pictures)) throw new Error("This file is damaged.");
  const pictures = found.pictures.map(readPicture);
  const known = new Set(pictures.map((picture) => picture.id));
  return { conversations: found.conversations.map((conversation) => readConversation(conversation, known)), pictures };
}

function string(value, what, limit = 1_000_000) {
  if (typeof value !== "string" || value.length > limit) throw new Error(`This file is damaged: ${what} is no text.`);
  return value;
}

function identifier(value, what) {
  if (!/^[\w-]{1,64}$/.test(string(value, what)) || value === "__proto__") throw new Error(`This file is damaged: ${what}.`);
  return value;
}

function number(value, what) {
  if (typeof value !== "number" || !Number.isFinite(value) || value < 0) {
    throw new Error(`This file is damaged: ${what} is no number.`);
  }
  return value;
}

function readPicture(found) {
  const type = string(found?.type, "a picture's type");
  if (!PICTURE_TYPES.includes(type)) throw new Error(`This file holds a picture of the type ${type.slice(0, 40)}.`);
  const data = string(found.data, "a picture", 200_000_000);
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(data)) throw new Error("This file is damaged: a picture is not base64.");
  return {
    id: identifier(found.id, "a picture's id"), name: string(found.name, "a picture's name", 1000), type, data,
    width: number(found.width, "a width"), height: number(found.height, "a height"),
    orientation: number(found.orientation ?? 1, "an orientation"),
  };
}

function readConversation(found, known) {
  const nodes = {};
  for (const node of Object.values(found?.nodes ?? {})) {
    const read = readNode(node, known);
    nodes[read.id] = read;
  }
  const chosen = {};
  for (const node of Object.values(nodes)) {
    if (node.parent !== "" && !nodes[node.parent]) throw new Error("This file is damaged: an answer lost its question.");
    // A child is younger than its parent: so there are no circles.
    if (node.parent !== "" && nodes[node.parent].order >= node.order) throw new Error("This file is damaged: order.");
  }
  for (const [parent, child] of Object.entries(found.chosen ?? {})) {
    if (typeof child === "string" && nodes[child]?.parent === parent) chosen[parent] = child;
  }
  return {
    id: identifier(found.id, "a conversation's id"), title: string(found.title ?? "", "a title", 1000),
    created: number(found.created, "a date"), updated: number(found.updated, "a date"), nodes, chosen,
  };
}

function readNode(found, known) {
  const role = found?.role;
  if (role !== "user" && role !== "assistant") throw new Error("This file is damaged: a role.");
  const pictures = Array.isArray(found.pictures) ? found.pictures : [];
  const node = {
    id: identifier(found.id, "an id"), parent: found.parent === "" ? "" : identifier(found.parent, "an id"), role,
    order: number(found.order, "an order"), text: string(found.text, "a message"),
    pictures: pictures.filter((id) => known.has(id)), state: STATES.includes(found.state) ? found.state : "stopped",
  };
  for (const name of ["model", "preset", "finish"]) {
    if (typeof found[name] === "string") node[name] = found[name].slice(0, 200);
  }
  if (found.error) node.error = { message: String(found.error.message).slice(0, 2000), code: String(found.error.code).slice(0, 100) };
  if (found.timing) {
    node.timing = {};
    for (const name of ["firstMs", "perSecond", "promptTokens", "cachedTokens", "answerTokens"]) {
      if (Number.isFinite(found.timing[name])) node.timing[name] = found.timing[name];
    }
  }
  return node;
}
