// A conversation as a tree: every edited question and every second answer is a sibling, nothing is lost. No DOM.
//
// conversation = {id, title, created, updated, nodes: {id: node}, chosen: {parent id or "": child id}}
// node = {id, parent (or ""), role, text, pictures: [picture id], state, changed, ...}
//
// A question never changes; of an answer `changed` says when it last did. So copies of a conversation can be joined.

const MARKUP_BYTES = 200; // around a message or a picture in a request, settings and all

export function newConversation(id, now) {
  return { id, title: "", created: now, updated: now, nodes: {}, chosen: {} };
}

/** Children of a node ("" for the first questions), oldest first. */
export function childrenOf(conversation, parent) {
  return Object.values(conversation.nodes)
    .filter((node) => node.parent === parent)
    .sort((a, b) => a.order - b.order);
}

/** Add a node below `parent` and show it. */
export function addNode(conversation, parent, node) {
  if (parent !== "" && !conversation.nodes[parent]) throw new Error(`no node ${parent}`);
  const order = 1 + Math.max(0, ...Object.values(conversation.nodes).map((other) => other.order));
  conversation.nodes[node.id] = { text: "", pictures: [], state: "done", ...node, parent, order };
  conversation.chosen[parent] = node.id;
  return conversation.nodes[node.id];
}

/**
 * Take over what another copy of a conversation knows more: nodes that are not here or are older here, a newer name.
 *
 * What is shown here stays shown. Returns whether anything was taken over.
 */
export function absorb(conversation, other) {
  let isChanged = false;
  for (const node of Object.values(other.nodes)) {
    const own = conversation.nodes[node.id];
    if (own && (own.changed ?? 0) >= (node.changed ?? 0)) continue;
    conversation.nodes[node.id] = node;
    isChanged = true;
  }
  if ((other.renamed ?? 0) > (conversation.renamed ?? 0)) {
    conversation.title = other.title;
    conversation.renamed = other.renamed;
    isChanged = true;
  }
  conversation.chosen = { ...other.chosen, ...conversation.chosen };
  conversation.updated = Math.max(conversation.updated, other.updated);
  return isChanged;
}

/** The nodes that are shown, from the first question down. */
export function pathOf(conversation) {
  const path = [];
  let parent = "";
  for (;;) {
    const children = childrenOf(conversation, parent);
    if (!children.length) return path;
    const node = children.find((child) => child.id === conversation.chosen[parent]) ?? children.at(-1);
    path.push(node);
    parent = node.id;
  }
}

/** The nodes from the first question to this one, whatever is shown. */
export function pathTo(conversation, id) {
  const path = [];
  for (let node = conversation.nodes[id]; node; node = conversation.nodes[node.parent]) path.unshift(node);
  return path;
}

/** `{place, count}` of a node among its siblings; the first has place 1. */
export function placeOf(conversation, id) {
  const siblings = childrenOf(conversation, conversation.nodes[id].parent);
  return { place: 1 + siblings.findIndex((node) => node.id === id), count: siblings.length };
}

/** Show the sibling `step` places on; returns its id, or null at the end. */
export function step(conversation, id, step) {
  const siblings = childrenOf(conversation, conversation.nodes[id].parent);
  const other = siblings[siblings.findIndex((node) => node.id === id) + step];
  if (!other) return null;
  conversation.chosen[other.parent] = other.id;
  return other.id;
}

/** A title from the first question. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = childrenOf(conversation, "").at(-1);
  const words = (first?.text ?? "").slice(0, 1000).replace(/\s+/g, " ").trim();
  const letters = [...words]; // whole ones: half of a pair is no letter
  if (letters.length > 60) return `${letters.slice(0, 57).join("").trimEnd()}...`;
  return words || (first?.pictures.length ? "A picture" : "New conversation");
}

/** Whether an answer is the server's refusal of its question: asked again just so, it is refused again. */
export function isRefused(node) {
  return node.role === "assistant" && !node.text && [400, 413].includes(node.error?.status);
}

/** A path without the questions that were refused: with them all that follow would be refused, too. */
export function withoutRefused(path) {
  return path.filter((node, idx) => !isRefused(node) && !(path[idx + 1] && isRefused(path[idx + 1])));
}

/**
 * The messages of a request: all that leads to a node. `addressOf` turns a picture's id into a data URI, or null.
 *
 * A question that was refused is left out, and an answer that failed before its first word: what was asked twice in a
 * row becomes one question.
 */
export function messagesOf(path, system, addressOf) {
  const messages = [];
  for (const node of withoutRefused(path)) {
    if (node.role === "assistant") {
      if (node.text) messages.push({ role: "assistant", content: node.text });
      continue;
    }
    const pictures = node.pictures.map(addressOf).filter((url) => url !== null);
    const parts = pictures.map((url) => ({ type: "image_url", image_url: { url } }));
    if (node.text) parts.push({ type: "text", text: node.text });
    const last = messages.at(-1);
    if (last?.role === "user") last.content.push(...parts);
    else messages.push({ role: "user", content: parts });
  }
  if (system.trim()) messages.unshift({ role: "system", content: system.trim() });
  return messages;
}

/**
 * Why the server would not take the messages of a path, in words, or "": too many pictures, or too many bytes.
 *
 * `bytesOf` gives the size of a picture by its id, or null where it is gone; `limits` has the server's `max_images` and
 * `max_body_bytes`.
 */
export function overLimit(path, bytesOf, { max_images: maxImages, max_body_bytes: maxBytes }) {
  const asked = withoutRefused(path);
  const sizes = asked.flatMap((node) => node.pictures).map(bytesOf).filter((size) => size !== null);
  const what = "Remove pictures, or start a new conversation.";
  if (sizes.length > maxImages) {
    return `The conversation would have ${sizes.length} pictures with this question; the server takes ${maxImages}. ${what}`;
  }
  const words = new TextEncoder().encode(JSON.stringify(asked.map((node) => node.text))).length;
  const total = sizes.reduce((sum, size) => sum + 4 * Math.ceil(size / 3) + MARKUP_BYTES, words + MARKUP_BYTES * asked.length);
  if (total <= maxBytes) return "";
  const inMib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  return `The conversation would be sent as ${inMib(total)} with this question; the server takes ${inMib(maxBytes)}. ${what}`;
}

/** Whether any text of a conversation holds all the words. */
export function matches(conversation, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const text = [titleOf(conversation), ...Object.values(conversation.nodes).map((node) => node.text)].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}
