// Where questions are written: text and pictures, by keyboard, file, camera, clipboard and drop.

import { canShowCamera, hasCamera, takePhotograph } from "./camera.js";
import { $, announce, el, iconButton, isComposing } from "./dom.js";
import { filesOf, takePicture } from "./pictures.js";

const DOUBLE_CLICK_MS = 500;

/** A question that is being written. `pictures` are `{id, name}`; the id is null while the picture is being read. */
function newDraft() {
  return { text: "", pictures: [], editing: null, before: null, reading: [], isWaiting: false };
}

/** Take a picture out of a draft, which is not sent by itself then: it is another question without it. */
function remove(draft, picture) {
  draft.isWaiting = false;
  for (const { pictures } of [draft, draft.before ?? draft]) {
    if (pictures.includes(picture)) pictures.splice(pictures.indexOf(picture), 1);
  }
}

export class Composer {
  #album;
  #drafts = new Map(); // by conversation
  #draft = newDraft();
  #isBusy = false;
  #isOpen = false; // for a conversation
  #sentAt = -Infinity; // when the button was clicked, in ms

  /**
   * `onSend({text, pictures, editing})`, `onStop()`; `refusal` of what `onSend` takes says why it cannot be asked, or
   * ""; `limits()` gives the server's `{bytes, pixels, count}`.
   */
  constructor(album, { onSend, onStop, refusal, limits }) {
    this.#album = album;
    this.onSend = onSend;
    this.onStop = onStop;
    this.refusal = refusal;
    this.limits = limits;
    this.#build();
    this.#listen();
  }

  #build() {
    $("composer-tools").append(
      iconButton("picture", "Add pictures", () => $("pick").click(), { id: "pick-button" }),
      iconButton("camera", "Take a photograph", () => this.#photograph(), { id: "camera-button", hidden: true }));
    hasCamera().then((found) => { $("camera-button").hidden = !found; });
    $("editing").append(iconButton("close", "Cancel editing", () => this.cancelEditing()));
    $("composer-send").append(this.#button());
  }

  #listen() {
    const question = $("question");
    question.addEventListener("input", () => this.#fit());
    addEventListener("resize", () => this.#fit());
    question.addEventListener("keydown", (event) => {
      if (isComposing(event)) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        if (!this.#isBusy) this.#submit();
      } else if (event.key === "Escape" && this.#draft.editing) {
        event.preventDefault();
        this.cancelEditing();
      }
    });
    $("composer").addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["pick", "camera"]) {
      $(id).addEventListener("change", async () => {
        const files = [...$(id).files];
        $(id).value = ""; // so that the same file can be chosen again
        await this.addFiles(files);
      });
    }
    document.addEventListener("paste", (event) => {
      const { pictures, others } = filesOf(event.clipboardData);
      if (!pictures.length || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      this.addFiles(pictures, others);
    });
    this.#listenToDrops();
  }

  #listenToDrops() {
    let depth = 0;
    const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const end = () => {
      depth = 0;
      $("drop").hidden = true;
    };
    addEventListener("dragenter", (event) => {
      if (!hasFiles(event)) return;
      depth += 1;
      $("drop").hidden = false;
    });
    addEventListener("dragleave", () => {
      depth -= 1;
      if (depth <= 0) end();
    });
    addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
    addEventListener("drop", (event) => {
      end();
      if (!hasFiles(event)) return;
      event.preventDefault();
      const { pictures, others } = filesOf(event.dataTransfer);
      this.addFiles(pictures, others);
    });
  }

  async #photograph() {
    if (!canShowCamera()) {
      $("camera").click();
      return;
    }
    try {
      const file = await takePhotograph();
      if (file) await this.addFiles([file]);
    } catch (error) {
      this.fail(error.message);
    }
  }

  /** Add pictures to the draft that is shown; says of each that could not be taken why, and of `others` that they are none. */
  async addFiles(files, others = []) {
    const draft = this.#draft;
    const { bytes, pixels, count } = this.limits();
    const room = Math.max(0, count - draft.pictures.length);
    const problems = others.map((file) => `${file.name} is no picture.`);
    if (files.length > room) problems.push(`At most ${count} pictures are taken here; ${files.length - room} were left out.`);
    const entries = files.slice(0, room).map((file) => ({ file, picture: { id: null, name: file.name || "picture" } }));
    draft.pictures.push(...entries.map((entry) => entry.picture));
    this.fail(problems.join(" "));
    const reading = this.#readAll(draft, entries, { bytes, pixels }, problems);
    draft.reading.push(reading);
    this.#show();
    $("question").focus();
    await reading;
    draft.reading.splice(draft.reading.indexOf(reading), 1);
    if (draft !== this.#draft) return;
    if (problems.length) this.fail(problems.join(" "));
    this.#show();
  }

  async #readAll(draft, entries, limits, problems) {
    for (const { file, picture } of entries) {
      try {
        const found = await takePicture(file, limits);
        this.#album.add(found);
        picture.id = found.id;
        announce(`${picture.name} was added.`);
      } catch (error) {
        remove(draft, picture);
        problems.push(error.message);
      }
      if (draft === this.#draft) this.#show();
    }
  }

  fail(message) {
    $("composer-error").textContent = message;
    $("composer-error").hidden = message === "";
  }

  /** Take a message back, unless another one is shown meanwhile. */
  withdraw(message) {
    if ($("composer-error").textContent === message) this.fail("");
  }

  /** Go on with the draft of a conversation. */
  open(conversationId) {
    this.#draft.text = $("question").value;
    this.#draft.isWaiting = false; // nothing is sent from a conversation that is not seen
    // What was typed before there was a conversation belongs to the first one.
    if (!this.#drafts.has(conversationId)) this.#drafts.set(conversationId, this.#isOpen ? newDraft() : this.#draft);
    this.#isOpen = true;
    this.#use(this.#drafts.get(conversationId));
    this.fail("");
  }

  /** Forget the draft of a conversation that is gone. */
  forget(conversationId) {
    this.#drafts.delete(conversationId);
  }

  #use(draft) {
    this.#draft = draft;
    $("question").value = draft.text;
    this.#show();
  }

  /** Ask an earlier question anew: it is put here to be changed. What stood here comes back afterwards. */
  edit(node) {
    const { pictures, editing, before } = this.#draft;
    Object.assign(this.#draft, {
      before: editing ? before : { text: $("question").value, pictures }, editing: node.id, text: node.text, isWaiting: false,
      pictures: node.pictures.map((id) => ({ id, name: this.#album.get(id)?.name ?? "a picture that is gone" })),
    });
    this.#use(this.#draft);
    $("question").focus();
    $("question").setSelectionRange(node.text.length, node.text.length);
  }

  get isEditing() {
    return this.#draft.editing !== null;
  }

  cancelEditing() {
    this.#empty();
    $("question").focus();
  }

  /** What was written is sent or given up; what an edit had put aside comes back. */
  #empty() {
    Object.assign(this.#draft, { text: "", pictures: [], ...this.#draft.before, editing: null, before: null });
    this.fail("");
    this.#use(this.#draft);
  }

  /** Offer to stop an answer, or to send a question. */
  setBusy(isBusy) {
    if (isBusy === this.#isBusy) return;
    const hadFocus = $("composer-send").contains(document.activeElement);
    this.#isBusy = isBusy;
    $("composer-send").replaceChildren(this.#button());
    if (hadFocus) $("question").focus();
  }

  #button() {
    // The second click of a double click meets the other button, which has come to the same place.
    const isSecond = (event) => event.detail > 1 || (event.detail === 1 && event.timeStamp - this.#sentAt < DOUBLE_CLICK_MS);
    if (this.#isBusy) {
      return iconButton("stop", "Stop the answer", (event) => { if (!isSecond(event)) this.onStop(); }, { id: "stop-button" });
    }
    return iconButton("send", "Send", (event) => {
      if (event.detail > 1) return;
      if (event.detail === 1) this.#sentAt = event.timeStamp;
      this.#submit();
    }, { id: "send-button" });
  }

  async #submit() {
    const draft = this.#draft;
    if (draft.reading.length && !(await this.#waitForPictures(draft))) return;
    const text = $("question").value.trim();
    const pictures = draft.pictures.map((picture) => picture.id);
    if (!text) {
      this.fail(pictures.length ? "Ask something about the picture." : "");
      $("question").focus();
      return;
    }
    const asked = { text, pictures, editing: draft.editing };
    const refusal = this.refusal(asked);
    if (refusal) {
      this.fail(refusal);
      return;
    }
    this.#empty();
    this.onSend(asked);
  }

  /** Resolves to whether the draft is still to be sent once its pictures are read: none failed, and it is still shown. */
  async #waitForPictures(draft) {
    if (draft.isWaiting) return false;
    draft.isWaiting = true;
    this.#show();
    while (draft.reading.length) await draft.reading[0];
    const isSent = draft.isWaiting && draft === this.#draft && !this.#isBusy;
    draft.isWaiting = false;
    this.#show();
    return isSent;
  }

  #show() {
    const draft = this.#draft;
    const isReading = draft.pictures.some((picture) => picture.id === null);
    $("editing").hidden = draft.editing === null;
    $("reading").hidden = !isReading;
    $("reading").textContent = draft.isWaiting ? "The question is sent as soon as its pictures are read." : "Pictures are being read…";
    $("attached").replaceChildren(...draft.pictures.map((picture) => {
      const onRemove = () => {
        remove(draft, picture);
        this.#show();
        $("question").focus();
      };
      const image = picture.id === null ? el("span", { class: "reading" }, picture.name)
        : el("img", { src: this.#album.get(picture.id)?.shown ?? null, alt: picture.name });
      return el("li", {}, image, iconButton("close", `Remove ${picture.name}`, onRemove));
    }));
    this.#fit();
  }

  #fit() {
    const question = $("question");
    question.style.height = "auto";
    question.style.height = `${question.scrollHeight}px`;
  }
}
