// Settings in a drawer, kept in the browser. The key is not among them: it lives as long as the tab.

import { $, iconButton } from "./dom.js";
import { readKey, writeKey } from "./api.js";

const NAME = "llavakit.settings";
const THEME = "llavakit.theme";
// An empty preset is the server's first one, its default.
const DEFAULTS = { model: "", preset: "", temperature: 0.2, topP: 0.7, maxTokens: 512, seed: null, system: "" };
const RANGES = { temperature: [0, 2], topP: [0.05, 1], maxTokens: [1, 8192], seed: [0, 2 ** 53 - 1] };

function readNumber(name, value) {
  if (value === null || value === "" || !Number.isFinite(Number(value))) return DEFAULTS[name];
  const [low, high] = RANGES[name];
  const number = Math.min(high, Math.max(low, Number(value)));
  return name === "maxTokens" || name === "seed" ? Math.round(number) : number;
}

/** Settings from anything that was stored: unknown names and values are left out. */
export function cleaned(found) {
  const values = { ...DEFAULTS };
  for (const name of ["model", "preset", "system"]) {
    if (typeof found?.[name] === "string") values[name] = found[name];
  }
  for (const name of Object.keys(RANGES)) values[name] = readNumber(name, found?.[name] ?? null);
  return values;
}

/** The fields of a request that follow from settings. */
export function fieldsOf({ model, preset, temperature, topP, maxTokens, seed }) {
  const fields = { temperature, max_tokens: maxTokens };
  if (preset) fields.preset = preset;
  if (temperature > 0) fields.top_p = topP;
  if (model) fields.model = model;
  if (seed !== null) fields.seed = seed;
  return fields;
}

export class Settings {
  values = { ...DEFAULTS };
  #presets = [];

  /** `onKey` is called after the key was changed, `onChange` after anything else was. */
  constructor({ onChange, onKey }) {
    try {
      this.values = cleaned(JSON.parse(localStorage.getItem(NAME)));
    } catch { /* storage switched off, or nonsense in it: the defaults hold */ }
    this.onChange = onChange;
    $("settings-close").append(iconButton("close", "Close the settings", () => $("settings").close()));
    for (const name of Object.keys(DEFAULTS)) $(`set-${name}`).addEventListener("change", () => this.#take(name));
    $("set-theme").addEventListener("change", () => setTheme($("set-theme").value));
    $("set-key").addEventListener("change", () => {
      writeKey($("set-key").value.trim());
      onKey();
    });
    $("settings-defaults").addEventListener("click", () => {
      this.values = { ...DEFAULTS };
      this.#save();
      this.#show();
    });
    // Enter in a field takes its value and closes the drawer, as the button does.
    $("settings").addEventListener("close", () => document.activeElement?.blur?.());
  }

  /**
   * Offer what the server has; a choice that it no longer has falls back to its default. `models` is null while it is not
   * known what it has: a choice of before stays.
   */
  offer(models, presets) {
    const { model } = this.values;
    const offered = models ?? (model ? [model] : []);
    const fill = (select, options) => select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    fill($("set-model"), [["", "The server's default"], ...offered.map((name) => [name, name])]);
    fill($("set-preset"), presets.map((preset) => [preset, preset]));
    this.#presets = presets;
    if (!offered.includes(model)) this.values.model = "";
    this.#show();
  }

  open() {
    this.#show();
    $("settings").showModal();
  }

  #take(name) {
    const { value } = $(`set-${name}`);
    this.values[name] = name in RANGES ? readNumber(name, value) : value;
    this.#save();
    this.#show(name);
  }

  #save() {
    try {
      localStorage.setItem(NAME, JSON.stringify(this.values));
    } catch { /* storage switched off: they hold as long as the page */ }
    this.onChange();
  }

  #show(taken = null) {
    if (this.#presets.length && !this.#presets.includes(this.values.preset)) [this.values.preset] = this.#presets;
    for (const [name, value] of Object.entries(this.values)) {
      // What is being written is left alone: the server's reply may come in the middle of it.
      if (name === taken || $(`set-${name}`) !== document.activeElement) $(`set-${name}`).value = value ?? "";
    }
    if ($("set-key") !== document.activeElement) $("set-key").value = readKey();
    $("set-theme").value = document.documentElement.dataset.theme ?? "";
  }
}

export function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  try {
    if (theme) localStorage.setItem(THEME, theme);
    else localStorage.removeItem(THEME);
  } catch { /* storage switched off: it holds as long as the page */ }
}

/** Ask for the server's key; resolves to whether one was given. */
export function askKey(message) {
  const dialog = $("ask-key");
  if (dialog.open) return Promise.resolve(false);
  $("ask-key-text").textContent = message;
  $("ask-key-input").value = "";
  $("ask-key-no").onclick = () => dialog.close("no");
  dialog.returnValue = "";
  dialog.showModal();
  $("ask-key-input").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = $("ask-key-input").value.trim();
      const isGiven = dialog.returnValue === "yes" && key !== "";
      if (isGiven) writeKey(key);
      resolve(isGiven);
    }, { once: true });
  });
}
