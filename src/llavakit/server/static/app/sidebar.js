// The list of conversations.

import { $, arrange, confirmed, el, iconButton, isComposing } from "./dom.js";
import { matches, titleOf } from "./tree.js";

const WIDE = matchMedia("(min-width: 1000px)"); // as in the style sheet: the list has a place of its own there

export class Sidebar {
  #does;
  #items = new Map(); // conversation id to {conversation, title, isCurrent, item}
  #isRenaming = false;
  #conversations = [];
  #currentId = null;

  /** `does` has open, create, rename, remove (each with a conversation), exportAll and importFile. */
  constructor(does) {
    this.#does = does;
    const pick = el("input", { type: "file", accept: ".json,application/json", hidden: true, id: "import" });
    pick.addEventListener("change", async () => {
      const [file] = pick.files;
      pick.value = "";
      if (file) await does.importFile(file);
    });
    $("sidebar-close").append(iconButton("close", "Close the list of conversations", () => this.close()));
    $("sidebar-new").append(iconButton("add", "New conversation", () => this.#leave(() => does.create()), { shown: true, id: "new-button" }));
    $("sidebar-foot").append(
      iconButton("save", "Export", () => does.exportAll(), { shown: true, id: "export-button" }),
      iconButton("open", "Import", () => pick.click(), { shown: true, id: "import-button" }), pick);
    $("top-menu").append(iconButton("menu", "Conversations", () => this.open(), { id: "menu-button", "aria-controls": "sidebar" }));
    $("search").addEventListener("input", () => this.#draw());
    $("scrim").addEventListener("click", () => this.close());
    document.addEventListener("keydown", (event) => this.#onEscape(event));
    WIDE.addEventListener("change", () => this.close(false));
    // On a narrow page the list lies over everything else: what has left it with the focus has left it.
    $("sidebar").addEventListener("focusout", (event) => {
      if (event.relatedTarget && !$("sidebar").contains(event.relatedTarget) && !event.relatedTarget.closest("dialog")) this.close(false);
    });
  }

  /** Lay the list over a narrow page; what is behind it cannot be reached until it is closed. */
  open() {
    $("sidebar").classList.add("open");
    document.querySelector("main").inert = true;
    $("search").focus();
  }

  close(givesFocusBack = true) {
    if (!$("sidebar").classList.contains("open")) return;
    $("sidebar").classList.remove("open");
    document.querySelector("main").inert = false;
    if (givesFocusBack) $("menu-button").focus();
  }

  #onEscape(event) {
    if (event.key !== "Escape" || isComposing(event) || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (event.target === $("search") && $("search").value) {
      $("search").value = "";
      this.#draw();
    } else if ($("sidebar").classList.contains("open")) this.close();
    else return;
    event.preventDefault();
  }

  #leave(then) {
    this.close(false);
    then();
  }

  show(conversations, currentId) {
    this.#conversations = conversations;
    this.#currentId = currentId;
    this.#draw();
  }

  #draw() {
    if (this.#isRenaming) return; // the list is drawn when that ends
    const query = $("search").value;
    const found = this.#conversations.filter((conversation) => matches(conversation, query));
    const none = query.trim() ? "Nothing found." : "No conversations yet.";
    this.#items = new Map(found.map((one) => [one.id, this.#item(one)]));
    arrange($("conversations"), found.length ? [...this.#items.values()].map((entry) => entry.item) : [el("li", { class: "note" }, none)]);
  }

  #item(conversation) {
    const title = titleOf(conversation);
    const isCurrent = conversation.id === this.#currentId;
    const old = this.#items.get(conversation.id);
    if (old?.conversation === conversation && old.title === title && old.isCurrent === isCurrent) return old;
    return { conversation, title, isCurrent, item: this.#newItem(conversation, title, isCurrent) };
  }

  #newItem(conversation, title, isCurrent) {
    const item = el("li", { class: isCurrent ? "current" : null },
      el("button", { type: "button", class: "open", title, "aria-current": isCurrent ? "true" : null, onclick: () => this.#leave(() => this.#does.open(conversation)) }, title),
      iconButton("edit", `Rename “${title}”`, () => this.#rename(item, conversation, title)),
      iconButton("remove", `Delete “${title}”`, () => this.#remove(conversation, title)));
    return item;
  }

  #rename(item, conversation, title) {
    const field = el("input", { "aria-label": `New name of “${title}”`, maxlength: 200 });
    field.value = title;
    this.#isRenaming = true;
    const end = (isTaken, hasFocus) => {
      if (!this.#isRenaming) return;
      this.#isRenaming = false;
      this.#items.delete(conversation.id); // its element holds the field
      if (isTaken && field.value.trim()) this.#does.rename(conversation, field.value.trim());
      this.#draw();
      if (hasFocus) this.#focus(conversation);
    };
    field.addEventListener("keydown", (event) => {
      if (isComposing(event)) return;
      if (event.key === "Enter") end(true, true);
      if (event.key === "Escape") {
        event.preventDefault();
        end(false, true);
      }
    });
    field.addEventListener("blur", () => end(true, false));
    item.replaceChildren(field);
    field.select();
  }

  #focus(conversation) {
    const idx = this.#conversations.filter((one) => matches(one, $("search").value)).indexOf(conversation);
    $("conversations").children[idx]?.querySelector("button")?.focus();
  }

  async #remove(conversation, title) {
    if (!(await confirmed(`Delete “${title}”? Its pictures go too, unless another conversation shows them.`, "Delete"))) return;
    await this.#does.remove(conversation);
    $("new-button").focus();
  }
}
