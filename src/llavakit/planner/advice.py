"""Changes that would make a model fit, the cheapest in quality and speed first.

In order: more layers on the device, flash attention, keys and values in 8 bits; a shorter context; a smaller type;
both; another program; layers left to the processor; types below 4 bits, whose answers are worse; and all of it
together. Of each the smallest step that is enough is taken, and of contexts the largest one that fits. Pictures, tokens
of a prompt and its answer, and sequences side by side are what is asked for, and stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from llavakit.planner import formulas
from llavakit.planner.cases import HALF_ONLY, LAYERED, OWN, Case
from llavakit.planner.records import KV_BLOCK_BYTES, Setting
from llavakit.weights.mixtures import MIXTURES

__all__ = ["Change", "find_changes"]

# A shorter context is of little use: before it other changes are tried.
_USUAL_CONTEXT = 1024
_TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s")
_SMALL_TYPES = ("q3_k_l", "q3_k_m", "q3_k_s", "q2_k")


@dataclass(frozen=True)
class Change:
    """A change that would make a plan fit: words, the command's options, and what it costs."""

    text: str
    options: str
    setting: Setting
    quant: str
    largest_context: int


@dataclass(frozen=True)
class _Step:
    """What is changed so far, and what is planned with it."""

    setting: Setting
    quant: str
    words: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def change(self, words: str, options: str, *, quant: str | None = None, **fields: Any) -> _Step:
        """Return it with a further change: fields of the setting, or the type."""
        setting = replace(self.setting, **fields)
        return _Step(setting, quant or self.quant, (*self.words, words), (*self.options, options))

    @property
    def text(self) -> str:
        return " and ".join(filter(None, (", ".join(self.words[:-1]), self.words[-1])))


def find_changes(case: Case, setting: Setting) -> Iterator[Change]:
    """Find changes that make it fit, the cheapest in quality and speed first."""
    for step in _steps(case, _Step(setting, case.quant.name)):
        other = case.with_quant(step.quant)
        if other.fits_in(step.setting):
            largest = other.largest_context(step.setting)
            yield Change(step.text, " ".join(step.options), step.setting, step.quant, largest)


def _steps(case: Case, start: _Step) -> Iterator[_Step]:
    setting = start.setting
    needed = formulas.prompt_tokens(case.sizes, setting) + setting.num_new_tokens
    if _is_parted(case, setting) and (layers := case.most_device_layers(setting)) > setting.num_device_layers:
        text = f"put {layers} of {case.sizes.num_layers + 1} layers on the device"
        yield start.change(text, f"--gpu-layers {layers}", num_device_layers=layers)
    bases = _with_smaller_caches(start)
    yield from bases[1:]
    yield from _shortened(case, bases, max(needed, _USUAL_CONTEXT))
    smaller = [_with_smaller_caches(step) for step in _with_types(case, start, _TYPES)]
    for steps in smaller:
        yield from steps
    for steps in smaller:
        yield from _shortened(case, steps, max(needed, _USUAL_CONTEXT))
    if setting.engine == "transformers":
        yield start.change("load it in 4 bits", "--engine transformers-4bit", engine="transformers-4bit")
    if setting.engine not in LAYERED:
        yield from _with_llama_cpp(case, start)
    if _is_parted(case, setting):
        yield from _parted(case, bases[-1])
        yield start.change("leave all of it to the processor", "--gpu-layers 0", num_device_layers=0)
    smallest = [_with_smaller_caches(step) for step in _with_types(case, start, _SMALL_TYPES)]
    for steps in smallest:
        yield from steps
    for steps in (bases, *smaller, *smallest):
        yield from _shortened(case, steps, needed)
    if _is_parted(case, setting):
        for steps in (bases, *smaller, *smallest):
            yield from _least(case, steps[-1], needed)


def _is_parted(case: Case, setting: Setting) -> bool:
    """Whether layers can be on devices and on the processor."""
    return setting.engine in LAYERED and bool(case.devices)


def _with_smaller_caches(start: _Step) -> list[_Step]:
    """Return the step, and it with a cache that takes less, the smallest change first.

    8 bits are the least that is offered; llama.cpp has them with flash attention alone.
    """
    steps, setting = [start], start.setting
    if setting.engine in LAYERED and not setting.has_flash_attention:
        steps.append(start.change("switch flash attention on", "--flash-attention", has_flash_attention=True))
    if setting.engine in (*LAYERED, OWN) and setting.kv_block_bytes > (size := KV_BLOCK_BYTES["q8_0"]):
        steps.append(steps[-1].change("keep keys and values in q8_0", "--kv-type q8_0", kv_block_bytes=size))
    return steps


def _with_types(case: Case, start: _Step, names: Iterable[str]) -> Iterator[_Step]:
    """Change to smaller types, the largest first, where the program computes with the file's types."""
    if start.setting.engine in HALF_ONLY or (start.setting.engine == OWN and case.devices):
        return
    for name in names:
        if name in MIXTURES and case.model.quantize(name).language_bytes < case.quant.language_bytes:
            loss = " at the cost of quality" if name in _SMALL_TYPES else ""
            yield start.change(f"take the smaller {name.upper()}{loss}", f"--quant {name}", quant=name)


def _shortened(case: Case, steps: Iterable[_Step], at_least: int) -> Iterator[_Step]:
    """Shorten the context to the largest that any of these reaches, with the first that reaches it."""
    found = [(case.with_quant(step.quant).largest_context(step.setting), step) for step in steps]
    largest, step = max(found, key=lambda pair: pair[0])
    if at_least <= largest < step.setting.num_context_tokens:
        words = f"shorten the context to {largest:,} tokens"
        yield step.change(words, f"--context {largest}", num_context_tokens=largest)


def _with_llama_cpp(case: Case, start: _Step) -> Iterator[_Step]:
    """Change to the program that runs all types, and to what it takes there."""
    is_small = start.setting.kv_block_bytes < KV_BLOCK_BYTES["f16"]
    other = start.change(
        "run it with llama.cpp", "--engine llama.cpp", engine="llama.cpp", has_flash_attention=is_small
    )
    yield other
    yield from _steps(case, other)


def _parted(case: Case, step: _Step) -> Iterator[_Step]:
    """Leave the tower, or as few layers as are enough, to the processor."""
    yield step.change("leave the vision tower to the processor", "--vision-on-cpu", is_vision_on_device=False)
    if layers := case.with_quant(step.quant).most_device_layers(step.setting):
        yield _leave(case, step, layers)


def _leave(case: Case, step: _Step, layers: int) -> _Step:
    count = case.sizes.num_layers + 1
    words = f"leave {count - layers} of {count} layers to the processor"
    return step.change(words, f"--gpu-layers {layers}", num_device_layers=layers)


def _least(case: Case, step: _Step, num_context_tokens: int) -> Iterator[_Step]:
    """Change to the least of a type: the shortest context, and what devices do not hold on the processor."""
    if num_context_tokens < step.setting.num_context_tokens:
        words = f"shorten the context to {num_context_tokens:,} tokens"
        step = step.change(words, f"--context {num_context_tokens}", num_context_tokens=num_context_tokens)
    layers = case.with_quant(step.quant).most_device_layers(step.setting)
    yield (
        _leave(case, step, layers)
        if layers
        else step.change("leave all of it to the processor", "--gpu-layers 0", num_device_layers=0)
    )
