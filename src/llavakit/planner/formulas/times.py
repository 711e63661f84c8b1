"""Time and energy of an answer, by whichever formulas the program has."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from llavakit.planner.formulas.common import prompt_tokens
from llavakit.planner.formulas.engine_time import (
    engine_decode_seconds,
    engine_prompt_seconds,
    engine_vision_seconds,
)
from llavakit.planner.formulas.other_time import other_decode_seconds, other_prompt_seconds, other_vision_seconds
from llavakit.planner.records import DeviceNumbers, EngineFit, ModelSizes, QuantSizes, Setting, SpeedFit

__all__ = [
    "answer_seconds", "decode_seconds", "energy_joules", "first_token_seconds", "image_seconds", "prompt_seconds",
    "vision_seconds",
]  # fmt: skip


def decode_seconds(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit | EngineFit,
    depth: int,
) -> float:
    """Time of one further token of every parallel sequence after ``depth`` tokens."""
    if host_fit.program == "llavakit":
        return engine_decode_seconds(model, quant, setting, host, host_fit, depth)
    return other_decode_seconds(model, quant, setting, devices, fits, host, host_fit, depth)


def prompt_seconds(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit | EngineFit,
    num_tokens: int,
) -> float:
    """Time of a prompt of so many tokens."""
    if host_fit.program == "llavakit":
        return engine_prompt_seconds(model, quant, host, host_fit, num_tokens)
    return other_prompt_seconds(model, quant, setting, devices, fits, host, host_fit, num_tokens)


def vision_seconds(
    model: ModelSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit | EngineFit,
) -> float:
    """Time of the tower and the projector for the prompt's pictures, on the first device or on the host."""
    if host_fit.program == "llavakit":
        return engine_vision_seconds(model, setting, host, host_fit)
    if len(devices) > 0 and setting.is_vision_on_device:
        return other_vision_seconds(model, setting, devices[0], fits[0])
    return other_vision_seconds(model, setting, host, host_fit)


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
    host_fit: SpeedFit | EngineFit,
    seconds_per_megapixel: float,
) -> float:
    """Time to the first token of a prompt that comes alone: pictures, tower, prompt."""
    tokens = prompt_tokens(model, setting)
    return (
        image_seconds(setting, seconds_per_megapixel)
        + vision_seconds(model, setting, devices, fits, host, host_fit)
        + prompt_seconds(model, quant, setting, devices, fits, host, host_fit, tokens)
    )


def answer_seconds(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit | EngineFit,
    seconds_per_megapixel: float,
) -> float:
    """Time of a round: the prompts of all parallel sequences one after another, then their answers side by side."""
    depth = prompt_tokens(model, setting) + setting.num_new_tokens / 2
    one = decode_seconds(model, quant, setting, devices, fits, host, host_fit, floor(depth))
    first = first_token_seconds(model, quant, setting, devices, fits, host, host_fit, seconds_per_megapixel)
    return setting.num_parallel * first + setting.num_new_tokens * one


def energy_joules(seconds: float, devices: Sequence[DeviceNumbers], host: DeviceNumbers) -> float:
    """Energy of so many seconds of work: devices at their rated power, the host at its own or idle beside them.

    The power of a chip that shares its memory with the processor is that of both.
    """
    watts = 0.0
    beside = host.watts if len(devices) == 0 else host.idle_watts
    for device in devices:
        watts = watts + device.watts
        if device.is_shared:
            beside = 0.0
    return seconds * (watts + beside)
