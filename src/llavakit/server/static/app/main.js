// The page's state, and what its parts do to it.

import { ApiError, fetchAttention, fetchInfo, fetchModels, streamAnswer } from "./api.js";
import { Composer } from "./composer.js";
import { $, announce, download, iconButton, isComposing, newId } from "./dom.js";
import { showGallery } from "./gallery.js";
import { Album, fromRecord, takePicture, toRecord } from "./pictures.js";
import { during, ended, hasLocks } from "./presence.js";
import { askKey, fieldsOf, setTheme, Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { picturesOf, Store } from "./store.js";
import { Thread } from "./thread.js";
import { pack, unpack } from "./transfer.js";
import { absorb, addNode, messagesOf, newConversation, overLimit, pathOf, pathTo, step, titleOf, withoutRefused } from "./tree.js";

const SAVE_EVERY_MS = 1000;
const CURRENT = "llavakit.current";

const store = await new Store().open();
const album = new Album(store);
let info = {
  model: "", presets: ["original", "hf"], max_image_bytes: 24 << 20, max_image_pixels: 178_956_970, max_images: 16,
  max_body_bytes: 64 << 20, has_planner: false,
};
let conversations = await store.conversations();
let current = newConversation(newId(), Date.now());
let unasked = current; // the new conversation, until something is asked in it
const running = new Map(); // conversation id to {conversation, node, controller}
const elsewhere = new Map(); // conversation id to the id of an answer that is coming in another tab
let isTakingExample = false;
const unstored = { conversation: new Map(), picture: new Map() }; // by id: why it could not be stored

const settings = new Settings({ onChange: showModel, onKey: connect });
const composer = new Composer(album, { onSend: send, onStop: stop, refusal, limits });
const thread = new Thread(album, { edit: (node) => composer.edit(node), again, retry, step: stepTo, look });
const sidebar = new Sidebar({ open, create, rename, remove, exportAll, importFile });

function limits() {
  return { bytes: info.max_image_bytes, pixels: info.max_image_pixels, count: info.max_images };
}

function liveIdOf(conversation) {
  return running.get(conversation.id)?.node.id ?? null;
}

function show() {
  thread.show(current, liveIdOf(current) ?? elsewhere.get(current.id) ?? null);
  sidebar.show(conversations, current.id);
  const title = titleOf(current);
  $("title").textContent = title;
  document.title = conversations.includes(current) ? `${title} – llavakit` : "llavakit";
  composer.setBusy(running.has(current.id)); // whoever sees the button sees the whole answer
  try {
    sessionStorage.setItem(CURRENT, current.id);
  } catch { /* storage switched off: a reload starts with a new conversation */ }
}

function showModel() {
  $("model").textContent = settings.values.model || info.model || "";
}

// Storing.

async function save(conversation, liveId = liveIdOf(conversation)) {
  await noted("conversation", conversation.id, async () => {
    if (!(await store.saveConversation(conversation, liveId))) forget(conversation);
  });
}

async function savePicture(id) {
  await noted("picture", id, () => store.savePicture(recordOf(album.get(id))));
}

/** Store something; what could not be stored is told as long as that is so. */
async function noted(kind, id, storing) {
  try {
    await storing();
    unstored[kind].delete(id);
  } catch (error) {
    unstored[kind].set(id, error.name);
  }
  showUnstored();
}

function showUnstored() {
  const parts = Object.entries(unstored).filter(([, ids]) => ids.size)
    .map(([kind, ids]) => `${ids.size} ${kind}${ids.size > 1 ? "s" : ""}`);
  $("unstored").hidden = parts.length === 0;
  if (!parts.length) return;
  const [reason] = [...unstored.conversation.values(), ...unstored.picture.values()];
  const text = `Not stored (${reason}) and gone after a reload: ${parts.join(" and ")}. Export, or delete conversations.`;
  if ($("unstored").textContent !== text) $("unstored").textContent = text; // read out once, not with each attempt
}

/** Try once more to store what could not be, after there is more room. */
async function storeTheRest() {
  for (const id of [...unstored.picture.keys()]) await savePicture(id);
  for (const conversation of conversations.filter(({ id }) => unstored.conversation.has(id))) await save(conversation);
}

function recordOf({ id, blob, name, width, height, orientation }) {
  return { id, blob, name, width, height, orientation };
}

/** A conversation that changed goes to the top of the list. */
function toTop(conversation) {
  conversation.updated = Date.now();
  conversations = [conversation, ...conversations.filter((other) => other !== conversation)];
}

/** Take a conversation as it was stored by another tab, or by an import in place of this one. */
function adopt(found, isReplaced) {
  const own = conversations.find(({ id }) => id === found.id);
  if (!own) conversations.push(found);
  else if (isReplaced && !running.has(found.id)) Object.assign(own, found);
  else absorb(own, found);
  conversations.sort((a, b) => b.updated - a.updated);
}

async function hear({ id, liveId, isReplaced }) {
  const found = await store.conversation(id);
  if (liveId) comesElsewhere(id, liveId);
  else if (!hasLocks) elsewhere.delete(id); // with locks, whoever tells of a new title does not end an answer
  if (found) adopt(found, isReplaced);
  else {
    const isSeen = current.id === id;
    forget({ id });
    if (isSeen) composer.fail("The conversation was deleted in another tab.");
  }
  if (current.id === id) await album.load(picturesOf(current));
  show();
}

/** An answer is coming in another tab, until it is there or the tab has ended. */
async function comesElsewhere(id, liveId) {
  if (elsewhere.get(id) === liveId) return;
  elsewhere.set(id, liveId);
  if (!hasLocks) return;
  await ended(liveId);
  if (elsewhere.get(id) === liveId) elsewhere.delete(id);
  show();
}

/** A conversation was deleted, here or in another tab. */
function forget({ id }) {
  running.get(id)?.controller.abort();
  const gone = conversations.filter((other) => other.id === id);
  conversations = conversations.filter((other) => other.id !== id);
  composer.forget(id);
  unstored.conversation.delete(id);
  for (const picture of gone.flatMap(picturesOf)) unstored.picture.delete(picture);
  showUnstored();
  if (current.id === id) begin();
}

// Asking.

/** Why a question cannot be asked here, or "". */
function refusal({ text, pictures, editing }) {
  if (running.has(current.id)) return "An answer is still coming. Wait for it, or stop it.";
  if (elsewhere.has(current.id)) return "An answer is coming in this conversation in another tab. Wait for it, or stop it there.";
  if (editing && !current.nodes[editing]) return "The question that was edited is no longer here. Cancel editing.";
  const path = editing ? pathTo(current, current.nodes[editing].parent) : pathOf(current);
  return tooMuch([...path, { role: "user", text, pictures }]);
}

function tooMuch(path) {
  return overLimit(path, (id) => album.get(id)?.blob.size ?? null, info);
}

async function send({ text, pictures, editing }) {
  const parent = editing ? current.nodes[editing].parent : (pathOf(current).at(-1)?.id ?? "");
  const question = addNode(current, parent, { id: newId(), role: "user", text, pictures });
  await ask(current, question);
}

async function again(node) {
  const question = current.nodes[node.parent];
  const problem = tooMuch(pathTo(current, question.id));
  if (problem) composer.fail(problem);
  else await ask(current, question);
}

async function retry(node) {
  await ask(current, current.nodes[node.parent], current.nodes[node.id]);
}

/** Answer a question; `node` is an answer that failed and is tried once more in its place. */
async function ask(conversation, question, node = null) {
  if (running.has(conversation.id)) return;
  const { model, preset, system } = settings.values;
  const kept = { role: "assistant", state: "stopped", text: "", model: model || info.model, preset, system, changed: Date.now() };
  const answer = node ?? addNode(conversation, question.id, { id: newId(), ...kept });
  if (node) {
    Object.assign(node, kept);
    delete node.error;
    delete node.timing;
    delete node.finish;
  }
  const controller = new AbortController();
  running.set(conversation.id, { conversation, node: answer, controller });
  toTop(conversation);
  show();
  thread.toEnd();
  announce("Answering.");
  await during(answer.id, async () => {
    try {
      for (const id of question.pictures) if (album.get(id)) await savePicture(id);
      await save(conversation);
      await stream(conversation, question, answer, controller.signal);
    } finally {
      await finish(conversation);
    }
  });
  await tellEnd(conversation, answer);
}

/** Store what came of an answer, and show it as over. */
async function finish(conversation) {
  const follows = conversation === current && thread.isNearEnd();
  if (conversations.includes(conversation)) { // otherwise it was deleted meanwhile
    toTop(conversation);
    await save(conversation, null);
    if (unstored.conversation.has(conversation.id)) store.tell(conversation.id); // the others wait for it
  }
  running.delete(conversation.id);
  show();
  if (follows) thread.toEnd();
}

async function stream(conversation, question, answer, signal) {
  let saved = performance.now();
  let frame = null;
  const onText = (text) => {
    answer.text += text;
    noteChange(answer);
    frame ??= requestAnimationFrame(() => {
      frame = null;
      if (conversation === current) thread.grow(answer);
    });
    if (performance.now() - saved > SAVE_EVERY_MS) {
      saved = performance.now();
      save(conversation);
    }
  };
  try {
    const path = pathTo(conversation, question.id);
    await album.load(path.flatMap((node) => node.pictures), { toSend: true });
    const messages = messagesOf(path, settings.values.system, (id) => album.addressOf(id));
    const result = await streamAnswer({ messages, ...fieldsOf(settings.values) }, signal, onText);
    answer.state = "done";
    answer.finish = result.finish ?? "";
    answer.model = result.model ?? answer.model;
    answer.timing = timingOf(result);
  } catch (error) {
    answer.state = error.name === "AbortError" ? "stopped" : "failed";
    if (answer.state === "failed") {
      if (!(error instanceof ApiError)) console.error(error);
      answer.error = { message: error.message, code: String(error.code ?? "page"), status: error.status ?? 0 };
    }
  } finally {
    if (frame !== null) cancelAnimationFrame(frame);
    answer.text = answer.text.trimStart();
    noteChange(answer);
  }
}

/** Of two copies the later one has the greater `changed`, also within a millisecond. */
function noteChange(answer) {
  answer.changed = Math.max(Date.now(), answer.changed + 1);
}

function timingOf({ usage, details, timing }) {
  const found = {
    firstMs: timing.first ?? undefined, perSecond: details?.tokens_per_s ?? undefined, promptTokens: usage?.prompt_tokens,
    answerTokens: usage?.completion_tokens, cachedTokens: details?.cached_tokens ?? usage?.prompt_tokens_details?.cached_tokens,
  };
  return Object.fromEntries(Object.entries(found).filter(([, value]) => Number.isFinite(value)));
}

async function tellEnd(conversation, answer) {
  if (answer.state === "stopped") announce("Stopped.");
  else if (answer.state === "done" && conversation === current) announce(`Answer: ${answer.text.slice(0, 1500)}`);
  else if (answer.error?.status === 401 && (await askKey(answer.error.message))) {
    await connect();
    if (conversation === current) await retry(answer);
  }
}

/** Stop the answer of the conversation that is shown. */
function stop() {
  running.get(current.id)?.controller.abort();
}

async function stepTo(node, by) {
  if (step(current, node.id, by) === null) return;
  show();
  await save(current);
}

/** What `showLook` shows of an answer; throws an Error for the reader. */
async function look(node) {
  try {
    const path = pathTo(current, node.parent);
    const ids = withoutRefused(path).flatMap((one) => one.pictures);
    await album.load(ids, { toSend: true });
    const messages = messagesOf(path, node.system ?? "", (id) => album.addressOf(id));
    const pictures = ids.map((id) => album.get(id)).filter((picture) => picture !== null);
    const request = { messages, answer: node.text, preset: node.preset || info.presets[0] };
    if (node.model) request.model = node.model;
    return { attention: await fetchAttention(request), pictures, preset: request.preset };
  } catch (error) {
    if (!(error instanceof ApiError)) console.error(error);
    throw error;
  }
}

// Conversations.

async function open(conversation) {
  current = conversation;
  composer.open(conversation.id);
  await album.load(picturesOf(conversation));
  show();
  thread.toEnd();
  $("question").focus();
}

/** Show the conversation in which nothing was asked yet. */
function begin() {
  if (Object.keys(unasked.nodes).length) unasked = newConversation(newId(), Date.now());
  current = unasked;
  composer.open(current.id);
  show();
}

function create() {
  begin();
  $("question").focus();
}

async function rename(conversation, title) {
  conversation.title = title;
  conversation.renamed = Date.now();
  await save(conversation);
  show();
}

async function remove(conversation) {
  forget(conversation);
  show();
  try {
    await store.deleteConversation(conversation);
  } catch (error) {
    composer.fail(`The conversation could not be deleted (${error.name}); it is back after a reload.`);
  }
  await storeTheRest();
}

async function exportAll() {
  try {
    const parts = [];
    const unread = [];
    for await (const piece of pack(conversations, pictureRecords(unread), Date.now())) parts.push(new Blob([piece]));
    const name = `llavakit-${new Date().toISOString().slice(0, 10)}.json`;
    download(name, new Blob(parts, { type: "application/json" }));
    announce(`${conversations.length} conversations were exported.`);
    if (unread.length) composer.fail(`Not in the export, since the browser does not give them: ${unread.length} pictures.`);
  } catch (error) {
    console.error(error);
    composer.fail(`The export failed: ${error.message}.`);
  }
}

/**
 * Pictures of all conversations for the export, also those that could not be stored. The rest is worth having where the
 * database does not give one: its id is added to `unread`.
 */
async function* pictureRecords(unread) {
  for (const id of new Set(conversations.flatMap(picturesOf))) {
    let record = null;
    try {
      const picture = album.get(id) ?? (await store.picture(id));
      if (picture) record = await toRecord(picture);
    } catch (error) {
      console.error(error);
      unread.push(id);
    }
    if (record) yield record;
  }
}

async function importFile(file) {
  const brought = []; // ids of pictures
  try {
    if (running.size) throw new Error("An answer is still coming. Stop it, or wait, and import then.");
    const found = await unpack(file);
    const wanted = new Set(found.conversations.flatMap(picturesOf));
    for (const picture of found.pictures.filter(({ id }) => wanted.has(id))) {
      brought.push(picture.id);
      await store.savePicture(fromRecord(picture));
    }
    for (const conversation of found.conversations) {
      const replaced = await store.conversation(conversation.id);
      if (replaced) brought.push(...picturesOf(replaced));
      await store.replaceConversation(conversation);
      adopt(conversation, true);
    }
    await album.load(picturesOf(current));
    show();
    announce(`${found.conversations.length} conversations were imported.`);
    composer.fail(found.problems.join(" "));
  } catch (error) {
    composer.fail(error.message || error.name);
  } finally {
    // What nobody shows would fill the storage, and nobody could delete it.
    await store.deleteUnused(brought).catch(console.error);
  }
}

// The server.

let unreachable = ""; // what is said of the server

async function connect() {
  try {
    const [found, models] = await Promise.all([fetchInfo(), fetchModels()]);
    info = { ...info, ...found };
    settings.offer(models, info.presets);
    $("planner").hidden = !info.has_planner;
    composer.withdraw(unreachable);
  } catch (error) {
    settings.offer(null, info.presets);
    if (error.status === 401) {
      if (await askKey(error.message)) await connect();
    } else composer.fail((unreachable = error.message));
  }
  showModel();
}

function toggleTheme() {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
  setTheme(isDark ? "light" : "dark");
}

async function askExample(load, question) {
  const asked = current;
  if (isTakingExample || running.has(asked.id)) return;
  isTakingExample = true;
  let picture;
  try {
    picture = await takePicture(await load(), limits());
  } finally {
    isTakingExample = false;
  }
  if (current !== asked) return; // somebody has gone on meanwhile
  album.add(picture);
  const example = { text: question, pictures: [picture.id], editing: null };
  const problem = refusal(example);
  if (problem) composer.fail(problem);
  else await send(example);
}

function start() {
  $("top-actions").append(
    iconButton("theme", "Light or dark", toggleTheme, { id: "theme-button" }),
    iconButton("settings", "Settings", () => settings.open(), { id: "settings-button" }));
  for (const id of ["kept", "kept-welcome"]) $(id).hidden = store.isKept;
  showGallery({
    onPicture: (file) => composer.addFiles([file]), onFailure: (message) => composer.fail(message),
    onQuestion: askExample,
  });
  let wanted = null;
  try {
    wanted = sessionStorage.getItem(CURRENT);
  } catch { /* storage switched off */ }
  const before = conversations.find((conversation) => conversation.id === wanted);
  if (before) open(before);
  else begin();
  store.listen(hear);
  addEventListener("pagehide", () => {
    for (const { conversation } of running.values()) {
      save(conversation, null);
      store.tell(conversation.id); // at once: the page may be gone before it is saved
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || isComposing(event) || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    if (composer.isEditing) composer.cancelEditing();
    else stop();
  });
  connect();
}

start();
