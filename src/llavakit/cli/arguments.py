"""The arguments of every command, their help texts and examples.

Only the parser of the command that was asked for is built; those of the planner's commands are in ``plan_arguments``.
``docs/cli.md`` is written from these parsers.
"""

from __future__ import annotations

import argparse

from llavakit.cli.parser_parts import MODEL_HELP, add_output_options, new_parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["build_parser", "parse"]


def _add_machine_options(parser: argparse.ArgumentParser, *, has_device: bool = True) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="number format of weights and of all that is computed (default: weights as stored, float32 on a CPU)",
    )
    if has_device:
        group.add_argument(
            "--kv-dtype",
            choices=("auto", "q8_0"),
            default="auto",
            help="number format of the key-value cache: auto, or q8_0 for about half of auto's memory (default: auto)",
        )
        group.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: the first GPU, else cpu)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")


def _add_mmproj_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, of: str = "a .gguf model") -> None:
    parser.add_argument(
        "--mmproj",
        metavar="FILE",
        help=f"projector of {of} (default: the file with mmproj in its name beside it)",
    )


def _add_prompt_options(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    parser.add_argument("--prompts", metavar="FILE", help="prompts, one JSON object a line")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="of the model's own answers (default: %(default)s)",
    )
    add_output_options(parser, json_help="print one JSON object")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answer")
    group.add_argument("--system", metavar="TEXT", help="system prompt (default: that of the preset)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer, in tokens (default: 512)")
    group.add_argument(
        "--temperature", type=float, metavar="X", help="0 takes the most likely token each time (default: 0)"
    )
    group.add_argument("--top-k", type=int, metavar="N", help="draw from the N most likely tokens")
    group.add_argument("--top-p", type=float, metavar="X", help="draw from the likeliest tokens of total probability X")
    group.add_argument(
        "--min-p", type=float, metavar="X", help="draw from tokens at least X times as likely as the likeliest"
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1, seen tokens get less likely (default: 1)"
    )
    group.add_argument(
        "--presence-penalty", type=float, metavar="X", help="taken from the logits of generated tokens (default: 0)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same answer")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before TEXT; may be repeated")
    group.add_argument("--num-beams", type=int, metavar="N", help="beam search with N beams (default: 1, none)")


def _run() -> argparse.ArgumentParser:
    parser = new_parser(
        "run",
        "MODEL [PROMPT] [--image SOURCE ...] [options]",
        "Ask a model about pictures.\n\n"
        "With a prompt, or with one on standard input, answer once and leave. Without, open a chat; in it, /help\n"
        "lists what can be done, and dropping a picture, or a URL at the line's start, attaches it.",
        '  llavakit run llava:tiny "How many red circles are there?" --image shapes.png\n'
        '  llavakit run llava:tiny "What differs?" --image before.png --image after.png\n'
        "  llavakit run llava:tiny --image https://example.com/cat.jpg < question.txt\n"
        '  curl -s https://example.com/cat.jpg | llavakit run llava:tiny "What is this?" --image -\n'
        '  llavakit run llava:tiny "Describe the picture." --image shapes.png --json | jq -r .answer\n'
        "  llavakit run llava:tiny",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="*",
        default=[],
        help="the question; - reads it from standard input. Without: a chat",
    )
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--image",
        action="append",
        metavar="SOURCE",
        help="a path, an http(s) URL or a data: URI; - reads a picture from standard input; may be repeated",
    )
    pictures.add_argument(
        "--preset",
        choices=("original", "hf"),
        help="how pictures and prompts are prepared: original (pad to a square, prompt of LLaVA's paper) or hf "
        "(centre crop, as the transformers library); default: what the model's folder says, else original",
    )
    _add_mmproj_option(pictures)
    pictures.add_argument(
        "--allow-private-urls", action="store_true", help="fetch pictures from this machine and its local network too"
    )
    _add_sampling_options(parser)
    output = add_output_options(parser, json_help="print one JSON object instead of the answer's text")
    output.add_argument(
        "--logprobs",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="with --json: log-probability of each token, and of the N likeliest instead (0 to 20; default: 0)",
    )
    output.add_argument("--no-timings", action="store_true", help="leave out the line of timings")
    how_much = output.add_mutually_exclusive_group()
    how_much.add_argument("--quiet", action="store_true", help="print the answer and errors only")
    how_much.add_argument("--verbose", action="store_true", help="say what is used: model, dtype, preset, settings")
    _add_machine_options(parser)
    server = parser.add_argument_group("server")
    where = server.add_mutually_exclusive_group()
    where.add_argument(
        "--server", metavar="URL", help="ask this server PROMPT, with the key in LLAVAKIT_API_KEY if it needs one "
        "(default: the one that `llavakit serve` runs here, if it was started with the model and nothing else is asked "
        "of it; a chat loads a model of its own in any case)",
    )  # fmt: skip
    where.add_argument("--no-server", action="store_true", help="load the model here in any case")
    return parser


def _pull() -> argparse.ArgumentParser:
    parser = new_parser(
        "pull",
        "MODEL [options]",
        "Fetch a model from the Hugging Face Hub into the local store.\n\n"
        "An interrupted download goes on where it stopped. The disk is checked before the first byte.",
        "  llavakit pull llava:7b\n  llavakit pull llava-hf/llava-1.5-13b-hf",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="llava:7b, llava:13b, or a Hugging Face id such as llava-hf/llava-1.5-7b-hf"
    )
    output = add_output_options(parser, json_help="print one JSON object when done")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _list() -> argparse.ArgumentParser:
    parser = new_parser(
        "list",
        "[options]",
        "List the models in the local store, the embedded one included.",
        "  llavakit list\n  llavakit list --json",
    )
    add_output_options(parser, json_help="print one JSON object")
    return parser


def _show() -> argparse.ArgumentParser:
    parser = new_parser(
        "show",
        "MODEL [options]",
        "Show what a model is: sizes, number format, presets, templates, licence. Loads no weights.",
        "  llavakit show llava:tiny\n  llavakit show llava:tiny --json | jq .num_parameters",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_mmproj_option(parser)
    add_output_options(parser, json_help="print one JSON object")
    return parser


def _rm() -> argparse.ArgumentParser:
    parser = new_parser(
        "rm",
        "MODEL [options]",
        "Remove a model from the local store. Asks before it does.\n\n"
        "The store is the cache of the huggingface_hub library: programs that share it lose the model too.",
        "  llavakit rm llava:7b\n  llavakit rm llava-hf/llava-1.5-13b-hf --yes",
    )
    parser.add_argument("model", metavar="MODEL", help="a model that `llavakit list` shows")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_output_options(parser, json_help="print one JSON object when done; needs --yes")
    return parser


def _convert() -> argparse.ArgumentParser:
    parser = new_parser(
        "convert",
        "MODEL OUT --type TYPE [options]",
        "Write a model in another number format.\n\n"
        "An OUT that ends in .gguf becomes a pair of GGUF files, which llama.cpp and Ollama load too: the language\n"
        "model, and mmproj-NAME.gguf with the vision tower beside it. Any other OUT becomes a folder of\n"
        "safetensors. A conversion that was stopped goes on where it was when the same command runs again.",
        "  llavakit convert llava:7b llava-7b-q4_k_m.gguf --type q4_k_m\n"
        "  llavakit convert llava:tiny tiny-q8_0.gguf --type q8_0\n"
        "  llavakit convert llava-7b-q8_0.gguf folder --type bf16",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("out", metavar="OUT", help="a file that ends in .gguf, or a folder")
    parser.add_argument(
        "--type",
        required=True,
        metavar="TYPE",
        help="q2_k, q3_k_s, q3_k_m, q3_k_l, q4_0, q4_1, q4_k_s, q4_k_m, q5_0, q5_1, q5_k_s, q5_k_m, q6_k, q8_0, f16, "
        "bf16 or f32; a folder takes the last three",
    )
    parser.add_argument(
        "--mmproj-type",
        choices=("f16", "f32", "bf16", "q8_0"),
        default="f16",
        help="number format of the vision tower and projector of a GGUF pair (default: f16)",
    )
    parser.add_argument("--importance", metavar="FILE", help="what matters in the model, from llavakit calibrate")
    _add_mmproj_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    output = add_output_options(parser, json_help="print one JSON object when done")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _calibrate() -> argparse.ArgumentParser:
    parser = new_parser(
        "calibrate",
        "MODEL OUT [options]",
        "Measure on prompts with pictures how much each column of each matrix matters, for a quantizer that\n"
        "spends its precision there: llavakit convert --importance OUT.\n\n"
        "Without --prompts, generated questions about generated pictures are asked. Prompts of the kind the model\n"
        "is to answer are better; their form is that of `llavakit quality`.",
        "  llavakit calibrate llava:7b llava-7b.importance --prompts mine.jsonl\n"
        "  llavakit convert llava:7b llava-7b-q4_k_m.gguf --type q4_k_m --importance llava-7b.importance",
    )
    parser.add_argument("model", metavar="MODEL", help="an unquantized model, as for the other commands")
    parser.add_argument("out", metavar="OUT", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    _add_prompt_options(parser, max_new_tokens=64)
    return parser


def _quality() -> argparse.ArgumentParser:
    parser = new_parser(
        "quality",
        "MODEL QUANTIZED [options]",
        "Measure what quantizing a model has cost: how far the quantized model's next-token probabilities are from\n"
        "the model's at every token of an answer (divergence), how often both choose the same token, and the\n"
        "perplexity of the answers under both; for prompts with pictures and without, with intervals of 95 %.\n\n"
        "Without --prompts, generated questions about generated pictures are asked, and the model's own greedy\n"
        "answers are scored. Prompts of the kind the model is to answer tell more: one JSON object a line,\n"
        '{"text": "What is this?", "images": ["a.png"], "answer": "A red circle."}; answer may be left out.',
        "  llavakit quality llava:7b llava-7b-q4_k_m.gguf\n"
        "  llavakit quality llava:7b llava-7b-q4_k_m.gguf --prompts mine.jsonl --json",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("quantized", metavar="QUANTIZED", help="the quantized model, such as a .gguf file")
    _add_mmproj_option(parser, of="QUANTIZED, where that is a .gguf file")
    _add_prompt_options(parser, max_new_tokens=32)
    return parser


def _verify() -> argparse.ArgumentParser:
    parser = new_parser(
        "verify",
        "MODEL [options]",
        "Run a model beside the transformers library on the same weights, stage by stage, and show how far they\n"
        "are apart: pixels, token ids, vision features, projected features, logits, tokens. On the CPU.\n\n"
        "Needs transformers: pip install 'llavakit[verify]'. The exit status is 1 when a stage fails.",
        "  llavakit verify llava:tiny\n  llavakit verify llava:7b --json",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_mmproj_option(parser)
    add_output_options(parser, json_help="print one JSON object")
    _add_machine_options(parser, has_device=False)
    return parser


def _bench() -> argparse.ArgumentParser:
    parser = new_parser(
        "bench",
        "MODEL [options]",
        "Measure where the time of an answer goes, from the picture file to the last token, and show each part as\n"
        "a share of what this machine can do.",
        "  llavakit bench llava:tiny\n  llavakit bench llava:7b --dtype bfloat16 --json",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_mmproj_option(parser)
    add_output_options(parser, json_help="print one JSON object")
    _add_machine_options(parser)
    return parser


def _serve() -> argparse.ArgumentParser:
    parser = new_parser(
        "serve",
        "[MODEL] [options]",
        "Serve a model to other programs and to browsers: OpenAI's and Ollama's interfaces, and a page to chat on.\n\n"
        "Only this machine can reach it unless a key is set. Settings can also be given in the environment as\n"
        "LLAVAKIT_NAME, or in a TOML file (--config), by the names that --print-config shows; options go first.\n"
        "docs/server.md has everything.",
        "  llavakit serve\n"
        "  llavakit serve llava-7b-q4_k_m.gguf --port 11434\n"
        "  llavakit serve llava:7b --host 0.0.0.0 --api-key-file keys.txt --allow-host models.example.com",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=f"{MODEL_HELP} (default: llava:tiny)")
    network = parser.add_argument_group("network")
    network.add_argument("--host", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    network.add_argument("--port", type=int, metavar="N", help="default: 8000; 0 takes a free one")
    network.add_argument("--api-key", action="append", metavar="KEY", help="a key that opens the server; repeatable")
    network.add_argument("--api-key-file", metavar="FILE", help="keys, one a line")
    network.add_argument("--insecure-no-key", action="store_true", default=None, help="listen anywhere without a key")
    network.add_argument("--requests-per-minute", type=int, metavar="N", help="of one key (default: 0, no limit)")
    network.add_argument(
        "--allow-host", dest="allowed_hosts", action="append", metavar="NAME", help="a name clients may call it by"
    )
    network.add_argument(
        "--allow-origin", dest="allowed_origins", action="append", metavar="ORIGIN", help="a web page that may call it"
    )
    network.add_argument("--allow-urls", action="store_true", default=None, help="fetch pictures from https addresses")
    network.add_argument(
        "--url-host", dest="url_hosts", action="append", metavar="NAME", help="with --allow-urls: only from this host"
    )
    network.add_argument("--max-body-mib", type=int, metavar="N", help="largest request, in MiB (default: 64)")
    network.add_argument(
        "--max-bodies-mib", type=int, metavar="N", help="all requests together while they arrive (default: 512)"
    )
    network.add_argument("--max-images", type=int, metavar="N", help="pictures of a request (default: 16)")
    work = parser.add_argument_group("work")
    work.add_argument("--parallel", type=int, metavar="N", help="requests computed at a time (default: 8)")
    work.add_argument("--queue", type=int, metavar="N", help="requests that wait beside them (default: 256)")
    work.add_argument(
        "--keep-alive", dest="keep_alive_s", type=float, metavar="S",
        help="seconds an unused model stays in memory; negative: for ever (default: 300)",
    )  # fmt: skip
    work.add_argument(
        "--kv-cache-gib", type=float, metavar="X", help="memory of keys and values (default: what is free)"
    )
    work.add_argument(
        "--picture-cache-gib", type=float, metavar="X", help="memory of pictures that may come again (default: 0.25)"
    )
    work.add_argument(
        "--cache-dir", metavar="FOLDER", help="keep pictures on the disk over a restart (default: nowhere)"
    )
    work.add_argument("--disk-cache-gib", type=float, metavar="X", help="largest size of that folder (default: 2)")
    work.add_argument(
        "--isolate-tenants", action="store_true", default=None, help="what is cached for one key serves no other key"
    )
    work.add_argument("--grace", dest="grace_s", type=float, metavar="S", help="seconds for answers when stopped (30)")
    model = parser.add_argument_group("model")
    model.add_argument("--preset", choices=("original", "hf"), help="how pictures and prompts are prepared")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="number format of the weights")
    model.add_argument("--kv-dtype", choices=("auto", "q8_0"), help="number format of keys and values")
    model.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N")
    model.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    _add_mmproj_option(model)
    parser.add_argument(
        "--planner", dest="planner_dir", metavar="FOLDER", help="pages of `llavakit plan --html` to link"
    )
    parser.add_argument("--config", metavar="FILE", help="settings in TOML")
    parser.add_argument("--no-state-file", action="store_true", help="let `llavakit run` not know of this server")
    output = add_output_options(parser, json_help="with --print-config: print one JSON object")
    output.add_argument("--print-config", action="store_true", help="print every setting and where it comes from")
    return parser


_BUILDERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "run": _run,
    "serve": _serve,
    "pull": _pull,
    "list": _list,
    "show": _show,
    "rm": _rm,
    "convert": _convert,
    "calibrate": _calibrate,
    "quality": _quality,
    "verify": _verify,
    "bench": _bench,
}


def build_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    if command in _BUILDERS:
        return _BUILDERS[command]()
    from llavakit.cli.plan_arguments import PLAN_BUILDERS

    return PLAN_BUILDERS[command]()


def parse(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse what follows a command's name.

    Raises
    ------
    ConfigError
        If the arguments cannot be used.
    SystemExit
        After ``--help``.
    """
    # Intermixed: options may stand between the model and the prompt.
    return build_parser(command).parse_intermixed_args(list(arguments))
