"""Changes that would make a model fit, the cheapest in quality and speed first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llavakit.planner import formulas
from llavakit.planner.cases import HALF_ONLY, LAYERED, OWN, Case
from llavakit.planner.records import KV_BLOCK_BYTES, Setting
from llavakit.weights.mixtures import MIXTURES

__all__ = ["Change", "find_changes"]


@dataclass(frozen=True)
class Change:
    """A change that would make a plan fit: words, the command's options, and what it costs."""

    text: str
    options: str
    setting: Setting
    quant: str
    largest_context: int


def find_changes(case: Case, setting: Setting) -> Iterator[Change]:
    """Find changes that make it fit, the cheapest in quality and speed first."""
    for text, options, quant, changed in _candidates(case, setting):
        other = case.with_quant(quant)
        if other.fits_in(changed):
            yield Change(text, options, changed, quant, other.largest_context(changed))


def _candidates(case: Case, setting: Setting) -> Iterator[tuple[str, str, str, Setting]]:
    name = case.quant.name
    flash = replace(setting, has_flash_attention=True)
    small = replace(flash, kv_block_bytes=min(setting.kv_block_bytes, KV_BLOCK_BYTES["q8_0"]))
    extra = _small_options(setting)
    needed = formulas.prompt_tokens(case.sizes, setting) + setting.num_new_tokens
    short = -(-max(needed, 1024) // 256) * 256
    if setting.engine in LAYERED:
        if case.devices and (layers := case.most_device_layers(setting)) > setting.num_device_layers:
            text = f"put {layers} of {case.sizes.num_layers + 1} layers on the device"
            yield text, f"--gpu-layers {layers}", name, replace(setting, num_device_layers=layers)
        if not setting.has_flash_attention:
            yield "switch flash attention on", "--flash-attention", name, flash
        if setting.kv_block_bytes > small.kv_block_bytes:
            yield "keep keys and values in q8_0", extra.strip(), name, small
    if setting.engine == OWN and setting.kv_block_bytes > small.kv_block_bytes:
        changed = replace(setting, kv_block_bytes=small.kv_block_bytes)
        yield "keep keys and values in q8_0", "--kv-type q8_0", name, changed
    if short < setting.num_context_tokens:
        base = small if setting.engine in LAYERED else setting
        options = f"--context {short}" + (extra if base is small else "")
        yield f"shorten the context to {short} tokens", options, name, replace(base, num_context_tokens=short)
    if setting.engine not in HALF_ONLY:
        yield from _smaller(case, setting, small)
    elif setting.engine == "transformers":
        yield "load it in 4 bits", "--engine transformers-4bit", name, replace(setting, engine="transformers-4bit")
    if setting.engine in LAYERED and case.devices:
        base = replace(small, is_vision_on_device=False)
        yield "leave the vision tower to the processor", "--vision-on-cpu" + extra, name, base
        for layers in range(case.sizes.num_layers, 0, -1):
            yield (
                f"leave {case.sizes.num_layers + 1 - layers} of {case.sizes.num_layers + 1} layers to the processor",
                f"--gpu-layers {layers}{extra}",
                name,
                replace(small, num_device_layers=layers),
            )
        yield "leave all of it to the processor", "--gpu-layers 0", name, replace(setting, num_device_layers=0)


def _small_options(setting: Setting) -> str:
    """Options that make the cache as small as is offered: 8 bits, for which llama.cpp needs flash attention."""
    flash = "" if setting.has_flash_attention else " --flash-attention"
    return flash + (" --kv-type q8_0" if setting.kv_block_bytes > KV_BLOCK_BYTES["q8_0"] else "")


def _smaller(case: Case, setting: Setting, small: Setting) -> Iterator[tuple[str, str, str, Setting]]:
    """Smaller mixtures, the largest first; below 4 bits nothing is offered, since quality falls."""
    base = small if setting.engine in LAYERED else setting
    extra = _small_options(setting) if base is small else ""
    names = [n for n in ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s") if n in MIXTURES]
    for name in names:
        if case.model.quantize(name).language_bytes < case.quant.language_bytes:
            yield f"take the smaller {name.upper()}", f"--quant {name}{extra}", name, base
