"use strict";
// What is chosen, and the address that says it.

const D = window.PLANNER; // the records of data.js
for (const device of D.devices) for (const one of [device, device.own]) if (one) one.fit = D.fits[one.fit];
const ENGINES = ["llama.cpp", "ollama", "llavakit", "transformers", "transformers-4bit", "vllm"];
const LAYERED = ["llama.cpp", "ollama"];
const HALF_ONLY = ["transformers", "transformers-4bit", "vllm"];
const DEFAULTS = {
  model: "llava:13b", quant: "q4_k_m", device: "GeForce RTX 3060 12GB", count: 1, engine: "llama.cpp", context: 4096,
  images: 1, visual: 576, text: 60, answer: 128, kv: "f16", flash: 0, parallel: 1, layers: -1, vision: 1, budget: 800,
  speed: 10,
};
let state = readState();

// State lives in the address: a link shows what was seen.
function readState() {
  const found = { ...DEFAULTS };
  for (const [name, value] of new URLSearchParams(location.hash.slice(1).replace(/^\?/, ""))) {
    if (!(name in DEFAULTS)) continue;
    if (typeof DEFAULTS[name] !== "number") found[name] = value;
    else if (Number.isFinite(Number(value))) found[name] = Number(value);
  }
  if (!(found.model in D.models)) found.model = DEFAULTS.model;
  if (!(found.quant in D.models[found.model].quants)) found.quant = DEFAULTS.quant;
  if (!deviceOf(found.device)) found.device = DEFAULTS.device;
  if (!ENGINES.includes(found.engine)) found.engine = DEFAULTS.engine;
  if (!(found.kv in D.kv)) found.kv = DEFAULTS.kv;
  const sizes = D.models[found.model].sizes;
  const bounds = {
    count: [1, 8], context: [64, sizes.max_context_tokens], images: [0, 7], visual: [1, sizes.num_image_tokens],
    text: [0, 2048], answer: [1, 1024], flash: [0, 1], parallel: [1, 16], layers: [-1, sizes.num_layers + 1],
    vision: [0, 1], budget: [1, 1e6], speed: [0, 1e4],
  };
  for (const [name, [low, high]] of Object.entries(bounds)) {
    found[name] = Math.min(high, Math.max(low, name === "budget" || name === "speed" ? found[name] : Math.round(found[name])));
  }
  return found;
}

function writeState() {
  const changed = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  const hash = changed.length ? "#?" + new URLSearchParams(changed) : location.pathname.endsWith("/") ? "./" : "#?";
  try { history.replaceState(null, "", hash); } catch { location.hash = hash; }
}

function deviceOf(name) { return D.devices.find((device) => device.name === name); }

function settingOf() {
  const sizes = D.models[state.model].sizes;
  const kv = D.kv[state.kv];
  const layered = LAYERED.includes(state.engine);
  return {
    engine: state.engine, num_context_tokens: state.context, num_parallel: state.parallel, num_images: state.images,
    num_visual_tokens: state.visual, num_text_tokens: state.text, num_new_tokens: state.answer, kv_block_bytes: kv,
    has_flash_attention: state.flash === 1 || (layered && kv < D.kv.f16), micro_batch: 512,
    num_device_layers: state.layers < 0 ? sizes.num_layers + 1 : state.layers, is_vision_on_device: state.vision === 1,
    image_megapixels: 2,
  };
}
