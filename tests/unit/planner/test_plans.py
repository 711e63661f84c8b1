"""Verdicts, advice and the model's card."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from llavakit.core.errors import ConfigError, ModelNotFoundError
from llavakit.kernels.machine import MachineLimits
from llavakit.planner.candidates import Need, filter_candidates, list_candidates
from llavakit.planner.card import make_card
from llavakit.planner.devices import find_device, find_devices, list_devices
from llavakit.planner.machine import assumed_host, generic_host, measured_host
from llavakit.planner.models import PlannedModel, find_model
from llavakit.planner.plans import Plan, make_plan
from llavakit.planner.records import KV_BLOCK_BYTES, Setting


@pytest.fixture(scope="module")
def model() -> PlannedModel:
    return find_model("llava:13b")


def _plan(model: PlannedModel, gpu: str, quant: str = "q4_k_m", **fields: object) -> Plan:
    devices = find_devices(gpu) if gpu else []
    return make_plan(model, quant, replace(Setting(), **fields), devices, generic_host())


def test_which_cards_hold_13b(model: PlannedModel) -> None:
    """At Q4_K_M and the model's context: no card of 8 or 10 GB, 12 GB on the edge, 16 GB comfortably."""
    verdicts = {gpu: _plan(model, gpu).verdict for gpu in ("RTX 3070", "RTX 3080 10GB", "RTX 3060 12GB", "RTX 5080")}
    assert verdicts == {
        "RTX 3070": "partly", "RTX 3080 10GB": "partly", "RTX 3060 12GB": "tight", "RTX 5080": "fits",
    }  # fmt: skip
    assert _plan(model, "RTX 4090", "f16").verdict == "partly"
    assert _plan(model, "2x RTX 4090", "f16").verdict == "fits"


def test_our_engine_on_a_processor_has_its_own_speed(model: PlannedModel) -> None:
    """Not llama.cpp's: a prompt runs at 8-bit products' rate, and a processor that was measured needs no guess."""
    limits = MachineLimits(
        read_gb_per_s=70.0, fp32_gflops=500.0, bf16_gflops=1000.0, int8_gops=2000.0, num_threads=2, cpu_name="x",
        instruction_set="avx512_bf16",
    )  # fmt: skip
    host, setting = measured_host(generic_host(), limits), replace(Setting(), engine="llavakit")
    own, other = (make_plan(model, "q4_k_m", one, [], host) for one in (setting, Setting()))
    assert own.speed is not None
    assert other.speed is not None
    assert own.speed.prompt.value > 2 * other.speed.prompt.value
    assert not any("guess" in warning for warning in own.warnings)
    weights = next(part.bytes for part in own.parts if part.name == "weights")
    assert 0.5 < own.speed.decode.value * weights / 70e9 < 1.0
    nominal = make_plan(model, "q4_k_m", setting, [], generic_host())
    assert nominal.speed is not None
    assert any("cores and clocks" in warning for warning in nominal.warnings)
    spread = [plan.speed.decode.high / plan.speed.decode.low for plan in (own, nominal) if plan.speed is not None]
    assert spread[1] > 1.5 * spread[0]


def test_our_engine_on_a_gpu_is_planned_in_16_bits(model: PlannedModel) -> None:
    plans = [_plan(model, "RTX 5090", quant, engine="llavakit") for quant in ("q4_k_m", "f16")]
    assert plans[0].speed == plans[1].speed
    assert plans[0].quant.name == "f16"


def test_the_advice_makes_it_fit(model: PlannedModel) -> None:
    for gpu, quant in (
        ("RTX 3080 10GB", "q4_k_m"),
        ("RTX 3060 12GB", "q6_k"),
        ("RTX 3070", "q4_k_m"),
        ("RTX 4060", "q8_0"),
    ):
        plan = _plan(model, gpu, quant)
        assert plan.verdict in ("partly", "no")
        assert plan.change is not None
        again = make_plan(model, plan.change.quant, plan.change.setting, plan.devices, plan.host)
        assert again.verdict in ("fits", "tight")
        words = shlex.split(plan.change.options)
        assert all(word.startswith("--") or word.replace("_", "").isalnum() for word in words)


@pytest.mark.parametrize(
    ("gpu", "quant", "fields", "options"),
    [
        # The largest context that fits, by the fewest changes that reach it.
        ("RTX 3080 10GB", "q4_k_m", {"has_flash_attention": True, "kv_block_bytes": 34}, "--context 3845"),
        ("RTX 3090", "q4_k_m", {"num_context_tokens": 100_000}, "--context 4096"),
        ("RTX 3080 10GB", "q4_k_m", {}, "--flash-attention --kv-type q8_0 --context 3845"),
        # A smaller type and a shorter context, each of which is not enough; below 4 bits where nothing else is.
        (
            "M2 16GB", "q8_0", {"num_parallel": 4},
            "--quant q4_k_m --flash-attention --kv-type q8_0 --context 1678",
        ),
        (
            "Jetson Orin Nano Super 8GB", "q4_k_m", {},
            "--quant q2_k --flash-attention --kv-type q8_0 --context 1441",
        ),
        # Another program.
        ("RTX 4090", "f16", {"engine": "vllm"}, "--engine llama.cpp --quant q8_0"),
        (
            "RTX 5070 Ti", "f16", {"engine": "llavakit"},
            "--engine llama.cpp --quant q8_0 --flash-attention --kv-type q8_0",
        ),
    ],
)  # fmt: skip
def test_the_advice_is_the_smallest_change_that_is_enough(
    model: PlannedModel, gpu: str, quant: str, fields: dict[str, object], options: str
) -> None:
    devices = find_devices(gpu)
    plan = make_plan(model, quant, replace(Setting(), **fields), devices, assumed_host(devices))
    assert plan.change is not None
    assert plan.change.options == options
    again = make_plan(model, plan.change.quant, plan.change.setting, devices, plan.host)
    assert again.verdict in ("fits", "tight")


def test_no_advice_means_that_the_least_of_all_does_not_fit(model: PlannedModel) -> None:
    """Whatever the card and the computer around it: a plan that says no has none of these either."""
    for card_gib, host_gib in ((2, 4), (4, 6), (6, 8), (8, 3), (1, 9)):
        device, host = replace(find_device("RTX 3060 12GB"), memory_gib=card_gib), generic_host(host_gib)
        plan = make_plan(model, "q8_0", Setting(), [device], host)
        least = replace(
            Setting(), num_context_tokens=764, has_flash_attention=True, kv_block_bytes=KV_BLOCK_BYTES["q8_0"]
        )
        verdicts = {make_plan(model, "q2_k", replace(least, num_device_layers=layers), [device], host).verdict
                    for layers in range(42)}  # fmt: skip
        assert (plan.change is not None) == bool(verdicts & {"fits", "tight"})


def test_advice_makes_nothing_larger(model: PlannedModel) -> None:
    """A cache that is smaller than the one of the advice stays; what is set already is not asked for again."""
    small = _plan(model, "RTX 3070", "q6_k", kv_block_bytes=KV_BLOCK_BYTES["q4_0"]).change
    assert small is not None
    assert small.setting.kv_block_bytes == KV_BLOCK_BYTES["q4_0"]
    assert "q8_0" not in small.options
    assert "--flash-attention" not in small.options
    plain = _plan(model, "RTX 3070", "q6_k", has_flash_attention=True).change
    assert plain is not None
    assert "--kv-type q8_0" in plain.options
    assert "--flash-attention" not in plain.options


def test_layers_that_the_computer_cannot_hold_go_to_the_device(model: PlannedModel) -> None:
    host = replace(generic_host(), memory_gib=6)
    plan = make_plan(model, "q4_k_m", Setting(num_device_layers=5), find_devices("RTX 3060 12GB"), host)
    assert plan.verdict == "partly"
    assert plan.change is not None
    assert plan.change.options == f"--gpu-layers {plan.device_layers}"
    again = make_plan(model, "q4_k_m", plan.change.setting, plan.devices, host)
    assert again.verdict in ("fits", "tight")
    assert again.speed == plan.speed


def test_a_speed_is_as_sure_as_the_least_sure_of_what_makes_it(model: PlannedModel) -> None:
    """Layers on the processor widen the interval to the processor's, and make a guess of it where its speed is one."""
    whole, parted, alone = (_plan(model, "RTX 4090", num_device_layers=layers) for layers in (41, 10, 0))
    widths = [plan.speed.decode.high / plan.speed.decode.low for plan in (whole, parted, alone) if plan.speed]
    assert widths[0] < widths[1]
    assert widths[1] == pytest.approx(widths[2])
    assert ["guess" in " ".join(plan.warnings) for plan in (whole, parted, alone)] == [False, True, True]


@pytest.mark.parametrize("engine", ["llavakit", "transformers"])
def test_a_context_that_fits_can_be_filled(model: PlannedModel, engine: str) -> None:
    """Also of programs that take memory of the cache as it is used, whose short answers fit in less."""
    quant = "q8_0" if engine == "llavakit" else "f16"
    setting = Setting(engine=engine)
    whole = replace(setting, num_new_tokens=4096 - 636)
    sizes = [sum(make_plan(model, quant, one, [], generic_host()).totals) for one in (setting, whole)]
    host = replace(generic_host(), memory_gib=(sum(sizes) / 2 + 2**31) / 2**30)
    plan = make_plan(model, quant, setting, [], host)
    assert plan.verdict in ("fits", "tight")
    assert plan.cached_tokens == 636 + 128
    assert 764 < plan.largest_context < 4096
    assert f"do not fit; {plan.largest_context:,} do" in " ".join(plan.warnings)
    for context, wanted in ((plan.largest_context, True), (plan.largest_context + 1, False)):
        full = replace(setting, num_context_tokens=context, num_new_tokens=context - 636)
        assert (make_plan(model, quant, full, [], host).verdict != "no") is wanted


def test_no_context_fits_where_the_prompt_does_not(model: PlannedModel) -> None:
    """A context that the prompt does not leave a token of would be no help."""
    card = find_device("RTX 3060 12GB")
    shortest = _plan(model, card.name, num_context_tokens=637)
    over = shortest.totals[0] + card.numbers.memory_bytes - shortest.usable[0]
    for spare_bytes, wanted in ((0, 637), (-1, 0)):
        device = replace(card, memory_gib=(over + spare_bytes) / 2**30)
        assert make_plan(model, "q4_k_m", Setting(), [device], generic_host()).largest_context == wanted


def test_parts_are_all_of_it(model: PlannedModel) -> None:
    for engine in ("llama.cpp", "llavakit", "transformers", "transformers-4bit", "vllm"):
        plan = _plan(model, "H200", "f16", engine=engine)
        for place in (*range(len(plan.totals) - 1), -1):
            assert plan.totals[place] == sum(part.bytes for part in plan.parts if part.place == place)
        assert plan.headroom_bytes == plan.usable[0] - plan.totals[0]
        json.dumps(plan.to_dict())


@pytest.mark.parametrize("quant", ["q2_k", "q4_k_m", "f16", "f32"])
def test_memory_that_a_processor_shares_is_counted_once(model: PlannedModel, quant: str) -> None:
    """Parts on the chip and on its processor together stay within what it was sold with, whatever the layers."""
    chips = [replace(chip, memory_gib=size) for chip in list_devices() if chip.is_shared and chip.backend != "cpu"
             for size in (chip.memory_gib, *chip.memory_options_gib)]  # fmt: skip
    assert {chip.name.split()[0] for chip in chips} == {"Apple", "DGX", "Jetson", "Ryzen"}
    for chip in chips:
        plan = make_plan(model, quant, Setting(), [chip], assumed_host([chip]))
        assert plan.host.memory_gib == chip.memory_gib
        if plan.verdict == "partly":
            plan = make_plan(model, quant, Setting(num_device_layers=plan.device_layers), [chip], plan.host)
        if plan.verdict != "no":
            assert sum(plan.totals) <= chip.memory_gib * 1024**3
        if plan.change is not None:
            changed = make_plan(model, plan.change.quant, plan.change.setting, [chip], plan.host)
            assert sum(changed.totals) <= chip.memory_gib * 1024**3
    small = find_device("Apple M2 (8-core GPU) 8GB")
    assert make_plan(model, "q4_k_m", Setting(), [small], assumed_host([small])).verdict == "no"


def test_the_headroom_is_the_devices(model: PlannedModel) -> None:
    """What a large card has left, not the smaller computer around it."""
    card = find_device("A100 PCIe 80GB")
    plan = make_plan(model, "q4_k_m", Setting(), [card], generic_host(32))
    assert plan.headroom_bytes == plan.usable[0] - plan.totals[0] > plan.left_bytes[-1]


@pytest.mark.parametrize("memory_gib", [0.1, 0.4, 1.0])
def test_a_device_that_holds_nothing_is_no_yes(model: PlannedModel, memory_gib: float) -> None:
    card, host = replace(find_device("RTX 3060 12GB"), memory_gib=memory_gib), generic_host()
    plan = make_plan(model, "q4_k_m", Setting(), [card], host)
    assert (plan.verdict, plan.device_layers) == ("no", 0)
    assert plan.change is not None
    assert plan.change.options == "--gpu-layers 0"
    alone = make_plan(model, "q4_k_m", plan.change.setting, [card], host)
    assert (alone.verdict, alone.devices) == ("fits", ())
    assert any("the processor runs it alone" in warning for warning in alone.warnings)
    assert alone.speed == make_plan(model, "q4_k_m", Setting(), [], host).speed
    listed = list_candidates(model, "q4_k_m", Setting(num_device_layers=0), has_partial=True)
    assert {candidate.device.backend for candidate in listed} == {"cpu"}


@pytest.mark.parametrize("num_parallel", [1, 3, 64])
def test_no_device_takes_more_than_its_rated_power(num_parallel: int) -> None:
    setting = Setting(num_parallel=num_parallel, num_context_tokens=1024)
    for candidate in list_candidates(find_model("llava:7b"), "q4_k_m", setting, has_partial=True):
        speed, host = candidate.plan.speed, candidate.plan.host.numbers
        assert speed is not None
        assert speed.joules_per_image is not None
        assert speed.images_per_hour is not None
        chip = candidate.device.numbers
        watts = chip.watts + (0.0 if chip.is_shared else host.idle_watts)
        assert speed.joules_per_image * speed.images_per_hour / 3600 <= watts * (1 + 1e-9)
        assert speed.answer_s > num_parallel * speed.first_token_s


@pytest.mark.parametrize("is_vision_on_device", [True, False])
def test_the_first_token_waits_for_the_parts_that_are_named(model: PlannedModel, is_vision_on_device: bool) -> None:
    speed = _plan(model, "RTX 4090", is_vision_on_device=is_vision_on_device).speed
    assert speed is not None
    prompt_s = (576 + 60) / speed.prompt.value
    assert speed.first_token_s == pytest.approx(speed.image_s + speed.vision_s + prompt_s)


def test_prompts_without_pictures_have_no_speed_of_pictures(model: PlannedModel) -> None:
    speed = _plan(model, "RTX 4090", num_images=0).speed
    assert speed is not None
    assert (speed.images_per_hour, speed.joules_per_image) == (None, None)
    candidates = list_candidates(model, "q4_k_m", Setting(num_images=0))
    assert not filter_candidates(candidates, Need(min_images_per_hour=1))


def test_our_engine_uses_one_device_and_says_so(model: PlannedModel) -> None:
    plan = _plan(model, "2x RTX 3090", engine="llavakit", num_device_layers=10, is_vision_on_device=False)
    assert [device.name for device in plan.devices] == ["GeForce RTX 3090"]
    assert any("on the first of the 2 alone" in warning for warning in plan.warnings)
    assert any("leaves nothing of a model to the processor" in warning for warning in plan.warnings)
    alone = _plan(model, "RTX 3090", engine="llavakit")
    assert (plan.parts, plan.speed, plan.verdict) == (alone.parts, alone.speed, alone.verdict)
    assert len(alone.warnings) == len(plan.warnings) - 2


@pytest.mark.parametrize("engine", ["transformers", "transformers-4bit", "vllm"])
def test_programs_of_torch_deal_a_model_to_several_devices(model: PlannedModel, engine: str) -> None:
    """All of its weights and all of the cache are somewhere, once."""
    alone, dealt = (_plan(model, gpu, "f16", engine=engine) for gpu in ("A100 PCIe 80GB", "2x RTX 3090"))
    for name in ("weights", "key-value cache"):
        (whole,) = (part.bytes for part in alone.parts if part.name == name)
        shares = [part.bytes for part in dealt.parts if part.name == name]
        assert len(shares) == 2
        assert sum(shares) == pytest.approx(whole, abs=2)
        assert max(shares) < 0.6 * whole
    assert dealt.verdict == "fits"
    assert any("2 devices" in warning for warning in dealt.warnings)
    if engine != "transformers-4bit":
        assert _plan(model, "RTX 3090", "f16", engine=engine).verdict == "no"


def test_vllm_deals_heads_alike(model: PlannedModel) -> None:
    with pytest.raises(ConfigError, match=r"40 heads cannot be dealt to 3 devices. Take 1 or 2 or 4 or 5\."):
        _plan(model, "3x RTX 3090", engine="vllm")


def test_llavakit_is_planned_on_what_it_runs_on(model: PlannedModel) -> None:
    """It refuses Intel's GPUs, and caches of 4 and 5 bits."""
    with pytest.raises(ConfigError, match=r"llavakit is not planned on Arc A770 16GB: .*refuses Intel's"):
        _plan(model, "Arc A770", engine="llavakit")
    with pytest.raises(ConfigError, match="llavakit keeps no keys and values in q4_0; choose one of f32, f16"):
        _plan(model, "RTX 4090", engine="llavakit", kv_block_bytes=KV_BLOCK_BYTES["q4_0"])
    listed = list_candidates(find_model("llava:7b"), "f16", Setting(engine="llavakit"))
    makers = {candidate.device.vendor for candidate in listed if candidate.device.kind != "cpu"}
    assert makers == {"NVIDIA", "AMD", "Apple"}
    assert any(candidate.device.vendor == "Intel" for candidate in listed if candidate.device.kind == "cpu")
    assert _plan(model, "Arc A770").verdict == "fits"


def test_vllm_is_not_planned_on_apples_chips(model: PlannedModel) -> None:
    with pytest.raises(ConfigError, match="vllm is not planned on Apple M4 Max"):
        _plan(model, "M4 Max", engine="vllm")
    listed = list_candidates(model, "f16", Setting(engine="vllm"))
    assert listed
    assert not any(candidate.device.vendor == "Apple" for candidate in listed)


def test_options_change_what_they_say(model: PlannedModel) -> None:
    base = _plan(model, "RTX 4090")
    less = {
        "flash": _plan(model, "RTX 4090", has_flash_attention=True),
        "kv": _plan(model, "RTX 4090", kv_block_bytes=KV_BLOCK_BYTES["q8_0"]),
        "context": _plan(model, "RTX 4090", num_context_tokens=2048),
        "vision": _plan(model, "RTX 4090", is_vision_on_device=False),
        "layers": _plan(model, "RTX 4090", num_device_layers=20),
    }
    assert all(plan.totals[0] < base.totals[0] for plan in less.values())
    assert _plan(model, "RTX 4090", num_parallel=2).totals[0] > base.totals[0]
    fewer, speed = _plan(model, "RTX 4090", num_visual_tokens=144).speed, base.speed
    assert speed is not None
    assert fewer is not None
    assert fewer.first_token_s < speed.first_token_s
    assert speed.decode.low < speed.decode.value < speed.decode.high
    assert speed.decode_full.value < speed.decode.value
    slower = less["layers"].speed
    assert slower is not None
    assert slower.decode.value < speed.decode.value


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_context_tokens": 0}, "context is 0"), ({"num_context_tokens": -5}, "context is -5"),
        ({"num_context_tokens": 10**9}, "between 1 and"), ({"num_parallel": 0}, "parallel is 0"),
        ({"num_images": -1}, "images is -1"), ({"num_images": 8}, "8 pictures and 60 tokens of text needs a context"),
        ({"num_visual_tokens": 0}, "visual-tokens is 0"), ({"num_new_tokens": 0}, "new-tokens is 0"),
        ({"num_device_layers": -1}, "gpu-layers is -1"), ({"engine": "onnx"}, "engine 'onnx' is not known"),
        ({"image_megapixels": float("nan")}, "megapixels is nan"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(model: PlannedModel, fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        _plan(model, "RTX 4090", **fields)


def test_doubtful_settings_get_a_warning(model: PlannedModel) -> None:
    assert "trained for 4096" in " ".join(_plan(model, "H200", num_context_tokens=8192).warnings)
    assert "flash attention" in " ".join(_plan(model, "RTX 4090", kv_block_bytes=34).warnings)
    assert "16 bits" in " ".join(_plan(model, "H200", engine="vllm", kv_block_bytes=34).warnings)
    assert "too few devices of this kind (arc)" in " ".join(_plan(model, "Arc A770 16GB").warnings)
    assert "guess" not in " ".join(_plan(model, "RTX 4090").warnings)


def test_models_that_are_not_known() -> None:
    with pytest.raises(ModelNotFoundError, match=r"llava:7b, llava:13b or a config\.json"):
        find_model("llava:99b")
    with pytest.raises(ConfigError, match="type 'q9' is not known"):
        find_model("llava:7b").quantize("q9")
    assert find_model("llava-hf/llava-1.5-7b-hf").name == "llava:7b"
    assert find_model("llava:tiny").sizes.num_layers == 6


@pytest.mark.parametrize(
    ("engine", "names"), [("vllm", ["f16"]), ("transformers", ["f16"]), ("transformers-4bit", ["f16"])]
)
def test_a_card_shows_what_its_engine_runs(model: PlannedModel, engine: str, names: list[str]) -> None:
    card = make_card(model, Setting(engine=engine), quant="q8_0", is_online=False)
    assert [row.name for row in card.quants] == names
    assert card.quant == "f16"
    assert any(f"{engine} reads weights of 16 bits" in warning for warning in card.warnings)
    assert bool(card.quants[0].quality) == (engine != "transformers-4bit")


def test_a_card_has_commands_for_the_type_that_was_asked_for(model: PlannedModel) -> None:
    card = make_card(model, Setting(engine="llavakit"), quant="Q8_0", is_online=False)
    assert dict(card.commands)["quantize"].endswith("-q8_0.gguf --type q8_0")
    assert len(card.quants) == 17
    assert card.quants[0].memory_bytes < card.quants[-1].memory_bytes / 4
    with pytest.raises(ConfigError, match="type 'nope' is not known"):
        make_card(model, Setting(), quant="nope", is_online=False)


def test_a_bare_configuration_is_converted_by_its_folder(model: PlannedModel) -> None:
    """The command takes a folder, not a file in it."""
    for name, folder in (("some models/config.json", "'some models'"), ("config.json", "."), ("models", "models")):
        commands = dict(make_card(replace(model, name=name), Setting(), is_online=False).commands)
        assert commands["quantize"] == f"llavakit convert {folder} model-q4_k_m.gguf --type q4_k_m"


@pytest.mark.parametrize(
    "fields",
    [
        {"num_context_tokens": 8192}, {"num_new_tokens": 100_000}, {"num_visual_tokens": 600},
        {"kv_block_bytes": KV_BLOCK_BYTES["q8_0"]}, {"engine": "vllm", "kv_block_bytes": KV_BLOCK_BYTES["q8_0"]},
        {"engine": "llavakit", "num_device_layers": 3}, {"engine": "transformers", "is_vision_on_device": False},
    ],
)  # fmt: skip
def test_a_card_warns_of_what_a_plan_warns_of(model: PlannedModel, fields: dict[str, object]) -> None:
    setting = replace(Setting(), **fields)
    usual, warned = (make_plan(model, "f16", one, [], generic_host()).warnings
                     for one in (Setting(engine=setting.engine), setting))  # fmt: skip
    own = set(warned) - set(usual)
    assert own
    assert {f"{warning}." for warning in own} <= set(make_card(model, setting, is_online=False).warnings)
    assert not any(
        "one place" in text or "trained for" in text for text in make_card(model, Setting(), is_online=False).warnings
    )


def test_a_card_says_where_the_memory_is(model: PlannedModel) -> None:
    """A setting without a layer on a device is planned on a processor, with nothing beside it."""
    card = make_card(model, Setting(num_device_layers=0), is_online=False)
    assert not card.is_on_device
    assert all(row.host_bytes == 0 for row in card.quants)
    assert make_card(model, Setting(), is_online=False).is_on_device
    assert not make_card(model, Setting(engine="llavakit"), is_online=False).is_on_device


def test_the_card_has_the_papers_scores(model: PlannedModel) -> None:
    card = make_card(model, Setting(), is_online=False)
    scores = {entry["name"]: entry["score"] for entry in model.facts["benchmarks"]}
    assert scores["MMBench dev"] == 67.7
    assert scores["MMMU val"] == 36.4
    assert all(entry["source"] for entry in model.facts["benchmarks"])
    assert len(card.quants) == 17
    assert "LLaVA-1.6" in card.warnings[0]
    assert card.parameters["all"] == model.sizes.num_parameters
    json.dumps(card.to_dict())


def test_a_described_device_is_like_a_listed_one(model: PlannedModel) -> None:
    device = find_device("RTX 3090")
    assert device.numbers.memory_bytes == 24 * 1024**3
