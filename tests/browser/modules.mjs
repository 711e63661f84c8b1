// Run by test_page.py with node, beside a copy of the page's modules: node modules.mjs.

import assert from "node:assert/strict";
import { alignWords, frameOf, meanWeights, patchBox, perPicture, placeName, sizeSeen } from "./app/geometry.js";
import { parse, parseInline, safeAddress } from "./app/markdown.js";
import { orientationOf } from "./app/pictures.js";
import { cleaned, fieldsOf } from "./app/settings.js";
import { EventParser, readChunk } from "./app/sse.js";
import { pack, unpack } from "./app/transfer.js";
import { addNode, matches, messagesOf, newConversation, pathOf, pathTo, placeOf, step, titleOf } from "./app/tree.js";

// Markdown: what it is made of, and what is only text.
assert.deepEqual(parse("# One\n\ntwo").map((block) => block.type), ["heading", "paragraph"]);
assert.equal(parse("```js\n<b>&\n```")[0].text, "<b>&");
assert.deepEqual(parse("- a\n- b")[0].items.length, 2);
assert.equal(parse("3. a\n4. b")[0].start, 3);
assert.deepEqual(parse("| a | b |\n|---|--:|\n| 1 | 2 |")[0].align, ["start", "end"]);
assert.deepEqual(parseInline("a **b** `c`").map((part) => part.type), ["text", "strong", "text", "code"]);
assert.deepEqual(parseInline("<img src=x onerror=alert(1)>"), [{ type: "text", text: "<img src=x onerror=alert(1)>" }]);
for (const bad of ["javascript:alert(1)", "data:text/html,x", "//host/x", "/x", "https://me:pass@host/", " https:x", "vbscript:x"]) {
  assert.equal(safeAddress(bad), null, bad);
  assert.ok(parseInline(`[x](${bad})`).every((part) => part.type !== "link" || part.address.startsWith("http")), bad);
}
assert.equal(safeAddress("https://example.org/a"), "https://example.org/a");
for (const hostile of ["*".repeat(50_000), "[".repeat(50_000), "> ".repeat(5_000), "`".repeat(50_001) + "a", "_a".repeat(50_000), "- ".repeat(2_000)]) {
  parse(hostile); // must end; a time that grows with the square would not, within this test's limit
}

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

// Files that come from anywhere.
const picture = { id: "p", name: "x.png", type: "image/png", width: 1, height: 1, orientation: 1, data: "AAAA" };
const read = unpack(JSON.stringify(pack([talk], [picture], 0)));
assert.deepEqual(read.conversations[0].nodes.q1.pictures, ["p"]);
assert.deepEqual(pathOf(read.conversations[0]), pathOf(talk));
const file = pack([talk], [picture], 0);
for (const bad of ["", "[]", '{"format":"x"}', JSON.stringify({ ...file, version: 2 }),
  JSON.stringify({ ...file, pictures: [{ ...picture, type: "image/svg+xml" }] }),
  JSON.stringify({ ...file, pictures: [{ ...picture, id: "__proto__" }] }),
  JSON.stringify({ ...file, conversations: [{ ...talk, nodes: { q1: { ...talk.nodes.q1, parent: "gone" } } }] })]) {
  assert.throws(() => unpack(bad), Error);
}

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
