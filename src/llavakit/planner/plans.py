"""One plan: a model, a quantization and a setting on devices. What it takes, how fast it is, what would make it fit.

In: records. Out: a `Plan`, which `cli` prints and writes as JSON. All numbers come from `llavakit.planner.formulas`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from llavakit.core.errors import ConfigError
from llavakit.planner import formulas
from llavakit.planner.advice import Change, find_changes
from llavakit.planner.cases import ENGINES, HALF_ONLY, LAYERED, OWN, Case
from llavakit.planner.devices import Device
from llavakit.planner.models import PlannedModel
from llavakit.planner.records import KV_BLOCK_BYTES, EngineFit, QuantSizes, Setting, SpeedFit
from llavakit.planner.speed import MIN_OTHER_DEVICES

__all__ = [
    "INTERVAL",
    "OWN_KV_TYPES",
    "SECONDS_PER_MEGAPIXEL",
    "Part",
    "Plan",
    "Speed",
    "Verdict",
    "check_setting",
    "make_plan",
    "planned_quant",
    "why_unplanned",
]

Verdict = Literal["fits", "tight", "partly", "no"]
SECONDS_PER_MEGAPIXEL = 0.011
INTERVAL = 1.645  # 90 % of a normal distribution of logarithms
_MAX_TOKENS = 1 << 20
# Number formats in which this package keeps keys and values.
OWN_KV_TYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Part:
    """Bytes of one thing in one place; ``place`` is the device's number, -1 for the host."""

    name: str
    bytes: int
    place: int
    basis: str


@dataclass(frozen=True)
class Range:
    """An estimate and the interval that holds nine in ten."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """How fast. Tokens per second of the answer after the prompt and at the full context; seconds of the rest.

    Attributes
    ----------
    decode, decode_full, prompt : Range
        Tokens per second.
    image_s, vision_s, first_token_s : float
        Of one prompt that comes alone.
    answer_s : float
        Of a round: as many answers as are asked for at a time, after their prompts.
    images_per_hour, joules_per_image : float or None
        None of prompts without pictures.
    is_guess : bool
        Too few devices of its kind were measured, or a processor is known by its makers' figures alone.
    """

    decode: Range
    decode_full: Range
    prompt: Range
    image_s: float
    vision_s: float
    first_token_s: float
    answer_s: float
    images_per_hour: float | None
    joules_per_image: float | None
    era: str
    is_guess: bool


@dataclass(frozen=True)
class Plan:
    """What came out.

    Attributes
    ----------
    verdict : {"fits", "tight", "partly", "no"}
        ``partly``: it runs with some layers on the host.
    totals, usable : tuple of int
        Bytes needed and to be had on every device and, last, on the host. Of memory that a device shares with the host,
        either has what the other leaves.
    largest_context : int
        That holds the prompt and fits when an answer fills the rest, with everything else as it is; 0 if none.
    cached_tokens : int
        Of a sequence, for which memory is counted: the context where it is reserved, else the prompt and its answer.
    device_layers : int
        Most layers that the devices hold, the head counted as one.
    """

    model: PlannedModel
    quant: QuantSizes
    setting: Setting
    devices: tuple[Device, ...]
    host: Device
    parts: tuple[Part, ...]
    totals: tuple[int, ...]
    usable: tuple[int, ...]
    verdict: Verdict
    largest_context: int
    cached_tokens: int
    device_layers: int
    speed: Speed | None
    change: Change | None
    warnings: tuple[str, ...]

    @property
    def left_bytes(self) -> tuple[int, ...]:
        """What is left on every device and, last, on the host; negative where too much is asked."""
        return tuple(have - need for have, need in zip(self.usable, self.totals, strict=True))

    @property
    def needed_bytes(self) -> int:
        """What is needed on the first device, or on the host if there is no device."""
        return self.totals[0] if self.devices else sum(self.totals)

    @property
    def room_bytes(self) -> int:
        """What programs can have of the memory that `needed_bytes` are of."""
        return self.usable[0] if self.devices else max(self.usable)

    @property
    def headroom_bytes(self) -> int:
        """What is left on the device where least is left, or on the host if there is no device."""
        return min(self.left_bytes[:-1] or self.left_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON's types."""
        return {
            "model": self.model.name,
            "quant": self.quant.name,
            "bits_per_weight": self.quant.bits_per_weight,
            "setting": asdict(self.setting),
            "devices": [device.name for device in self.devices],
            "host": self.host.name,
            "verdict": self.verdict,
            "parts": [asdict(part) for part in self.parts],
            "total_bytes": list(self.totals),
            "usable_bytes": list(self.usable),
            "headroom_bytes": self.headroom_bytes,
            "largest_context": self.largest_context,
            "cached_tokens": self.cached_tokens,
            "device_layers": self.device_layers,
            "speed": None if self.speed is None else asdict(self.speed),
            "change": None if self.change is None else {**asdict(self.change), "setting": asdict(self.change.setting)},
            "warnings": list(self.warnings),
        }


def check_setting(model: PlannedModel, setting: Setting) -> list[str]:
    """Refuse what cannot be; return warnings about what should not be.

    Raises
    ------
    ConfigError
        If a number is negative or absurd, the prompt is longer than the context, or the engine has no such cache.
    """
    sizes = model.sizes
    bounds = {
        "context": (setting.num_context_tokens, 1, _MAX_TOKENS),
        "parallel": (setting.num_parallel, 1, 4096),
        "images": (setting.num_images, 0, 1024),
        "visual-tokens": (setting.num_visual_tokens, 1, 4096),
        "text tokens": (setting.num_text_tokens, 0, _MAX_TOKENS),
        "new-tokens": (setting.num_new_tokens, 1, _MAX_TOKENS),
        "micro-batch": (setting.micro_batch, 1, 65536),
        "gpu-layers": (setting.num_device_layers, 0, 10_000),
    }
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}; it must be between {low} and {high}.")
    if not (math.isfinite(setting.image_megapixels) and 0 < setting.image_megapixels <= 1000):
        raise ConfigError(f"megapixels is {setting.image_megapixels}; it must be above 0 and at most 1000.")
    if setting.engine not in ENGINES:
        raise ConfigError(f"engine {setting.engine[:40]!r} is not known; the engines are {', '.join(ENGINES)}.")
    needed = formulas.prompt_tokens(sizes, setting) + 1
    if needed > setting.num_context_tokens:
        raise ConfigError(
            f"a prompt of {setting.num_images} pictures and {setting.num_text_tokens} tokens of text needs a context "
            f"of {needed}, but the context is {setting.num_context_tokens}. Ask for fewer pictures or more context."
        )
    if setting.engine == OWN and setting.kv_block_bytes not in {KV_BLOCK_BYTES[name] for name in OWN_KV_TYPES}:
        kept = next((name for name, size in KV_BLOCK_BYTES.items() if size == setting.kv_block_bytes), "this type")
        raise ConfigError(
            f"llavakit keeps no keys and values in {kept}; choose one of {', '.join(OWN_KV_TYPES)} with --kv-type, or "
            "plan llama.cpp."
        )
    warnings = []
    if setting.num_new_tokens > (room := setting.num_context_tokens - needed + 1):
        warnings.append(
            f"an answer ends with the context, after {room} of {setting.num_new_tokens} tokens, and is timed so far"
        )
    if setting.num_context_tokens > sizes.max_context_tokens:
        warnings.append(
            f"the model was trained for {sizes.max_context_tokens} tokens; at {setting.num_context_tokens} its answers "
            "fall apart, whatever fits"
        )
    if setting.num_visual_tokens > sizes.num_image_tokens:
        warnings.append(f"a picture has {sizes.num_image_tokens} tokens in this model; no more are counted")
    if setting.kv_block_bytes < KV_BLOCK_BYTES["f16"] and not setting.has_flash_attention and setting.engine in LAYERED:
        warnings.append("llama.cpp quantizes values only with flash attention; it is switched on here")
    if setting.engine in HALF_ONLY and setting.kv_block_bytes != KV_BLOCK_BYTES["f16"]:
        warnings.append(f"the cache of {setting.engine} is planned in 16 bits")
    is_parted = setting.num_device_layers <= sizes.num_layers or not setting.is_vision_on_device
    if is_parted and setting.engine not in LAYERED:
        warnings.append(
            f"{setting.engine} leaves nothing of a model to the processor; layers and the vision tower are parted by "
            "llama.cpp and ollama alone"
        )
    return warnings


def make_plan(
    model: PlannedModel,
    quant: str,
    setting: Setting,
    devices: Sequence[Device],
    host: Device,
    *,
    has_advice: bool = True,
) -> Plan:
    """Plan.

    Parameters
    ----------
    model : PlannedModel
    quant : str
        Name of a mixture.
    setting : Setting
    devices : sequence of Device
        GPUs; none for the processor alone. The plan has those that the engine uses.
    host : Device
    has_advice : bool, default True
        Look for the change that would make it fit.

    Raises
    ------
    ConfigError
        If the setting cannot be, the mixture is unknown, or the engine is not planned on a device.
    """
    warnings = check_setting(model, setting)
    room = setting.num_context_tokens - formulas.prompt_tokens(model.sizes, setting)
    setting = replace(setting, num_new_tokens=min(setting.num_new_tokens, room))
    if setting.kv_block_bytes < KV_BLOCK_BYTES["f16"] and setting.engine in LAYERED:
        setting = replace(setting, has_flash_attention=True)
    model.quantize(quant)  # refuses a name that is not known, whatever the engine makes of it
    if (planned := planned_quant(setting.engine, quant, has_devices=bool(devices))) != quant.lower():
        warnings.append(f"{setting.engine} computes with 16 bits a weight here; F16 is planned, not {quant.upper()}")
        quant = planned
    devices = _used_devices(model, setting, devices, warnings)
    setting = _used_layers(model, setting)
    case = Case(model, model.quantize(quant), devices, host, engine=setting.engine)
    placed = case.placed(setting)
    parts = case.parts(setting)
    totals = [int(total) for total in formulas.place_totals(parts, len(placed))]
    usable = [int(size) for size in formulas.usable_places(totals, placed, case.host)]
    fits = case.fits_in(setting)
    if setting.engine in HALF_ONLY and devices and not any(device.is_shared for device in devices):
        warnings += _loading_warnings(case.quant, setting.engine, usable[-1] - totals[-1])
    layers = model.sizes.num_layers + 1
    if devices and setting.engine in LAYERED:
        layers = case.most_device_layers(setting)
    verdict: Verdict = case.verdict(setting)  # type: ignore[assignment]
    change = None
    if has_advice and not fits:
        change = next(find_changes(case, setting), None)
    running = setting if fits else replace(setting, num_device_layers=layers)
    has_speed = verdict != "no" and setting.engine in (*LAYERED, "llavakit")
    if has_speed:
        warnings += _speed_warnings(devices, case.working_fits(running), host, engine=setting.engine)
    largest = case.largest_context(setting)
    if fits and largest < (whole := min(setting.num_context_tokens, model.sizes.max_context_tokens)):
        warnings.append(f"prompts and answers that fill the context of {whole:,} tokens do not fit; {largest:,} do")
    return Plan(
        model=model,
        quant=case.quant,
        setting=setting,
        devices=tuple(devices),
        host=host,
        parts=tuple(Part(**part) for part in parts if part["bytes"]),
        totals=tuple(totals),
        usable=tuple(usable),
        verdict=verdict,
        largest_context=largest,
        cached_tokens=formulas.cached_tokens(model.sizes, setting, placed),
        device_layers=layers,
        speed=_estimate_speed(case, running, devices, host) if has_speed else None,
        change=change,
        warnings=tuple(warnings),
    )


def _loading_warnings(quant: QuantSizes, engine: str, left_bytes: int) -> list[str]:
    """Warn of a computer that has less memory left than the files that go through it to the devices."""
    file_bytes = quant.language_bytes + quant.vision_bytes
    if file_bytes <= left_bytes:
        return []
    return [
        f"{engine} loads {file_bytes / 1e9:.1f} GB through the memory of the computer, where "
        f"{max(0, left_bytes) / 1e9:.1f} GB are left: files of safetensors are read piece by piece, slowly, and others "
        "do not load"
    ]


def planned_quant(engine: str, quant: str, *, has_devices: bool) -> str:
    """Return the mixture that an engine computes with: torch's have 16 bits a weight, as ours has on a GPU."""
    return "f16" if engine in HALF_ONLY or (engine == OWN and has_devices) else quant.lower()


def why_unplanned(engine: str, device: Device) -> str | None:
    """Say why an engine is not planned on a device, whatever its memory; None where it is."""
    if engine == "vllm" and device.backend == "metal":
        return (
            f"vllm is not planned on {device.name}: on Apple's chips it takes a plugin (vllm-metal) that keeps its "
            "memory in other ways. Plan llama.cpp, llavakit or transformers there."
        )
    if engine == OWN and device.vendor == "Intel" and device.backend != "cpu":
        return (
            f"llavakit is not planned on {device.name}: it runs on processors and on the GPUs that torch reaches by "
            "CUDA, ROCm or Metal, and refuses Intel's. Plan llama.cpp or transformers there."
        )
    return None


def _used_devices(
    model: PlannedModel, setting: Setting, devices: Sequence[Device], warnings: list[str]
) -> Sequence[Device]:
    """Devices that the engine uses: all, or the first one of ours; none if no layer is for them."""
    engine = setting.engine
    for device in devices:
        if reason := why_unplanned(engine, device):
            raise ConfigError(reason)
    if engine == OWN and len(devices) > 1:
        warnings.append(f"llavakit runs on one device: it is planned on the first of the {len(devices)} alone")
        return devices[:1]
    if engine in HALF_ONLY and len(devices) > 1:
        warnings.append(_dealing(model, engine, len(devices)))
    if engine in LAYERED and devices and setting.num_device_layers == 0:
        names = " and ".join(dict.fromkeys(device.name for device in devices))
        warnings.append(f"no layer is put on {names}; the processor runs it alone")
        return ()
    return devices


def _dealing(model: PlannedModel, engine: str, count: int) -> str:
    """Say how torch's programs deal a model to several devices.

    Raises
    ------
    ConfigError
        If it cannot be dealt to so many.
    """
    if engine != "vllm":
        return f"layers are dealt to {count} devices as device_map='auto' deals them, and computed one after another"
    if model.sizes.num_heads % count:
        fitting = [str(num) for num in range(1, 2 * count) if model.sizes.num_heads % num == 0]
        raise ConfigError(
            f"vllm gives every device as many attention heads, and {model.sizes.num_heads} heads cannot be dealt to "
            f"{count} devices. Take {' or '.join(fitting)}."
        )
    return f"planned with tensor parallelism over {count} devices; each has its part of every layer"


def _used_layers(model: PlannedModel, setting: Setting) -> Setting:
    """Return the setting with the layers that there are, and all of them where the engine does not deal them out."""
    layers = model.sizes.num_layers + 1
    if setting.engine in LAYERED:
        return replace(setting, num_device_layers=min(setting.num_device_layers, layers))
    return replace(setting, num_device_layers=layers, is_vision_on_device=True)


def _speed_warnings(
    devices: Sequence[Device], fits: Sequence[SpeedFit | EngineFit], host: Device, *, engine: str
) -> list[str]:
    if engine == OWN and not devices:
        if host.is_measured:
            return []
        return [
            "speeds are a guess: made of the makers' bandwidth, cores and clocks; on the machine itself "
            "`llavakit fits` measures first"
        ]
    found = []
    for family, count in sorted({(fit.family, fit.num_devices) for fit in fits}):
        if count <= MIN_OTHER_DEVICES:
            many = f"{count} in all" if count else "none of them"
            found.append(f"speeds are a guess: too few devices of this kind ({family}) were measured, {many}")
    if any(device.confidence == "low" for device in devices):
        found.append("figures of this device are from secondary sources")
    return found


def _is_unmeasured(fit: SpeedFit | EngineFit) -> bool:
    return fit.program != "llavakit" and fit.num_devices <= MIN_OTHER_DEVICES


def _is_own_guess(devices: Sequence[Device], host: Device, *, engine: str) -> bool:
    """Whether this package's engine is planned on a processor that was not measured."""
    return engine == OWN and not devices and not host.is_measured


def _estimate_speed(case: Case, setting: Setting, devices: Sequence[Device], host: Device) -> Speed:
    sizes, quant, placed = case.sizes, case.quant, case.placed(setting)
    args = (sizes, quant, setting, placed, case.fits, case.host, case.host_fit)
    tokens = formulas.prompt_tokens(sizes, setting)
    fits = case.working_fits(setting)
    decode_spread = max(fit.decode_spread for fit in fits)
    decode = setting.num_parallel / formulas.decode_seconds(*args, tokens)
    full = setting.num_parallel / formulas.decode_seconds(*args, setting.num_context_tokens - 1)
    prompt = max(tokens, 1) / formulas.prompt_seconds(*args, max(tokens, 1))
    answer = formulas.answer_seconds(*args, SECONDS_PER_MEGAPIXEL)
    joules = formulas.energy_joules(answer, placed, case.host)
    images = setting.num_images * setting.num_parallel
    return Speed(
        decode=_range(decode, decode_spread),
        decode_full=_range(full, decode_spread),
        prompt=_range(prompt, max(fit.prompt_spread for fit in fits)),
        image_s=formulas.image_seconds(setting, SECONDS_PER_MEGAPIXEL),
        vision_s=formulas.vision_seconds(sizes, setting, placed, case.fits, case.host, case.host_fit),
        first_token_s=formulas.first_token_seconds(*args, SECONDS_PER_MEGAPIXEL),
        answer_s=answer,
        images_per_hour=3600 * images / answer if images else None,
        joules_per_image=joules / images if images else None,
        era=fits[0].era,
        is_guess=_is_own_guess(devices, host, engine=setting.engine) or any(map(_is_unmeasured, fits)),
    )


def _range(value: float, spread: float) -> Range:
    width = math.exp(INTERVAL * spread)
    return Range(value, value / width, value * width)
