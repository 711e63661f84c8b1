"""Ask the embedded model about the pictures in examples/, by the commands a person would type.

The questions and the expected answers are in examples/questions.json. Each command is printed exactly as it
runs, so that it can be typed again. The exit status is 0 only if every answer is right.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "llava:tiny"


def build_command(question: str, image: str) -> list[str]:
    """Return the command for one question, as typed in the repository's folder."""
    return ["llavakit", "run", MODEL, question, "--image", image]


def show_command(command: list[str]) -> str:
    """Write a command as a person types it: the question in double quotes where the shell lets it stand."""
    question = command[3]
    quoted = shlex.quote(question) if set(question) & set('"$`\\!') else f'"{question}"'
    return " ".join([*command[:3], quoted, command[4], shlex.quote(command[5])])


def ask(command: list[str]) -> str:
    """Run one command, passing on as it comes what it writes, and return that."""
    executable = Path(sys.executable).with_name(command[0])
    # One pipe for both outputs, so that the timings come after the answer.
    with subprocess.Popen(
        [str(executable), *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        written = bytearray()
        while chunk := os.read(process.stdout.fileno(), 4096):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            written += chunk
    if process.returncode:
        raise SystemExit(process.returncode)
    return written.decode("utf-8", errors="replace")


def main() -> int:
    """Ask every question; return 0 when all answers are right."""
    questions = json.loads((ROOT / "examples" / "questions.json").read_text(encoding="utf-8"))
    num_wrong = 0
    for entry in questions:
        command = build_command(entry["question"], entry["image"])
        print(f"\n$ {show_command(command)}", flush=True)
        written = ask(command)
        if normalize(entry["answer"]) not in map(normalize, written.splitlines()):
            num_wrong += 1
            print(f"  (expected: {entry['answer']})", flush=True)
    num_right = len(questions) - num_wrong
    print(f"\n{num_right} of {len(questions)} answers are right. The commands above can be typed again", end=" ")
    print("after `. .venv/bin/activate`.")
    return 1 if num_wrong else 0


def normalize(text: str) -> str:
    """Keep what makes an answer right or wrong: its words, not spaces, case or the last full stop."""
    return " ".join(text.split()).rstrip(".").casefold()


if __name__ == "__main__":
    sys.exit(main())
