"""The planner's commands: what they print, their JSON, their exit statuses, and bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llavakit.cli.main import run_command
from tests.unit.cli.streams import make_console


def _run(*arguments: str) -> tuple[int, str, str]:
    console = make_console()
    status = run_command(arguments, console=console)
    return status, console.stdout.getvalue(), console.stderr.getvalue()


def _json(*arguments: str) -> tuple[int, Any]:
    status, out, notes = _run(*arguments, "--json")
    assert notes == ""
    return status, json.loads(out)


def test_a_card_shows_sizes_scores_and_commands() -> None:
    status, out, notes = _run("plan", "llava:13b", "--offline")
    assert status == 0
    assert "13.34 billion" in out
    assert "40 layers, 40 heads of 128" in out
    assert "Q4_K_M <" in out
    assert "12.19 GB" in out
    assert "67.7" in out
    assert "llavakit convert llava:13b" in out
    assert "LLaVA-1.6" in notes
    _, card = _json("plan", "llava:13b", "--offline")
    assert card["quantizations"][0]["name"] == "q2_k"
    assert card["parameters"]["all"] == 13_338_896_384
    assert all(row["quality"] for row in card["quantizations"])
    assert "about 300,000" in out
    assert "arXiv 2310.03744" in out


def test_a_card_names_the_driver_where_a_device_is_planned() -> None:
    for extra, where in (
        ((), "the driver's 0.1 to 0.6 GB come on top"), (("--gpu-layers", "0"), "on a processor"),
        (("--engine", "llavakit"), "on a processor"), (("--engine", "vllm"), "and a tenth of the card come on top"),
    ):  # fmt: skip
        _, out, _ = _run("plan", "llava:7b", "--offline", *extra)
        assert where in out
        assert ("driver" in out) == ("driver" in where or "card" in where)


def test_a_card_warns_of_its_setting() -> None:
    _, _, notes = _run("plan", "llava:13b", "--offline", "--context", "8192")
    assert "was trained for 4096 tokens" in notes
    assert ".." not in notes


def test_a_card_does_without_the_hub() -> None:
    status, card = _json("plan", "llava:7b")
    assert status == 0
    assert card["downloads"] is None


def test_fits_says_yes_barely_partly_and_no() -> None:
    for gpu, extra, word, wanted in (
        ("RTX 4090", (), "Yes: ", 0), ("RTX 3060 12GB", (), "Barely: ", 0), ("RTX 3070", (), "Not all of it: ", 1),
        ("RTX 3070", ("--quant", "f32"), "No: ", 1),
    ):  # fmt: skip
        status, out, _ = _run("fits", "llava:13b", "--gpu", gpu, *extra)
        assert (status, out.startswith(word)) == (wanted, True), out
    assert "It fits if you switch flash attention on" not in out


def test_fits_gives_the_cheapest_change() -> None:
    status, out, _ = _run("fits", "llava:13b", "--gpu", "RTX 3080 10GB")
    assert status == 1
    assert "It fits if you" in out.splitlines()[0]
    options = _json("fits", "llava:13b", "--gpu", "RTX 3080 10GB")[1]["change"]["options"].split()
    assert _run("fits", "llava:13b", "--gpu", "RTX 3080 10GB", *options)[0] == 0


def test_what_was_tried_in_vain_is_said() -> None:
    _, out, _ = _run("fits", "llava:13b", "--gpu", "RTX 4090", "--parallel", "400")
    assert "Neither the smallest type nor the shortest context" in out
    assert "fewer sequences at a time (--parallel)" in out
    assert "Nothing that can be changed" not in out


def test_what_was_asked_is_planned_or_named() -> None:
    assert "RTX 4090 + GeForce RTX 3090" in _run("fits", "llava:13b", "--gpu", "RTX 4090", "--gpu", "RTX 3090")[1]
    status, out, _ = _run("fits", "llava:13b", "--gpu", "RTX 3090", "--host-memory-gb", "1")
    assert status == 1
    assert "the computer around it has 0 B of memory" in out
    assert "-" not in out.split("all of it")[-1].split("B of")[-1][:20]
    for extra, note in (
        (("--engine", "vllm", "--quant", "q4_k_m"), "F16 is planned, not Q4_K_M"),
        (("--new-tokens", "100000"), "an answer ends with the context, after 3460 of 100000 tokens"),
    ):
        _, out, err = _run("fits", "llava:13b", "--gpu", "RTX 4090", *extra)
        assert note in out + err


def test_this_machine_and_described_devices() -> None:
    status, plan = _json("fits", "llava:tiny")
    assert status == 0
    assert plan["host"]
    # Without a GPU the question is about this package's own engine, and about this processor as measured just now.
    if not plan["devices"]:
        assert plan["setting"]["engine"] == "llavakit"
        assert not any("guess" in note for note in plan["warnings"])
        assert _json("fits", "llava:tiny", "--engine", "llama.cpp")[1]["setting"]["engine"] == "llama.cpp"
    status, plan = _json("fits", "llava:7b", "--memory-gb", "8", "--bandwidth-gb-s", "256")
    assert plan["devices"] == ["a GPU with 8 GB and 256 GB/s"]
    assert plan["usable_bytes"][0] < 8 * 1024**3


@pytest.mark.parametrize(
    "setting", [(), ("--quant", "f32"), ("--quant", "f32", "--parallel", "8"), ("--engine", "transformers")]
)
def test_fits_and_gpus_agree(setting: tuple[str, ...]) -> None:
    """Whether nothing, or less or more than a desktop has, stands around a device."""
    _, out, _ = _run("gpus", "llava:13b", "--partly", *setting, "--json")
    listed = {row["device"]: row for line in out.splitlines() if (row := json.loads(line))}
    for name in (
        "Apple M2 (8-core GPU)", "Apple M4 Max (40-core GPU)", "Jetson Orin NX 16GB", "Jetson AGX Orin 64GB",
        "DGX Spark (GB10)", "GeForce RTX 3060 12GB", "A100 PCIe 40GB", "A100 PCIe 80GB", "H200",
    ):  # fmt: skip
        _, plan = _json("fits", "llava:13b", "--gpu", name, *setting)
        row = listed.get(plan["devices"][0])
        assert plan["verdict"] == (row["verdict"] if row else "no"), name
        if row:
            assert (plan["headroom_bytes"], plan["largest_context"]) == (row["headroom_bytes"], row["largest_context"])


def test_a_size_that_was_assumed_is_named() -> None:
    _, plan = _json("fits", "llava:7b", "--gpu", "M2")
    assert plan["devices"] == ["Apple M2 (10-core GPU) 24GB"]
    assert any("with 8, 16, 24 GB, and 24 GB are assumed" in warning for warning in plan["warnings"])
    for name in ("M2 24GB", "M4 Max 32-core", "RTX 4090"):
        assert not any("assumed; a size" in w for w in _json("fits", "llava:7b", "--gpu", name)[1]["warnings"]), name
    desktop = ("fits", "llava:7b", "--gpu", "CPU: dual-channel DDR5-5600 desktop")
    assert any("192 GB of memory are assumed" in warning for warning in _json(*desktop)[1]["warnings"])
    for more in (("--host-memory-gb", "64"), ()):
        name = desktop[-1] + ("" if more else " 64GB")
        plan = _json(*desktop[:-1], name, *more)[1]
        assert not any("memory are assumed" in warning for warning in plan["warnings"])
        assert plan["usable_bytes"][-1] == 62 * 1024**3


def test_fits_and_the_choice_agree_on_what_a_price_buys() -> None:
    asked = ("llava:13b", "--quant", "q8_0")
    status, choice = _json("best", *asked, "--kind", "unified", "--budget", "600")
    assert (status, choice["best"]) == (1, None)
    assert _run("fits", *asked, "--gpu", "M4 16GB")[0] == 1


def test_a_price_of_ones_own_has_no_year() -> None:
    _, out, _ = _run("gpus", "llava:7b", "--price", "M4 16GB=599", "--price", "RTX 3090=700", "--json")
    rows = {row["device"]: row for line in out.splitlines() if (row := json.loads(line))}
    for name in ("Apple M4 (10-core GPU) 16GB", "GeForce RTX 3090"):
        assert rows[name]["price_usd"] in (599, 700)
        assert rows[name]["price_year"] is None
    assert rows["Apple M4 (10-core GPU) 24GB"]["price_year"] is None
    assert rows["GeForce RTX 4090"]["price_year"] is not None


def test_a_chip_has_one_memory() -> None:
    status, out, _ = _run("fits", "llava:13b", "--gpu", "Apple M2 (8-core GPU) 8GB")
    assert status == 1
    assert out.startswith("No: ")
    assert (
        _json("fits", "llava:13b", "--gpu", "RTX 4090", "--host-memory-gb", "8")[1]["usable_bytes"][-1] == 6 * 1024**3
    )
    status, _, notes = _run("fits", "llava:13b", "--gpu", "DGX Spark", "--host-memory-gb", "64")
    assert status == 2
    assert "one memory for itself and its processor" in notes


def test_devices_are_sorted_and_filtered() -> None:
    status, out, _ = _run("gpus", "llava:13b", "--sort", "price", "--kind", "consumer", "--budget", "500", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert rows
    assert [row["price_usd"] for row in rows] == sorted(row["price_usd"] for row in rows)
    assert all(row["class"] == "consumer" and row["price_usd"] <= 500 for row in rows)
    assert "GeForce RTX 3060 12GB" in _run("gpus", "llava:13b")[1]
    assert "the cheapest device of the table" in _run("gpus", "llava:13b", "--budget", "1")[1]
    assert "none of them is what was asked for" in _run("gpus", "llava:13b", "--kind", "cpu", "--vendor", "nvidia")[1]
    assert "no single device holds it" in _run("gpus", "llava:13b", "--parallel", "4000")[1]


@pytest.mark.parametrize("command", ["gpus", "best"])
def test_devices_that_an_engine_refuses_are_left_out_with_the_reason(command: str) -> None:
    for extra in ((), ("--vendor", "intel", "--kind", "consumer")):
        _, out, notes = _run(command, "llava:7b", "--engine", "llavakit", *extra)
        assert "Arc" not in out
        assert re.search(r"left out \(\d+ in all\): llavakit is not planned on Arc A750: .* refuses Intel's", notes)
    assert "left out" not in _run(command, "llava:7b", "--engine", "llavakit", "--vendor", "nvidia")[2]


def test_best_and_build() -> None:
    status, choice = _json("best", "llava:13b", "--budget", "800", "--price", "RTX 4090=700")
    assert (status, choice["best"]["device"], choice["best"]["price_usd"]) == (0, "GeForce RTX 4090", 700)
    assert _run("best", "llava:13b", "--budget", "10")[0] == 1
    status, out, _ = _run("build", "llava:13b", "--budget", "1500")
    assert status == 0
    assert "upgrade first" in out
    assert "kWh a month" in out
    assert _run("build", "llava:13b", "--budget", "100")[0] == 1


def test_what_a_table_assumes_is_noted() -> None:
    status, out, notes = _run("best", "llava:7b", "--engine", "transformers", "--budget", "1000")
    assert status == 0
    assert out.splitlines()[0].endswith("for llava:7b at F16")
    assert "F16 is planned, not Q4_K_M" in notes
    _, _, notes = _run("gpus", "llava:7b", "--context", "8192")
    assert "was trained for 4096 tokens" in notes
    assert re.search(r"too few devices of this kind \(arc\).* \(\d+ of these \d+\)", notes)
    assert "times the price of 2025" in _run("build", "llava:13b", "--budget", "1500")[1]


def test_a_context_beyond_the_models_own_is_told_apart_from_what_fits() -> None:
    _, out, _ = _run("fits", "llava:13b", "--gpu", "H200", "--context", "8192")
    assert "at 8,192 tokens of context" in out
    assert "4,096 tokens, as many as the model was trained for" in out


def test_a_prompt_without_pictures_says_nothing_of_pictures() -> None:
    _, out, _ = _run("fits", "llava:13b", "--gpu", "RTX 4090", "--images", "0")
    assert "first token" in out
    assert not re.search(r"tower|an hour|J each", out.split("first token")[1])


def test_pages_are_written(tmp_path: Path) -> None:
    status, report = _json("plan", "--html", str(tmp_path / "site"))
    assert status == 0
    assert Path(report["index"]).is_file()


def test_a_bare_configuration_can_be_planned(tmp_path: Path) -> None:
    import llavakit.assets

    source = Path(next(iter(llavakit.assets.__path__))) / "tiny" / "config.json"
    (tmp_path / "config.json").write_text(source.read_text())
    assert _run("fits", str(tmp_path / "config.json"), "--gpu", "RTX 3060 12GB")[0] == 0
    assert _run("fits", str(tmp_path), "--gpu", "RTX 3060 12GB")[0] == 0
    (tmp_path / "config.json").write_text("[1]")
    status, _, notes = _run("fits", str(tmp_path / "config.json"))
    assert (status, "holds a list" in notes) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (("fits", "llava:13b", "--gpu", "RTX 4091"), 2, "Close to it: 'GeForce RTX 4090'"),
        (("fits", "llava:13b", "--gpu", ""), 2, "has no name"),
        (("fits", "llava:99b"), 4, "llava:7b, llava:13b"),
        (("fits", "llava:13b", "--context", "-1"), 2, "context is -1"),
        (("fits", "llava:13b", "--context", "x"), 2, "invalid int value"),
        (("fits", "llava:13b", "--quant", "q9"), 2, "type 'q9' is not known"),
        (("fits", "llava:13b", "--memory-gb", "8"), 2, "needs both"),
        (("fits", "llava:13b", "--memory-gb", "nan", "--bandwidth-gb-s", "5"), 2, "memory-gb is nan"),
        (
            ("fits", "llava:13b", "--memory-gb", "24", "--bandwidth-gb-s", "1e-9"),
            2,
            "bandwidth-gb-s is 1e-09; of a GPU it must be between 1 and 20,000",
        ),
        (("fits", "llava:13b", "--memory-gb", "24", "--bandwidth-gb-s", "1e6"), 2, "bandwidth-gb-s is 1e+06"),
        (("fits", "llava:13b", "--memory-gb", "1e6", "--bandwidth-gb-s", "900"), 2, "between 0.25 and 2,048"),
        (("fits", "llava:13b", "--gpu", "RTX 3090", "--memory-gb", "8"), 2, "give one of them"),
        (("gpus", "llava:13b", "--vendor", "3dfx"), 2, "vendor '3dfx' is not known"),
        (("best", "llava:13b", "--price", "RTX 4090"), 2, "is not DEVICE=DOLLARS"),
        (("best", "llava:13b", "--price", "M4=499"), 2, "does not say of which memory size"),
        (
            ("best", "llava:13b", "--min-images-per-hour", "5", "--images", "0"),
            2,
            "min-images-per-hour is 5, but no pictures are planned",
        ),
        (("best", "llava:13b", "--budget", "-4"), 2, "budget is -4"),
        (("build", "llava:13b", "--budget", "1500", "--hours-a-day", "25"), 2, "hours-a-day is 25"),
        (("plan", "llava:13b", "--engine", "onnx", "--offline"), 2, "engine 'onnx' is not known"),
        (("plan", "llava:13b", "--quant", "nope", "--offline"), 2, "type 'nope' is not known"),
        (
            ("plan", "llava:13b", "--threads", "2"),
            2,
            "--threads would have no effect. Leave it out; --threads is for --ver",
        ),
        (("plan", "llava:13b", "--overwrite"), 2, "--overwrite would have no effect"),
        (("plan", "llava:7b", "--verify", "--overwrite"), 2, "--overwrite would have no effect"),
        (("plan", "llava:7b", "--verify", "--gpu-layers", "33"), 2, "--gpu-layers would have no effect"),
        (("plan", "llava:7b", "--verify", "--vision-on-cpu"), 2, "--vision-on-cpu would have no effect"),
        (("plan", "llava:7b", "--verify", "--parallel", "2"), 2, "parallel 2 was asked for"),
        (("plan", "llava:7b", "--verify", "--engine", "ollama"), 2, "engine ollama was asked for"),
        (("plan", "llava:7b", "--verify", "--engine", "onnx"), 2, "engine 'onnx' is not known"),
        (("plan", "--html", "x", "--verify"), 2, "--verify would have no effect"),
        (("plan", "llava:7b", "--html", "x", "--context", "99"), 2, "--context, MODEL would have no effect"),
        (("fits", "llava:13b", "--gpu", "M4 Max", "--engine", "vllm"), 2, "vllm is not planned on Apple M4 Max"),
        (("fits", "llava:13b", "--gpu", "Arc A770", "--engine", "llavakit"), 2, "llavakit is not planned on Arc A770"),
        (("fits", "llava:13b", "--engine", "llavakit", "--kv-type", "q4_0"), 2, "keeps no keys and values in q4_0"),
    ],
)
def test_bad_input_gets_a_clear_answer(arguments: tuple[str, ...], status: int, problem: str) -> None:
    found, out, notes = _run(*arguments)
    assert (found, out) == (status, "")
    assert problem in notes
    assert "Traceback" not in notes


def test_a_processor_that_is_named_is_the_host() -> None:
    """With its own bandwidth, this package's engine, and the file's type: not a GPU in 16 bits beside another host."""
    name = "CPU: dual-channel DDR5-6400 desktop"
    status, plan = _json("fits", "llava:7b", "--gpu", name)
    assert status == 0
    assert (plan["host"], plan["devices"], plan["quant"]) == (name, [], "q4_k_m")
    assert plan["setting"]["engine"] == "llavakit"
    assert any("cores and clocks" in warning for warning in plan["warnings"])
    _, rows, _ = _run("gpus", "llava:7b", "--kind", "cpu", "--engine", "llavakit", "--json")
    listed = next(row for line in rows.splitlines() if (row := json.loads(line))["device"] == name)
    assert listed["tokens_per_s"] == plan["speed"]["decode"]["value"]
    status, _, notes = _run("fits", "llava:7b", "--gpu", f"2x {name}")
    assert status == 2
    assert "a processor runs a model alone" in notes


def test_a_kind_without_prices_says_so() -> None:
    status, choice = _json("best", "llava:13b", "--budget", "3000", "--kind", "cpu", "--engine", "llavakit")
    assert status == 1
    assert "--price" in choice["advice"]
    assert "MI300X" not in choice["advice"]


def test_prompts_of_a_described_device_are_as_fast_as_it_is() -> None:
    described = ("fits", "llava:13b", "--memory-gb", "48", "--quant", "f16", "--bandwidth-gb-s")
    slow, fast = (_json(*described, bandwidth)[1] for bandwidth in ("360", "3600"))
    assert fast["speed"]["prompt"]["value"] > 2 * slow["speed"]["prompt"]["value"]
    assert any("scaled with the bandwidth" in warning for warning in fast["warnings"])


def test_a_power_that_is_assumed_of_this_machine_is_noted() -> None:
    _, plan = _json("fits", "llava:tiny")
    assert any("of an ordinary desktop; what this machine takes is not known" in note for note in plan["warnings"])
    for other in (("--gpu", "RTX 4090"), ("--images", "0")):
        assert not any("ordinary desktop" in note for note in _json("fits", "llava:tiny", *other)[1]["warnings"])


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_programs_of_torch_need_memory_of_the_computer(engine: str) -> None:
    asked = ("fits", "llava:13b", "--gpu", "A100 SXM4 80GB", "--engine", engine)
    status, out, _ = _run(*asked, "--host-memory-gb", "1")
    assert (status, out.startswith("No: ")) == (1, True)
    assert "the computer around it has 0 B of memory to be had and 310 MB are needed there" in out
    status, out, notes = _run(*asked, "--host-memory-gb", "8")
    assert status == 0
    assert re.search(rf"{engine} loads 26\.7 GB through the memory of the computer, where 6\.1 GB are left", notes)
    assert "through the memory" not in _run(*asked)[2]


def test_energy_and_its_cost_are_said_wherever_there_is_a_speed() -> None:
    fits = _json("fits", "llava:13b", "--gpu", "RTX 4090", "--kwh-price", "0.5")[1]
    wanted = fits["speed"]["joules_per_image"] / 3600
    assert fits["kwh_per_1000_images"] == pytest.approx(wanted)
    assert fits["cost_per_1000_images"] == pytest.approx(wanted / 2)
    assert "for 1,000, at 0.50 a kWh" in _run("fits", "llava:13b", "--gpu", "RTX 4090", "--kwh-price", "0.5")[1]
    rows = [json.loads(line) for line in _run("gpus", "llava:13b", "--json")[1].splitlines()]
    row = next(row for row in rows if row["device"] == "GeForce RTX 4090")
    assert row["kwh_price"] == 0.3
    assert row["cost_per_1000_images"] == pytest.approx(0.3 * wanted)
    assert "1,000 pictures" in _run("gpus", "llava:13b")[1]
    cheapest = _json("plan", "llava:13b", "--offline")[1]["cheapest_device"]
    assert cheapest["verdict"] == "fits"
    assert cheapest["cost_per_1000_images"] > 0
    none = _json("fits", "llava:13b", "--gpu", "RTX 4090", "--images", "0")[1]
    assert (none["kwh_per_1000_images"], none["cost_per_1000_images"]) == (None, None)
    assert _run("fits", "llava:13b", "--gpu", "RTX 4090", "--kwh-price", "-1")[0] == 2


def test_every_command_says_what_to_do() -> None:
    assert "The cheapest device that holds llava:13b at Q4_K_M" in _run("plan", "llava:13b", "--offline")[1]
    _, out, _ = _run("gpus", "llava:13b", "--kind", "consumer")
    assert re.match(
        r"\d+ devices hold llava:13b at Q4_K_M; the cheapest is .* dollars, the fastest .*`llavakit best`", out
    )
    _, out, _ = _run("build", "llava:13b", "--budget", "1500")
    assert re.match(r"Buy these parts for [\d,]+ dollars: with .* the machine runs llava:13b at Q4_K_M with", out)


def test_a_list_of_no_device_says_why_beside_it() -> None:
    status, out, notes = _run("gpus", "llava:13b", "--budget", "1", "--json")
    assert (status, out) == (0, "")
    assert "the cheapest device of the table" in notes
