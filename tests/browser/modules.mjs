// Run by test_page.py with node, beside a copy of the page's modules: node modules.mjs.

import assert from "node:assert/strict";
import { alignWords, frameOf, meanWeights, patchBox, perPicture, placeName, sizeSeen } from "./app/geometry.js";
import { parse, parseInline, safeAddress } from "./app/markdown.js";
import { orientationOf, scaleFor } from "./app/pictures.js";
import { cleaned, fieldsOf } from "./app/settings.js";
import { EventParser, readChunk } from "./app/sse.js";
import { pack, unpack } from "./app/transfer.js";
import {
  absorb, addNode, matches, messagesOf, newConversation, overLimit, pathOf, pathTo, placeOf, step, titleOf,
} from "./app/tree.js";

// Markdown: what it is made of, and what is only text.
assert.deepEqual(parse("# One\n\ntwo").map((block) => block.type), ["heading", "paragraph"]);
assert.equal(parse("```js\n<b>&\n```")[0].text, "<b>&");
assert.deepEqual(parse("- a\n- b")[0].items.length, 2);
assert.equal(parse("3. a\n4. b")[0].start, 3);
assert.deepEqual(parse("| a | b |\n|---|--:|\n| 1 | 2 |")[0].align, ["start", "end"]);
const columns = parse(`|${" **a** |".repeat(9)}\n|${"---|".repeat(9)}\n|${" `b` |".repeat(9)}`)[0];
assert.ok(columns.head.every(([cell]) => cell.type === "strong") && columns.rows[0].every(([cell]) => cell.type === "code"));
assert.deepEqual(parseInline("a\\\nb"), [{ type: "text", text: "a" }, { type: "break" }, { type: "text", text: "b" }]);
for (const text of ["[x](https://example.org/A_(b))", "https://example.org/A_(b)", "(https://example.org/A_(b)).", "[x](https://example.org/A_(b)"]) {
  const { address } = parseInline(text).find((part) => part.type === "link");
  assert.equal(address, text.endsWith("))") || !text.startsWith("[") ? "https://example.org/A_(b)" : "https://example.org/A_(b", text);
}
assert.deepEqual(parseInline("a **b** `c`").map((part) => part.type), ["text", "strong", "text", "code"]);
assert.deepEqual(parseInline("<img src=x onerror=alert(1)>"), [{ type: "text", text: "<img src=x onerror=alert(1)>" }]);
for (const bad of ["javascript:alert(1)", "data:text/html,x", "//host/x", "/x", "https://me:pass@host/", " https:x", "vbscript:x"]) {
  assert.equal(safeAddress(bad), null, bad);
  assert.ok(parseInline(`[x](${bad})`).every((part) => part.type !== "link" || part.address.startsWith("http")), bad);
}
assert.equal(safeAddress("https://example.org/a"), "https://example.org/a");
for (const hostile of ["*".repeat(50_000), "[".repeat(50_000), "> ".repeat(5_000), "`".repeat(50_001) + "a", "_a".repeat(50_000), "- ".repeat(2_000),
  "[](".repeat(20_000), "http://a" + ")".repeat(50_000), "http://a(".repeat(10_000), "# a" + " ".repeat(50_000) + "b",
  "# a" + "#".repeat(50_000) + "b", "```" + " ".repeat(50_000) + "`", "`".repeat(50_000) + " a`", "\t".repeat(20_000) + "# a"]) {
  parse(hostile); // must end; a time that grows with the square would not, within this test's limit
}

assert.deepEqual(["# C#", "# A ##  ", "#", "## ##", "# a # b"].map((text) => {
  const [block] = parse(text);
  return [block.type, ...(block.inlines ?? []).map((inline) => inline.text)];
}), [["heading", "C#"], ["heading", "A"], ["paragraph", "#"], ["heading"], ["heading", "a # b"]]);
assert.deepEqual(["``` js x", "~~~c++", "```a`"].map((text) => parse(text)[0].language ?? null), ["js", "c++", null]);

// Events: the same whatever the pieces.
const stream = 'data: {"choices":[{"delta":{"content":"ä"}}]}\r\n\r\n: comment\ndata: a\ndata: b\n\ndata: [DONE]\n\n';
for (let size = 1; size < 12; size += 1) {
  const parser = new EventParser();
  const found = [];
  for (let at = 0; at < stream.length; at += size) found.push(...parser.push(stream.slice(at, at + size)));
  assert.deepEqual(found, ['{"choices":[{"delta":{"content":"ä"}}]}', "a\nb", "[DONE]"], `pieces of ${size}`);
}
assert.equal(readChunk("[DONE]").kind, "done");
assert.equal(readChunk("{").kind, "error");
assert.deepEqual(readChunk('{"error":{"message":"no","code":"full"}}').error, { message: "no", code: "full" });
const last = readChunk('{"model":"m","choices":[],"usage":{"prompt_tokens":3},"llavakit":{"tokens_per_s":5}}');
assert.deepEqual([last.text, last.model, last.usage.prompt_tokens, last.details.tokens_per_s], ["", "m", 3, 5]);

// Branches.
const talk = newConversation("c", 5);
addNode(talk, "", { id: "q1", role: "user", text: "One?", pictures: ["p"] });
addNode(talk, "q1", { id: "a1", role: "assistant", text: "One." });
addNode(talk, "", { id: "q2", role: "user", text: "Two?" });
assert.deepEqual(pathOf(talk).map((node) => node.id), ["q2"]);
assert.deepEqual(placeOf(talk, "q2"), { place: 2, count: 2 });
assert.equal(step(talk, "q2", -1), "q1");
assert.equal(step(talk, "q1", -1), null);
assert.deepEqual(pathOf(talk).map((node) => node.id), ["q1", "a1"]);
assert.equal(titleOf(talk), "Two?");
assert.ok(matches(talk, "one TWO") && !matches(talk, "three"));
addNode(talk, "a1", { id: "q3", role: "user", text: "And?" });
const messages = messagesOf(pathTo(talk, "q3"), "Be brief.", (id) => `data:${id}`);
assert.deepEqual(messages.map((message) => message.role), ["system", "user", "assistant", "user"]);
assert.equal(messages[1].content[0].image_url.url, "data:p");

// A title is cut between letters, not in the middle of one.
const smiles = newConversation("s", 5);
addNode(smiles, "", { id: "q", role: "user", text: "\u{1f600}".repeat(100) });
assert.equal(titleOf(smiles), `${"\u{1f600}".repeat(57)}...`);

// Two copies of a conversation: nothing of either is lost, whichever is joined to the other.
const here = structuredClone(talk);
const there = structuredClone(talk);
addNode(here, "q3", { id: "a3", role: "assistant", text: "Half", state: "stopped", changed: 10 });
addNode(there, "q3", { id: "b3", role: "assistant", text: "Other", changed: 11 });
Object.assign(there, { title: "Named", renamed: 12, updated: 99 });
there.nodes.a3 = { ...here.nodes.a3, text: "Half and whole", state: "done", changed: 20 };
assert.equal(absorb(here, there), true);
assert.deepEqual(Object.keys(here.nodes).sort(), ["a1", "a3", "b3", "q1", "q2", "q3"]);
assert.deepEqual([here.nodes.a3.state, here.title, here.updated, here.chosen.q3], ["done", "Named", 99, "a3"]);
assert.equal(absorb(here, structuredClone(there)), false);
const older = { ...structuredClone(there), title: "", renamed: 1 };
older.nodes.a3.changed = 15;
older.nodes.a3.text = "Half";
absorb(here, older);
assert.deepEqual([here.nodes.a3.text, here.title], ["Half and whole", "Named"]);

// What the server refused is not asked again with each question that follows.
const refused = newConversation("r", 5);
addNode(refused, "", { id: "q1", role: "user", text: "Too much?", pictures: ["p"] });
addNode(refused, "q1", { id: "a1", role: "assistant", state: "failed", error: { message: "no", code: "refused", status: 413 } });
addNode(refused, "a1", { id: "q2", role: "user", text: "And now?" });
const contents = (path) => messagesOf(path, "", (id) => `data:${id}`).map((message) => message.content.at(-1).text);
assert.deepEqual(contents(pathTo(refused, "q2")), ["And now?"]);
assert.deepEqual(contents(pathTo(refused, "q1")), ["Too much?"]);
refused.nodes.a1.error.status = 503;
assert.deepEqual(messagesOf(pathTo(refused, "q2"), "", () => null)[0].content.map((part) => part.text), ["Too much?", "And now?"]);

// The server's limits of a whole request.
const many = [{ role: "user", text: "?", pictures: ["p", "p", "gone"] }];
const sizeOf = (id) => (id === "p" ? 3_000_000 : null);
assert.equal(overLimit(many, sizeOf, { max_images: 2, max_body_bytes: 9_000_000 }), "");
assert.match(overLimit(many, sizeOf, { max_images: 1, max_body_bytes: 9_000_000 }), /2 pictures.*takes 1\./);
assert.match(overLimit(many, sizeOf, { max_images: 2, max_body_bytes: 8_000_000 }), /7\.6 MiB.*takes 7\.6 MiB/);
assert.equal(scaleFor(100, 100, 10_000), 1);
assert.equal(scaleFor(14_000, 14_000, 49_000_000), 0.5);

// Files that come from anywhere.
async function fileOf(conversations, pictures) {
  const pieces = [];
  for await (const piece of pack(conversations, pictures, 0)) pieces.push(piece);
  assert.ok(pieces.length > conversations.length + pictures.length); // never one text of everything
  return new Blob(pieces);
}
const jsonFile = (value) => new Blob([JSON.stringify(value)]);
const picture = { id: "p", name: "x.png", type: "image/png", width: 1, height: 1, orientation: 1, data: "AAAA" };
talk.nodes.a1.system = "Be brief.";
talk.nodes.a1.error = { message: "no", code: "refused", status: 413 };
const packed = await fileOf([talk, smiles], [picture]);
const read = await unpack(packed);
assert.deepEqual(read.problems, []);
assert.deepEqual(await unpack(packed, 0), read); // line by line, as one that is too long for a text
assert.deepEqual(read.conversations[0].nodes.q1.pictures, ["p"]);
assert.deepEqual(pathOf(read.conversations[0]), pathOf(talk));
const long = newConversation("long", 5);
addNode(long, "", { id: "q", role: "user", text: "x".repeat(1_500_000) });
assert.equal((await unpack(await fileOf([long], []))).conversations.length, 1);
const file = JSON.parse(await (await fileOf([talk], [picture])).text());
for (const bad of ["", "[]", '{"format":"x"}', JSON.stringify({ ...file, version: 2 })]) {
  for (const maxWhole of [100_000, 0]) await assert.rejects(unpack(new Blob([bad]), maxWhole), /^Error: This file/);
}
for (const bad of [null, "x", { ...picture, type: "image/svg+xml" }, { ...picture, id: "__proto__" }, { ...picture, data: "A" }, { ...picture, data: "" }]) {
  const { conversations, pictures, problems } = await unpack(jsonFile({ ...file, pictures: [bad] }));
  assert.deepEqual([conversations.length, pictures.length, problems.length], [1, 0, 1]);
}
const { q1, a1, q3 } = talk.nodes;
for (const nodes of [{ q1: { ...q1, parent: "gone" } }, { a1: { ...a1, parent: "" } }, { q1, q3: { ...q3, parent: "q1" } },
  { q1: { ...q1, order: 2 }, a1 }, { q1: null }, { q1: { ...q1, text: 5 } }]) {
  const { conversations, problems } = await unpack(jsonFile({ ...file, conversations: [talk, { ...talk, title: "Bad", nodes }] }));
  assert.equal(conversations.length, 1);
  assert.match(problems.join(), /^Conversation 2 \(“Bad”\) was left out: /);
}
assert.equal((await unpack(jsonFile({ ...file, conversations: [null, talk] }))).conversations.length, 1);
const boom = await unpack(jsonFile({ ...file, conversations: [{ ...talk, nodes: { q1, a1: { ...a1, error: "boom" } } }] }));
assert.deepEqual(boom.conversations[0].nodes.a1.error, { message: "The answer failed.", code: "page", status: 0 });

// Geometry.
const wide = frameOf({ width: 200, height: 100 }, "original", 4);
assert.deepEqual(wide.picture, { x: 0, y: 0.25, width: 1, height: 0.5 });
assert.deepEqual(patchBox(wide, 5, 4), { x: 0.25, y: 0.25, width: 0.25, height: 0.25 });
assert.equal(placeName(wide, patchBox(wide, 0, 4)), "the edge that was added");
assert.equal(placeName(wide, patchBox(wide, 4, 4)), "top left");
const cut = frameOf({ width: 200, height: 100 }, "hf", 4);
assert.deepEqual([cut.aspect, cut.square.width, cut.square.height], [2, 0.5, 1]);
assert.deepEqual(sizeSeen({ width: 3, height: 4, orientation: 6 }, "original"), { width: 4, height: 3 });
assert.deepEqual(alignWords(["The", "star", "blue"], [" The", " st", "ar", " is", " **", "blue", "**"]), [[0, 1], [1, 3], [5, 6]]);
assert.deepEqual(meanWeights([[1, 3], [3, 5]], 0, 2), [2, 4]);
assert.deepEqual(perPicture([1, 2, 3, 4, 5, 6, 7, 8], 2), [[1, 2, 3, 4], [5, 6, 7, 8]]);

// A camera's turn: a JPEG whose Exif says 6, one that is cut off, one without.
const exif = [0xff, 0xd8, 0xff, 0xe1, 0, 34, 0x45, 0x78, 0x69, 0x66, 0, 0, 0x49, 0x49, 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 0x01, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0];
assert.equal(orientationOf(new Uint8Array([...exif, 0, 0, 0, 0]).buffer), 6);
assert.equal(orientationOf(new Uint8Array(exif.slice(0, 24)).buffer), 1);
assert.equal(orientationOf(new Uint8Array([0xff, 0xd8, 0xff, 0xda, 0, 2]).buffer), 1);

// Settings from anywhere.
assert.equal(cleaned({ temperature: 99, maxTokens: "x", preset: 3 }).temperature, 2);
assert.equal(cleaned(null).maxTokens, 512);
assert.ok(!("top_p" in fieldsOf(cleaned({ temperature: 0 }))) && !("seed" in fieldsOf(cleaned({}))));
assert.equal(fieldsOf(cleaned({ seed: 7 })).seed, 7);
