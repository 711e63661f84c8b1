"use strict";
// The page around state.js, plans.js and devices.js.

const PARTS = {
  "weights": "weights", "vision and projector": "vision", "vision buffer": "vision", "key-value cache": "cache",
  "compute buffer": "buffer", "activations": "buffer", "recorded graphs": "buffer", "exchange buffers": "buffer", "driver context": "context",
  "driver context and libraries": "context", "held back": "context", "program": "program", "vocabulary": "program",
};
const BASIS = {
  exact: "from shapes", logged: "formula of logged sizes", fitted: "fitted", measured: "measured", assumed: "assumed",
};
const WORDS = { fits: "It fits.", tight: "Barely.", partly: "Only partly.", no: "It does not fit." };

let state = readState();

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

// Words and numbers.
function bytes(value) { return value >= 99.95e6 ? (value / 1e9).toFixed(2) + " GB" : (value / 1e6).toFixed(1) + " MB"; }
function seconds(value) { return value < 1 ? Math.round(value * 1000) + " ms" : value.toFixed(value < 100 ? 1 : 0) + " s"; }
function rate(value) { return value.toFixed(value < 20 ? 1 : 0); }
function range(value, factor) { return `${rate(value)} (${rate(value / factor)} to ${rate(value * factor)})`; }
function priced(device) {
  return `$${priceOf(device).toLocaleString("en")} (${state.prices.has(device.name) ? "your price" : `list price of ${device.price_year}`})`;
}
function dollars(device) {
  const price = priceOf(device);
  return price === null ? "-" : `${price.toLocaleString("en")} (${state.prices.has(device.name) ? "yours" : device.price_year})`;
}

// Controls.
const FIELDS = [
  ["model-name", "model"], ["quant", "quant"], ["device", "device"], ["count", "count"], ["engine", "engine"], ["kind", "kind"],
  ["search", "search"], ["budget", "budget"], ["min-speed", "speed"],
];

function option(value, text) { return el("option", { value }, text); }

function fillControls() {
  $("model-name").append(...Object.keys(D.models).map((name) => option(name, D.models[name].title)));
  $("quant").append(...Object.keys(D.models[state.model].quants).map((name) => option(name, name.toUpperCase())));
  for (const kind of KINDS) {
    $("device").append(el("optgroup", { label: kind }, ...D.devices.filter((d) => d.kind === kind).map((d) => option(d.name, d.name))));
  }
  const [fewest, most] = limitsOf(state.model).count;
  for (let count = fewest; count <= most; count++) $("count").append(option(String(count), String(count)));
  $("engine").append(...ENGINES.map((name) => option(name, name)));
  $("kind").append(option("", "all but servers' cards"), option("all", "all"), ...KINDS.map((kind) => option(kind, kind)));
  for (const [id, name] of FIELDS) $(id).addEventListener("input", () => take(name, $(id)));
  $("price").addEventListener("input", () => takePrice($("price")));
  $("partly").addEventListener("input", () => change("partly", $("partly").checked ? 1 : 0));
  for (const name of ["chosen", "sliders"]) $(name).addEventListener("submit", (event) => event.preventDefault());
  syncControls();
}

// What is typed counts once it is a number within its limits.
function take(name, field) {
  const limits = limitsOf(state.model);
  const value = Object.hasOwn(limits, name) ? numberIn(limits[name], field.value) : field.value;
  field.setAttribute("aria-invalid", value === null);
  if (value !== null) change(name, value);
}

// Of the chosen device; none is that of the list.
function takePrice(field) {
  const price = field.value === "" && !field.validity.badInput ? undefined : numberIn(PRICES, field.value);
  field.setAttribute("aria-invalid", price === null);
  if (price === null) return;
  const prices = new Map(state.prices);
  if (price === undefined) prices.delete(state.device);
  else prices.set(state.device, price);
  change("prices", prices);
}

function syncControls() {
  for (const [id, name] of FIELDS) $(id).value = String(state[name]);
  $("partly").checked = state.partly === 1;
  makeSliders();
}

const SLIDERS = [
  ["context", "Context, tokens"], ["images", "Pictures in a prompt"], ["visual", "Tokens kept of a picture"],
  ["text", "Text of a prompt, tokens"], ["answer", "Answer, tokens"], ["parallel", "Sequences side by side"],
  ["layers", "Layers on devices"],
];

// Types, from the smallest to the largest.
const LADDERS = [
  ["quant", "Quantization", () => sortedBy(D.models[state.model].quants, (quant) => quant.language_bytes)],
  ["kv", "Keys and values", () => sortedBy(D.kv, (size) => size)],
];

function sortedBy(table, size) { return Object.keys(table).sort((a, b) => size(table[a]) - size(table[b])); }

// The slider of a type and its name beside it show what is chosen.
function syncLadders(hasOneType) {
  for (const [name, , list] of LADDERS) {
    const [input, shown] = [$(`${name}-step`), hasOneType ? "f16" : state[name]];
    input.value = list().indexOf(shown);
    input.setAttribute("aria-valuetext", shown.toUpperCase());
    $(`${name}-value`).textContent = shown.toUpperCase();
    input.disabled = hasOneType;
  }
}

function makeSliders() {
  const limits = limitsOf(state.model);
  $("sliders").replaceChildren();
  for (const [name, label, list] of LADDERS) {
    const id = `${name}-step`;
    const input = el("input", { type: "range", id, min: 0, max: list().length - 1, step: 1, oninput: () => change(name, list()[input.value]) });
    $("sliders").append(el("div", { class: "field" }, el("output", { id: `${name}-value`, class: "type", for: id }), el("label", { for: id }, label), input));
  }
  for (const [name, label] of SLIDERS) {
    const [least, high, coarse] = limits[name];
    const low = Math.max(0, least); // of layers, -1 stands for all
    const value = state[name] < low ? high : state[name];
    const step = (value - low) % coarse ? 1 : coarse;
    const output = el("output", { id: `${name}-value`, for: name }, String(value));
    const input = el("input", { type: "range", id: name, min: low, max: high, step, value, oninput: () => {
      const chosen = Number(input.value);
      output.textContent = input.value;
      change(name, name === "layers" && chosen === high ? -1 : chosen);
    } });
    $("sliders").append(el("div", { class: "field" }, output, el("label", { for: name }, label), input));
  }
  for (const [name, label] of [["flash", "Flash attention"], ["vision", "Vision tower on the device"]]) {
    const box = el("input", { type: "checkbox", id: name, checked: state[name] === 1, onchange: () => change(name, box.checked ? 1 : 0) });
    $("sliders").append(el("div", { class: "check" }, box, el("label", { for: name }, label)));
  }
}

function change(name, value) {
  state = { ...state, [name]: value };
  if (name === "model") {
    if (state.layers > D.models[value].sizes.num_layers + 1) state.layers = -1;
    makeSliders();
  }
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
  $("count").disabled = isSingle(device, state.engine);
  $("count").value = $("count").disabled ? 1 : state.count;
  const hasOneType = HALF_ONLY.includes(state.engine);
  $("quant").value = hasOneType ? "f16" : state.quant;
  syncLadders(hasOneType);
  for (const name of ["quant", "min-speed"]) $(name).disabled = hasOneType; // of which it has one, or none is known
  $("partly").disabled = !LAYERED.includes(state.engine);
  for (const name of ["layers", "vision"]) $(name).disabled = isProcessor(device) || !LAYERED.includes(state.engine);
  $("flash").checked = plan.setting.has_flash_attention;
  $("flash").disabled = !LAYERED.includes(state.engine) || (plan.setting.has_flash_attention && state.flash === 0);
  showPrice(device);
  showVerdict(device, plan);
  showMemory(device, plan);
  showSpeed(plan);
  showTokens(plan.model, setting);
  showQuants(device, setting);
  showDevices();
}

function showPrice(device) {
  const field = $("price");
  $("price-label").textContent = `Price of ${device.name}, dollars`;
  field.placeholder = device.price === null ? "no list price" : `${device.price} (list price)`;
  const price = state.prices.get(device.name);
  if (document.activeElement !== field) {
    field.value = price ?? "";
    field.setAttribute("aria-invalid", false);
  }
  const own = [...state.prices].map(([name, value]) => `${name} $${value.toLocaleString("en")}${deviceOf(name).kind === "datacentre" ? " (a server's card: only in the table)" : ""}`);
  const forget = el("button", { type: "button", onclick: () => { field.value = ""; change("prices", new Map()); } }, "Take list prices again");
  $("own-prices").replaceChildren(...(own.length ? [`Your prices: ${own.join(", ")}. `, forget] : []));
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
  const room = `${counted < state.context ? ", for a prompt and answer of" : " and"} ${counted.toLocaleString("en")} tokens${counted < state.context ? "" : " of context"}`;
  const what = `${D.models[state.model].title} at ${typeText(plan.quant.name, state.engine)} on ${name}, with ${state.engine}${room}`;
  const left = plan.usable.map((have, idx) => have - plan.totals[idx]);
  const spare = Math.min(...(left.length > 1 ? left.slice(0, -1) : left));
  const context = contextOf(plan);
  const around = left[left.length - 1];
  let text;
  if (plan.verdict === "fits") text = `${what}: ${bytes(spare)} are left.`;
  else if (plan.verdict === "tight") text = `${what}: ${around < spare ? `${bytes(around)} are left in the computer around it` : `${bytes(spare)} are left, which a desktop on the same device may take`}.`;
  else {
    text = `${what}: ${spare < 0 ? `${bytes(-spare)} are missing` : `${bytes(-around)} are missing in the computer around it`}. `;
    if (plan.verdict === "partly") text += `${plan.layers} of ${sizes.num_layers + 1} layers fit, and the processor does the rest. `;
    text += context ? `A context of ${context.toLocaleString("en")} tokens would fit.` : "No context that holds the prompt fits.";
    if (!context) text += adviceFor(device);
  }
  if (RUNNING.includes(plan.verdict) && context < state.context) {
    text += ` Prompts and answers that fill the context of ${state.context.toLocaleString("en")} tokens do not fit; ${context.toLocaleString("en")} do.`;
  }
  if (plan.speed && isOwn(device, state.engine)) text += " Its speed is a guess, made of the makers' bandwidth, cores and clocks.";
  else if (plan.speed && plan.speed.isGuess) text += " Its speed is a guess: too few devices of its kind were measured.";
  const link = el("a", { href: pairLink(device) }, "All quantizations on this device, with llama.cpp");
  box.replaceChildren(word, text + " ", link);
}

function adviceFor(device) {
  const words = changesFor(device, state.count, state.quant, settingOf()).map(([text]) => text);
  if (!words.length) return " Nothing that can be set here makes it fit; another device has to have more memory.";
  return ` It fits with ${[words[0], ...words.slice(1).slice(-1)].join(", or with ")}.`;
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
  const choose = (name) => el("button", { type: "button", onclick: () => { $("quant").value = name; change("quant", name); } }, name.toUpperCase());
  const rows = (device.unplanned[setting.engine] ? [] : isOne ? ["f16"] : Object.keys(D.models[state.model].quants)).map((name) => {
    const quant = D.models[state.model].quants[name];
    const plan = planFor(device, state.count, name, setting);
    const quality = (setting.engine !== "transformers-4bit" && D.models[state.model].quality[name]) || "";
    return el("tr", { class: isOne || name === state.quant ? "chosen" : null },
      el("td", {}, isOne ? name.toUpperCase() : choose(name)),
      el("td", { class: "num" }, quant.bits_per_weight.toFixed(2)), el("td", { class: "num" }, bytes(quant.language_bytes)),
      el("td", { class: "num" }, bytes(neededBytes(plan))),
      el("td", {}, el("span", { class: `word ${plan.verdict}` }, plan.verdict)),
      el("td", { class: "num" }, plan.speed ? range(plan.speed.decode, plan.speed.factor) : "-"), el("td", {}, quality));
  });
  const head = ["Type", "Bits", "File", "Needed", "Verdict", "Tokens/s", "Published quality"];
  const half = `${setting.engine} runs files of 16 bits here${setting.engine === "transformers-4bit" ? ", which it shrinks to 4 while it loads them" : ", and no others"}.`;
  $("quant-table").replaceChildren(el("caption", {}, isOne ? half : `With ${setting.engine}.`), el("thead", {}, el("tr", {}, ...head.map((text, idx) => el("th", { scope: "col", class: [1, 2, 3, 5].includes(idx) ? "num" : null }, text)))), el("tbody", {}, ...rows));
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
