// Markdown to elements, in two steps: text to plain records (no DOM), records to nodes. Never through markup strings, so
// that nothing an answer holds can become an element that is not made here. HTML in it is text. Time grows with the
// length of the text, whatever stands in it.

const MAX_DEPTH = 6;
const MAX_LINK_TEXT = 300;
const MAX_ADDRESS = 2000;
const MAX_COLUMNS = 30;

/** The address if it is an absolute http or https one that names no user, otherwise null. */
export function safeAddress(text) {
  let address;
  try {
    address = new URL(text);
  } catch {
    return null;
  }
  const isWeb = address.protocol === "https:" || address.protocol === "http:";
  return isWeb && !address.username && !address.password && /^https?:\/\//i.test(text) ? address.href : null;
}

// Blocks.

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:\s+(.*)|\s*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

/** Parse a text into blocks; each has `type` and `source`, the lines it was made of. */
export function parse(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [block, end] = readBlock(lines, at, depth);
    block.source = lines.slice(at, end).join("\n");
    blocks.push(block);
    at = end;
  }
  return blocks;
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  const fence = fenceOf(line);
  if (fence) return readFence(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, inlines: parseInline(withoutClosing(heading[2] ?? "")) }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH) {
    if (/^ {0,3}>/.test(line)) return readQuote(lines, at, depth);
    if (ITEM.test(line)) return readList(lines, at, depth);
  }
  if (isTable(lines, at)) return readTable(lines, at);
  return readParagraph(lines, at, depth);
}

/** The mark and the language of a line that begins code, or null: patterns that could part a line in many ways take time. */
function fenceOf(line) {
  const begin = FENCE.exec(line);
  if (!begin) return null;
  const info = line.slice(begin[0].length);
  return info.includes("`") ? null : { mark: begin[1], language: /^[\w+#.-]*/.exec(info.trim())[0] };
}

/** A heading without the signs that may close it. */
function withoutClosing(text) {
  const heading = text.trimEnd();
  let end = heading.length;
  while (heading[end - 1] === "#") end -= 1;
  return end === 0 || heading[end - 1] === " " ? heading.slice(0, end).trimEnd() : heading;
}

function readFence(lines, at, { mark, language }) {
  let end = at + 1;
  const closing = (line) => line.trim().startsWith(mark) && line.trim() === mark[0].repeat(line.trim().length);
  while (end < lines.length && !closing(lines[end])) end += 1;
  return [{ type: "code", language, text: lines.slice(at + 1, end).join("\n") }, Math.min(end + 1, lines.length)];
}

function readQuote(lines, at, depth) {
  let end = at;
  while (end < lines.length && /^ {0,3}>/.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(/^ {0,3}> ?/, ""));
  return [{ type: "quote", blocks: parse(inner.join("\n"), depth + 1) }, end];
}

function readList(lines, at, depth) {
  const ordered = /^\d/.test(ITEM.exec(lines[at])[2]);
  const start = ordered ? Number.parseInt(ITEM.exec(lines[at])[2], 10) : 1;
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || /^\d/.test(item[2]) !== ordered || RULE.test(lines[end])) break;
    const indent = item[1].length + item[2].length + 1;
    const inner = [item[3] ?? ""];
    end += 1;
    for (; end < lines.length; end += 1) {
      const line = lines[end];
      const isIndented = line.length - line.trimStart().length >= Math.min(indent, 2);
      if (!line.trim()) {
        const after = lines[end + 1] ?? "";
        if (!after.trim() || after.length - after.trimStart().length < 2) break;
        inner.push("");
      } else if (isIndented) inner.push(line.slice(Math.min(indent, line.length - line.trimStart().length)));
      else if (startsBlock(lines, end)) break;
      else inner.push(line);
    }
    items.push(parse(inner.join("\n"), depth + 1));
    // One empty line between items does not end a list.
    if (end < lines.length && !lines[end].trim() && ITEM.test(lines[end + 1] ?? "")) end += 1;
  }
  return [{ type: "list", ordered, start, items }, end];
}

function startsBlock(lines, at) {
  const line = lines[at];
  return fenceOf(line) !== null || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || /^ {0,3}>/.test(line);
}

function isTable(lines, at) {
  const divider = lines[at + 1] ?? "";
  return lines[at].includes("|") && divider.includes("-") && divider.length < 2000 && DIVIDER.test(divider) &&
    cells(lines[at]).length === cells(divider).length;
}

function cells(line) {
  const found = [];
  let cell = "";
  const inner = line.trim().replace(/^\|/, "");
  for (let at = 0; at < inner.length; at += 1) {
    if (inner[at] === "\\" && inner[at + 1] === "|") {
      cell += "|";
      at += 1;
    } else if (inner[at] === "|") {
      found.push(cell.trim());
      cell = "";
    } else cell += inner[at];
  }
  if (cell.trim()) found.push(cell.trim());
  return found.slice(0, MAX_COLUMNS);
}

function readTable(lines, at) {
  const head = cells(lines[at]).map((cell) => parseInline(cell));
  const align = cells(lines[at + 1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : "start");
  let end = at + 2;
  const rows = [];
  while (end < lines.length && lines[end].includes("|")) {
    const row = cells(lines[end]).map((cell) => parseInline(cell));
    rows.push(head.map((_, column) => row[column] ?? []));
    end += 1;
  }
  return [{ type: "table", align, head, rows }, end];
}

function readParagraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim()) {
    if (startsBlock(lines, end) && depth < MAX_DEPTH) break;
    if (isTable(lines, end)) break;
    end += 1;
  }
  const text = lines.slice(at, end).map((line) => line.trimStart()).join("\n");
  return [{ type: "paragraph", inlines: parseInline(text) }, end];
}

// Inlines.

const MARKS = [["***", "both"], ["**", "strong"], ["__", "strong"], ["~~", "deleted"], ["*", "emphasis"], ["_", "emphasis"]];

/** Parse the text of a paragraph: records of type text, code, strong, emphasis, both, deleted, link, break. */
export function parseInline(text, depth = 0) {
  const found = [];
  const missing = new Set(); // marks known to have no partner further on
  let plain = "";
  const flush = () => {
    if (plain) found.push({ type: "text", text: plain });
    plain = "";
  };
  let at = 0;
  while (at < text.length) {
    const next = readInline(text, at, depth, missing);
    if (next) {
      flush();
      found.push(next.record);
      at = next.end;
    } else if (text[at] === "\\" && /[\\`*_{}[\]()#+\-.!|<>~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else {
      // A run of one mark that opens nothing is passed over as a whole.
      const run = "*_~`".includes(text[at]) ? /^(.)\1*/s.exec(text.slice(at, at + 1000))[0].length : 1;
      plain += text.slice(at, at + run);
      at += run;
    }
  }
  flush();
  return found;
}

function readInline(text, at, depth, missing) {
  const letter = text[at];
  if (letter === "\n") {
    const isHard = text.slice(at - 2, at) === "  ";
    return { record: isHard ? { type: "break" } : { type: "text", text: "\n" }, end: at + 1 };
  }
  if (letter === "\\" && text[at + 1] === "\n") return { record: { type: "break" }, end: at + 2 };
  if (letter === "`") return readCode(text, at, missing);
  if (depth >= MAX_DEPTH) return null;
  if (letter === "[") return readLink(text, at);
  if (letter === "h" || letter === "H") return readBareLink(text, at);
  if (letter === "*" || letter === "_" || letter === "~") return readMarked(text, at, depth, missing);
  return null;
}

function readCode(text, at, missing) {
  let size = 1;
  while (text[at + size] === "`") size += 1;
  if (missing.has(`code${size}`)) return null;
  for (let end = text.indexOf("`", at + size); end >= 0; ) {
    let run = 1;
    while (text[end + run] === "`") run += 1;
    if (run === size) {
      const inner = text.slice(at + size, end).replace(/\n/g, " ");
      return { record: { type: "code", text: inner.replace(/^ (.*[^ ].*) $/, "$1") }, end: end + size };
    }
    end = text.indexOf("`", end + run);
  }
  missing.add(`code${size}`);
  return null;
}

function readMarked(text, at, depth, missing) {
  for (const [mark, type] of MARKS) {
    if (!text.startsWith(mark, at) || missing.has(mark)) continue;
    const inside = at + mark.length;
    const isWord = mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[at - 1] ?? "");
    if (isWord || !text[inside] || /\s/.test(text[inside]) || text[inside] === mark[0]) continue;
    const end = closingMark(text, inside + 1, mark);
    if (end < 0) {
      missing.add(mark);
      continue;
    }
    return { record: { type, inlines: parseInline(text.slice(inside, end), depth + 1) }, end: end + mark.length };
  }
  return null;
}

function closingMark(text, from, mark) {
  for (let end = text.indexOf(mark[0], from); end >= 0; ) {
    let run = 1;
    while (text[end + run] === mark[0]) run += 1;
    const isWord = mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[end + run] ?? "");
    if (!/\s/.test(text[end - 1]) && !isWord && text[end - 1] !== "\\") {
      if (run === mark.length) return end;
      if (run > mark.length && run === 3) return end + run - mark.length; // the inner of two marks ends first
    }
    end = text.indexOf(mark[0], end + run);
  }
  return -1;
}

function readLink(text, at) {
  const middle = text.indexOf("](", at);
  if (middle < 0 || middle - at > MAX_LINK_TEXT) return null;
  const inner = text.slice(at + 1, middle);
  const end = closingBracket(text, middle + 2);
  if (inner.includes("[") || end < 0) return null;
  const target = text.slice(middle + 2, end).trim().replace(/\s+(["']).*\1$/s, "").replace(/^<(.*)>$/, "$1");
  const address = safeAddress(target);
  if (!address) return null;
  return { record: { type: "link", address, inlines: parseInline(inner, MAX_DEPTH) }, end: end + 1 };
}

/** Where a link's address ends: brackets in it come in pairs, as in .../A_(b). -1 where it does not. */
function closingBracket(text, from) {
  let depth = 0;
  let first = -1;
  for (let at = from; at < Math.min(text.length, from + MAX_ADDRESS); at += 1) {
    if (text[at] === "(") depth += 1;
    else if (text[at] === ")") {
      if (depth === 0) return at;
      if (first < 0) first = at;
      depth -= 1;
    }
  }
  return first; // they do not come in pairs: the first one ends it
}

function readBareLink(text, at) {
  if (/[\p{L}\p{N}]/u.test(text[at - 1] ?? "")) return null;
  const found = /^https?:\/\/[^\s<>"'`|\\]+/i.exec(text.slice(at, at + MAX_ADDRESS));
  if (!found) return null;
  const shown = withoutEnd(found[0]);
  const address = safeAddress(shown);
  return address ? { record: { type: "link", address, inlines: [{ type: "text", text: shown }] }, end: at + shown.length } : null;
}

/** An address in a sentence without what belongs to the sentence; a bracket that it opened is its own. */
function withoutEnd(address) {
  let unclosed = 0;
  for (const letter of address) unclosed += letter === "(" ? 1 : letter === ")" ? -1 : 0;
  let end = address.length;
  while (/[.,;:!?)\]}*_~]/.test(address[end - 1] ?? "") && !(address[end - 1] === ")" && unclosed >= 0)) {
    if (address[end - 1] === ")") unclosed += 1;
    end -= 1;
  }
  return address.slice(0, end);
}

// Elements.

const TAGS = { strong: "strong", emphasis: "em", deleted: "del" };

function inlineNodes(inlines) {
  return inlines.map((inline) => {
    if (inline.type === "text") return document.createTextNode(inline.text);
    if (inline.type === "break") return document.createElement("br");
    if (inline.type === "both") return wrap("strong", [wrap("em", inlineNodes(inline.inlines))]);
    if (inline.type === "code") return wrap("code", [document.createTextNode(inline.text)]);
    if (inline.type !== "link") return wrap(TAGS[inline.type], inlineNodes(inline.inlines));
    const link = wrap("a", inlineNodes(inline.inlines));
    link.href = inline.address;
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
    link.title = inline.address;
    return link;
  });
}

function wrap(tag, children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

/** One block as an element. */
export function blockNode(block) {
  switch (block.type) {
    case "heading": // below the page's own h1 and the turns' h2
      return wrap(`h${Math.min(6, block.level + 2)}`, inlineNodes(block.inlines));
    case "rule":
      return document.createElement("hr");
    case "code": {
      const pre = wrap("pre", [wrap("code", [document.createTextNode(block.text)])]);
      pre.tabIndex = 0; // so that a wide one can be scrolled by keyboard
      if (block.language) pre.dataset.language = block.language;
      return pre;
    }
    case "quote":
      return wrap("blockquote", block.blocks.map(blockNode));
    case "list": {
      const list = wrap(block.ordered ? "ol" : "ul", block.items.map((item) => wrap("li", itemNodes(item))));
      if (block.ordered && block.start !== 1) list.start = block.start;
      return list;
    }
    case "table":
      return tableNode(block);
    default:
      return wrap("p", inlineNodes(block.inlines));
  }
}

function itemNodes(blocks) {
  // A single paragraph stands in its item without a gap around it.
  return blocks.flatMap((block, idx) => (idx === 0 && block.type === "paragraph" ? inlineNodes(block.inlines) : [blockNode(block)]));
}

function tableNode({ align, head, rows }) {
  const row = (tag, line) => wrap("tr", line.map((cell, column) => {
    const node = wrap(tag, inlineNodes(cell));
    if (tag === "th") node.scope = "col";
    node.className = `to-${align[column]}`;
    return node;
  }));
  const table = wrap("table", [wrap("thead", [row("th", head)]), wrap("tbody", rows.map((line) => row("td", line)))]);
  const frame = wrap("div", [table]);
  frame.className = "wide";
  frame.tabIndex = 0;
  return frame;
}

/** Render into an element, leaving blocks that did not change as they are: an answer that grows changes its last one. */
export function render(parent, text) {
  const blocks = parse(text);
  blocks.forEach((block, idx) => {
    const old = parent.children[idx];
    if (old && old.markdownSource === block.source) return;
    const node = blockNode(block);
    node.markdownSource = block.source;
    if (old) old.replaceWith(node);
    else parent.append(node);
  });
  while (parent.children.length > blocks.length) parent.lastElementChild.remove();
}
