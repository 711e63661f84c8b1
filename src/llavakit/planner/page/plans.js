"use strict";
// One plan: the same steps as planner/plans.py, with formulas.js (translated from Python). No formula lives here.

const RUNNING = ["fits", "tight"];
const isProcessor = (device) => device.numbers.kind === "cpu";
// A chip with one memory for processor and GPU is a computer of its own, and our own program uses one device.
const isSingle = (device, engine) => isProcessor(device) || device.numbers.is_shared || engine === "llavakit";
// Programs of torch, and our own on a GPU, compute with 16 bits a weight.
const isHalf = (device, engine) => HALF_ONLY.includes(engine) || (engine === "llavakit" && !isProcessor(device));
const isOwn = (device, engine) => engine === "llavakit" && isProcessor(device);

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
  const problem = problemOf(setting) || device.unplanned[setting.engine] || undealt(setting, isSingle(device, setting.engine) ? 1 : count) || "";
  const tokens = prompt_tokens(model, setting);
  // Quantized values need it.
  if (isLayered && setting.kv_block_bytes < D.kv.f16) setting = with_field(setting, "has_flash_attention", true);
  setting = with_field(setting, "num_new_tokens", Math.max(1, Math.min(setting.num_new_tokens, setting.num_context_tokens - tokens)));
  if (!isLayered) setting = { ...setting, num_device_layers: model.num_layers + 1, is_vision_on_device: true };
  const quant = D.models[state.model].quants[isHalf(device, setting.engine) ? "f16" : quantName];
  const own = isOwn(device, setting.engine) ? device.own : device;
  const host = isHost ? own.numbers : { ...D.host, ...device.host };
  const isAlone = isHost || (isLayered && setting.num_device_layers === 0);
  let devices = isAlone ? [] : Array(isSingle(device, setting.engine) ? 1 : count).fill(device.numbers);
  if (HALF_ONLY.includes(setting.engine) && devices.length === 0) devices = [host];
  const fit = own.fit;
  const fits = devices.map(() => fit);
  const hostFit = isHost ? fit : D.hostFit;
  const program = D.programBytes;
  const verdict = problem ? "no" : verdict_of(model, quant, setting, devices, host, program);
  const parts = parts_of(model, quant, setting, devices, program).filter((part) => part.bytes > 0);
  const totals = place_totals(parts, devices.length);
  const usable = usable_places(totals, devices, host);
  const layers = isLayered && devices.length && !problem ? most_device_layers(model, quant, setting, devices, host, program) : model.num_layers + 1;
  const running = RUNNING.includes(verdict) ? setting : with_field(setting, "num_device_layers", layers);
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

function contextOf(plan) { return largest_context(plan.model, plan.quant, plan.setting, plan.devices, plan.host, D.programBytes); }

// Smaller types that are offered, the largest first; quality falls below 4 bits.
const OFFERED = ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s"];

// Changes with which it would fit, as words and as arguments of planFor: only what the program has, and each was tried.
function changesFor(device, count, quantName, setting) {
  const plan = planFor(device, count, quantName, setting);
  if (plan.problem) return [];
  const { engine } = setting;
  const { quants } = D.models[state.model];
  const isLayered = LAYERED.includes(engine);
  const found = [];
  // The first of several that fits; each is words, and what differs: a number of devices, a type, fields of the setting.
  const offer = (...changes) => {
    for (const [text, { num = count, type = quantName, ...fields }] of changes) {
      const changed = [num, type, { ...setting, ...fields }];
      if (RUNNING.includes(planFor(device, ...changed).verdict)) return found.push([text, ...changed]);
    }
    return 0;
  };
  if (isLayered && plan.layers > setting.num_device_layers) offer([`${plan.layers} layers on the device`, { num_device_layers: plan.layers }]);
  if (isLayered && !plan.setting.has_flash_attention) offer(["flash attention", { has_flash_attention: true }]);
  if (!HALF_ONLY.includes(engine) && setting.kv_block_bytes > D.kv.q8_0) offer(["keys and values in q8_0", { kv_block_bytes: D.kv.q8_0 }]);
  if (!isHalf(device, engine)) {
    const smaller = OFFERED.filter((name) => quants[name].language_bytes < plan.quant.language_bytes);
    offer(...smaller.map((type) => [type.toUpperCase(), { type }]));
  }
  if (engine === "transformers") offer(["4 bits (transformers-4bit)", { engine: "transformers-4bit" }]);
  if (!isSingle(device, engine)) {
    const most = limitsOf(state.model).count[1];
    offer(...Array.from({ length: most - count }, (_, idx) => [`${count + idx + 1} of these devices`, { num: count + idx + 1 }]));
  }
  if (!isLayered) offer([`llama.cpp at ${quantName.toUpperCase()}`, { engine: "llama.cpp" }]);
  return found;
}

// A type of weights as a program has it.
function typeText(quantName, engine) { return quantName.toUpperCase() + (engine === "transformers-4bit" ? ", shrunk to 4 bits" : ""); }

function neededBytes(plan) { return plan.isAlone ? sum_list(plan.totals) : plan.totals[0]; }
