"use strict";
// What is chosen, and the address that says it: a link shows what was seen.

const D = window.PLANNER; // the records of data.js
for (const device of D.devices) for (const one of [device, device.own]) if (one) one.fit = D.fits[one.fit];
const ENGINES = ["llama.cpp", "ollama", "llavakit", "transformers", "transformers-4bit", "vllm"];
const LAYERED = ["llama.cpp", "ollama"];
const HALF_ONLY = ["transformers", "transformers-4bit", "vllm"];
const KINDS = [...new Set(D.devices.map((device) => device.kind))];
const SORTS = ["name", "memory", "needed", "verdict", "speed", "first", "price", "value", "watts"];
const DEFAULTS = {
  model: "llava:13b", quant: "q4_k_m", device: "GeForce RTX 3060 12GB", count: 1, engine: "llama.cpp", context: 4096,
  images: 1, visual: 576, text: 60, answer: 128, kv: "f16", flash: 0, parallel: 1, layers: -1, vision: 1, budget: 800,
  speed: 10, search: "", kind: "", partly: 0, sort: "memory",
};
const PRICES = [1, 1e6, 0];

// Lowest, highest, and the step of its slider, of every number; a step of 0 is one of any size.
function limitsOf(model) {
  const sizes = D.models[model].sizes;
  return {
    count: [1, 8, 1], context: [64, sizes.max_context_tokens, 64], images: [0, 7, 1], visual: [1, sizes.num_image_tokens, 1],
    text: [0, 2048, 4], answer: [1, 1024, 1], flash: [0, 1, 1], parallel: [1, 16, 1], layers: [-1, sizes.num_layers + 1, 1],
    vision: [0, 1, 1], budget: [1, 1e6, 0], speed: [0, 1e4, 0], partly: [0, 1, 1],
  };
}

function choicesOf(model) {
  return {
    model: Object.keys(D.models), quant: Object.keys(D.models[model].quants), device: D.devices.map((device) => device.name),
    engine: ENGINES, kv: Object.keys(D.kv), kind: ["", "all", ...KINDS], sort: SORTS.flatMap((name) => [name, `-${name}`]),
  };
}

// The number that a text says; null if it says none, or one outside of its limits.
function numberIn([low, high, step], text) {
  const value = text.trim() === "" ? NaN : Number(text);
  return value >= low && value <= high && (step === 0 || Number.isInteger(value)) ? value : null;
}

function deviceOf(name) { return D.devices.find((device) => device.name === name); }

// What is not known, and numbers outside of their limits, are left out as if they were not there.
function readState() {
  const given = [...new URLSearchParams(location.hash.slice(1).replace(/^\?/, ""))];
  const found = { ...DEFAULTS, prices: new Map() };
  for (const [name, value] of given) if (name === "model" && choicesOf(DEFAULTS.model).model.includes(value)) found.model = value;
  const choices = choicesOf(found.model);
  const limits = limitsOf(found.model);
  for (const [name, value] of given) {
    if (name === "search") found.search = value.slice(0, 80);
    else if (name === "price") readPrice(value, found.prices);
    else if (Object.hasOwn(choices, name) && choices[name].includes(value)) found[name] = value;
    else if (Object.hasOwn(limits, name)) found[name] = numberIn(limits[name], value) ?? found[name];
  }
  return found;
}

// A device and what it costs the reader, as in "GeForce RTX 3090=700".
function readPrice(text, prices) {
  const at = text.lastIndexOf("=");
  const price = at < 0 ? null : numberIn(PRICES, text.slice(at + 1));
  if (price !== null && deviceOf(text.slice(0, at))) prices.set(text.slice(0, at), price);
}

function writeState() {
  const changed = Object.keys(DEFAULTS).filter((name) => state[name] !== DEFAULTS[name]).map((name) => [name, state[name]]);
  for (const [name, price] of state.prices) changed.push(["price", `${name}=${price}`]);
  const hash = changed.length ? "#?" + new URLSearchParams(changed) : location.pathname.endsWith("/") ? "./" : "#?";
  try { history.replaceState(null, "", hash); } catch { location.hash = hash; }
}

function settingOf() {
  const sizes = D.models[state.model].sizes;
  return {
    engine: state.engine, num_context_tokens: state.context, num_parallel: state.parallel, num_images: state.images,
    num_visual_tokens: state.visual, num_text_tokens: state.text, num_new_tokens: state.answer,
    kv_block_bytes: D.kv[state.kv], has_flash_attention: state.flash === 1, micro_batch: 512,
    num_device_layers: state.layers < 0 ? sizes.num_layers + 1 : state.layers, is_vision_on_device: state.vision === 1,
    image_megapixels: 2,
  };
}

// What a device costs: as the reader says, or else by its list.
function priceOf(device) { return state.prices.get(device.name) ?? device.price; }
