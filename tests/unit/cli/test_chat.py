from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from llavakit.cli.chat import Chat
from llavakit.cli.conversation import Conversation, load_conversation, open_picture, save_conversation
from llavakit.cli.line_editor import LineEditor, history_file
from llavakit.core.errors import BadImageError, ConfigError, ImageSourceError, PromptError
from llavakit.core.types import ImagePart, Message, Role, SamplingParams, TextPart, TokenEvent
from llavakit.processing.sources import SourcePolicy
from tests.unit.cli.fake_model import FakeModel
from tests.unit.cli.streams import make_console


class ScriptedEditor:
    """Gives lines one after the other; an exception in their place is raised."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []

    def read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if not isinstance(line, str):
            raise line
        return line


def _chat(*lines: str | type[BaseException], model: FakeModel | None = None) -> SimpleNamespace:
    """Run a whole chat; return what was said and what the model was asked."""
    console, editor, model = make_console(), ScriptedEditor(*lines), model or FakeModel()
    chat = Chat(
        model,  # type: ignore[arg-type]
        console,
        editor,
        conversation=Conversation(preset="original"),
        policy=SourcePolicy(),
        shows_timings=False,
    )
    status = chat.run()
    return SimpleNamespace(
        status=status, out=console.stdout.getvalue(), err=console.stderr.getvalue(), chat=chat, model=chat.model,
        asked=model.asked, prompts=editor.prompts,
    )  # fmt: skip


def test_chat_when_it_goes_on_then_the_model_gets_all_turns() -> None:
    done = _chat("first", "second")
    assert done.status == 0
    assert done.out == "I see 0 and read: first\nI see 0 and read: second\n"
    assert done.asked[1][0] == [
        Message(Role.USER, (TextPart("first"),)),
        Message(Role.ASSISTANT, (TextPart("I see 0 and read: first"),)),
        Message(Role.USER, (TextPart("second"),)),
    ]


def test_chat_when_a_picture_is_in_the_line_then_it_is_sent_with_the_rest(picture: Path) -> None:
    done = _chat(f"'{picture}' what is this?", "and now?")
    assert f"attached '{picture}' (PNG 64x48)" in done.err
    assert done.out == "I see 1 and read: what is this?\nI see 1 and read: and now?\n"
    opened = done.asked[0][0][0].parts[0].source
    assert opened.image.size == (64, 48)
    assert done.asked[1][0][0].parts[0].source is opened  # not decoded again


def test_chat_when_only_a_picture_is_dropped_then_it_waits_for_a_question(picture: Path) -> None:
    done = _chat(str(picture), f"/image {picture}", "what?")
    assert done.prompts == [">>> ", "[1 picture] >>> ", "[2 pictures] >>> ", ">>> "]
    assert [type(part) for part in done.asked[0][0][0].parts] == [ImagePart, ImagePart, TextPart]


def test_chat_when_a_path_starts_the_line_then_it_is_no_command(picture: Path) -> None:
    done = _chat(f"{picture} what?")
    assert done.out == "I see 1 and read: what?\n"
    assert "error" not in done.err


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("what is nothing.png?", "error[image-source]: there is no picture 'nothing.png'"),
        ("/no/such/cat.png what?", "error[image-source]: there is no picture '/no/such/cat.png'"),
        ("/no/such/file what?", "error[config]: there is no command '/no/such/file' and no such file."),
        ("/hlep", "error[config]: there is no command '/hlep'. Did you mean /help?"),
        ("/image", "error[config]: /image needs a path"),
        ("/image nothing.png", "error[image-source]: there is no file 'nothing.png'"),
        ("/set", "error[config]: /set needs one of"),
        ("/set parameter heat 3", "error[sampling]: there is no parameter 'heat'."),
        ("/set parameter seed", "error[sampling]: /set parameter seed needs a value"),
        ("/set parameter seed 1.5", "error[sampling]: seed needs a whole number; got '1.5'."),
        ("/set parameter top_p 0.5", "error[sampling]: top_p given with temperature 0"),
        ("/set parameter stop 'open", "error[sampling]: stop needs text"),
        ("/set preset mine", "error[config]: preset 'mine' is not known"),
        ("/show me", "error[config]: /show needs one of: info"),
        ("/clear all", "error[config]: /clear takes nothing"),
        ("/save", "error[config]: /save needs a file"),
        ("/save /no/such/folder/chat.json", "error[config]: the conversation cannot be saved"),
        ("/load nothing.json", "error[config]: 'nothing.json' cannot be read"),
        ("overflow", "error[context-overflow]: the prompt has 5000 tokens"),
        ("explode", "error[internal]: RuntimeError: a fault inside. "),
        ("\udcff", "error[config]: the question is not UTF-8"),
    ],
)
def test_chat_when_a_line_cannot_be_used_then_one_line_says_so_and_the_chat_goes_on(line: str, error: str) -> None:
    done = _chat("before", line, "after")
    assert done.err.startswith(error)
    assert done.err.count("\n") == 1
    assert [message.role for message in done.asked[-1][0]] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert done.out.endswith("read: after\n")


def test_chat_when_a_question_fails_then_its_pictures_wait_on(picture: Path) -> None:
    done = _chat(f"{picture} overflow", "now")
    assert done.out == "I see 1 and read: now\n"


def test_chat_when_a_file_is_no_picture_then_nothing_is_sent(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("words")
    done = _chat(f"{tmp_path}/text.png what?")
    assert done.err.startswith("error[bad-image]: ")
    assert not done.asked


def test_chat_when_a_fenced_message_is_left_open_then_only_it_ends() -> None:
    done = _chat('"""half', EOFError, "whole")
    assert [message.parts[-1].text for message in done.asked[0][0]] == ["whole"]
    assert "unfinished message was dropped" in done.err


def test_chat_when_an_answer_breaks_off_then_the_error_has_a_line_of_its_own() -> None:
    model = FakeModel()
    model.stream = lambda messages, *, sampling: _BrokenStream()  # type: ignore[method-assign, assignment]
    done = _chat("hello", model=model)
    assert done.out == "half\n"
    assert "error[prompt]: broken." in done.err


class _BrokenStream:
    """An answer that ends with an error after its first word."""

    def __iter__(self) -> Iterator[TokenEvent]:
        yield TokenEvent(request_idx=0, text="half", token_id=0, finish_reason=None)
        raise PromptError("broken.")


def test_chat_when_fenced_then_the_text_is_sent_as_it_stands() -> None:
    done = _chat('"""one line, nothing.png"""', '"""', "/bye", "  two", '"""', '"""', "never sent", EOFError)
    assert [asked[0][-1].parts for asked in done.asked] == [
        (TextPart("one line, nothing.png"),), (TextPart("/bye\n  two"),),
    ]  # fmt: skip
    assert done.prompts[1:5] == [">>> ", "... ", "... ", "... "]


def test_chat_when_interrupted_at_the_prompt_then_it_says_how_to_leave() -> None:
    done = _chat(KeyboardInterrupt, "still here", "/bye", "not read")
    assert "Ctrl-D or /bye leaves the chat." in done.err
    assert done.out == "I see 0 and read: still here\n"


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit", "/BYE"])
def test_chat_when_told_good_bye_then_it_ends(word: str) -> None:
    assert _chat(word, "not read").asked == []


@pytest.fixture(autouse=True)
def _default_interrupts() -> Iterator[None]:
    """As a terminal has them; a shell's background job ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupt_after(seconds: float) -> None:
    def press() -> None:
        time.sleep(seconds)
        signal.pthread_kill(main_thread, signal.SIGINT)

    main_thread = threading.main_thread().ident
    assert main_thread is not None
    threading.Thread(target=press, daemon=True).start()


def test_chat_when_interrupted_in_an_answer_then_the_answer_ends_and_is_kept() -> None:
    _interrupt_after(0.4)
    done = _chat("slow " * 40, "go on")
    first, second = done.out.splitlines()
    assert first.startswith("I see 0 and read:")
    assert first.count("slow") < 40
    assert done.asked[1][0][1] == Message(Role.ASSISTANT, (TextPart(first),))
    assert second == "I see 0 and read: go on"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_chat_when_interrupted_twice_then_a_stuck_answer_ends_too() -> None:
    class StuckModel(FakeModel):
        def stream(self, messages: list[Message], *, sampling: SamplingParams) -> object:  # type: ignore[override]
            if "slow" not in messages[-1].parts[0].text:  # type: ignore[union-attr]
                return super().stream(messages, sampling=sampling)
            return SimpleNamespace(cancel=lambda: None, __iter__=None, result=None) and _Stuck()

    class _Stuck:
        def cancel(self) -> None:
            _interrupt_after(0.1)

        def __iter__(self) -> object:
            time.sleep(30)
            return iter(())

    _interrupt_after(0.1)
    started = time.monotonic()
    done = _chat("slow", "fine", model=StuckModel())
    assert time.monotonic() - started < 20
    assert "stopped; the question was taken back." in done.err
    assert done.out.endswith("I see 0 and read: fine\n")
    assert done.model.num_resets == 1


def test_chat_when_cleared_then_nothing_is_left_of_the_conversation(picture: Path) -> None:
    done = _chat("/set system S", "first", str(picture), "/clear", "second")
    assert done.asked[1][0] == [Message(Role.SYSTEM, (TextPart("S"),)), Message(Role.USER, (TextPart("second"),))]
    assert done.model.num_resets == 1


def test_chat_when_waiting_pictures_are_cleared_then_the_conversation_stays(picture: Path) -> None:
    done = _chat("first", str(picture), "/clear images", "second")
    assert done.out.endswith("I see 0 and read: second\n")
    assert len(done.asked[1][0]) == 3


def test_chat_when_parameters_are_set_then_answers_are_made_with_them() -> None:
    done = _chat(
        "/set parameter temperature 0.5", "/set parameter top-p 0.9", "/set parameter stop 'a b' c",
        "/set parameter max_new_tokens 7", "/set parameter max_new_tokens default", "x", "/show parameters",
    )  # fmt: skip
    assert done.asked[0][1] == SamplingParams(temperature=0.5, top_p=0.9, stop=("a b", "c"))
    assert "temperature        0.5 (set)" in done.out
    assert "max_new_tokens     512\n" in done.out


def test_chat_when_no_answer_can_be_as_long_as_allowed_then_a_note_says_so() -> None:
    assert "the context of 4096 holds" in _chat("/set parameter max_new_tokens 5000").err
    assert "the context of 4096" not in _chat("/set parameter max_new_tokens 4000", "/set parameter top_k default").err


def test_chat_when_the_preset_is_set_then_another_model_answers_with_the_same_conversation() -> None:
    done = _chat("first", "/set preset hf", "second")
    assert done.model.preset.name == "hf"
    assert len(done.asked) == 2  # the fake shares its list as the real one shares its weights
    assert len(done.asked[1][0]) == 3


@pytest.mark.parametrize(
    ("view", "found"),
    [
        ("info", "context   36 of 4096 tokens used"),
        ("info", "preset    original (template vicuna_v1)"),
        ("parameters", "temperature        0.0"),
        ("system", "that of the template vicuna_v1"),
        ("images", "sent      "),
        ("images", "attached  "),
        ("timings", "prompt        0.1000 s, 30 tokens, 0 cached, 300.0 tokens/s"),
    ],
)
def test_chat_when_asked_to_show_then_it_shows(view: str, found: str, picture: Path) -> None:
    assert found in _chat(f"{picture} hello", str(picture), f"/show {view}").out


def test_chat_when_nothing_happened_yet_then_show_says_so() -> None:
    assert _chat("/show timings", "/show images").out == "no answer yet\nno pictures\n"


def test_chat_help_names_every_command() -> None:
    out = _chat("/?").out
    assert all(name in out for name in ("/image", "/clear", "/set", "/show", "/save", "/load", "/help", "/bye", '"""'))
    assert all(len(line) < 80 for line in out.splitlines())


@pytest.mark.parametrize("flag", ["", "--paths "])
def test_chat_when_saved_and_loaded_then_it_goes_on_as_if_never_left(flag: str, picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat one.json"
    before = _chat("/set system S", "/set parameter seed 5", f"{picture} first", f"/save {flag}{file}")
    assert "saved 2 messages" in before.err
    content = json.loads(file.read_text())
    image = content["messages"][0]["content"][0]
    assert image.get("path") == (str(picture) if flag else None)
    assert image.get("url", "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "context   4096 tokens; how many are used is known" in _chat(f"/load {file}", "/show info").out
    after = _chat(f"/load {file}", "second")
    assert "loaded 2 messages and 1 picture " in after.err
    messages, sampling = after.asked[0]
    assert sampling.seed == 5
    assert [message.role for message in messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER]
    assert messages[1].parts[0].source.image.tobytes() == Image.open(picture).tobytes()


def _damaged_files() -> dict[str, str]:
    good = {
        "format": "llavakit-conversation", "version": 1, "model": "m", "preset": "original", "system": None,
        "parameters": {}, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]},
                                       {"role": "assistant", "content": [{"type": "text", "text": "y"}]}],
    }  # fmt: skip

    def changed(**fields: object) -> str:
        return json.dumps({**good, **fields})

    user, assistant = good["messages"]  # type: ignore[misc]
    return {
        "no JSON": "{",
        "another file": "{}",
        "a list": "[]",
        "a later version": changed(version=2),
        "no messages": json.dumps({name: value for name, value in good.items() if name != "messages"}),
        "a wrong role": changed(messages=[{"role": "robot", "content": []}]),
        "two questions": changed(messages=[user, user]),
        "a question without answer": changed(messages=[user]),
        "unknown parameters": changed(parameters={"heat": 1}),
        "a picture from the network": changed(
            messages=[{"role": "user", "content": [{"type": "image", "url": "http://localhost/a.png"}]}, assistant]
        ),
        "an unknown part": changed(messages=[{"role": "user", "content": [{"type": "sound"}]}, assistant]),
        "content as text": changed(messages=[{"role": "user", "content": "x"}, assistant]),
        "deep nesting": "[" * 100_000,
    }


@pytest.mark.parametrize("case", _damaged_files())
def test_chat_when_a_damaged_file_is_loaded_then_the_conversation_stays(case: str, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_text(_damaged_files()[case])
    done = _chat("first", f"/load {file}", "second")
    assert done.err.startswith("error[config]: ")
    assert len(done.asked[1][0]) == 3


def test_save_conversation_when_writing_fails_then_the_old_file_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chat.json"
    save_conversation(Conversation(system="old"), file, model_name="m")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ConfigError, match="No space left on device"):
        save_conversation(Conversation(system="new"), file, model_name="m")
    assert load_conversation(file, policy=SourcePolicy()).system == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["chat.json"]


def test_save_conversation_when_the_file_is_something_else_then_it_is_not_overwritten(picture: Path) -> None:
    before = picture.read_bytes()
    with pytest.raises(ConfigError, match="is not a saved conversation"):
        save_conversation(Conversation(), picture, model_name="m")
    assert picture.read_bytes() == before


def test_open_picture_when_the_picture_is_damaged_then_it_is_refused_at_once(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(BadImageError):
        open_picture(str(picture), SourcePolicy())


def test_open_picture_when_given_a_file_url_then_the_file_is_the_picture(picture: Path) -> None:
    opened = open_picture(picture.as_uri(), SourcePolicy())
    assert (opened.path, opened.data, opened.name) == (picture, picture.read_bytes(), picture.as_uri())
    for url in (f"{picture.as_uri()}.gone", "file://otherhost/a.png", "file://[bad/a.png", ""):
        with pytest.raises(ImageSourceError):
            open_picture(url, SourcePolicy())


def test_history_file_is_in_the_state_folder(tmp_path: Path) -> None:
    assert history_file({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "llavakit" / "history"
    assert history_file({"XDG_STATE_HOME": "relative"}) == Path.home() / ".local" / "state" / "llavakit" / "history"


def test_line_editor_when_history_cannot_be_written_then_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert LineEditor(make_console(), ["/help"]).notice.startswith("history is not kept: ")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert LineEditor(make_console(), ["/help"]).notice == ""
    assert (tmp_path / "other" / "llavakit" / "history").stat().st_mode & 0o077 == 0
