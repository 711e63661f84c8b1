// A conversation as a tree: every edited question and every second answer is a sibling, nothing is lost. No DOM.
//
// conversation = {id, title, created, updated, nodes: {id: node}, chosen: {parent id or "": child id}}
// node = {id, parent (or ""), role, text, pictures: [picture id], state, ...}

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
  const words = (first?.text ?? "").replace(/\s+/g, " ").trim();
  if (words.length > 60) return `${words.slice(0, 57).trimEnd()}...`;
  return words || (first?.pictures.length ? "A picture" : "New conversation");
}

/**
 * The messages of a request: all that leads to a node. `addressOf` turns a picture's id into a data URI, or null.
 *
 * An answer that failed before its first word is left out, and what was asked twice in a row becomes one question.
 */
export function messagesOf(path, system, addressOf) {
  const messages = [];
  for (const node of path) {
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

/** Whether any text of a conversation holds all the words. */
export function matches(conversation, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const text = [titleOf(conversation), ...Object.values(conversation.nodes).map((node) => node.text)].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}
