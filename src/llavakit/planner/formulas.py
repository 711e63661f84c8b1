"""Every formula of the planner: numbers in, numbers out.

Written in the subset of Python that `llavakit.planner.javascript` translates for the page: assignments, if, for over a
range or a list, arithmetic, comparisons, attributes of records, lists and dicts, calls of one another and of min, max,
len, range, floor, sqrt and with_field. No state.

Records (`llavakit.planner.records`): ``model`` is a `ModelSizes`, ``quant`` a `QuantSizes`, ``setting`` a `Setting`,
``device`` and ``host`` are `DeviceNumbers`, ``fit`` is a `SpeedFit`. Bytes are bytes, times seconds, rates per second.
A part is a dict of name, bytes, place (number of the device, or -1 for the host) and basis: "exact" follows from
shapes, "logged" reproduces logged figures, "fitted", "measured" and "assumed" are what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, sqrt
from typing import Any

from llavakit.planner.records import DeviceNumbers, ModelSizes, QuantSizes, Setting, SpeedFit, with_field

__all__ = [
    "answer_seconds", "decode_seconds", "device_weights", "energy_joules", "first_token_seconds", "fits_in",
    "largest_context", "most_device_layers", "parts_of", "place_totals", "prompt_seconds", "prompt_tokens",
    "usable_bytes", "verdict_of", "vision_seconds",
]  # fmt: skip

MIB = 1048576
HOST = -1


# Memory ---------------------------------------------------------------------------------------------------------------


def part(name: str, size: int, place: int, basis: str) -> Any:
    """Name bytes."""
    return {"name": name, "bytes": size, "place": place, "basis": basis}


def kv_bytes(model: ModelSizes, setting: Setting, num_layers: int, num_positions: int) -> int:
    """Keys and values of so many positions in so many layers; a type counts its bytes per 32 numbers."""
    return floor(2 * num_layers * model.kv_width * num_positions / 32) * setting.kv_block_bytes


def prompt_tokens(model: ModelSizes, setting: Setting) -> int:
    """Tokens of a prompt: those kept of every picture, and the text."""
    return setting.num_images * min(setting.num_visual_tokens, model.num_image_tokens) + setting.num_text_tokens


def usable_bytes(device: DeviceNumbers) -> int:
    """Return what programs may use of a device.

    Apple gives its GPU two thirds of up to 36 GiB of unified memory and three quarters of more, as logs show, unless
    told otherwise.
    """
    if device.kind == "unified" and device.usable_share == 0:
        share = 2 / 3 if device.memory_bytes <= 36 * 1024 * MIB else 3 / 4
        return floor(device.memory_bytes * share)
    if device.kind == "unified":
        return floor(device.memory_bytes * device.usable_share)
    return device.memory_bytes - device.reserved_bytes


def context_bytes(device: DeviceNumbers) -> int:
    """Return what the driver takes for a program before it has done anything.

    On NVIDIA a line through two published figures: 107 MiB with 34 multiprocessors, 555 MiB with 188. Elsewhere 300 MiB
    are assumed for a card and nothing for shared memory.
    """
    if device.num_multiprocessors > 0:
        return floor((8.1 + 2.91 * device.num_multiprocessors) * MIB)
    return 300 * MIB if device.kind == "gpu" else 0


def compute_buffer_bytes(model: ModelSizes, setting: Setting, is_partial: bool) -> int:
    """llama.cpp's buffer on a device: the largest of scores, activations and logits of one batch.

    Reproduces logged sizes. A model that lies only partly on devices keeps one dequantized matrix there as well.
    """
    batch = min(setting.micro_batch, setting.num_context_tokens)
    widest = model.hidden_size + model.vocab_size
    size = 4 * batch * widest + 2 * batch * setting.num_context_tokens
    if not setting.has_flash_attention:
        scores = 1 + 4 * model.hidden_size + setting.num_context_tokens * (1 + model.num_heads)
        size = 4 * batch * max(widest, scores)
    if is_partial:
        size = size + floor(model.hidden_size * model.vocab_size * 105 / 128)
    return size


def host_buffer_bytes(model: ModelSizes, setting: Setting) -> int:
    """llama.cpp's buffer on the host: mask and input of one batch."""
    batch = min(setting.micro_batch, setting.num_context_tokens)
    return 4 * batch * (setting.num_context_tokens + model.hidden_size)


def sum_list(values: Any) -> Any:
    """Sum a list."""
    total = 0
    for value in values:
        total = total + value
    return total


def deal_layers(model: ModelSizes, setting: Setting, devices: Sequence[DeviceNumbers]) -> Any:
    """How many layers each device gets; the head counts as one more.

    They are dealt in proportion to what devices can use, as llama.cpp does it.
    """
    total = min(setting.num_device_layers, model.num_layers + 1)
    sizes = []
    for device in devices:
        sizes.append(max(0, usable_bytes(device) - context_bytes(device)))  # noqa: PERF401 - the page's subset
    whole = sum_list(sizes)
    counts = []
    dealt = 0
    summed = 0
    for idx in range(len(devices)):
        summed = summed + sizes[idx]
        until = floor(total * summed / whole + 0.5) if whole > 0 else 0
        counts.append(until - dealt)
        dealt = until
    return counts


def device_weights(model: ModelSizes, quant: QuantSizes, setting: Setting, devices: Sequence[DeviceNumbers]) -> Any:
    """Layers, bytes of weights, and whether the head is there, of every device and, last, of the host.

    The last layers go to devices, and the head before any of them.
    """
    counts = deal_layers(model, setting, devices)
    start = model.num_layers + 1 - sum_list(counts)
    shares = []
    first = 0
    bounds = [start]
    for count in counts:
        bounds.append(bounds[len(bounds) - 1] + count)
    for idx in range(len(counts) + 1):
        # The host has what comes before the first device.
        first = bounds[idx] if idx < len(counts) else 0
        end = bounds[idx + 1] if idx < len(counts) else start
        weights = 0
        num_layers = 0
        for layer in range(first, min(end, model.num_layers)):
            weights = weights + quant.layer_bytes[layer]
            num_layers = num_layers + 1
        has_head = first <= model.num_layers and model.num_layers < end
        if has_head:
            weights = weights + quant.head_bytes
        shares.append({"layers": num_layers, "weights": weights, "has_head": has_head})
    return shares


def llama_cpp_parts(model: ModelSizes, quant: QuantSizes, setting: Setting, devices: Sequence[DeviceNumbers]) -> Any:
    """llama.cpp and what is built on it: layers on devices, the rest and the token table on the host."""
    parts = []
    shares = device_weights(model, quant, setting, devices)
    host = shares[len(devices)]
    is_partial = host["layers"] > 0
    positions = setting.num_context_tokens * setting.num_parallel
    has_device = False
    is_vision_placed = False
    for idx in range(len(devices)):
        share = shares[idx]
        if share["weights"] > 0:
            has_device = True
            parts.append(part("weights", share["weights"], idx, "exact"))
            if setting.is_vision_on_device and not is_vision_placed:
                is_vision_placed = True
                parts.append(part("vision and projector", quant.vision_bytes, idx, "exact"))
                parts.append(part("vision buffer", model.vision_buffer_bytes, idx, "logged"))
            parts.append(part("key-value cache", kv_bytes(model, setting, share["layers"], positions), idx, "exact"))
            parts.append(part("compute buffer", compute_buffer_bytes(model, setting, is_partial), idx, "logged"))
            parts.append(part("driver context", context_bytes(devices[idx]), idx, "fitted"))
    parts.append(part("weights", host["weights"] + quant.table_bytes, HOST, "exact"))
    if not is_vision_placed:
        parts.append(part("vision and projector", quant.vision_bytes, HOST, "exact"))
        parts.append(part("vision buffer", model.vision_buffer_bytes, HOST, "logged"))
    if host["layers"] > 0:
        parts.append(part("key-value cache", kv_bytes(model, setting, host["layers"], positions), HOST, "exact"))
    size = host_buffer_bytes(model, setting) if has_device else compute_buffer_bytes(model, setting, False)
    parts.append(part("compute buffer", size, HOST, "logged"))
    parts.append(part("program", 150 * MIB, HOST, "assumed"))
    return parts


def module_activation_bytes(model: ModelSizes, setting: Setting, num_tokens: int) -> int:
    """Largest set of float32 activations held at once in a prompt, layer by layer, with the pictures' features.

    Attention holds the embeddings, the layer's input, its norm, query, key, value, what they give and its projection,
    and three more copies while keys and values are written in 8 bits. The widest product holds the embeddings, the
    layer's input, its output so far, its norm and its result, and gate and up.
    """
    block = 4 * num_tokens * model.hidden_size
    attention = block * (8 if setting.kv_block_bytes >= 64 else 11)
    product = 6 * block + 8 * num_tokens * model.intermediate_size
    return 8 * setting.num_images * model.num_image_tokens * model.hidden_size + max(attention, product)


def llavakit_activation_bytes(model: ModelSizes, quant: QuantSizes, setting: Setting, num_tokens: int) -> int:
    """Float32 activations of a prompt in this package's engine on a CPU, all layers in one native call.

    Held are the embeddings, their copy that the layers change, the result, and what the call needs: a token's norm, and
    either its heads' products, before and after rotation, or gate and up; and 8-bit copies of 960 inputs of the widest
    product. Beside them are the pictures' features; or before them, the tower's activations.

    The C library gives blocks of 32 MiB and more back to the system at once and keeps smaller ones. What the call
    needed is free again when the head's weights are first read, so only what is more counts.
    """
    block = 4 * num_tokens * model.hidden_size
    heads = 2 * model.hidden_size + 3 * model.kv_width
    scratch = block + 4 * num_tokens * max(heads, 2 * model.intermediate_size)
    packed = floor(9 * min(num_tokens, 960) * model.intermediate_size / 8)
    decoder = 3 * block + scratch + packed
    if scratch >= 32 * MIB:
        decoder = max(3 * block, decoder - quant.head_bytes)
    features = 8 * setting.num_images * model.num_image_tokens * model.hidden_size
    tower = 4 * model.vision_tokens * (4 * model.vision_width + 2 * model.vision_inner)
    return features + max(decoder, tower if setting.num_images > 0 else 0)


def llavakit_parts(
    model: ModelSizes, quant: QuantSizes, setting: Setting, devices: Sequence[DeviceNumbers], program_bytes: int
) -> Any:
    """Our engine. On a CPU the mapped file and what one prompt and its answer use of the cache.

    The cache commits a page when a position in it is first written, so that a large context costs nothing until it is
    used. The vocabulary takes 800 bytes a piece, as measured, in the tables of two directions. On a GPU weights are 16
    bits wide, whatever the file's types.
    """
    num_tokens = min(setting.num_context_tokens, prompt_tokens(model, setting) + setting.num_new_tokens)
    if len(devices) > 0 and devices[0].kind == "gpu":
        positions = setting.num_context_tokens * setting.num_parallel
        half = floor(module_activation_bytes(model, setting, prompt_tokens(model, setting)) / 2)
        return [
            part("weights", 2 * model.num_parameters, 0, "exact"),
            part("key-value cache", kv_bytes(model, setting, model.num_layers, positions), 0, "exact"),
            part("activations", half, 0, "fitted"),
            part("driver context", context_bytes(devices[0]) + 300 * MIB, 0, "fitted"),
            part("program", program_bytes, HOST, "measured"),
        ]
    cache = kv_bytes(model, setting, model.num_layers, num_tokens * setting.num_parallel)
    activations = llavakit_activation_bytes(model, quant, setting, prompt_tokens(model, setting))
    return [
        part("weights", quant.language_bytes - quant.table_bytes, HOST, "exact"),
        part("vision and projector", quant.vision_bytes if setting.num_images > 0 else 0, HOST, "exact"),
        part("key-value cache", cache, HOST, "exact"),
        part("activations", activations, HOST, "fitted"),
        part("vocabulary", 800 * model.vocab_size, HOST, "measured"),
        part("program", program_bytes, HOST, "measured"),
    ]


def torch_parts(model: ModelSizes, setting: Setting, device: DeviceNumbers) -> Any:
    """Plan transformers on one device: 16 bits, or 4 bits of bitsandbytes for all linear layers but the head.

    A block of 64 weights in 4 bits has one float32 scale.
    """
    weights = 2 * model.num_reference_parameters
    if setting.engine == "transformers-4bit":
        weights = weights - floor(model.num_linear_parameters * (2 - 0.5 - 4 / 64))
    positions = (prompt_tokens(model, setting) + setting.num_new_tokens) * setting.num_parallel
    cache = 2 * kv_bytes_half(model, positions)
    activations = (
        2 * prompt_tokens(model, setting) * setting.num_parallel * (8 * model.hidden_size + 4 * model.intermediate_size)
    )
    place = HOST if device.kind == "cpu" else 0
    return [
        part("weights", weights, place, "exact"),
        part("key-value cache", cache, place, "exact"),
        part("activations", activations, place, "assumed"),
        part("driver context and libraries", context_bytes(device) + 300 * MIB, place, "fitted"),
    ]


def kv_bytes_half(model: ModelSizes, positions: int) -> int:
    """Keys, or values, of all layers in 16 bits."""
    return 2 * model.num_layers * model.kv_width * positions


def vllm_parts(model: ModelSizes, setting: Setting, device: DeviceNumbers) -> Any:
    """VLLM on one device: what must fit before it fills nine tenths of the device with cache blocks of 16 positions.

    Its profiling pass runs 2,048 tokens or the whole context and 256 rows of logits; its recorded graphs are assumed
    to take 0.6 GiB.
    """
    batch = max(2048, setting.num_context_tokens)
    activations = 2 * batch * (6 * model.hidden_size + 3 * model.intermediate_size) + 4 * 256 * model.vocab_size
    blocks = floor((setting.num_context_tokens + 15) / 16) * setting.num_parallel
    return [
        part("weights", 2 * model.num_reference_parameters, 0, "exact"),
        part("key-value cache", 2 * kv_bytes_half(model, 16 * blocks), 0, "exact"),
        part("activations", activations, 0, "assumed"),
        part("recorded graphs", 614 * MIB, 0, "assumed"),
        part("driver context and libraries", context_bytes(device) + 300 * MIB, 0, "fitted"),
        part("held back", floor(device.memory_bytes / 10), 0, "exact"),
    ]


def parts_of(
    model: ModelSizes, quant: QuantSizes, setting: Setting, devices: Sequence[DeviceNumbers], program_bytes: int
) -> Any:
    """Every part of what an engine needs, on devices and on the host."""
    if setting.engine == "llavakit":
        return llavakit_parts(model, quant, setting, devices, program_bytes)
    if setting.engine == "vllm":
        return vllm_parts(model, setting, devices[0])
    if setting.engine == "transformers" or setting.engine == "transformers-4bit":
        return torch_parts(model, setting, devices[0])
    return llama_cpp_parts(model, quant, setting, devices)


def place_totals(parts: Any, num_devices: int) -> Any:
    """Bytes on every device and, last, on the host."""
    totals = []
    for place in range(num_devices + 1):
        total = 0
        for entry in parts:
            is_here = entry["place"] == place or (entry["place"] == HOST and place == num_devices)
            total = total + (entry["bytes"] if is_here else 0)
        totals.append(total)
    return totals


def fits_in(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    host: DeviceNumbers,
    program_bytes: int,
) -> bool:
    """Whether every device and the host hold their parts. Shared memory holds both."""
    totals = place_totals(parts_of(model, quant, setting, devices, program_bytes), len(devices))
    fits = True
    shared = 0
    for idx in range(len(devices)):
        if totals[idx] > usable_bytes(devices[idx]):
            fits = False
        if devices[idx].kind != "gpu":
            shared = shared + totals[idx]
    return fits and totals[len(devices)] + shared <= usable_bytes(host)


def largest_context(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    host: DeviceNumbers,
    program_bytes: int,
) -> int:
    """Largest context that fits, by halving; 0 if none does. Not above the model's own."""
    low = 0
    high = model.max_context_tokens + 1
    while high - low > 1:
        middle = floor((low + high) / 2)
        if fits_in(model, quant, with_field(setting, "num_context_tokens", middle), devices, host, program_bytes):
            low = middle
        else:
            high = middle
    return low


def most_device_layers(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    host: DeviceNumbers,
    program_bytes: int,
) -> int:
    """Most layers that devices hold, the head counted as one; 0 if it does not fit with any."""
    for left in range(model.num_layers + 2):
        count = model.num_layers + 1 - left
        if fits_in(model, quant, with_field(setting, "num_device_layers", count), devices, host, program_bytes):
            return count
    return 0


def verdict_of(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    host: DeviceNumbers,
    program_bytes: int,
) -> str:
    """Say "fits", "tight" (under 4 % left somewhere), "partly" (some layers must stay on the host) or "no"."""
    if not fits_in(model, quant, setting, devices, host, program_bytes):
        layered = setting.engine == "llama.cpp" or setting.engine == "ollama"
        if len(devices) == 0 or not layered:
            return "no"
        layers = most_device_layers(model, quant, setting, devices, host, program_bytes)
        return "partly" if layers > 0 else "no"
    totals = place_totals(parts_of(model, quant, setting, devices, program_bytes), len(devices))
    tight = False
    for idx in range(len(devices)):
        if totals[idx] > usable_bytes(devices[idx]) * 0.96:
            tight = True
    return "tight" if tight or totals[len(devices)] > usable_bytes(host) * 0.96 else "fits"


# Time -----------------------------------------------------------------------------------------------------------------


def prompt_rate(quant: QuantSizes, device: DeviceNumbers) -> float:
    """Operations per second that a prompt is measured against: 8-bit ones for quantized weights where there are any."""
    if quant.is_half or device.int8_rate == 0:
        return device.half_rate
    return device.int8_rate


def operation_cost(quant: QuantSizes) -> float:
    """Energy of an operation, of 8-bit ones as the unit: 16 bits take twice as much."""
    return 2.0 if quant.is_half else 1.0


def reached_rate(rate: float, efficiency: float, joules: float, device: DeviceNumbers) -> float:
    """Operations per second that are reached: a share of the rate, and no more than the rated power feeds."""
    return 1 / (1 / (rate * efficiency) + joules / device.watts)


def reached_prompt_rate(quant: QuantSizes, device: DeviceNumbers, fit: SpeedFit) -> float:
    """Operations per second of a prompt."""
    efficiency = fit.half_prompt_efficiency if quant.is_half else fit.quant_prompt_efficiency
    return reached_rate(prompt_rate(quant, device), efficiency, fit.prompt_joules * operation_cost(quant), device)


def slower_of(first: float, second: float) -> float:
    """Time of two things done at once: that of the slower one, and a little more where both take as long."""
    both = first * first * first * first + second * second * second * second
    return sqrt(sqrt(both))


def weight_operations(quant: QuantSizes, fit: SpeedFit) -> float:
    """Plain operations to unpack and multiply one weight."""
    if quant.is_half:
        return fit.half_operations
    return fit.k_operations if quant.is_k else fit.quant_operations


def decode_seconds(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit,
    depth: int,
) -> float:
    """Time of one further token of every parallel sequence after ``depth`` tokens.

    Bytes over bandwidth or the unpacking of weights over the arithmetic rate, whichever is slower, and a time per
    layer: each device and the host do their layers in turn. Weights are read once, the cache once per sequence.
    """
    shares = device_weights(model, quant, setting, devices)
    total = 0.0
    for idx in range(len(devices) + 1):
        share = shares[idx]
        device = devices[idx] if idx < len(devices) else host
        fit = fits[idx] if idx < len(devices) else host_fit
        if share["weights"] > 0:
            cache = kv_bytes(model, setting, share["layers"], depth) * setting.num_parallel
            efficiency = fit.half_decode_efficiency if quant.is_half else fit.decode_efficiency
            read = (share["weights"] + cache) / (device.bandwidth * efficiency)
            count = model.linear_flops * share["layers"] / model.num_layers + (
                model.head_flops if share["has_head"] else 0
            )
            unpacked = 0.0
            if device.shader_rate > 0:
                unpacked = count / 2 * weight_operations(quant, fit) / device.shader_rate
            total = (
                total
                + slower_of(read, unpacked)
                + fit.decode_layer_s * (share["layers"] + (1 if share["has_head"] else 0))
            )
    return total


def prompt_seconds(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit,
    num_tokens: int,
) -> float:
    """Time of a prompt of so many tokens: operations over rate, and a time per layer and batch.

    Where a fit has an efficiency of attention, attention runs at the plain rate, beside products of another kind.

    Layers on the host are brought to the first device over the bus, batch by batch, where that is faster.
    """
    shares = device_weights(model, quant, setting, devices)
    batches = floor((num_tokens + setting.micro_batch - 1) / setting.micro_batch)
    pairs = num_tokens * (num_tokens + 1) / 2
    linear = model.linear_flops * num_tokens / model.num_layers
    attended = model.attention_flops * pairs / model.num_layers
    total = 0.0
    for idx in range(len(devices) + 1):
        share = shares[idx]
        device = devices[idx] if idx < len(devices) else host
        fit = fits[idx] if idx < len(devices) else host_fit
        rate = reached_prompt_rate(quant, device, fit)
        is_apart = fit.attention_efficiency > 0 and device.shader_rate > 0
        work = (linear if is_apart else linear + attended) * share["layers"]
        work = work + (model.head_flops if share["has_head"] else 0)
        apart = attended * share["layers"] / (device.shader_rate * fit.attention_efficiency) if is_apart else 0.0
        seconds = work / rate + apart + fit.prompt_layer_s * share["layers"] * batches
        if idx == len(devices) and idx > 0 and share["layers"] > 0 and devices[0].host_rate > 0:
            streamed = (
                work / reached_prompt_rate(quant, devices[0], fits[0])
                + batches * share["weights"] / devices[0].host_rate
            )
            seconds = min(seconds, streamed)
        total = total + seconds
    return total


def vision_seconds(model: ModelSizes, setting: Setting, device: DeviceNumbers, fit: SpeedFit) -> float:
    """Time of the tower and the projector for the prompt's pictures, in 16 bits."""
    flops = setting.num_images * (model.vision_flops + model.projector_flops)
    return flops / reached_rate(device.half_rate, fit.half_prompt_efficiency, 2 * fit.prompt_joules, device)


def image_seconds(setting: Setting, seconds_per_megapixel: float) -> float:
    """Time to decode the pictures and to bring them to the tower's size, on the host."""
    return setting.num_images * (0.003 + setting.image_megapixels * seconds_per_megapixel)


def first_token_seconds(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit,
    seconds_per_megapixel: float,
) -> float:
    """Time to the first token: pictures, tower, prompt."""
    has_device = len(devices) > 0 and setting.is_vision_on_device
    device = devices[0] if has_device else host
    fit = fits[0] if has_device else host_fit
    tokens = prompt_tokens(model, setting)
    return (
        image_seconds(setting, seconds_per_megapixel)
        + vision_seconds(model, setting, device, fit)
        + prompt_seconds(model, quant, setting, devices, fits, host, host_fit, tokens)
    )


def answer_seconds(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit,
    seconds_per_megapixel: float,
) -> float:
    """Time of a whole answer."""
    depth = prompt_tokens(model, setting) + setting.num_new_tokens / 2
    one = decode_seconds(model, quant, setting, devices, fits, host, host_fit, floor(depth))
    first = first_token_seconds(model, quant, setting, devices, fits, host, host_fit, seconds_per_megapixel)
    return first + setting.num_new_tokens * one


def energy_joules(seconds: float, devices: Sequence[DeviceNumbers], host: DeviceNumbers) -> float:
    """Energy of so many seconds of work: devices at their rated power, the host at its own or idle beside them."""
    watts = 0.0
    for device in devices:
        watts = watts + device.watts
    beside = host.watts if len(devices) == 0 else host.idle_watts
    return seconds * (watts + beside)
