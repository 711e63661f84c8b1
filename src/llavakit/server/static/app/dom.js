// Elements without markup strings: text is always text.

const ICONS = {
  add: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01",
  camera: "M4 8h4l2-2.5h4L16 8h4v11H4zM12 16.5a3.2 3.2 0 1 0 0-6.4 3.2 3.2 0 0 0 0 6.4z",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  edit: "M5 19h4L19 9l-4-4L5 15zM13 7l4 4",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  done: "M5 13l4 4L19 7",
  look: "M2.5 12S6 6 12 6s9.5 6 9.5 6-3.5 6-9.5 6-9.5-6-9.5-6zM12 14.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5z",
  back: "M14 7l-5 5 5 5",
  next: "M10 7l5 5-5 5",
  remove: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  open: "M12 16V5M7 9l5-5 5 5M5 20h14",
};

/**
 * Make an element. Attributes named `on...` are listeners, `class` and the like are attributes, null and false are left
 * out; strings among the children become text.
 */
export function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function $(id) {
  return document.getElementById(id);
}

/** A drawing of 24 units a side, hidden from screen readers: the button that holds it has the words. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  drawing.setAttribute("class", "icon");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", ICONS[name]);
  drawing.append(path);
  return drawing;
}

/** A button with an icon; its label is shown where `shown` says so, and read out in every case. */
export function iconButton(name, label, onclick, { shown = false, ...attributes } = {}) {
  const words = el("span", { class: shown ? "label" : "hidden" }, label);
  return el("button", { type: "button", class: "quiet", title: shown ? null : label, onclick, ...attributes }, icon(name), words);
}

/** Say something through the live region. The same words twice in a row are said twice. */
export function announce(text) {
  const region = $("announcer");
  region.replaceChildren();
  setTimeout(() => region.replaceChildren(el("p", {}, text)), 50);
}

/** Ask a yes-or-no question in a dialog; resolves to whether the answer was yes. */
export function confirmed(question, yes) {
  const dialog = $("confirm");
  $("confirm-text").textContent = question;
  $("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  $("confirm-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Make these the children of an element; those that stay in their order are not moved, and keep the focus. */
export function arrange(parent, children) {
  for (const old of [...parent.children]) {
    if (!children.includes(old)) old.remove();
  }
  children.forEach((child, idx) => {
    if (parent.children[idx] !== child) parent.insertBefore(child, parent.children[idx] ?? null);
  });
}

/** Whether a key belongs to an input method that composes a word; Safari says so by the key's code alone. */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

/** Random letters and digits; needs no secure context. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Offer a Blob as a file. */
export function download(name, blob) {
  const address = URL.createObjectURL(blob);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
