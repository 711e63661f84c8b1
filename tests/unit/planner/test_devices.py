"""The tables, how a user's words find a device, and what is seen of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavakit.core.errors import ConfigError
from llavakit.planner.builds import read_rows
from llavakit.planner.calibrate import calibrate
from llavakit.planner.devices import find_device, find_devices, list_devices
from llavakit.planner.machine import detect_machine
from llavakit.planner.measured import list_rows
from llavakit.planner.speed import ERAS, engine_fit, fit_for, load_calibration

_KINDS = {"consumer", "workstation", "datacentre", "unified", "embedded", "cpu"}


def test_every_row_has_source_and_date_and_possible_numbers() -> None:
    for device in list_devices():
        assert device.source, device.name
        assert device.source_date, device.name
        assert device.kind in _KINDS
        assert device.confidence in ("high", "medium", "low")
        assert 1 <= device.bandwidth_gb_s <= 10_000
        assert 0.01e12 <= device.numbers.half_rate <= 5000e12
        assert 2016 <= device.year <= 2026
        assert (device.price_usd is None) == (device.price_year is None)
        if device.backend == "cuda":
            assert device.num_multiprocessors > 0, device.name
    for name in ("speeds.csv", "parts.csv"):
        for row in read_rows(name):
            assert row["source"], row
            assert row["source_date"], row
    assert all(row["reason_unused"] for row in read_rows("speeds.csv") if row["is_used"] != "yes")


def test_no_name_means_two_devices() -> None:
    names = [text.lower() for device in list_devices() for text in (device.name, *device.aliases)]
    assert len(names) == len(set(names))
    for device in list_devices():
        for text in (device.name, *device.aliases):
            assert find_device(text).name == device.name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rtx 3060 12gb", "GeForce RTX 3060 12GB"), ("RTX3060-12GB", "GeForce RTX 3060 12GB"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("3090", "GeForce RTX 3090"), ("rx 7900xtx", "Radeon RX 7900 XTX"),
        ("M2 Max", "Apple M2 Max (38-core GPU)"), ("h200", "H200 SXM 141GB"),
        ("Strix Halo", "Ryzen AI Max+ 395 (Radeon 8060S) 128GB"), ("4060 Ti 8GB", "GeForce RTX 4060 Ti 8GB"),
    ],
)  # fmt: skip
def test_words_find_devices(text: str, name: str) -> None:
    assert find_device(text).name == name


def test_a_size_chooses_among_sizes_sold() -> None:
    assert find_device("M2 Max 64GB").memory_gib == 64
    with pytest.raises(ConfigError, match=r"was not sold with 48 GB, but with 32, 64, 96"):
        find_device("M2 Max 48GB")


def test_unknown_devices_get_the_closest_names() -> None:
    with pytest.raises(ConfigError, match=r"'GeForce RTX 4090'.*llavakit gpus"):
        find_device("RTX 4091")
    with pytest.raises(ConfigError, match=r"may be any of .*4060 Ti 16GB.*4060 Ti 8GB"):
        find_device("RTX 4060 Ti")
    for text in ("", "   ", "RTX"):
        with pytest.raises(ConfigError):
            find_device(text)


def test_several_devices() -> None:
    assert [d.name for d in find_devices("2x RTX 3090")] == ["GeForce RTX 3090"] * 2
    assert [d.name for d in find_devices("RTX 4090 + 3060 12GB")] == ["GeForce RTX 4090", "GeForce RTX 3060 12GB"]
    for text in ("0x RTX 3090", "17x RTX 3090", "9x RTX 3090 + 9x RTX 3090"):
        with pytest.raises(ConfigError, match="16"):
            find_devices(text)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    machine = detect_machine(root=tmp_path, run=lambda _words: None)
    assert machine.gpus == ()
    assert machine.available_bytes is None
    assert any("8 GB is assumed" in note for note in machine.notes)


def test_a_machine_with_limits_and_gpus(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 30000000 kB\nHugePages_Total: 0\n")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("8589934592\n")
    listed = "NVIDIA GeForce RTX 3060, 12288\nNVIDIA GeForce RTX 4060 Ti, 8188\nUnheard Of 9000, 1000\nbroken\n"
    machine = detect_machine(root=tmp_path, run=lambda words: listed if words[0] == "nvidia-smi" else None)
    assert [gpu.name for gpu in machine.gpus] == ["GeForce RTX 3060 12GB", "GeForce RTX 4060 Ti 8GB"]
    assert machine.gpus[1].memory_gib == 8188 / 1024
    assert machine.host.numbers.memory_bytes == 8589934592
    assert machine.available_bytes == 8589934592
    assert any("control group" in note for note in machine.notes)
    assert any("Unheard Of 9000" in note for note in machine.notes)


def test_the_stored_calibration_is_that_of_the_table() -> None:
    """Run `python -m llavakit.planner.calibrate` after changing a table."""
    stored, fresh = load_calibration(), calibrate()
    for old, new in zip(stored["fits"], fresh["fits"], strict=True):
        assert {k: pytest.approx(v, rel=2e-3) if isinstance(v, float) else v for k, v in old.items()} == new
    for kind in ("decode", "prompt"):
        pairs = zip(stored["residuals"][kind], fresh["residuals"][kind], strict=True)
        assert all(new["predicted"] == pytest.approx(old["predicted"], rel=2e-3) for old, new in pairs)


def test_left_out_devices_are_predicted() -> None:
    """The bars of the project: 8 % for answers and 20 % for prompts, in the mean, on devices the fit has not seen."""
    for kind, bar in (("decode", 0.08), ("prompt", 0.20)):
        residuals = load_calibration()["residuals"][kind]
        errors = [abs(r["predicted"] / r["measured"] - 1) for r in residuals]
        assert sum(errors) / len(errors) <= bar
        assert len(errors) >= 130


def test_every_device_and_era_has_a_fit() -> None:
    for device in list_devices():
        for era in ERAS:
            fit = fit_for(device, era=era)
            assert 0 < fit.decode_efficiency <= 1
    assert {row.era for row in list_rows()} <= set(ERAS)
    assert engine_fit("scalar").family.startswith("llavakit")
