"""The package root: cheap to import, and every name it promises is there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import llavakit

# What may be loaded to print a help text: none of these.
_HEAVY = ("torch", "numpy", "PIL", "tokenizers", "safetensors", "huggingface_hub", "httpx", "jinja2", "transformers")


def _loaded_after(program: str) -> set[str]:
    code = f"import sys\n{program}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_import_loads_nothing_heavy() -> None:
    assert not _loaded_after("import llavakit") & {*_HEAVY, "rich", "typer", "prompt_toolkit", "typing"}


def test_errors_and_settings_load_nothing_heavy() -> None:
    assert not _loaded_after("from llavakit import LlavakitError, SamplingParams") & set(_HEAVY)


def test_torch_free_packages_stay_so() -> None:
    packages = ("kernels", "processing", "weights", "cli.main")
    program = "\n".join(f"import llavakit.{name}" for name in packages)
    assert not _loaded_after(program) & {"torch", "transformers"}


def test_every_promised_name_is_there_and_lives_where_it_says() -> None:
    for name in llavakit.__all__:
        assert getattr(llavakit, name) is not None
    assert set(llavakit.__all__) <= set(dir(llavakit))
    assert llavakit.load.__module__ == "llavakit.api.loading"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llavakit.nothing  # noqa: B018


def test_name_of_transformers_that_is_not_here_names_a_substitute() -> None:
    assert llavakit.AutoModelForImageTextToText is llavakit.LlavaForConditionalGeneration
    with pytest.raises(AttributeError, match=r"'AutoTokenizer': use AutoProcessor.from_pretrained\(...\).tokenizer"):
        llavakit.AutoTokenizer  # noqa: B018
    assert not set(llavakit._SUBSTITUTES) & set(llavakit.__all__)


def test_type_checkers_and_run_time_see_the_same_names() -> None:
    source = Path(llavakit.__file__).read_text(encoding="utf-8")
    for name in llavakit.__all__:
        if name != "__version__":
            assert f" {name} as {name}\n" in source, name


def _fastest_s(command: list[str], *, num_runs: int = 7) -> float:
    times = []
    for _ in range(num_runs):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def test_help_costs_no_more_than_three_empty_programs() -> None:
    # The fastest of several runs of each, taken in turn: what a neighbour on the machine adds is no property of ours.
    for _ in range(3):
        empty_s = _fastest_s([sys.executable, "-c", "pass"])
        help_s = _fastest_s([sys.executable, "-m", "llavakit", "--help"])
        if help_s <= 3 * empty_s:
            return
    pytest.fail(f"llavakit --help takes {help_s * 1e3:.0f} ms, an empty program {empty_s * 1e3:.0f} ms: more than 3 x")
