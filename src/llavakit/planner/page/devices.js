"use strict";
// All devices: their table, the best of them for a budget, price against speed.

const VERDICTS = ["fits", "tight", "partly"];
const speedOf = (row) => (row.plan.speed ? row.plan.speed.decode : 0);
const valueOf = (row) => (priceOf(row.device) ? (1000 * speedOf(row)) / priceOf(row.device) : 0);
const byPrice = (a, b) => priceOf(a.device) - priceOf(b.device) || speedOf(b) - speedOf(a) || a.device.memory_gib - b.device.memory_gib;
const bySpeed = (a, b) => speedOf(b) - speedOf(a) || priceOf(a.device) - priceOf(b.device);
const COLUMNS = {
  name: ["Device", (row) => row.device.name.toLowerCase()], memory: ["GiB", (row) => row.device.memory_gib],
  needed: ["Needed", (row) => neededBytes(row.plan)], verdict: ["Verdict", (row) => VERDICTS.indexOf(row.plan.verdict)],
  speed: ["Tokens/s", speedOf], first: ["First token", (row) => (row.plan.speed ? row.plan.speed.first : Infinity)],
  price: ["Price $", (row) => priceOf(row.device) ?? Infinity], value: ["Tokens/s for $1,000", valueOf],
  watts: ["Watts", (row) => row.device.numbers.watts],
};

// Every device that holds the model with the chosen program, alone.
function candidates() {
  const setting = { ...settingOf(), num_device_layers: D.models[state.model].sizes.num_layers + 1 };
  return D.devices.map((device) => ({ device, plan: planFor(device, 1, state.quant, setting) })).filter((row) => row.plan.verdict !== "no");
}

// The chosen program, and the type of weights that it has on every device.
function programText() {
  const chosen = state.quant.toUpperCase();
  if (state.engine === "llavakit" && chosen !== "F16") return `llavakit, at ${chosen} on processors and F16 on GPUs`;
  return `${state.engine} at ${typeText(HALF_ONLY.includes(state.engine) ? "f16" : state.quant, state.engine)}`;
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
  const [, key] = COLUMNS[sorted];
  rows.sort((a, b) => { const x = key(a), y = key(b); const order = x < y ? -1 : x > y ? 1 : speedOf(b) - speedOf(a); return isDown ? -order : order; });
  const head = SORTS.map((name, idx) => el("th", { scope: "col", class: idx === 0 || idx === 3 ? null : "num", "aria-sort": sorted === name ? (isDown ? "descending" : "ascending") : null },
    el("button", { type: "button", "data-sort": name, onclick: () => change("sort", (sorted === name ? !isDown : name === "speed" || name === "value") ? `-${name}` : name) }, COLUMNS[name][0])));
  const body = rows.map(({ device, plan }) => el("tr", { class: device.name === state.device ? "chosen" : null },
    el("td", {}, el("a", { href: pairLink(device) }, device.name), device.confidence === "high" ? "" : " *"),
    el("td", { class: "num" }, String(device.memory_gib)), el("td", { class: "num" }, bytes(neededBytes(plan))),
    el("td", {}, el("span", { class: `word ${plan.verdict}` }, plan.verdict)),
    el("td", { class: "num" }, plan.speed ? range(plan.speed.decode, plan.speed.factor) + (plan.speed.isGuess ? " ?" : "") : "-"),
    el("td", { class: "num" }, plan.speed ? seconds(plan.speed.first) : "-"), el("td", { class: "num" }, dollars(device)),
    el("td", { class: "num" }, plan.speed && priceOf(device) ? rate(valueOf({ device, plan })) : "-"),
    el("td", { class: "num" }, String(Math.round(device.numbers.watts)))));
  const problem = problemOf(settingOf());
  const unknown = HALF_ONLY.includes(state.engine) ? `; no speeds are known of ${state.engine}` : "";
  const caption = `${rows.length} devices, with ${programText()}${unknown}${problem && ". " + problem}`;
  const focused = document.activeElement.dataset.sort; // the head is made anew
  $("device-table").replaceChildren(el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
  if (focused) document.querySelector(`[data-sort="${focused}"]`).focus();
  const known = running.filter((row) => row.device.kind !== "datacentre" && priceOf(row.device));
  showBest(known);
  showPlot(known);
}

function nothingRuns() { return problemOf(settingOf()) || `No single device with a price runs it as set, with ${programText()}.`; }

// Which limit nothing meets, or that the two are not met at once, with what comes nearest.
function whyNothing(rows) {
  const say = (row) => `${row.device.name} at ${priced(row.device)}${row.plan.speed ? `, with ${rate(speedOf(row))} tokens a second` : ""}`;
  const cheapest = (of) => say([...of].sort(byPrice)[0]);
  const fastest = (of) => say([...of].sort(bySpeed)[0]);
  const affordable = rows.filter((row) => priceOf(row.device) <= state.budget);
  const fast = rows.filter(isFastEnough);
  const whole = [];
  if (!affordable.length) whole.push(`The cheapest device that runs it is ${cheapest(rows)}.`);
  if (!fast.length) whole.push(`The fastest device with a price is ${fastest(rows)}.`);
  if (whole.length) return whole.join(" ");
  return `Within $${state.budget.toLocaleString("en")} the fastest is ${fastest(affordable)}; for ${state.speed} tokens a second the cheapest is ${cheapest(fast)}.`;
}

// No speed can be asked of a program of which none is known.
function isFastEnough(row) { return !row.plan.speed || speedOf(row) >= state.speed; }

function showBest(rows) {
  const box = $("best-answer");
  const meeting = rows.filter((row) => priceOf(row.device) <= state.budget && isFastEnough(row));
  if (!meeting.length) {
    box.className = "verdict no";
    box.replaceChildren(rows.length ? `Nothing meets this with ${programText()}. ${whyNothing(rows)}` : nothingRuns());
    return;
  }
  const fastest = Math.max(...meeting.map(speedOf));
  const best = meeting.filter((row) => speedOf(row) >= 0.9 * fastest).sort(byPrice)[0];
  const { device, plan } = best;
  const others = meeting.filter((row) => row !== best).sort((a, b) => valueOf(b) - valueOf(a) || byPrice(a, b)).slice(0, 3);
  const is = `${priced(device)}, with ${state.engine} at ${typeText(plan.quant.name, state.engine)}: `;
  const why = plan.speed
    ? `${range(speedOf(best), plan.speed.factor)} tokens a second. Answers are bound by its ${device.numbers.bandwidth / 1e9} GB/s of memory bandwidth; of the ${meeting.length} devices that meet this it is the cheapest within 10 % of the fastest.`
    : `${bytes(neededBytes(plan))} of its ${device.memory_gib} GiB are needed. No speeds are known of ${state.engine}: of the ${meeting.length} devices that hold it within the budget it is the cheapest.`;
  const say = (row) => `${row.device.name} at $${priceOf(row.device).toLocaleString("en")}${row.plan.speed ? ` with ${rate(speedOf(row))}` : ""}`;
  box.className = "verdict fits";
  box.replaceChildren(el("span", { class: "word fits" }, device.name + ". "), is + why, others.length ? ` After it: ${others.map(say).join(", ")}.` : "");
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
  const isUnknown = HALF_ONLY.includes(state.engine);
  $("plot-text").textContent = isUnknown || !rows.length ? "" : `With ${programText()}.`;
  if (isUnknown || !rows.length) {
    area.replaceChildren(el("p", { class: "soft" }, isUnknown ? `No speeds are known of ${state.engine}, so that there is nothing to draw.` : nothingRuns()));
    return;
  }
  const logs = (values, low, high) => (value) => low + ((Math.log(value) - Math.log(Math.min(...values))) / (Math.log(Math.max(...values)) - Math.log(Math.min(...values)) || 1)) * (high - low);
  const x = logs(rows.map((row) => priceOf(row.device)), left + 12, width - 16);
  const y = logs(rows.map(speedOf), height - bottom - 12, 16);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "Price against speed" });
  picture.append(svg("path", { class: "axis", d: `M${left} 8V${height - bottom}H${width}`, fill: "none" }));
  const ticks = width < 500 ? [100, 500, 2000, 10000] : [100, 200, 500, 1000, 2000, 5000, 10000];
  for (const price of ticks) if (x(price) >= left && x(price) <= width) picture.append(svg("text", { x: x(price), y: height - bottom + 18, "text-anchor": "middle" }, `$${price}`));
  for (const speed of [1, 2, 5, 10, 20, 50, 100, 200, 500]) if (y(speed) >= 8 && y(speed) <= height - bottom) picture.append(svg("text", { x: left - 6, y: y(speed) + 4, "text-anchor": "end" }, String(speed)));
  picture.append(svg("text", { x: width - 8, y: height - 6, "text-anchor": "end" }, "price"), svg("text", { x: 6, y: 14 }, "tokens/s"));
  const ordered = [...rows].sort(byPrice);
  const front = [];
  for (const row of ordered) if (!front.length || speedOf(row) > speedOf(front[front.length - 1])) front.push(row);
  picture.append(svg("path", { class: "front", d: front.map((row, idx) => `${idx ? "L" : "M"}${x(priceOf(row.device))} ${y(speedOf(row))}`).join("") }));
  for (const row of ordered) {
    const text = `${row.device.name}: ${priced(row.device)}, ${range(speedOf(row), row.plan.speed.factor)} tokens a second${front.includes(row) ? ", on the line" : ""}`;
    const dot = svg("circle", { class: `dot ${row.plan.verdict}`, cx: x(priceOf(row.device)), cy: y(speedOf(row)), r: row.device.name === state.device ? 8 : 5, tabindex: 0, role: "img", "aria-label": text }, svg("title", {}, text));
    for (const event of ["focus", "mouseenter"]) dot.addEventListener(event, () => { $("plot-text").textContent = text; });
    picture.append(dot);
  }
  area.replaceChildren(picture);
}
