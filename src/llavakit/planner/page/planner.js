"use strict";
// The page around formulas.js (translated from Python) and data.js (records). No formula lives here.

const D = window.PLANNER;
for (const device of D.devices) for (const one of [device, device.own]) if (one) one.fit = D.fits[one.fit];
const PARTS = {
  "weights": "weights", "vision and projector": "vision", "vision buffer": "vision", "key-value cache": "cache",
  "compute buffer": "buffer", "activations": "buffer", "recorded graphs": "buffer", "exchange buffers": "buffer", "driver context": "context",
  "driver context and libraries": "context", "held back": "context", "program": "program", "vocabulary": "program",
};
const BASIS = {
  exact: "from shapes", logged: "formula of logged sizes", fitted: "fitted", measured: "measured", assumed: "assumed",
};
const isProcessor = (device) => device.numbers.kind === "cpu";
// Programs of torch, and our own on a GPU, compute with 16 bits a weight.
const isHalf = (device, engine) => HALF_ONLY.includes(engine) || (engine === "llavakit" && !isProcessor(device));
const isOwn = (device, engine) => engine === "llavakit" && isProcessor(device);
const WORDS = { fits: "It fits.", tight: "Barely.", partly: "Only partly.", no: "It does not fit." };
const ENGINES = ["llama.cpp", "ollama", "llavakit", "transformers", "transformers-4bit", "vllm"];
const LAYERED = ["llama.cpp", "ollama"];
const HALF_ONLY = ["transformers", "transformers-4bit", "vllm"];
const DEFAULTS = {
  model: "llava:13b", quant: "q4_k_m", device: "GeForce RTX 3060 12GB", count: 1, engine: "llama.cpp", context: 4096,
  images: 1, visual: 576, text: 60, answer: 128, kv: "f16", flash: 0, parallel: 1, layers: -1, vision: 1, budget: 800,
  speed: 10,
};
let state = readState();
let sorting = { key: "memory", down: false };

function $(id) { return document.getElementById(id); }

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

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

// Why a setting cannot be; nothing where it can.
function problemOf(setting) {
  const tokens = prompt_tokens(D.models[state.model].sizes, setting);
  if (setting.engine === "llavakit" && !D.ownKv.some((name) => D.kv[name] === setting.kv_block_bytes)) {
    return `llavakit keeps no keys and values in ${state.kv}. Take one of ${D.ownKv.join(", ")}, or another engine.`;
  }
  if (tokens < setting.num_context_tokens) return "";
  return `A prompt of ${tokens} tokens and its answer are longer than the context of ${setting.num_context_tokens}. Take fewer pictures or more context.`;
}

// Why a program cannot be dealt to so many devices; nothing where it can.
function undealt(setting, count) {
  const heads = D.models[state.model].sizes.num_heads;
  return setting.engine === "vllm" && heads % count ? `vllm gives every device as many attention heads, and ${heads} heads cannot be dealt to ${count} devices.` : "";
}

// One plan: the same steps as planner/plans.py, with the same formulas.
function planFor(device, count, quantName, setting) {
  const model = D.models[state.model].sizes;
  const isHost = isProcessor(device);
  const isLayered = LAYERED.includes(setting.engine);
  const problem = problemOf(setting) || device.unplanned[setting.engine] || undealt(setting, isHost ? 1 : count) || "";
  const tokens = prompt_tokens(model, setting);
  setting = with_field(setting, "num_new_tokens", Math.max(1, Math.min(setting.num_new_tokens, setting.num_context_tokens - tokens)));
  if (!isLayered) setting = { ...setting, num_device_layers: model.num_layers + 1, is_vision_on_device: true };
  const quant = D.models[state.model].quants[isHalf(device, setting.engine) ? "f16" : quantName];
  const own = isOwn(device, setting.engine) ? device.own : device;
  const host = isHost ? own.numbers : { ...D.host, ...device.host };
  const isAlone = isHost || (isLayered && setting.num_device_layers === 0);
  let devices = isAlone ? [] : Array(setting.engine === "llavakit" ? 1 : count).fill(device.numbers);
  if (HALF_ONLY.includes(setting.engine) && devices.length === 0) devices = [host];
  const fit = own.fit;
  const fits = devices.map(() => fit);
  const hostFit = isHost ? fit : D.hostFit;
  const program = D.programBytes;
  const verdict = problem ? "no" : verdict_of(model, quant, setting, devices, host, program);
  const parts = parts_of(model, quant, setting, devices, program).filter((part) => part.bytes > 0);
  const totals = place_totals(parts, devices.length);
  const usable = usable_places(totals, devices, host);
  let running = setting;
  let layers = model.num_layers + 1;
  if (verdict === "partly" || (verdict === "no" && isLayered)) {
    layers = most_device_layers(model, quant, setting, devices, host, program);
    running = with_field(setting, "num_device_layers", layers);
  }
  const plan = { model, quant, setting, devices, host, verdict, problem, parts, totals, usable, layers, isAlone, speed: null };
  if (verdict !== "no" && (isLayered || setting.engine === "llavakit")) {
    const args = [model, quant, running, devices, fits, host, hostFit];
    const working = workingFits(model, quant, running, devices, fits, hostFit);
    plan.speed = {
      decode: setting.num_parallel / decode_seconds(...args, tokens),
      full: setting.num_parallel / decode_seconds(...args, setting.num_context_tokens - 1),
      factor: Math.max(...working.map((each) => each.decode_factor)),
      isGuess: isOwn(device, setting.engine) || working.some((each) => each.num_devices <= D.minOtherDevices),
      image: image_seconds(running, D.secondsPerMegapixel),
      vision: vision_seconds(model, running, devices, fits, host, hostFit),
      prompt: prompt_seconds(...args, Math.max(tokens, 1)),
      first: first_token_seconds(...args, D.secondsPerMegapixel),
      answer: answer_seconds(...args, D.secondsPerMegapixel),
    };
    const images = setting.num_images * setting.num_parallel;
    plan.speed.joules = images ? energy_joules(plan.speed.answer, devices, host) / images : null;
    plan.speed.images = images ? (3600 * images) / plan.speed.answer : null;
  }
  return plan;
}

// Of all that holds weights: a sum of times is off by no more than the one of its parts that is most off.
function workingFits(model, quant, setting, devices, fits, hostFit) {
  if (!LAYERED.includes(setting.engine) || !devices.length) return [devices.length ? fits[0] : hostFit];
  const shares = device_weights(model, quant, setting, devices);
  return [...fits, hostFit].filter((fit, idx) => shares[idx].weights > 0);
}

function neededBytes(plan) { return plan.isAlone ? sum_list(plan.totals) : plan.totals[0]; }

// Words and numbers.
function bytes(value) { return value >= 99.95e6 ? (value / 1e9).toFixed(2) + " GB" : (value / 1e6).toFixed(1) + " MB"; }
function seconds(value) { return value < 1 ? Math.round(value * 1000) + " ms" : value.toFixed(value < 100 ? 1 : 0) + " s"; }
function rate(value) { return value.toFixed(value < 20 ? 1 : 0); }
function range(value, factor) { return `${rate(value)} (${rate(value / factor)} to ${rate(value * factor)})`; }
function priced(device) { return `$${device.price.toLocaleString("en")} (list price of ${device.price_year})`; }
function dollars(device) {
  return device.price === null ? "-" : `${device.price.toLocaleString("en")} (${device.price_year})`;
}

// Controls.
function option(value, text, chosen) { return el("option", { value, selected: value === chosen }, text); }

function fillControls() {
  $("model-name").append(...Object.keys(D.models).map((name) => option(name, D.models[name].title, state.model)));
  $("quant").append(...Object.keys(D.models[state.model].quants).map((name) => option(name, name.toUpperCase(), state.quant)));
  const kinds = [...new Set(D.devices.map((device) => device.kind))];
  for (const kind of kinds) {
    $("device").append(el("optgroup", { label: kind }, ...D.devices.filter((d) => d.kind === kind).map((d) => option(d.name, d.name, state.device))));
  }
  $("count").append(...[1, 2, 3, 4, 6, 8].map((count) => option(String(count), String(count), String(state.count))));
  $("engine").append(...ENGINES.map((name) => option(name, name, state.engine)));
  $("kind").append(option("", "all but servers' cards", ""), option("all", "all", ""), ...kinds.map((kind) => option(kind, kind, "")));
  for (const [id, name] of [["model-name", "model"], ["quant", "quant"], ["device", "device"], ["count", "count"], ["engine", "engine"]]) {
    $(id).addEventListener("change", () => change(name, name === "count" ? Number($(id).value) : $(id).value));
  }
  for (const id of ["search", "kind", "partly"]) $(id).addEventListener("input", () => showDevices());
  for (const [id, name] of [["budget", "budget"], ["min-speed", "speed"]]) {
    $(id).value = state[name];
    $(id).addEventListener("input", () => { if ($(id).value !== "") change(name, Math.max(0, Number($(id).value))); });
  }
  for (const name of ["chosen", "sliders"]) $(name).addEventListener("submit", (event) => event.preventDefault());
  makeSliders();
}

function makeSliders() {
  const sizes = D.models[state.model].sizes;
  const sliders = [
    ["context", "Context, tokens", 256, sizes.max_context_tokens, 64], ["images", "Pictures in a prompt", 0, 6, 1],
    ["visual", "Tokens kept of a picture", 1, sizes.num_image_tokens, 1], ["text", "Text of a prompt, tokens", 0, 1024, 4],
    ["answer", "Answer, tokens", 1, 1024, 1], ["parallel", "Sequences side by side", 1, 16, 1],
    ["layers", "Layers on devices", 0, sizes.num_layers + 1, 1],
  ];
  $("sliders").replaceChildren();
  for (const [name, label, low, high, step] of sliders) {
    const value = name === "layers" && state.layers < 0 ? high : state[name];
    const output = el("output", { id: `${name}-value`, for: name }, String(value));
    const input = el("input", { type: "range", id: name, min: low, max: high, step, value, oninput: () => {
      const chosen = Number(input.value);
      output.textContent = input.value;
      change(name, name === "layers" && chosen === high ? -1 : chosen);
    } });
    $("sliders").append(el("div", { class: "field" }, output, el("label", { for: name }, label), input));
  }
  const kv = el("select", { id: "kv", onchange: () => change("kv", kv.value) }, ...Object.keys(D.kv).map((name) => option(name, name, state.kv)));
  $("sliders").append(el("div", { class: "field" }, el("label", { for: "kv" }, "Keys and values"), kv));
  for (const [name, label] of [["flash", "Flash attention"], ["vision", "Vision tower on the device"]]) {
    const box = el("input", { type: "checkbox", id: name, checked: state[name] === 1, onchange: () => change(name, box.checked ? 1 : 0) });
    $("sliders").append(el("div", { class: "check" }, box, el("label", { for: name }, label)));
  }
}

function change(name, value) {
  state = { ...state, [name]: value };
  if (name === "model") makeSliders();
  writeState();
  show();
}

// What is shown.
let pending = false;
function show() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; showAll(); });
}

function showAll() {
  const device = deviceOf(state.device);
  const setting = settingOf();
  const plan = planFor(device, state.count, state.quant, setting);
  $("count").disabled = isProcessor(device) || state.engine === "llavakit";
  for (const name of ["layers", "vision"]) $(name).disabled = isProcessor(device) || !LAYERED.includes(state.engine);
  $("flash").checked = setting.has_flash_attention;
  $("flash").disabled = !LAYERED.includes(state.engine) || (setting.has_flash_attention && state.flash === 0); // quantized values need it
  showVerdict(device, plan);
  showMemory(device, plan);
  showSpeed(plan);
  showTokens(plan.model, setting);
  showQuants(device, setting);
  showDevices();
}

function showVerdict(device, plan) {
  const box = $("verdict");
  const sizes = plan.model;
  const name = plan.isAlone && !isProcessor(device) ? "the processor alone" : (plan.devices.length > 1 ? `${plan.devices.length} x ` : "") + device.name;
  if (plan.problem) {
    box.className = "verdict no";
    box.replaceChildren(plan.problem);
    return;
  }
  box.className = `verdict ${plan.verdict}`;
  const word = el("span", { class: `word ${plan.verdict}` }, WORDS[plan.verdict] + " ");
  const counted = cached_tokens(sizes, plan.setting, plan.devices);
  const what = `${D.models[state.model].title} at ${plan.quant.name.toUpperCase()} on ${name} ${counted < state.context ? "for a prompt and answer of" : "with"} ${counted.toLocaleString("en")} tokens${counted < state.context ? "" : " of context"}`;
  const left = plan.usable.map((have, idx) => have - plan.totals[idx]);
  const spare = Math.min(...(left.length > 1 ? left.slice(0, -1) : left));
  const context = largest_context(sizes, plan.quant, plan.setting, plan.devices, plan.host, D.programBytes);
  const around = left[left.length - 1];
  let text;
  if (plan.verdict === "fits") text = `${what}: ${bytes(spare)} are left.`;
  else if (plan.verdict === "tight") text = `${what}: ${around < spare ? `${bytes(around)} are left in the computer around it` : `${bytes(spare)} are left, which a desktop on the same device may take`}.`;
  else {
    text = `${what}: ${spare < 0 ? `${bytes(-spare)} are missing` : `${bytes(-around)} are missing in the computer around it`}. `;
    if (plan.verdict === "partly") text += `${plan.layers} of ${sizes.num_layers + 1} layers fit, and the processor does the rest. `;
    text += context ? `A context of ${context.toLocaleString("en")} tokens would fit.` : "No context that holds the prompt fits; try a smaller quantization.";
  }
  if (["fits", "tight"].includes(plan.verdict) && context < state.context) {
    text += ` Prompts and answers that fill the context of ${state.context.toLocaleString("en")} tokens do not fit; ${context.toLocaleString("en")} do.`;
  }
  if (plan.speed && isOwn(device, state.engine)) text += " Its speed is a guess, made of the makers' bandwidth, cores and clocks.";
  else if (plan.speed && plan.speed.isGuess) text += " Its speed is a guess: too few devices of its kind were measured.";
  const link = el("a", { href: pairLink(device) }, "All quantizations on this device");
  box.replaceChildren(word, text + " ", link);
}

function pairLink(device) { return `pairs/${state.model.replace(":", "-")}-on-${device.slug}.html`; }

function showMemory(device, plan) {
  const box = $("memory");
  box.replaceChildren();
  if (device.unplanned[state.engine]) return;
  const places = [...plan.devices.map((_, idx) => [idx, plan.devices.length > 1 ? `${device.name}, number ${idx + 1}` : device.name]), [-1, "Host memory"]];
  for (const [place, name] of places) {
    const parts = plan.parts.filter((part) => part.place === place);
    if (!parts.length) continue;
    const idx = place < 0 ? plan.devices.length : place;
    const total = plan.totals[idx];
    const usable = plan.usable[idx];
    const whole = Math.max(total, usable);
    const bar = el("div", { class: "bar", role: "img", "aria-label": `${name}: ${bytes(total)} of ${bytes(usable)}` });
    for (const part of parts) bar.append(el("span", { style: `width:${(100 * part.bytes) / whole}%;background:var(--${PARTS[part.name]})`, title: `${part.name}: ${bytes(part.bytes)}` }));
    if (total > usable) bar.append(el("div", { class: "limit", style: `left:${(100 * usable) / whole}%` }));
    const legend = el("ul", { class: "legend" }, ...parts.map((part) => el("li", {}, el("i", { style: `background:var(--${PARTS[part.name]})` }), `${part.name} ${bytes(part.bytes)} `, el("span", { class: "soft" }, BASIS[part.basis]))));
    box.append(el("div", { class: "place" }, el("div", { class: "head" }, el("span", {}, name), el("span", {}, `${bytes(total)} of ${bytes(usable)}`)), bar, legend));
  }
}

function showSpeed(plan) {
  const box = $("speed");
  const numbers = $("numbers");
  if (!plan.speed) {
    box.replaceChildren(el("p", { class: "soft" }, plan.problem ? plan.problem : plan.verdict === "no" ? "It does not run as set." : "No speeds are known for this program."));
    numbers.replaceChildren();
    return;
  }
  const { decode, factor } = plan.speed;
  const at = (value) => 100 * Math.min(1, Math.max(0, Math.log(value) / Math.log(500)));
  const low = at(decode / factor);
  box.replaceChildren(
    el("div", { class: "speed", role: "img", "aria-label": `${range(decode, factor)} tokens a second` },
      el("div", { class: "range", style: `left:${low}%;width:${at(decode * factor) - low}%` }),
      el("div", { class: "mark", style: `left:calc(${at(decode)}% - 2px)` })),
    el("div", { class: "scale", "aria-hidden": "true" }, ...[1, 3, 10, 30, 100, 500].map((value) => el("span", { style: `left:${at(value)}%` }, String(value)))),
  );
  const speed = plan.speed;
  const entries = [
    [range(decode, factor), "tokens a second, nine in ten"], [rate(speed.full), "tokens a second at the full context"],
    [seconds(speed.first), `to the first token: ${speed.images === null ? "" : `picture ${seconds(speed.image)}, tower ${seconds(speed.vision)}, `}prompt ${seconds(speed.prompt)}`],
    [seconds(speed.answer), `for ${plan.setting.num_parallel > 1 ? `${plan.setting.num_parallel} prompts, and their answers` : "an answer"} of ${plan.setting.num_new_tokens} tokens`],
  ];
  if (speed.images !== null) entries.push([Math.round(speed.images).toLocaleString("en"), "pictures an hour"], [(speed.joules / 3600).toFixed(2) + " kWh", "for 1,000 pictures, at rated power"]);
  numbers.replaceChildren(...entries.map(([value, text]) => el("div", {}, el("b", {}, value), el("span", {}, text))));
}

function showTokens(model, setting) {
  const side = Math.round(Math.sqrt(model.num_image_tokens));
  const kept = Math.min(setting.num_visual_tokens, model.num_image_tokens);
  const grid = $("grid");
  grid.style.setProperty("--side", side);
  if (grid.children.length !== side * side) grid.replaceChildren(...Array.from({ length: side * side }, () => el("i")));
  for (let idx = 0; idx < side * side; idx++) grid.children[idx].className = (idx * kept) % (side * side) < kept ? "kept" : "";
  const text = `${kept} of ${model.num_image_tokens} tokens of a picture are kept`;
  grid.setAttribute("aria-label", text);
  $("grid-text").textContent = text;
  const entries = [["pictures", setting.num_images * kept, "cache"], ["text", setting.num_text_tokens, "weights"], ["answer", setting.num_new_tokens, "vision"]];
  const used = sum_list(entries.map(([, count]) => count));
  const whole = Math.max(used, setting.num_context_tokens);
  const bar = el("div", { class: "bar", role: "img", "aria-label": `${used} of ${setting.num_context_tokens} positions` }, ...entries.map(([, count, color]) => el("span", { style: `width:${(100 * count) / whole}%;background:var(--${color})` })));
  const legend = el("ul", { class: "legend" }, ...entries.map(([name, count, color]) => el("li", {}, el("i", { style: `background:var(--${color})` }), `${name} ${count}`)));
  $("strip").replaceChildren(el("div", { class: "head" }, `${used.toLocaleString("en")} of ${setting.num_context_tokens.toLocaleString("en")} positions of the context`), bar, legend);
}

function showQuants(device, setting) {
  const isOne = isHalf(device, setting.engine);
  const rows = (device.unplanned[setting.engine] ? [] : isOne ? ["f16"] : Object.keys(D.models[state.model].quants)).map((name) => {
    const quant = D.models[state.model].quants[name];
    const plan = planFor(device, state.count, name, setting);
    const quality = (setting.engine !== "transformers-4bit" && D.models[state.model].quality[name]) || "";
    return el("tr", { class: name === state.quant ? "chosen" : null },
      el("td", {}, el("button", { type: "button", onclick: () => { $("quant").value = name; change("quant", name); } }, name.toUpperCase())),
      el("td", { class: "num" }, quant.bits_per_weight.toFixed(2)), el("td", { class: "num" }, bytes(quant.language_bytes)),
      el("td", { class: "num" }, bytes(neededBytes(plan))),
      el("td", {}, el("span", { class: `word ${plan.verdict}` }, plan.verdict)),
      el("td", { class: "num" }, plan.speed ? range(plan.speed.decode, plan.speed.factor) : "-"), el("td", {}, quality));
  });
  const head = ["Type", "Bits", "File", "Needed", "Verdict", "Tokens/s", "Published quality"];
  const note = `${setting.engine} runs files of 16 bits here${setting.engine === "transformers-4bit" ? ", which it shrinks to 4 while it loads them" : ", and no others"}.`;
  $("quant-table").replaceChildren(isOne ? el("caption", {}, note) : "", el("thead", {}, el("tr", {}, ...head.map((text, idx) => el("th", { scope: "col", class: [1, 2, 3, 5].includes(idx) ? "num" : null }, text)))), el("tbody", {}, ...rows));
}

const COLUMNS = [
  ["name", "Device", (row) => row.device.name.toLowerCase()], ["memory", "GiB", (row) => row.device.memory_gib],
  ["needed", "Needed", (row) => neededBytes(row.plan)], ["verdict", "Verdict", (row) => row.plan.verdict],
  ["speed", "Tokens/s", (row) => row.plan.speed.decode], ["first", "First token", (row) => row.plan.speed.first],
  ["price", "List price $", (row) => row.device.price ?? Infinity],
  ["value", "Tokens/s for $1,000", (row) => (row.device.price ? (1000 * row.plan.speed.decode) / row.device.price : 0)],
  ["watts", "Watts", (row) => row.device.numbers.watts],
];

function candidates() {
  const setting = { ...settingOf(), num_device_layers: D.models[state.model].sizes.num_layers + 1 };
  const engine = HALF_ONLY.includes(setting.engine) ? "llama.cpp" : setting.engine;
  return D.devices.map((device) => ({ device, plan: planFor(device, 1, state.quant, with_field(setting, "engine", engine)) })).filter((row) => row.plan.speed);
}

function showDevices() {
  const all = candidates();
  const running = all.filter((row) => row.plan.verdict !== "partly");
  const kind = $("kind").value;
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = ($("partly").checked ? all : running).filter((row) =>
    (kind === "all" || (kind === "" ? row.device.kind !== "datacentre" : row.device.kind === kind)) && words.every((word) => row.device.name.toLowerCase().includes(word)));
  const [, , key] = COLUMNS.find(([name]) => name === sorting.key);
  rows.sort((a, b) => { const x = key(a), y = key(b); const order = x < y ? -1 : x > y ? 1 : b.plan.speed.decode - a.plan.speed.decode; return sorting.down ? -order : order; });
  const head = COLUMNS.map(([name, title], idx) => el("th", { scope: "col", class: idx === 0 || idx === 3 ? null : "num", "aria-sort": sorting.key === name ? (sorting.down ? "descending" : "ascending") : null },
    el("button", { type: "button", onclick: () => { sorting = { key: name, down: sorting.key === name ? !sorting.down : name === "speed" || name === "value" }; showDevices(); } }, title)));
  const body = rows.map(({ device, plan }) => el("tr", { class: device.name === state.device ? "chosen" : null },
    el("td", {}, el("a", { href: pairLink(device) }, device.name), device.confidence === "high" ? "" : " *"),
    el("td", { class: "num" }, String(device.memory_gib)), el("td", { class: "num" }, bytes(neededBytes(plan))),
    el("td", {}, el("span", { class: `word ${plan.verdict}` }, plan.verdict)),
    el("td", { class: "num" }, range(plan.speed.decode, plan.speed.factor) + (plan.speed.isGuess ? " ?" : "")), el("td", { class: "num" }, seconds(plan.speed.first)),
    el("td", { class: "num" }, dollars(device)), el("td", { class: "num" }, device.price ? rate((1000 * plan.speed.decode) / device.price) : "-"),
    el("td", { class: "num" }, String(Math.round(device.numbers.watts)))));
  const problem = problemOf(settingOf());
  const caption = `${rows.length} devices${HALF_ONLY.includes(state.engine) ? ", with llama.cpp: no speeds are known of " + state.engine : ""}${problem && ". " + problem}`;
  $("device-table").replaceChildren(el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
  showBest(running);
  showPlot(running.filter((row) => row.device.kind !== "datacentre" && row.device.price));
}

// Which limit nothing meets, or that the two are not met at once, with what comes nearest.
function whyNothing(rows) {
  const say = (row) => `${row.device.name} at ${priced(row.device)}, with ${rate(row.plan.speed.decode)} tokens a second`;
  const cheapest = (of) => say([...of].sort((a, b) => a.device.price - b.device.price || b.plan.speed.decode - a.plan.speed.decode)[0]);
  const fastest = (of) => say([...of].sort((a, b) => b.plan.speed.decode - a.plan.speed.decode || a.device.price - b.device.price)[0]);
  const affordable = rows.filter((row) => row.device.price <= state.budget);
  const fast = rows.filter((row) => row.plan.speed.decode >= state.speed);
  const whole = [];
  if (!affordable.length) whole.push(`The cheapest device that runs it is ${cheapest(rows)}.`);
  if (!fast.length) whole.push(`The fastest device with a price is ${fastest(rows)}.`);
  if (whole.length) return whole.join(" ");
  return `Within $${state.budget.toLocaleString("en")} the fastest is ${fastest(affordable)}; for ${state.speed} tokens a second the cheapest is ${cheapest(fast)}.`;
}

function showBest(rows) {
  const box = $("best-answer");
  const known = rows.filter((row) => row.device.kind !== "datacentre" && row.device.price);
  const meeting = known.filter((row) => row.device.price <= state.budget && row.plan.speed.decode >= state.speed);
  if (!meeting.length) {
    box.className = "verdict no";
    box.replaceChildren(known.length ? `Nothing meets this. ${whyNothing(known)}` : problemOf(settingOf()) || "No single device with a price runs it as set.");
    return;
  }
  const fastest = Math.max(...meeting.map((row) => row.plan.speed.decode));
  const near = meeting.filter((row) => row.plan.speed.decode >= 0.9 * fastest);
  const best = near.sort((a, b) => a.device.price - b.device.price || b.plan.speed.decode - a.plan.speed.decode)[0];
  const others = meeting.filter((row) => row !== best).sort((a, b) => b.plan.speed.decode / b.device.price - a.plan.speed.decode / a.device.price).slice(0, 3);
  box.className = "verdict fits";
  box.replaceChildren(el("span", { class: "word fits" }, best.device.name + ". "),
    `${priced(best.device)}, ${range(best.plan.speed.decode, best.plan.speed.factor)} tokens a second. Answers are bound by its ${best.device.numbers.bandwidth / 1e9} GB/s of memory bandwidth; of the ${meeting.length} devices that meet this it is the cheapest within 10 % of the fastest.`,
    others.length ? ` After it: ${others.map((row) => `${row.device.name} at $${row.device.price.toLocaleString("en")} with ${rate(row.plan.speed.decode)}`).join(", ")}.` : "");
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function showPlot(rows) {
  const area = $("plot-area");
  const width = Math.min(760, Math.max(300, area.clientWidth)); // drawn at its size, so that its words stay readable
  const [height, left, bottom] = [380, 52, 44];
  if (!rows.length) { area.replaceChildren(el("p", { class: "soft" }, problemOf(settingOf()) || "No device with a price runs it as set.")); return; }
  const logs = (values, low, high) => (value) => low + ((Math.log(value) - Math.log(Math.min(...values))) / (Math.log(Math.max(...values)) - Math.log(Math.min(...values)) || 1)) * (high - low);
  const x = logs(rows.map((row) => row.device.price), left + 12, width - 16);
  const y = logs(rows.map((row) => row.plan.speed.decode), height - bottom - 12, 16);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "Price against speed" });
  picture.append(svg("path", { class: "axis", d: `M${left} 8V${height - bottom}H${width}`, fill: "none" }));
  const ticks = width < 500 ? [100, 500, 2000, 10000] : [100, 200, 500, 1000, 2000, 5000, 10000];
  for (const price of ticks) if (x(price) >= left && x(price) <= width) picture.append(svg("text", { x: x(price), y: height - bottom + 18, "text-anchor": "middle" }, `$${price}`));
  for (const speed of [1, 2, 5, 10, 20, 50, 100, 200, 500]) if (y(speed) >= 8 && y(speed) <= height - bottom) picture.append(svg("text", { x: left - 6, y: y(speed) + 4, "text-anchor": "end" }, String(speed)));
  picture.append(svg("text", { x: width - 8, y: height - 6, "text-anchor": "end" }, "list price"), svg("text", { x: 6, y: 14 }, "tokens/s"));
  const ordered = [...rows].sort((a, b) => a.device.price - b.device.price || b.plan.speed.decode - a.plan.speed.decode);
  const front = [];
  for (const row of ordered) if (!front.length || row.plan.speed.decode > front[front.length - 1].plan.speed.decode) front.push(row);
  picture.append(svg("path", { class: "front", d: front.map((row, idx) => `${idx ? "L" : "M"}${x(row.device.price)} ${y(row.plan.speed.decode)}`).join("") }));
  for (const row of ordered) {
    const text = `${row.device.name}: ${priced(row.device)}, ${range(row.plan.speed.decode, row.plan.speed.factor)} tokens a second${front.includes(row) ? ", on the line" : ""}`;
    const dot = svg("circle", { class: `dot ${row.plan.verdict}`, cx: x(row.device.price), cy: y(row.plan.speed.decode), r: row.device.name === state.device ? 8 : 5, tabindex: 0, role: "img", "aria-label": text }, svg("title", {}, text));
    for (const event of ["focus", "mouseenter"]) dot.addEventListener(event, () => { $("plot-text").textContent = text; });
    picture.append(dot);
  }
  area.replaceChildren(picture);
}

function showBuilds() {
  $("build-cards").replaceChildren(...D.builds[state.model].map((build) => el("article", {},
    el("h3", {}, `Up to ${build.budget.toLocaleString("en")} dollars`),
    build.parts ? el("div", {}, el("p", {}, `${Math.round(build.price_usd).toLocaleString("en")} dollars, about ${rate(build.device.tokens_per_s)} tokens a second. ${Math.round(build.load_watts)} W at work, ${Math.round(build.idle_watts)} W idle, ${Math.round(build.monthly_kwh)} kWh a month at two hours a day; ${build.noise}.`),
      el("div", { class: "wrap" }, el("table", {}, el("tbody", {}, ...build.parts.map((part) => el("tr", {}, el("td", {}, part.kind), el("td", {}, part.name, el("br"), el("span", { class: "soft" }, part.reason)), el("td", { class: "num" }, `${Math.round(part.price_usd)} (${part.price_year})`)))))),
      el("p", { class: "soft" }, `Upgrade first: ${build.upgrade_first}.`)) : el("p", {}, `Not for this: ${build.advice}`))));
}

function showFacts() {
  const facts = D.models[state.model].facts;
  const rows = facts.pairs.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value)));
  const scores = facts.benchmarks.map((b) => el("tr", {}, el("td", {}, b.name), el("td", { class: "num" }, String(b.score)), el("td", {}, b.what_it_measures || ""), el("td", { class: "soft" }, b.source || "")));
  const commands = facts.commands.map(([name, text]) => {
    const button = el("button", { type: "button", onclick: () => { if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); }); } }, "Copy");
    return el("div", {}, el("span", { class: "soft" }, name), el("div", { class: "command" }, el("pre", {}, text), button));
  });
  $("facts").replaceChildren(el("div", { class: "wrap" }, el("table", {}, el("tbody", {}, ...rows))), el("h3", {}, "To run it"), ...commands, el("p", { class: "soft" }, facts.warning),
    el("h3", {}, "Published scores"), el("div", { class: "wrap", tabindex: 0, role: "region", "aria-label": "Published scores" }, el("table", {}, el("thead", {}, el("tr", {}, ...["Benchmark", "Score", "Measures", "Source"].map((text, idx) => el("th", { scope: "col", class: idx === 1 ? "num" : null }, text)))), el("tbody", {}, ...scores))));
}

fillControls();
showAll();
showBuilds();
showFacts();
$("model-name").addEventListener("change", () => { showBuilds(); showFacts(); });
window.addEventListener("hashchange", () => { if (location.hash.startsWith("#?")) { state = readState(); syncControls(); showAll(); showBuilds(); showFacts(); } });

function syncControls() {
  for (const [id, name] of [["model-name", "model"], ["quant", "quant"], ["device", "device"], ["count", "count"], ["engine", "engine"], ["budget", "budget"], ["min-speed", "speed"]]) $(id).value = String(state[name]);
  makeSliders();
}
