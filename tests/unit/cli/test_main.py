from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llavakit.cli.arguments import build_parser, parse
from llavakit.cli.main import run_command
from llavakit.cli.overview import ABOUT
from llavakit.core.errors import ConfigError, LlavakitError
from llavakit.core.version import __version__
from tests.unit.cli.fake_model import FakeModel, make_load
from tests.unit.cli.streams import Stream, make_console


def _errors(tree: type[LlavakitError] = LlavakitError) -> list[type[LlavakitError]]:
    return [tree, *(leaf for branch in tree.__subclasses__() for leaf in _errors(branch))]


def _run_with_error(error: BaseException, *flags: str, was_interrupted: bool = False) -> tuple[int, str, str]:
    def load(name: str, **options: Any) -> Any:
        raise error

    console = make_console()
    arguments = ["run", "m", "hello", *flags]
    status = run_command(arguments, console=console, load=load, was_interrupted=lambda: was_interrupted)
    return status, console.stdout.getvalue(), console.stderr.getvalue()


@pytest.mark.parametrize("error", _errors())
def test_run_command_when_our_error_is_raised_then_code_and_exit_status_are_its_own(error: type[LlavakitError]) -> None:
    status, out, err = _run_with_error(error("what happened"))
    assert (status, out, err) == (error.exit_code, "", f"error[{error.code}]: what happened\n")


def test_run_command_when_json_is_wanted_then_errors_are_json_on_stdout() -> None:
    status, out, err = _run_with_error(ConfigError("no\nway"), "--json")
    assert (status, json.loads(out), err) == (2, {"error": {"code": "config", "message": "no\nway"}}, "")


def test_run_command_when_something_else_is_raised_then_it_says_how_to_report() -> None:
    status, out, err = _run_with_error(ValueError("surprise"))
    assert status == 70
    assert out == ""
    assert err.startswith("error[internal]: ValueError: surprise. ")
    assert err.count("\n") == 1
    assert "report" in err


def test_run_command_when_debugging_then_the_traceback_comes_first() -> None:
    status, _, err = _run_with_error(ValueError("surprise"), "--debug")
    assert status == 70
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("error[internal]: ValueError: surprise.")


def test_run_command_when_memory_is_short_then_it_is_a_capacity_error() -> None:
    status, _, err = _run_with_error(MemoryError())
    assert (status, err.startswith("error[capacity]: ")) == (6, True)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ImportError("half-loaded"), SystemError("in a callback")])
def test_run_command_when_interrupted_then_130_whatever_a_library_made_of_it(error: BaseException) -> None:
    status, out, err = _run_with_error(error, was_interrupted=True)
    assert (status, out, err) == (130, "", "error[interrupted]: stopped by Ctrl-C.\n")


class _Full(Stream):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--help"], ["run", "m", "hello", "--json"]])
def test_run_command_when_the_output_is_full_then_74(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    console = make_console()
    console.stdout = _Full()
    monkeypatch.setattr("sys.stdout", console.stdout)  # where the help of a command goes
    assert run_command(arguments, console=console, load=make_load(FakeModel())) == 74
    assert console.stderr.getvalue() == "error[output]: the output cannot be written: No space left on device.\n"


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (FileNotFoundError(2, "No such file or directory", "weights.bin"), "internal", 70),
        (OSError(5, "Input/output error"), "internal", 70),  # of a disk that is read
        (OSError(12, "Cannot allocate memory"), "capacity", 6),
        (OSError(12, "Cannot allocate memory", "weights.bin"), "capacity", 6),
        (OSError(28, "No space left on device"), "disk-full", 4),
        (OSError(24, "Too many open files"), "internal", 70),
    ],
)
def test_run_command_when_something_else_than_the_output_fails_then_it_is_not_called_an_output_error(
    error: OSError, code: str, status: int
) -> None:
    found, _, err = _run_with_error(error)
    assert found == status
    assert err.startswith(f"error[{code}]: ")
    assert code == "capacity" or str(error) in err


def _run_code(code: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stderr


def test_program_when_interrupted_while_it_is_imported_then_130_and_no_traceback() -> None:
    code = """
import os, signal, sys, time
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "llavakit.cli.console":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
sys.meta_path.insert(0, Finder())
from llavakit.__main__ import main
main()
"""
    assert _run_code(code) == (130, "")


def test_program_when_an_interrupt_is_lost_in_a_destructor_then_it_comes_again() -> None:
    code = """
import os, signal, sys, time
import llavakit.cli.main as cli
class Lost:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
def run_command(arguments, **options):
    Lost()
    time.sleep(30)
    return 0
cli.run_command = run_command
cli.main()
"""
    assert _run_code(code) == (130, "")


def _run_with_closed(stream: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "tests.unit.cli.fake_main", *arguments]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {stream}&-', "sh", *program], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("arguments", ["--help", "run --help", "list", "run m hello", "run m hello --json"])
def test_program_when_its_output_is_closed_then_one_line_says_so(arguments: str) -> None:
    done = _run_with_closed(">", *arguments.split())
    assert done.returncode == 74
    assert done.stderr == "error[output]: the output cannot be written: Bad file descriptor.\n"


def test_program_when_its_output_is_closed_then_other_errors_are_said_on_the_other_stream() -> None:
    done = _run_with_closed(">", "run", "m", "hello", "--json", "--frobnicate")
    assert done.returncode == 2
    assert done.stderr.startswith("error[config]: unrecognized arguments: --frobnicate.")


def test_program_when_its_error_stream_is_closed_then_that_is_no_failure() -> None:
    done = _run_with_closed("2>", "run", "m", "hello")
    assert (done.returncode, done.stdout) == (0, "I see 0 and read: hello\n")
    assert _run_with_closed("2>", "nonsense").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_program_when_its_error_stream_is_full_then_that_is_no_failure() -> None:
    program = [sys.executable, "-m", "tests.unit.cli.fake_main", "run", "m", "hello"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(program, stdout=subprocess.PIPE, stderr=full, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "I see 0 and read: hello\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", ["list", "--help", "show llava:tiny"])
def test_program_when_its_output_is_full_then_one_line_says_so(arguments: str) -> None:
    program = [sys.executable, "-m", "tests.unit.cli.fake_main", *arguments.split()]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (
        74, "error[output]: the output cannot be written: No space left on device.\n",
    )  # fmt: skip


def test_mend_streams_when_streams_are_closed_then_no_later_file_takes_their_place() -> None:
    code = (
        "import os; from llavakit.cli.console import mend_streams; mend_streams();"
        "os._exit(os.open(os.devnull, os.O_RDONLY))"
    )
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], check=False)
    assert done.returncode > 2


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_run_command_when_asked_for_help_then_every_command_is_named(arguments: list[str]) -> None:
    console = make_console()
    assert run_command(arguments, console=console) == 0
    assert all(f"\n  {name} " in console.stdout.getvalue() for name in ABOUT)


def test_run_command_when_asked_for_the_version_then_it_is_printed() -> None:
    console = make_console()
    assert run_command(["--version"], console=console) == 0
    assert console.stdout.getvalue() == f"llavakit {__version__}\n"


@pytest.mark.parametrize("name", ABOUT)
def test_help_of_each_command_has_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: llavakit {name} ")
    examples = text.split("examples:\n")[1].splitlines()
    import shlex

    shown = []
    for example in examples:
        words = shlex.split(example, comments=False)
        words = words[words.index("llavakit") + 1 :]
        words = words[: next((idx for idx, word in enumerate(words) if word in "<|"), len(words))]
        parse(words[0], words[1:])
        shown.append(words[0])
    assert shown[0] == name


@pytest.mark.parametrize("name", ABOUT)
def test_help_of_each_command_fits_a_terminal_of_80_columns_and_breaks_no_name(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command([name, "--help"]) == 0
    text = capsys.readouterr().out.split("examples:\n")[0]
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert [line for line in text.splitlines() if re.search(r"[a-z]-$", line)] == []


def test_help_fits_a_terminal_of_80_columns() -> None:
    console = make_console()
    run_command([], console=console)
    assert max(map(len, console.stdout.getvalue().splitlines())) <= 80


def test_every_option_has_a_help_text() -> None:
    for name in ABOUT:
        for action in build_parser(name)._actions:
            assert action.help, (name, action.dest)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["rnu", "m"], "unknown command 'rnu'. Did you mean `run`?"),
        (["--frobnicate"], "unknown option '--frobnicate'."),
        (["run"], "the following arguments are required: MODEL."),
        (["run", "m", "x", "--frobnicate"], "unrecognized arguments: --frobnicate."),
        (["run", "m", "x", "--seed", "one"], "argument --seed: invalid int value: 'one'."),
        (["run", "m", "x", "--preset", "mine"], "invalid choice: 'mine'"),
        (["run", "m", "x", "--quiet", "--verbose"], "not allowed with"),
        (["run", "m", "x", "--imag", "a.png"], "unrecognized arguments: --imag"),
        (["list", "what"], "unrecognized arguments: what"),
    ],
)
def test_run_command_when_arguments_are_wrong_then_one_line_says_so(arguments: list[str], found: str) -> None:
    console = make_console()
    assert run_command(arguments, console=console) == 2
    err = console.stderr.getvalue()
    assert err.startswith("error[config]: ")
    assert found in err
    assert err.count("\n") == 1


def test_parse_when_options_stand_between_model_and_prompt_then_the_prompt_is_kept() -> None:
    options = parse("run", ["m", "--image", "a.png", "what", "is", "--seed", "3", "this?", "--image", "b.png"])
    assert (options.model, options.prompt, options.image, options.seed) == (
        "m", ["what", "is", "this?"], ["a.png", "b.png"], 3,
    )  # fmt: skip
    assert parse("run", ["m", "--", "--really?"]).prompt == ["--really?"]


def _median_s(command: list[str], *, num_runs: int = 11) -> float:
    import statistics
    import time

    times = []
    for _ in range(num_runs):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def test_help_takes_at_most_three_times_as_long_as_starting_python() -> None:
    program = str(Path(sys.executable).with_name("llavakit"))
    ratios = [_median_s([program, "--help"]) / _median_s([sys.executable, "-c", "pass"]) for _ in range(2)]
    assert min(ratios) <= 3.0, ratios  # the better of two: other programs run beside the tests


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from llavakit.cli.main import run_command;"
        "run_command(['--help']); run_command(['run', '--help']);"
        "print([name for name in ('torch', 'numpy', 'rich', 'typer', 'prompt_toolkit', 'PIL', 'dataclasses')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_run_command_when_the_reader_is_gone_then_it_is_quiet() -> None:
    code = (
        "import llavakit.cli.main as cli; from tests.unit.cli.fake_model import FakeModel, make_load;"
        "import sys; sys.exit(cli.run_command(['run', 'm', 'hello'], load=make_load(FakeModel())))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141


def test_load_gets_what_the_options_say() -> None:
    model = FakeModel()
    load: Any = make_load(model)
    arguments = [
        "run",
        "m",
        "hello",
        "--dtype",
        "bfloat16",
        "--device",
        "cpu",
        "--preset",
        "hf",
        "--allow-private-urls",
    ]
    assert run_command(arguments, console=make_console(), load=load) == 0
    name, options = load.calls[0]
    assert name == "m"
    assert (options["dtype"], options["device"], options["preset"]) == ("bfloat16", "cpu", "hf")
    assert options["policy"].allow_private_hosts is True
    run_command(["run", "m", "hello"], console=make_console(), load=load)
    assert (load.calls[1][1]["dtype"], load.calls[1][1]["policy"].allow_private_hosts) == (None, False)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse lays help texts out anew in Python 3.13")
def test_the_page_of_commands_is_what_the_help_says(repository: Path) -> None:
    from tools.make_docs import make_cli_page

    page = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == make_cli_page(), "docs/cli.md is stale: run `make docs`"
