"""The arguments of the planner's commands: ``plan``, ``fits``, ``gpus``, ``best``, ``build``."""

from __future__ import annotations

import argparse

from llavakit.cli.parser_parts import add_output_options, new_parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEFAULT_MODEL", "PLAN_BUILDERS"]

DEFAULT_MODEL = "llava:13b"
_MODEL_HELP = (
    "llava:7b, llava:13b, a Hugging Face id (its configuration is fetched, no weights), a folder, a config.json, or a "
    ".gguf file"
)
_KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def _add_setting_options(parser: argparse.ArgumentParser, *, has_quant: bool = True) -> None:
    group = parser.add_argument_group("how it is run")
    if has_quant:
        group.add_argument("--quant", metavar="TYPE", default="q4_k_m", help="q2_k to f32 (default: %(default)s)")
    group.add_argument("--context", type=int, metavar="N", help="positions of a sequence (default: the model's own)")
    group.add_argument(
        "--kv-type", choices=_KV_TYPES, default="f16", help="number format of the key-value cache (default: f16)"
    )
    group.add_argument("--images", type=int, default=1, metavar="N", help="pictures in a prompt (default: 1)")
    group.add_argument("--visual-tokens", type=int, metavar="N", help="tokens kept of each picture (default: all)")
    group.add_argument(
        "--text-tokens", type=int, default=60, metavar="N", help="tokens of text in a prompt (default: 60)"
    )
    group.add_argument("--new-tokens", type=int, default=128, metavar="N", help="tokens of an answer (default: 128)")
    group.add_argument("--parallel", type=int, default=1, metavar="N", help="sequences side by side (default: 1)")
    group.add_argument("--flash-attention", action="store_true", help="attention without a matrix of scores")
    group.add_argument(
        "--engine",
        metavar="NAME",
        help="llama.cpp, ollama, llavakit, transformers, transformers-4bit or vllm (default: llama.cpp; of `fits` "
        "on a machine without a GPU and of `plan --verify`, llavakit)",
    )
    group.add_argument("--vision-on-cpu", action="store_true", help="leave the vision tower to the processor")
    group.add_argument("--gpu-layers", type=int, metavar="N", help="layers on GPUs, the head counted (default: all)")


def _add_energy_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kwh-price", type=float, default=0.30, metavar="X", help="of a kWh of energy, in any money (default: 0.30)"
    )


def _add_filter_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is wanted")
    group.add_argument("--min-tokens-per-s", type=float, metavar="X", help="speed of answers")
    group.add_argument("--min-images-per-hour", type=float, metavar="X", help="pictures asked about one after another")
    group.add_argument("--max-watts", type=float, metavar="X", help="rated power")
    group.add_argument(
        "--kind",
        action="append",
        choices=("consumer", "workstation", "datacentre", "unified", "embedded", "cpu"),
        help="only devices of this kind; may be repeated",
    )
    group.add_argument("--vendor", action="append", metavar="NAME", help="only this maker; may be repeated")
    group.add_argument(
        "--price",
        action="append",
        metavar="DEVICE=DOLLARS",
        help="what a device costs today, instead of its list price; of a chip sold with several sizes of memory, with "
        "the size: 'M4 16GB=499'; may be repeated",
    )


def _plan() -> argparse.ArgumentParser:
    parser = new_parser(
        "plan",
        "[MODEL] [options]",
        "Show what a model is and what it takes: sizes, every quantization with its bytes and memory, benchmark\n"
        "scores with their sources, the command that runs it.\n\n"
        "--html writes the same as a site of pages that open from the disk, with a panel to try settings. --verify\n"
        "measures memory and speed of llavakit on this processor, one answer at a time, and prints them beside\n"
        "what is planned.",
        "  llavakit plan llava:13b\n  llavakit plan llava:13b --context 2048 --kv-type q8_0 --flash-attention\n"
        "  llavakit plan --html planner\n  llavakit plan llava:7b --verify --quant q4_k_m",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=f"{_MODEL_HELP} (default: {DEFAULT_MODEL})")
    parser.add_argument("--html", metavar="FOLDER", help="write the pages, of all models and settings, here")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something else")
    parser.add_argument("--verify", action="store_true", help="measure here, and compare")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of --verify (default: one per core)")
    parser.add_argument("--offline", action="store_true", help="do not ask the Hub how often the model was fetched")
    _add_energy_option(parser)
    _add_setting_options(parser)
    add_output_options(parser, json_help="print one JSON object")
    return parser


def _fits() -> argparse.ArgumentParser:
    parser = new_parser(
        "fits",
        "MODEL [options]",
        "Say whether a model fits: every part of the memory it takes, what is left, the largest context, and the\n"
        "cheapest change that would make it fit. Without --gpu, this machine is looked at, and its bandwidth and\n"
        "arithmetic are measured for a second.\n\n"
        "The exit status is 0 if it fits and 1 if it does not.",
        '  llavakit fits llava:13b\n  llavakit fits llava:13b --gpu "RTX 3060 12GB"\n'
        '  llavakit fits llava:13b --gpu "2x RTX 3090" --quant f16\n'
        "  llavakit fits llava:7b --memory-gb 8 --bandwidth-gb-s 256 --quant q8_0",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        action="append",
        help='a device, "2x NAME", or "NAME + NAME"; a size of memory can be named, as in "M2 16GB", and is else the '
        "largest that was sold; may be repeated",
    )
    parser.add_argument("--memory-gb", type=float, metavar="X", help="describe a GPU that is not in the table")
    parser.add_argument("--bandwidth-gb-s", type=float, metavar="X", help="its memory bandwidth")
    parser.add_argument(
        "--host-memory-gb",
        type=float,
        metavar="X",
        help="memory of the computer around it (default: 32, or as much as the largest card has)",
    )
    _add_energy_option(parser)
    _add_setting_options(parser)
    add_output_options(parser, json_help="print one JSON object")
    return parser


def _gpus() -> argparse.ArgumentParser:
    parser = new_parser(
        "gpus",
        "[MODEL] [options]",
        "List the devices that can run a model, by the memory they have, their list price, their speed, or speed\n"
        "for the price. Chips are listed in every size of memory that was sold; a price is that of one size.",
        "  llavakit gpus llava:13b\n  llavakit gpus llava:7b --quant q8_0 --sort price --kind consumer\n"
        '  llavakit gpus llava:13b --sort value --price "GeForce RTX 3090=700"',
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default=DEFAULT_MODEL, help=f"{_MODEL_HELP} (default: {DEFAULT_MODEL})"
    )
    parser.add_argument(
        "--sort", default="memory", choices=("memory", "price", "speed", "value"), help="order (default: memory)"
    )
    parser.add_argument("--partly", action="store_true", help="devices, too, that hold only some of the layers")
    _add_energy_option(parser)
    parser.add_argument("--budget", type=float, metavar="DOLLARS", help="up to this price")
    _add_filter_options(parser)
    _add_setting_options(parser)
    add_output_options(parser, json_help="print one JSON object per line")
    return parser


def _best() -> argparse.ArgumentParser:
    parser = new_parser(
        "best",
        "MODEL [options]",
        "Find the best device for a budget and a need, those after it, and why. Servers' cards are left out unless\n"
        "asked for with --kind datacentre.",
        "  llavakit best llava:13b --budget 800\n"
        "  llavakit best llava:7b --budget 400 --min-tokens-per-s 40 --quant q8_0",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--budget", type=float, metavar="DOLLARS", help="up to this price")
    _add_energy_option(parser)
    _add_filter_options(parser)
    _add_setting_options(parser)
    add_output_options(parser, json_help="print one JSON object")
    return parser


def _build() -> argparse.ArgumentParser:
    parser = new_parser(
        "build",
        "MODEL --budget DOLLARS [options]",
        "Put a whole machine together: each part with its reason, power, noise, energy in a month, and what to\n"
        "upgrade first. Prices are list prices.",
        "  llavakit build llava:13b --budget 1500\n  llavakit build llava:7b --budget 900 --hours-a-day 8",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--budget", type=float, required=True, metavar="DOLLARS", help="of the whole machine")
    parser.add_argument("--hours-a-day", type=float, default=2.0, metavar="X", help="of work (default: 2)")
    _add_energy_option(parser)
    _add_filter_options(parser)
    _add_setting_options(parser)
    add_output_options(parser, json_help="print one JSON object")
    return parser


PLAN_BUILDERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "plan": _plan, "fits": _fits, "gpus": _gpus, "best": _best, "build": _build,
}  # fmt: skip
