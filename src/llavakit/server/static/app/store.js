// Conversations and pictures in the browser's database. Where it is switched off they live as long as the page.
//
// Several tabs may show one conversation: what is saved is joined with what is stored, never written over it, and the
// other tabs are told.

import { absorb } from "./tree.js";

const NAME = "llavakit";
const VERSION = 1;
const TABLES = ["conversations", "pictures"];

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function openDatabase() {
  const request = indexedDB.open(NAME, VERSION);
  request.onupgradeneeded = () => {
    for (const table of TABLES) request.result.createObjectStore(table, { keyPath: "id" });
  };
  return promised(request);
}

/** A table in memory, with the part of a database's interface that is used here. */
class MemoryTable {
  #rows = new Map();

  get(id) {
    return this.#rows.get(id);
  }

  getAll() {
    return [...this.#rows.values()];
  }

  put(row) {
    this.#rows.set(row.id, structuredClone(row));
  }

  delete(id) {
    this.#rows.delete(id);
  }
}

/**
 * `isKept` says whether what is saved outlives the page. Pictures are `{id, blob, name, width, height, orientation}`.
 */
export class Store {
  #database = null;
  #memory = { conversations: new MemoryTable(), pictures: new MemoryTable() };
  #stored = new Set(); // ids of conversations that were stored: one of them that is missing was deleted
  #channel = null;

  async open() {
    try {
      this.#database = await openDatabase();
      this.#channel = new BroadcastChannel(NAME);
    } catch {
      this.#database = null;
    }
    return this;
  }

  get isKept() {
    return this.#database !== null;
  }

  /**
   * Be told what other tabs do: `{id, liveId, isReplaced}`. `liveId` is the answer that is still coming there, or null;
   * after `isReplaced` what is stored is to be shown, and not to be joined.
   */
  listen(heard) {
    if (this.#channel) this.#channel.onmessage = (event) => heard(event.data);
  }

  /** Say that a conversation changed. */
  tell(id, { liveId = null, isReplaced = false } = {}) {
    this.#channel?.postMessage({ id, liveId, isReplaced });
  }

  /** Do several things with the tables as one: all of it is stored, or nothing. */
  async #together(work) {
    if (!this.#database) return work(this.#memory, (value) => value);
    const transaction = this.#database.transaction(TABLES, "readwrite");
    const isStored = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    isStored.catch(() => {}); // where `work` fails first, that is the failure
    const tables = Object.fromEntries(TABLES.map((name) => [name, transaction.objectStore(name)]));
    const result = await work(tables, promised);
    await isStored;
    return result;
  }

  async #read(table, method, ...id) {
    if (!this.#database) return this.#memory[table][method](...id);
    return promised(this.#database.transaction(table, "readonly").objectStore(table)[method](...id));
  }

  /** All conversations, the latest first. */
  async conversations() {
    const found = await this.#read("conversations", "getAll");
    for (const { id } of found) this.#stored.add(id);
    return found.sort((a, b) => b.updated - a.updated);
  }

  /** A conversation as it is stored, or undefined. */
  async conversation(id) {
    const found = await this.#read("conversations", "get", id);
    if (found) this.#stored.add(id);
    return found;
  }

  /**
   * Store a conversation, joined with what other tabs stored of it; it is changed to what is stored then.
   *
   * Returns false, and stores nothing, where it was deleted meanwhile.
   */
  async saveConversation(conversation, liveId = null) {
    const isSaved = await this.#together(async ({ conversations }, found) => {
      const stored = await found(conversations.get(conversation.id));
      if (!stored && this.#stored.has(conversation.id)) return false;
      if (stored) absorb(conversation, stored);
      await found(conversations.put(conversation));
      return true;
    });
    if (!isSaved) return false;
    this.#stored.add(conversation.id);
    this.tell(conversation.id, { liveId });
    return true;
  }

  /** Store a conversation in place of what was stored of it. */
  async replaceConversation(conversation) {
    await this.#together(({ conversations }, found) => found(conversations.put(conversation)));
    this.#stored.add(conversation.id);
    this.tell(conversation.id, { isReplaced: true });
  }

  async savePicture(picture) {
    await this.#together(({ pictures }, found) => found(pictures.put(picture)));
  }

  picture(id) {
    return this.#read("pictures", "get", id);
  }

  /** Delete those of some pictures that no stored conversation shows. */
  async deleteUnused(ids) {
    await this.#together(async ({ conversations, pictures }, found) => {
      const kept = new Set((await found(conversations.getAll())).flatMap(picturesOf));
      for (const id of ids) if (!kept.has(id)) await found(pictures.delete(id));
    });
  }

  /** Delete a conversation, and the pictures that no other one shows. */
  async deleteConversation(conversation) {
    await this.#together(async ({ conversations, pictures }, found) => {
      const stored = await found(conversations.get(conversation.id));
      await found(conversations.delete(conversation.id));
      const kept = new Set((await found(conversations.getAll())).flatMap(picturesOf));
      for (const id of [conversation, stored ?? conversation].flatMap(picturesOf)) {
        if (!kept.has(id)) await found(pictures.delete(id));
      }
    });
    this.tell(conversation.id);
  }
}

/** Ids of all pictures of a conversation, shown or not. */
export function picturesOf(conversation) {
  return [...new Set(Object.values(conversation.nodes).flatMap((node) => node.pictures))];
}
