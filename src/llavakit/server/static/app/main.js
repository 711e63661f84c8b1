// The page's state, and what its parts do to it.

import { ApiError, fetchAttention, fetchInfo, fetchModels, streamAnswer } from "./api.js";
import { Composer } from "./composer.js";
import { $, announce, download, iconButton, newId } from "./dom.js";
import { showGallery } from "./gallery.js";
import { showLook } from "./look.js";
import { Album, fromRecord, takePicture, toRecord } from "./pictures.js";
import { askKey, fieldsOf, setTheme, Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { picturesOf, Store } from "./store.js";
import { Thread } from "./thread.js";
import { pack, unpack } from "./transfer.js";
import { addNode, messagesOf, newConversation, pathOf, pathTo, step, titleOf } from "./tree.js";

const SAVE_EVERY_MS = 1000;
const CURRENT = "llavakit.current";

const store = await new Store().open();
const album = new Album(store);
let info = { model: "", presets: ["original", "hf"], max_image_bytes: 24 << 20, max_images: 16, has_planner: false };
let conversations = await store.conversations();
let current = newConversation(newId(), Date.now());
let running = null; // {conversation, node, controller}

const settings = new Settings({ onChange: showModel, onKey: connect });
const composer = new Composer(album, { onSend: send, onStop: stop, limits: () => ({ bytes: info.max_image_bytes, count: info.max_images }) });
const thread = new Thread(album, { edit: (node) => composer.edit(node), again, retry, step: stepTo, look });
const sidebar = new Sidebar({ open, create, rename, remove, exportAll, importFile });

function liveIdOf(conversation) {
  return running?.conversation === conversation ? running.node.id : null;
}

function show() {
  thread.show(current, liveIdOf(current));
  sidebar.show(conversations, current.id);
  const title = titleOf(current);
  $("title").textContent = title;
  document.title = conversations.includes(current) ? `${title} – llavakit` : "llavakit";
  try {
    sessionStorage.setItem(CURRENT, current.id);
  } catch { /* storage switched off: a reload starts with a new conversation */ }
}

function showModel() {
  $("model").textContent = settings.values.model || info.model || "";
}

async function save(conversation) {
  try {
    await store.saveConversation(conversation);
  } catch (error) {
    composer.fail(`The conversation could not be stored (${error.name}). Export it, or delete others.`);
  }
}

/** A conversation that changed goes to the top of the list. */
async function touch(conversation) {
  conversation.updated = Date.now();
  conversations = [conversation, ...conversations.filter((other) => other !== conversation)];
  await save(conversation);
}

// Asking.

async function send({ text, pictures, editing }) {
  const conversation = current;
  for (const id of pictures) await store.savePicture(recordOf(album.get(id))).catch(() => composer.fail("A picture could not be stored; it is gone after a reload."));
  const parent = editing ? conversation.nodes[editing].parent : (pathOf(conversation).at(-1)?.id ?? "");
  const question = addNode(conversation, parent, { id: newId(), role: "user", text, pictures });
  await ask(conversation, question);
}

function recordOf({ id, blob, name, width, height, orientation }) {
  return { id, blob, name, width, height, orientation };
}

function again(node) {
  return ask(current, current.nodes[node.parent]);
}

async function retry(node) {
  await ask(current, current.nodes[node.parent], node);
}

/** Answer a question; `node` is an answer that failed and is tried once more in its place. */
async function ask(conversation, question, node = null) {
  if (running) return;
  const { model, preset, system } = settings.values;
  const kept = { role: "assistant", state: "stopped", text: "", model: model || info.model, preset, system };
  const answer = node ?? addNode(conversation, question.id, { id: newId(), ...kept });
  if (node) {
    Object.assign(node, kept);
    delete node.error;
    delete node.timing;
    delete node.finish;
  }
  const controller = new AbortController();
  running = { conversation, node: answer, controller };
  composer.setBusy(true);
  await touch(conversation);
  show();
  thread.toEnd();
  announce("Answering.");
  try {
    await stream(conversation, question, answer, controller.signal);
  } finally {
    running = null;
    const follows = thread.isNearEnd();
    if (conversations.includes(conversation)) await touch(conversation); // otherwise it was deleted meanwhile
    show();
    composer.setBusy(false); // whoever sees the button sees the whole answer
    if (follows) thread.toEnd();
  }
  await tellEnd(conversation, answer);
}

async function stream(conversation, question, answer, signal) {
  let saved = performance.now();
  let frame = null;
  const onText = (text) => {
    answer.text += text;
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
  }
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

function stop() {
  running?.controller.abort();
}

async function stepTo(node, by) {
  if (step(current, node.id, by) === null) return;
  await save(current);
  show();
}

async function look(node, body, panel) {
  try {
    const path = pathTo(current, node.parent);
    const ids = path.flatMap((one) => (one.role === "user" ? one.pictures : []));
    await album.load(ids, { toSend: true });
    const messages = messagesOf(path, node.system ?? "", (id) => album.addressOf(id));
    const pictures = ids.map((id) => album.get(id)).filter((picture) => picture !== null);
    const request = { messages, answer: node.text, preset: node.preset || info.presets[0] };
    if (node.model) request.model = node.model;
    showLook(panel, body, await fetchAttention(request), pictures, request.preset);
    return null;
  } catch (error) {
    if (!(error instanceof ApiError)) console.error(error);
    return error.message;
  }
}

// Conversations.

async function open(conversation) {
  current = conversation;
  composer.clear();
  await album.load(picturesOf(conversation));
  show();
  thread.toEnd();
  $("question").focus();
}

function create() {
  current = newConversation(newId(), Date.now());
  composer.clear();
  show();
  $("question").focus();
}

async function rename(conversation, title) {
  conversation.title = title;
  await save(conversation);
  show();
}

async function remove(conversation) {
  conversations = conversations.filter((other) => other !== conversation);
  if (running?.conversation === conversation) stop();
  await store.deleteConversation(conversation);
  if (conversation === current) create();
  else show();
}

async function exportAll() {
  const ids = [...new Set(conversations.flatMap(picturesOf))];
  const pictures = (await Promise.all(ids.map((id) => store.picture(id)))).filter(Boolean);
  const content = pack(conversations, await Promise.all(pictures.map(toRecord)), Date.now());
  download(`llavakit-${new Date().toISOString().slice(0, 10)}.json`, "application/json", JSON.stringify(content));
  announce(`${conversations.length} conversations were exported.`);
}

async function importFile(file) {
  try {
    if (running) throw new Error("An answer is still coming. Stop it, or wait, and import then.");
    const found = unpack(await file.text());
    for (const picture of found.pictures) await store.savePicture(fromRecord(picture));
    for (const conversation of found.conversations) await store.saveConversation(conversation);
    conversations = await store.conversations();
    const same = conversations.find((conversation) => conversation.id === current.id);
    if (same) await open(same);
    else show();
    announce(`${found.conversations.length} conversations were imported.`);
  } catch (error) {
    composer.fail(error.message);
  }
}

// The server.

async function connect() {
  try {
    const [found, models] = await Promise.all([fetchInfo(), fetchModels()]);
    info = { ...info, ...found };
    settings.offer(models, info.presets);
    $("planner").hidden = !info.has_planner;
    composer.fail("");
  } catch (error) {
    settings.offer([], info.presets);
    if (error.status === 401) {
      if (await askKey(error.message)) await connect();
    } else composer.fail(error.message);
  }
  showModel();
}

function toggleTheme() {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
  setTheme(isDark ? "light" : "dark");
}

async function askExample(file, question) {
  const picture = await takePicture(file, info.max_image_bytes);
  album.add(picture);
  await send({ text: question, pictures: [picture.id], editing: null });
}

function start() {
  $("top-actions").append(
    iconButton("theme", "Light or dark", toggleTheme, { id: "theme-button" }),
    iconButton("settings", "Settings", () => settings.open(), { id: "settings-button" }));
  $("kept").hidden = store.isKept;
  showGallery({
    onPicture: (file) => composer.addFiles([file]), onFailure: (message) => composer.fail(message),
    onQuestion: async (file, question) => { if (!running) await askExample(file, question); },
  });
  let wanted = null;
  try {
    wanted = sessionStorage.getItem(CURRENT);
  } catch { /* storage switched off */ }
  const before = conversations.find((conversation) => conversation.id === wanted);
  if (before) open(before);
  else show();
  addEventListener("pagehide", () => { if (running) save(running.conversation); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !event.defaultPrevented && !document.querySelector("dialog[open]")) stop();
  });
  connect();
}

start();
