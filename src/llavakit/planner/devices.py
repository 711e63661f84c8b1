"""Devices that models run on: the table, and how a user's words find a row.

``data/devices.csv`` has one row per device, each with its source, its date and how sure it is. Prices are list prices
of their year, and of one memory size where several were sold.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import resources

from llavakit.core.errors import ConfigError
from llavakit.planner.records import DeviceNumbers

__all__ = [
    "Device", "describe_device", "find_device", "find_devices", "list_devices", "list_reported", "list_sold_devices",
    "read_rows",
]  # fmt: skip

_GIB = 1024**3
# The driver and its display, on a card that shows no desktop.
_RESERVED_BYTES = 300 * 1024**2
_COUNT = re.compile(r"^\s*(\d+)\s*[x×]\s*(.+)$", re.IGNORECASE)
_MEMORY = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*g(?:i?b)?\b", re.IGNORECASE)
_SERIES = re.compile(r"\b(rtx|gtx|rx)\b ?")
_ONE_KIND = re.compile(r"\bM[12]\b")
_MAX_DEVICES = 16
# Of a device that is described, the card that gives what is not said; and bounds wide enough for what may come.
_DESCRIBED_LIKE = "GeForce RTX 3060 12GB"
_DESCRIBED_BOUNDS = {"memory-gb": (0.25, 2048), "bandwidth-gb-s": (1, 20_000)}


@dataclass(frozen=True)
class Device:
    """One row of the table.

    Attributes
    ----------
    name, vendor, memory_kind, note : str
        The name of a device that was sold in several sizes has the size in it once one is chosen.
    row_name : str
        The name in the table, whatever the size.
    aliases : tuple of str
    kind : {"consumer", "workstation", "datacentre", "unified", "embedded", "cpu"}
    backend : {"cuda", "metal", "vulkan", "cpu"}
        llama.cpp's usual back end.
    memory_gib, bandwidth_gb_s : float
    memory_options_gib : tuple of float
        Sizes sold, of devices that share memory with the processor; ``memory_gib`` is the largest until one is chosen.
    half_tflops, int8_tops, shader_tflops : float or None
        Dense rates; plain float32 for the last.
    num_multiprocessors : int
        NVIDIA's; 0 elsewhere.
    pcie_gb_s, watts, idle_watts : float or None
    length_mm, slots : float or None
    list_price_usd, list_price_year, list_price_memory_gib : float or None, int or None, float
        A list price, its year, and the memory that it buys; ``price_usd`` has it only with that memory.
    year : int
    confidence : {"high", "medium", "low"}
    source, source_date : str
    instruction_set : str
        Of a processor; empty elsewhere.
    core_rates : tuple of float
        Of a processor of the table: float32 and 8-bit operations per second of all its cores, which are their number,
        their clock and what the instruction set does in a cycle, multiplied; empty elsewhere.
    is_measured : bool
        Bandwidth and rates were measured on this machine.
    """

    name: str
    aliases: tuple[str, ...]
    vendor: str
    kind: str
    backend: str
    memory_gib: float
    memory_options_gib: tuple[float, ...]
    memory_kind: str
    bandwidth_gb_s: float
    half_tflops: float | None
    half_accumulate_tflops: float | None
    int8_tops: float | None
    shader_tflops: float | None
    num_multiprocessors: int
    pcie_gb_s: float | None
    watts: float | None
    idle_watts: float | None
    length_mm: float | None
    slots: float | None
    list_price_usd: float | None
    list_price_year: int | None
    list_price_memory_gib: float
    year: int
    confidence: str
    source: str
    source_date: str
    note: str
    row_name: str
    instruction_set: str = ""
    core_rates: tuple[float, ...] = ()
    is_measured: bool = False

    @property
    def sizes_gib(self) -> tuple[float, ...]:
        """Memory sizes that it was sold with, the smallest first."""
        return self.memory_options_gib or (self.memory_gib,)

    @property
    def is_size_open(self) -> bool:
        """Whether it was sold in several sizes and none is chosen."""
        return len(self.memory_options_gib) > 1 and self.name == self.row_name

    @property
    def price_usd(self) -> float | None:
        """The list price, where it buys this memory."""
        return self.list_price_usd if self.memory_gib == self.list_price_memory_gib else None

    @property
    def price_year(self) -> int | None:
        """The year of `price_usd`."""
        return None if self.price_usd is None else self.list_price_year

    def with_size(self, memory_gib: float) -> Device:
        """Return it with one of the sizes that it was sold with, which its name then says."""
        if len(self.sizes_gib) == 1:
            return self
        return replace(self, name=f"{self.row_name} {memory_gib:g}GB", memory_gib=memory_gib)

    @property
    def family(self) -> str:
        """Devices that are calibrated together."""
        if self.backend == "cuda":
            if self.num_multiprocessors and self.half_tflops is None:
                return "nvidia without tensor cores"
            return "nvidia hbm" if self.memory_kind.upper().startswith("HBM") else "nvidia"
        if self.backend == "metal":
            return "apple ultra" if "Ultra" in self.name else "apple"
        if self.backend == "vulkan":
            if self.vendor == "Intel":
                return "arc"
            return "radeon hbm" if self.memory_kind.upper().startswith("HBM") else "radeon"
        return "cpu"

    @property
    def is_shared(self) -> bool:
        """Whether its memory is the processor's: chips with both on them, and processors themselves."""
        return self.kind in ("unified", "embedded", "cpu")

    @property
    def _unpacking_rate(self) -> float:
        """Plain operations per second of Apple's GPUs, which have few for their bandwidth; 0 of others.

        Since the M3 a core computes with integers and with floating-point numbers at the same time (Apple, "Explore GPU
        advancements in M3 and A17 Pro", 2023), and unpacking a weight takes as many of one kind as of the other.
        """
        if self.backend != "metal" or self.shader_tflops is None:
            return 0.0
        return self.shader_tflops * 1e12 * (1 if _ONE_KIND.search(self.name) else 2)

    @cached_property
    def numbers(self) -> DeviceNumbers:
        """What the formulas see."""
        kind = "cpu" if self.kind == "cpu" else "unified" if self.backend == "metal" else "gpu"
        # llama.cpp lets NVIDIA's tensor cores sum in 16 bits. Devices without such cores run at their float32 rate.
        half = self.half_accumulate_tflops if self.backend == "cuda" else self.half_tflops
        half = half or self.half_tflops or self.shader_tflops or 0.1
        uses_int8 = self.backend == "cuda" and self.int8_tops is not None
        watts = self.watts or 100.0
        return DeviceNumbers(
            name=self.name, kind=kind, is_shared=self.is_shared, memory_bytes=int(self.memory_gib * _GIB),
            reserved_bytes=0 if kind == "unified" else 2 * _GIB if self.is_shared else _RESERVED_BYTES,
            usable_share=0.0,
            num_multiprocessors=self.num_multiprocessors, bandwidth=self.bandwidth_gb_s * 1e9, half_rate=half * 1e12,
            int8_rate=self.int8_tops * 1e12 if uses_int8 and self.int8_tops is not None else 0.0,
            shader_rate=self._unpacking_rate,
            host_rate=0.0 if self.is_shared else (self.pcie_gb_s or 15.75) * 0.8e9, watts=watts,
            idle_watts=self.idle_watts if self.idle_watts is not None else watts * 0.1,
        )  # fmt: skip

    @cached_property
    def engine_numbers(self) -> DeviceNumbers:
        """What the formulas see of a processor that runs this package's own engine, which multiplies in 8 bits.

        Measured rates, or those that follow from cores, clock and instruction set. Where 8-bit products are faster than
        plain ones, 16-bit ones run at half their rate.
        """
        if self.is_measured or not self.core_rates:
            plain = (self.shader_tflops or self.half_tflops or 0.1) * 1e12
            integers = (self.int8_tops or plain / 1e12) * 1e12
        else:
            plain, integers = self.core_rates
        half = integers / 2 if integers > plain else plain
        return replace(self.numbers, half_rate=half, int8_rate=integers, shader_rate=plain)


def read_rows(name: str) -> list[dict[str, str]]:
    """Read a table of the package's data."""
    text = (resources.files("llavakit.planner") / "data" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|") if part.strip())


@lru_cache(maxsize=1)
def list_devices() -> tuple[Device, ...]:
    """Return every device of the table."""
    return tuple(_parse(row) for row in read_rows("devices.csv"))


@lru_cache(maxsize=1)
def list_sold_devices() -> tuple[Device, ...]:
    """Return every device of the table in every size that it was sold with, processors with as much as they take."""
    sold: list[Device] = []
    for device in list_devices():
        sold += [device] if device.backend == "cpu" else [device.with_size(size) for size in device.sizes_gib]
    return tuple(sold)


def _parse(row: dict[str, str]) -> Device:
    return Device(
        name=row["name"], row_name=row["name"], aliases=_split(row["aliases"]), vendor=row["vendor"], kind=row["class"],
        backend=row["backend"], memory_gib=float(row["memory_gib"]),
        memory_options_gib=tuple(float(part) for part in _split(row["memory_options_gib"])),
        memory_kind=row["memory_kind"], bandwidth_gb_s=float(row["bandwidth_gb_s"]),
        half_tflops=_number(row["fp16_tflops"]), half_accumulate_tflops=_number(row["fp16_tflops_fp16_accumulate"]),
        int8_tops=_number(row["int8_tops"]), shader_tflops=_number(row["shader_fp32_tflops"]),
        num_multiprocessors=int(row["num_multiprocessors"] or 0), pcie_gb_s=_number(row["pcie_gb_s"]),
        watts=_number(row["tdp_w"]), idle_watts=_number(row["idle_w"]), length_mm=_number(row["length_mm"]),
        slots=_number(row["slots"]), list_price_usd=_number(row["msrp_usd"]),
        list_price_year=int(row["msrp_year"]) if row["msrp_year"] else None,
        list_price_memory_gib=float(row["msrp_memory_gib"] or row["memory_gib"]), year=int(row["year"]),
        confidence=row["confidence"], source=row["source"], source_date=row["source_date"], note=row["note"],
        instruction_set=row["instruction_set"], core_rates=_core_rates(row),
    )  # fmt: skip


def _core_rates(row: dict[str, str]) -> tuple[float, ...]:
    if not row["num_cores"]:
        return ()
    cycles = int(row["num_cores"]) * float(row["core_ghz"]) * 1e9
    return (cycles * int(row["fp32_per_cycle"]), cycles * int(row["int8_per_cycle"]))


def find_device(name: str) -> Device:
    """Find a device by name or alias, whatever the case, the maker's prefix and the spaces.

    A memory size in the name chooses among rows (``RTX 3060 12GB``), and among the sizes of shared memory
    (``M2 Max 64GB``); without one, that is left open and the largest taken (`Device.is_size_open`).

    Raises
    ------
    ConfigError
        If none is meant, with the closest names, or several are, with their names.
    """
    devices = list_devices()
    wanted = _plain(name)
    if not wanted:
        raise ConfigError("the device has no name; `llavakit gpus` lists those that are known.")
    for device in devices:
        if wanted in {_plain(text) for text in (device.name, *device.aliases)}:
            return device
    size = _MEMORY.search(name)
    bare = _plain(_MEMORY.sub(" ", name))
    found = [d for d in devices if bare in {_plain(_MEMORY.sub(" ", text)) for text in (d.name, *d.aliases)}]
    if not found and bare:  # the number alone
        found = [d for d in devices if bare == _SERIES.sub("", _plain(_MEMORY.sub(" ", d.name))).strip()]
    if size is not None:
        return _of_size(found, float(size.group(1)), name)
    if len(found) == 1:
        return found[0]
    found = found or [d for d in devices if set(bare.split()) <= set(_plain(d.name).split())]
    if len(found) == 1:
        return found[0]
    raise _unclear(name, found)


def _of_size(found: list[Device], size: float, name: str) -> Device:
    for device in found:
        if size in device.sizes_gib:
            return device.with_size(size)
    if found:
        sizes = sorted({size for d in found for size in d.sizes_gib})
        known = ", ".join(f"{size:g}" for size in sizes)
        raise ConfigError(f"{name[:60]!r}: {found[0].name} was not sold with {size:g} GB, but with {known} GB.")
    raise _unclear(name, found)


def _unclear(name: str, found: list[Device]) -> ConfigError:
    if found:
        listed = ", ".join(repr(device.name) for device in found[:6])
        return ConfigError(f"{name[:60]!r} may be any of {listed}. Name one of them.")
    texts = {text.lower(): device.name for device in list_devices() for text in (*device.aliases, device.name)}
    close = list(dict.fromkeys(texts[text] for text in difflib.get_close_matches(name.lower(), texts, 8, 0.5)))[:4]
    hint = f" Close to it: {', '.join(repr(text) for text in close)}." if close else ""
    return ConfigError(
        f"no device {name[:60]!r} is known.{hint} `llavakit gpus` lists them; one that is missing can be described "
        "with --memory-gb and --bandwidth-gb-s."
    )


def find_devices(name: str) -> list[Device]:
    """Find one device or several: ``RTX 3090``, ``2x RTX 3090``, ``RTX 4090 + RTX 3060 12GB``.

    Raises
    ------
    ConfigError
        If a part is unknown, there are more than 16, or one of several is a computer of its own.
    """
    devices: list[Device] = []
    for piece in name.split(" + "):
        match = _COUNT.match(piece)
        count, rest = (int(match.group(1)), match.group(2)) if match else (1, piece)
        if not 1 <= count <= _MAX_DEVICES:
            raise ConfigError(f"{piece[:60]!r} asks for {count} devices; between 1 and {_MAX_DEVICES} can be planned.")
        devices += [find_device(rest)] * count
    if len(devices) > _MAX_DEVICES:
        raise ConfigError(f"{len(devices)} devices are asked for; up to {_MAX_DEVICES} can be planned.")
    if len(devices) > 1 and (alone := next((device for device in devices if device.is_shared), None)):
        raise ConfigError(
            "a processor runs a model alone, or the layers that GPUs leave: name one, or only GPUs."
            if alone.backend == "cpu"
            else f"{alone.name} is a computer of its own, with one memory for processor and GPU, and takes no other "
            "device beside it: name it alone, or only cards."
        )
    return devices


def describe_device(memory_gib: float, bandwidth_gb_s: float) -> Device:
    """Make up a GPU that is not in the table, in all else like a card whose arithmetic and power are scaled.

    The rates grow with the bandwidth, and the power with its square root, which is how NVIDIA's cards of the table
    grow.

    Raises
    ------
    ConfigError
        If no GPU has such a memory.
    """
    for (name, (low, high)), value in zip(_DESCRIBED_BOUNDS.items(), (memory_gib, bandwidth_gb_s), strict=True):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value:g}; of a GPU it must be between {low:g} and {high:,}.")
    like = find_device(_DESCRIBED_LIKE)
    scale = bandwidth_gb_s / like.bandwidth_gb_s

    def scaled(value: float | None, factor: float) -> float | None:
        return None if value is None else value * factor

    return replace(
        like,
        name=f"a GPU with {memory_gib:g} GB and {bandwidth_gb_s:g} GB/s",
        memory_gib=memory_gib,
        bandwidth_gb_s=bandwidth_gb_s,
        half_tflops=scaled(like.half_tflops, scale),
        half_accumulate_tflops=scaled(like.half_accumulate_tflops, scale),
        int8_tops=scaled(like.int8_tops, scale),
        shader_tflops=scaled(like.shader_tflops, scale),
        watts=scaled(like.watts, math.sqrt(scale)),
        idle_watts=scaled(like.idle_watts, math.sqrt(scale)),
        list_price_usd=None,
    )


def list_reported(name: str) -> list[Device]:
    """Return the NVIDIA GPUs that a driver's name stands for: several where one name was sold with several sizes.

    A user leaves words out, a driver does not: each word but the size must be a row's, so that ``GTX 1080`` is no
    ``GTX 1080 Ti`` and ``RTX 4090 Laptop GPU`` no ``RTX 4090``. A size in the name must be the row's, too. A Max-Q
    edition is the card with less power, and the driver gives the power as well.
    """
    name = name.replace(" Max-Q Workstation Edition", " Workstation Edition")
    size = _MEMORY.search(name)
    bare = _plain(_MEMORY.sub(" ", name))
    return [
        device
        for device in list_devices()
        if device.backend == "cuda"
        and bare in {_plain(_MEMORY.sub(" ", text)) for text in (device.name, *device.aliases)}
        and (size is None or float(size.group(1)) == device.memory_gib)
    ]


def _plain(text: str) -> str:
    """Lower case, makers' names dropped, letters and digits apart: ``GeForce RTX3060-12GB`` is ``rtx 3060 12 gb``."""
    text = re.sub(r"[^a-z0-9.+]+", " ", text.lower())
    text = re.sub(r"\b(nvidia|geforce|amd|radeon|intel|apple|tesla|graphics)\b", " ", text)
    text = re.sub(r"(?<=[a-z])(?=\d{3})|(?<=\d{4})(?=[a-z])", " ", text)
    text = re.sub(r"(?<=\d)\s+(?=gi?b\b)", "", text)
    return " ".join(text.split())
