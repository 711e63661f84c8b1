// Conversations and pictures in the browser's database. Where it is switched off they live as long as the page.

const NAME = "llavakit";
const VERSION = 1;

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function openDatabase() {
  const request = indexedDB.open(NAME, VERSION);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("conversations", { keyPath: "id" });
    request.result.createObjectStore("pictures", { keyPath: "id" });
  };
  return promised(request);
}

/**
 * `isKept` says whether what is saved outlives the page. Pictures are `{id, blob, name, width, height, orientation}`.
 */
export class Store {
  #database = null;
  #memory = { conversations: new Map(), pictures: new Map() };

  async open() {
    try {
      this.#database = await openDatabase();
    } catch {
      this.#database = null;
    }
    return this;
  }

  get isKept() {
    return this.#database !== null;
  }

  #table(name, mode) {
    return this.#database.transaction(name, mode).objectStore(name);
  }

  async #put(name, value) {
    if (this.#database) await promised(this.#table(name, "readwrite").put(value));
    else this.#memory[name].set(value.id, structuredClone(value));
  }

  async #get(name, id) {
    return this.#database ? promised(this.#table(name, "readonly").get(id)) : this.#memory[name].get(id);
  }

  async #delete(name, id) {
    if (this.#database) await promised(this.#table(name, "readwrite").delete(id));
    else this.#memory[name].delete(id);
  }

  /** All conversations, the latest first. */
  async conversations() {
    const found = this.#database
      ? await promised(this.#table("conversations", "readonly").getAll())
      : [...this.#memory.conversations.values()];
    return found.sort((a, b) => b.updated - a.updated);
  }

  saveConversation(conversation) {
    return this.#put("conversations", conversation);
  }

  savePicture(picture) {
    return this.#put("pictures", picture);
  }

  picture(id) {
    return this.#get("pictures", id);
  }

  /** Delete a conversation, and the pictures that no other one shows. */
  async deleteConversation(conversation) {
    await this.#delete("conversations", conversation.id);
    const kept = new Set((await this.conversations()).flatMap(picturesOf));
    for (const id of picturesOf(conversation)) {
      if (!kept.has(id)) await this.#delete("pictures", id);
    }
  }
}

/** Ids of all pictures of a conversation, shown or not. */
export function picturesOf(conversation) {
  return [...new Set(Object.values(conversation.nodes).flatMap((node) => node.pictures))];
}
