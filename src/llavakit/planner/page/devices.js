"use strict";
// All devices: their table, the best of them for a budget, price against speed.

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
  const { kind } = state;
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = (state.partly ? all : running).filter((row) =>
    (kind === "all" || (kind === "" ? row.device.kind !== "datacentre" : row.device.kind === kind)) && words.every((word) => row.device.name.toLowerCase().includes(word)));
  const isDown = state.sort.startsWith("-");
  const sorted = isDown ? state.sort.slice(1) : state.sort;
  const [, , key] = COLUMNS.find(([name]) => name === sorted);
  rows.sort((a, b) => { const x = key(a), y = key(b); const order = x < y ? -1 : x > y ? 1 : b.plan.speed.decode - a.plan.speed.decode; return isDown ? -order : order; });
  const head = COLUMNS.map(([name, title], idx) => el("th", { scope: "col", class: idx === 0 || idx === 3 ? null : "num", "aria-sort": sorted === name ? (isDown ? "descending" : "ascending") : null },
    el("button", { type: "button", "data-sort": name, onclick: () => change("sort", (sorted === name ? !isDown : name === "speed" || name === "value") ? `-${name}` : name) }, title)));
  const body = rows.map(({ device, plan }) => el("tr", { class: device.name === state.device ? "chosen" : null },
    el("td", {}, el("a", { href: pairLink(device) }, device.name), device.confidence === "high" ? "" : " *"),
    el("td", { class: "num" }, String(device.memory_gib)), el("td", { class: "num" }, bytes(neededBytes(plan))),
    el("td", {}, el("span", { class: `word ${plan.verdict}` }, plan.verdict)),
    el("td", { class: "num" }, range(plan.speed.decode, plan.speed.factor) + (plan.speed.isGuess ? " ?" : "")), el("td", { class: "num" }, seconds(plan.speed.first)),
    el("td", { class: "num" }, dollars(device)), el("td", { class: "num" }, device.price ? rate((1000 * plan.speed.decode) / device.price) : "-"),
    el("td", { class: "num" }, String(Math.round(device.numbers.watts)))));
  const problem = problemOf(settingOf());
  const caption = `${rows.length} devices${HALF_ONLY.includes(state.engine) ? ", with llama.cpp: no speeds are known of " + state.engine : ""}${problem && ". " + problem}`;
  const focused = document.activeElement.dataset.sort; // the head is made anew
  $("device-table").replaceChildren(el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
  if (focused) document.querySelector(`[data-sort="${focused}"]`).focus();
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
