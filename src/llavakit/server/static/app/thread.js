// The conversation as it is read. Each turn is an article that stays as it is until its message changes; an answer that
// grows changes only its own last block.

import { $, announce, arrange, el, icon, iconButton } from "./dom.js";
import { showLook } from "./look.js";
import { render } from "./markdown.js";
import { isRefused, pathOf, placeOf } from "./tree.js";

const NEAR_END_PIXELS = 90;

export class Thread {
  #album;
  #does;
  #turns = new Map(); // node id to {made, article, body}: of what the article was made; the element of an answer's text

  /** `does` has edit, again, retry, step, look: each takes a node. `look` resolves to what `showLook` shows. */
  constructor(album, does) {
    this.#album = album;
    this.#does = does;
  }

  /** Show a conversation; `liveId` is the answer that is still coming, if there is one. */
  show(conversation, liveId) {
    const focus = this.#focused();
    const path = pathOf(conversation);
    let hasPictures = false;
    this.#turns = new Map(path.map((node) => {
      hasPictures ||= node.pictures.length > 0;
      return [node.id, this.#turn(node, placeOf(conversation, node.id), node.id === liveId, hasPictures)];
    }));
    arrange($("thread"), [...this.#turns.values()].map((turn) => turn.article));
    // One answer at a time: nothing that would begin another one, or lead away from it.
    for (const button of $("thread").querySelectorAll("[data-waits]")) button.disabled = liveId !== null;
    $("welcome").hidden = path.length > 0;
    const isLost = !$("thread").contains(document.activeElement) || document.activeElement.disabled;
    if (focus && isLost) this.#restore(focus);
  }

  #turn(node, place, isLive, hasPictures) {
    const shown = node.pictures.map((id) => this.#album.get(id)?.shown);
    const made = JSON.stringify([node, place, isLive, hasPictures, shown]);
    const old = this.#turns.get(node.id);
    if (old?.made === made) return old;
    return { made, ...(node.role === "user" ? this.#question(node, place) : this.#answer(node, place, isLive, hasPictures)) };
  }

  #focused() {
    const active = document.activeElement;
    if (!active?.dataset?.does || !$("thread").contains(active)) return null;
    const turns = [...$("thread").children];
    return { turn: turns.indexOf(active.closest(".turn")), does: active.dataset.does };
  }

  #restore({ turn, does }) {
    const button = $("thread").children[turn]?.querySelector(`[data-does="${does}"]:not(:disabled)`);
    (button ?? $("thread").children[turn]?.querySelector("button:not(:disabled)") ?? $("question")).focus();
  }

  #question(node, place) {
    const pictures = node.pictures.map((id) => this.#album.get(id)).map((picture) => el("li", {}, picture
      ? el("img", { src: picture.shown, alt: picture.name, width: picture.width, height: picture.height })
      : el("span", { class: "note" }, "A picture that is no longer stored")));
    const article = el("article", { class: "turn user", "data-id": node.id },
      el("h2", { class: "hidden" }, "You asked"),
      pictures.length ? el("ul", { class: "shown" }, ...pictures) : null,
      node.text ? el("div", { class: "said" }, node.text) : null,
      el("div", { class: "actions" }, ...this.#branch(node, place),
        this.#button("copy", "Copy the question", (button) => copy(node.text, button)),
        this.#button("edit", "Edit and ask again", () => this.#does.edit(node), { "data-waits": true })));
    return { article };
  }

  #answer(node, place, isLive, hasPictures) {
    const body = el("div", { class: "answer" });
    render(body, node.text);
    if (isLive && !node.text) body.append(el("div", { class: "waiting", "aria-hidden": "true" }, el("i"), el("i"), el("i")));
    const panel = el("div", { class: "look", hidden: true });
    const actions = el("div", { class: "actions" });
    if (!isLive) {
      actions.append(...this.#branch(node, place));
      if (node.text) actions.append(this.#button("copy", "Copy the answer", (button) => copy(node.text, button)));
      actions.append(this.#button("again", "Answer again", () => this.#does.again(node), { "data-waits": true }));
      if (hasPictures && node.text) actions.append(this.#lookButton(node, body, panel));
    }
    const article = el("article", { class: "turn assistant", "data-id": node.id, "aria-busy": String(isLive) },
      el("h2", { class: "hidden" }, "Answer"), body, panel,
      node.error && !isLive ? this.#failure(node) : null,
      actions, el("p", { class: "stats" }, isLive ? "" : statsOf(node)));
    return { article, body };
  }

  #button(does, label, onclick, attributes = {}) {
    const button = iconButton(does, label, () => onclick(button), { "data-does": does, ...attributes });
    return button;
  }

  #branch(node, { place, count }) {
    if (count < 2) return [];
    const what = node.role === "user" ? "question" : "answer";
    const step = (does, label, by, isEnd) =>
      iconButton(does, label, () => this.#does.step(node, by), { "data-does": does, disabled: isEnd, "data-waits": !isEnd });
    return [el("span", { class: "branch", role: "group", "aria-label": `Version ${place} of ${count} of this ${what}` },
      step("back", `Earlier version of this ${what}`, -1, place === 1), `${place} / ${count}`,
      step("next", `Later version of this ${what}`, 1, place === count))];
  }

  #lookButton(node, body, panel) {
    let opened = 0; // how often: a reply that comes after the panel was closed is not shown
    const button = iconButton("look", "Show where it looked", async () => {
      const isOpen = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!isOpen));
      panel.hidden = isOpen;
      opened += 1;
      if (isOpen) {
        body.replaceChildren();
        render(body, node.text);
        return;
      }
      const asked = opened;
      panel.classList.remove("two");
      panel.replaceChildren(el("p", { class: "note", role: "status" }, "Computing where it looked…"));
      try {
        const found = await this.#does.look(node);
        if (asked !== opened) return;
        showLook(panel, body, found);
      } catch (error) {
        if (asked !== opened) return;
        panel.replaceChildren(el("p", { role: "alert" }, error.message));
      }
      panel.closest(".turn")?.lastElementChild.scrollIntoView({ block: "nearest" });
    }, { shown: true, "aria-expanded": "false", "data-does": "look" });
    return button;
  }

  #failure(node) {
    const failure = el("div", { class: "failure", role: "alert" }, el("p", {}, node.error.message));
    if (isRefused(node)) failure.append(el("p", {}, "What you ask next is asked without this question."));
    else {
      const retry = () => this.#does.retry(node);
      failure.append(el("button", { type: "button", "data-does": "retry", "data-waits": true, onclick: retry }, "Try again"));
    }
    return failure;
  }

  /** Show what has come of an answer, and stay at the end if that is where the reader is. */
  grow(node) {
    const body = this.#turns.get(node.id)?.body;
    if (!body) return; // another conversation is shown
    const follows = this.isNearEnd();
    render(body, node.text);
    if (follows) this.toEnd();
  }

  isNearEnd() {
    const { scrollHeight, scrollTop, clientHeight } = $("scroll");
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PIXELS;
  }

  toEnd() {
    $("scroll").scrollTop = $("scroll").scrollHeight;
  }
}

function statsOf({ timing, finish, state, model }) {
  const parts = [];
  if (state === "stopped") parts.push("stopped");
  if (finish === "length") parts.push("cut off at the longest answer allowed");
  if (timing?.firstMs !== undefined) parts.push(`first word after ${seconds(timing.firstMs)}`);
  if (timing?.perSecond) parts.push(`${timing.perSecond.toFixed(timing.perSecond < 10 ? 1 : 0)} tokens/s`);
  if (timing?.cachedTokens) parts.push(`${timing.cachedTokens} of ${timing.promptTokens} prompt tokens from the cache`);
  if (model) parts.push(model);
  return parts.join(" · ");
}

function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

async function copy(text, button) {
  const isDone = await toClipboard(text);
  announce(isDone ? "Copied." : "Copying did not work.");
  if (!isDone) return;
  button.querySelector("svg").replaceWith(icon("done"));
  setTimeout(() => button.querySelector("svg").replaceWith(icon("copy")), 1500);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { /* not a secure context, or refused: the old way */ }
  const before = document.activeElement;
  const field = el("textarea", { class: "hidden" });
  field.value = text;
  document.body.append(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  before?.focus();
  return isDone;
}
