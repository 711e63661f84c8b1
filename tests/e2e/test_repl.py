"""The chat on a real terminal; with a fake model where the model does not matter."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.e2e.terminal import CTRL_C, CTRL_D, Terminal

FAKE = [sys.executable, "-m", "tests.unit.cli.fake_main", "run", "llava:fake"]


def _open(repository: Path, tmp_path: Path, command: list[str], columns: int = 80) -> Terminal:
    state = {"XDG_STATE_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}
    return Terminal(command, cwd=repository, env=state, columns=columns)


def test_chat_when_used_as_people_do_then_it_answers_and_can_be_left(
    repository: Path, tmp_path: Path, picture: Path
) -> None:
    with _open(repository, tmp_path, FAKE, columns=160) as terminal:
        terminal.wait_for(">>>")
        terminal.enter(f"{shlex.quote(str(picture))} what is this?")
        terminal.wait_for("(PNG 64x48)")
        terminal.wait_for("I see 1 and read: what is this?")
        terminal.wait_for("image: decode 2.0 ms, resize 3.0 ms, encode 40 ms | prompt 30 tokens")
        terminal.wait_for(">>>")
        terminal.enter(str(picture))  # at the start of the line, spaces and all
        terminal.wait_for("[1 picture] >>>")
        terminal.enter("and that?")
        terminal.wait_for("I see 2 and read: and that?")
        terminal.wait_for("10 cached")
        terminal.enter("what is nothing.png?")
        terminal.wait_for("error[image-source]: there is no picture 'nothing.png'")
        terminal.wait_for(">>>")
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-D or /bye leaves the chat.")
        terminal.wait_for(">>>")
        terminal.enter("slowly")
        terminal.wait_for("read: slowly and on and on")
        terminal.type(CTRL_C)
        terminal.wait_for("| stopped")
        terminal.wait_for(">>>")
        terminal.enter('"""one')
        terminal.wait_for("...")
        terminal.enter('two"""')
        terminal.wait_for("read: one\ntwo\n")
        terminal.wait_for(">>>")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.text


def test_chat_when_opened_again_then_earlier_lines_are_there_and_long_answers_are_wrapped_at_words(
    repository: Path, tmp_path: Path
) -> None:
    history = tmp_path / "state" / "llavakit" / "history"
    history.parent.mkdir(parents=True)
    history.write_text("\n# yesterday\n+remember me\n")
    words = [f"word{number:03d}" for number in range(40)]
    with _open(repository, tmp_path, FAKE, columns=80) as terminal:
        terminal.wait_for(">>>")
        terminal.type("\x1b[A")  # the up arrow
        terminal.wait_for("remember me")
        terminal.enter()
        terminal.wait_for("read: remember me")
        terminal.wait_for(">>>")
        terminal.enter(" ".join(words))
        terminal.wait_for("I see 0 and read:")
        answer = terminal.wait_for("prompt 30 tokens").removesuffix("prompt 30 tokens")
        terminal.wait_for(">>>")
        terminal.enter("/bye")
        assert terminal.wait() == 0
    assert "+word000 word001" in history.read_text()
    lines = [line for line in answer.splitlines() if line.strip()]
    assert len(lines) > 1
    assert max(map(len, lines)) < 80


def test_chat_when_the_model_is_real_then_further_turns_reuse_the_prefix(
    repository: Path, tmp_path: Path, picture: Path, tiny_folder: Path
) -> None:
    program = str(Path(sys.executable).with_name("llavakit"))
    saved = tmp_path / "chat.json"
    command = [program, "run", str(tiny_folder), "--max-new-tokens", "4", "--image", str(picture)]
    with _open(repository, tmp_path, command, columns=200) as terminal:
        terminal.wait_for("[1 picture] >>>", timeout_s=120)
        terminal.enter("What is this?")
        terminal.wait_for("image: decode ")
        first = terminal.wait_for(">>>")
        assert "cached" not in first
        terminal.enter("And now?")
        seen = terminal.wait_for("encoded before")
        assert "decode" in seen
        assert "cached" in terminal.wait_for("tokens/s")
        terminal.wait_for(">>>")
        terminal.enter(f"/save {saved}")
        terminal.wait_for("saved 4 messages")
        terminal.enter("/clear")
        terminal.wait_for("the conversation is empty now")
        terminal.enter(f"/load {saved}")
        terminal.wait_for("loaded 4 messages and 1 picture ")
        terminal.enter("/set preset hf")
        terminal.wait_for("template llava-hf")
        terminal.enter("And in the end?")
        terminal.wait_for("image: decode ")
        terminal.wait_for(">>>")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.text
        assert "error[" not in terminal.text
