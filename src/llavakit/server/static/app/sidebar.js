// The list of conversations.

import { $, confirmed, el, iconButton } from "./dom.js";
import { matches, titleOf } from "./tree.js";

export class Sidebar {
  #does;
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
    $("sidebar").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && $("sidebar").classList.contains("open")) this.close();
    });
    // On a narrow page the list lies over everything else: what has left it with the focus has left it.
    $("sidebar").addEventListener("focusout", (event) => {
      if (event.relatedTarget && !$("sidebar").contains(event.relatedTarget) && !event.relatedTarget.closest("dialog")) this.close(false);
    });
  }

  open() {
    $("sidebar").classList.add("open");
    $("search").focus();
  }

  close(givesFocusBack = true) {
    if (!$("sidebar").classList.contains("open")) return;
    $("sidebar").classList.remove("open");
    if (givesFocusBack) $("menu-button").focus();
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
    const query = $("search").value;
    const found = this.#conversations.filter((conversation) => matches(conversation, query));
    const none = query.trim() ? "Nothing found." : "No conversations yet.";
    $("conversations").replaceChildren(...(found.length ? found.map((one) => this.#item(one)) : [el("li", { class: "note" }, none)]));
  }

  #item(conversation) {
    const title = titleOf(conversation);
    const isCurrent = conversation.id === this.#currentId;
    const item = el("li", { class: isCurrent ? "current" : null },
      el("button", { type: "button", class: "open", title, "aria-current": isCurrent ? "true" : null, onclick: () => this.#leave(() => this.#does.open(conversation)) }, title),
      iconButton("edit", `Rename “${title}”`, () => this.#rename(item, conversation, title)),
      iconButton("remove", `Delete “${title}”`, () => this.#remove(conversation, title)));
    return item;
  }

  #rename(item, conversation, title) {
    const field = el("input", { "aria-label": `New name of “${title}”`, maxlength: 200 });
    field.value = title;
    let isOver = false;
    const end = (isTaken, hasFocus) => {
      if (isOver) return;
      isOver = true;
      if (isTaken && field.value.trim()) this.#does.rename(conversation, field.value.trim());
      this.#draw();
      if (hasFocus) this.#focus(conversation);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true, true);
      if (event.key === "Escape") {
        event.stopPropagation();
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
