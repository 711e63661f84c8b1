// Where questions are written: text and pictures, by keyboard, file, camera, clipboard and drop.

import { canShowCamera, hasCamera, takePhotograph } from "./camera.js";
import { $, announce, el, iconButton } from "./dom.js";
import { filesOf, takePicture } from "./pictures.js";

export class Composer {
  #album;
  #pictures = []; // ids, in order
  #editing = null; // id of the question that is asked anew
  #isBusy = false;
  #send;

  /** `onSend({text, pictures, editing})`, `onStop()`; `limits()` gives `{bytes, count}`. */
  constructor(album, { onSend, onStop, limits }) {
    this.#album = album;
    this.onSend = onSend;
    this.onStop = onStop;
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
    this.setBusy(false);
  }

  #listen() {
    const question = $("question");
    question.addEventListener("input", () => this.#fit());
    addEventListener("resize", () => this.#fit());
    question.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.#isBusy) this.#submit();
      } else if (event.key === "Escape" && this.#editing) this.cancelEditing();
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
      const files = filesOf(event.clipboardData);
      if (!files.length || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      this.addFiles(files);
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
      const files = filesOf(event.dataTransfer);
      if (files.length) this.addFiles(files);
      else this.fail("That is no picture.");
    });
  }

  async #photograph() {
    if (!canShowCamera()) {
      $("camera").click();
      return;
    }
    this.fail("");
    try {
      const file = await takePhotograph();
      if (file) await this.addFiles([file]);
    } catch (error) {
      this.fail(error.message);
    }
  }

  /** Add pictures; says which could not be taken. */
  async addFiles(files) {
    this.fail("");
    for (const file of files) {
      const { bytes, count } = this.limits();
      try {
        if (this.#pictures.length >= count) throw new Error(`At most ${count} pictures are taken here.`);
        const picture = await takePicture(file, bytes);
        this.#album.add(picture);
        this.#pictures.push(picture.id);
        announce(`${picture.name} was added.`);
      } catch (error) {
        this.fail(error.message);
      }
    }
    this.#show();
    $("question").focus();
  }

  fail(message) {
    $("composer-error").textContent = message;
    $("composer-error").hidden = message === "";
  }

  /** Ask an earlier question anew: it is put here to be changed. */
  edit(node) {
    this.#editing = node.id;
    this.#pictures = [...node.pictures];
    $("question").value = node.text;
    this.#show();
    $("question").focus();
    $("question").setSelectionRange(node.text.length, node.text.length);
  }

  cancelEditing() {
    this.clear();
    $("question").focus();
  }

  clear() {
    this.#editing = null;
    this.#pictures = [];
    $("question").value = "";
    this.fail("");
    this.#show();
  }

  setBusy(isBusy) {
    const hadFocus = $("composer-send").contains(document.activeElement);
    this.#isBusy = isBusy;
    this.#send = isBusy
      ? iconButton("stop", "Stop the answer", () => this.onStop(), { id: "stop-button" })
      : iconButton("send", "Send", () => this.#submit(), { id: "send-button" });
    $("composer-send").replaceChildren(this.#send);
    if (hadFocus) $("question").focus();
  }

  #submit() {
    const text = $("question").value.trim();
    if (!text) {
      this.fail(this.#pictures.length ? "Ask something about the picture." : "");
      $("question").focus();
      return;
    }
    const asked = { text, pictures: [...this.#pictures], editing: this.#editing };
    this.clear();
    this.onSend(asked);
  }

  #show() {
    $("editing").hidden = this.#editing === null;
    $("attached").replaceChildren(...this.#pictures.map((id, idx) => {
      const picture = this.#album.get(id);
      const remove = () => {
        this.#pictures.splice(idx, 1);
        this.#show();
        $("question").focus();
      };
      return el("li", {}, el("img", { src: picture?.shown ?? null, alt: picture?.name ?? "a picture that is gone" }),
        iconButton("close", `Remove ${picture?.name ?? "the picture"}`, remove));
    }));
    this.#fit();
  }

  #fit() {
    const question = $("question");
    question.style.height = "auto";
    question.style.height = `${question.scrollHeight}px`;
  }
}
