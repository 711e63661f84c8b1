"""``llavakit run MODEL`` without a prompt: a chat.

A line is a command, or a question with the pictures that are named in it. Every turn goes through the same
loaded model, so that only what is new is computed. An error leaves the conversation as it was.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from llavakit.cli.answer_writer import AnswerWriter
from llavakit.cli.attachments import find_attachments, starts_with_file
from llavakit.cli.console import Console, printable
from llavakit.cli.conversation import Conversation, Picture, Turn, open_picture
from llavakit.cli.error_text import describe_error, is_output_error
from llavakit.cli.loading import load_model
from llavakit.cli.timing_line import context_note, timing_line
from llavakit.core.errors import ConfigError, LlavakitError
from llavakit.core.types import FinishReason, GenerationResult, Role
from llavakit.core.wording import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable
    from types import FrameType
    from typing import Protocol

    from llavakit.api import LoadedModel, Stream
    from llavakit.processing.sources import SourcePolicy

    class Editor(Protocol):
        """Whatever lines come from."""

        def read(self, prompt: str) -> str: ...


__all__ = ["Chat", "LeaveChat", "chat"]

_PROMPT = ">>> "
_CONTINUED = "... "
_FENCE = '"""'


class LeaveChat(Exception):
    """The user said good-bye."""


def chat(
    options: argparse.Namespace,
    console: Console,
    *,
    settings: dict[str, Any],
    load: Callable[..., Any] | None = None,
) -> int:
    """Open a chat and return the exit status when it is left."""
    from llavakit.cli.line_editor import LineEditor
    from llavakit.cli.run import describe_use
    from llavakit.cli.slash_commands import COMPLETIONS
    from llavakit.processing.sources import SourcePolicy

    policy = SourcePolicy(allow_private_hosts=options.allow_private_urls)
    pictures = [open_picture(source, policy) for source in options.image or []]
    model = load_model(options, console, load)
    editor = LineEditor(console, COMPLETIONS)
    session = Chat(
        model,
        console,
        editor,
        conversation=Conversation(system=options.system, settings=settings, preset=model.preset.name),
        policy=policy,
        shows_timings=not (options.quiet or options.no_timings),
        is_debugging=options.debug,
    )
    if not options.quiet:
        greeting = f"{model.name}, preset {model.preset.name}. Drop a picture and ask; /help lists more; Ctrl-D leaves."
        console.note(describe_use(model, settings) if options.verbose else greeting, style="dim")
        if note := context_note(options.max_new_tokens, model.config.max_context_tokens):
            console.note(note, style="dim")
        if editor.notice:
            console.note(editor.notice, style="yellow")
    session.attach(pictures)
    return session.run()


class Chat:
    """The state of one chat and its loop.

    Parameters
    ----------
    model : LoadedModel
    console : Console
    editor : Editor
    conversation : Conversation
    policy : SourcePolicy
        What pictures may be fetched.
    shows_timings, is_debugging : bool
    """

    def __init__(
        self,
        model: LoadedModel,
        console: Console,
        editor: Editor,
        *,
        conversation: Conversation,
        policy: SourcePolicy,
        shows_timings: bool = True,
        is_debugging: bool = False,
    ) -> None:
        self.model = model
        self.console = console
        self.conversation = conversation
        self.policy = policy
        self.shows_timings = shows_timings
        self.waiting: list[Picture] = []
        self.last_result: GenerationResult | None = None
        self._editor = editor
        self._is_debugging = is_debugging
        self._running: Stream | None = None
        self._was_stopped = False

    def run(self) -> int:
        """Read and answer until the user leaves; return the exit status."""
        previous = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            while True:
                try:
                    self._turn()
                except (EOFError, LeaveChat):
                    return 0
                except KeyboardInterrupt:
                    self.say("Ctrl-D or /bye leaves the chat.")
        finally:
            signal.signal(signal.SIGINT, previous)

    def say(self, text: str) -> None:
        """Tell the user something that is not an answer."""
        self.console.note(printable(text), style="dim")

    def complain(self, error: BaseException) -> None:
        """Tell the user what went wrong, in one line."""
        if self._is_debugging:
            import traceback

            self.console.tell("".join(traceback.format_exception(error)))
        code, message, _ = describe_error(error)
        self.console.error(code, message)

    def handle(self, line: str) -> None:
        """Do what one line says: a command, pictures, a question."""
        line = line.strip()
        if not line:
            return
        if line.startswith("/") and not starts_with_file(line):
            word = line.split(maxsplit=1)[0]
            text, sources = ("", []) if _is_command_like(word) else find_attachments(line)
            if not sources:
                from llavakit.cli.slash_commands import run_slash_command

                run_slash_command(self, line)
                return
        else:
            text, sources = find_attachments(line)
        self.attach([open_picture(source, self.policy) for source in sources])
        if text:
            self.ask(text)

    def attach(self, pictures: Iterable[Picture]) -> None:
        """Keep pictures for the next question."""
        for picture in pictures:
            self.waiting.append(picture)
            self.say(f"attached {picture.name!r} ({picture.summary})")

    def ask(self, text: str) -> None:
        """Send a question with the waiting pictures, and write the answer as it comes."""
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise ConfigError("the question is not UTF-8 text. Check the terminal's encoding.")
        question = Turn(Role.USER, text, tuple(self.waiting))
        sampling = self.conversation.sampling
        try:
            with AnswerWriter(self.console) as writer:
                self._running = self.model.stream(self.conversation.to_messages(question), sampling=sampling)
                for event in self._running:
                    writer.push(event.text)
                result = self._running.result
        except KeyboardInterrupt:  # a second Ctrl-C, in the middle of a step
            self.model.reset()
            self.say("stopped; the question was taken back.")
            return
        finally:
            self._running = None
            self._was_stopped = False
        self.last_result = result
        if self.shows_timings:
            self.say(timing_line(result, sampling))
        if not result.text.strip() and result.finish_reason is FinishReason.CANCELLED:
            self.say("stopped before the first word; the question was taken back.")
            return
        self.conversation.turns += [question, Turn(Role.ASSISTANT, result.text)]
        self.waiting = []

    def _turn(self) -> None:
        """Read one message and handle it; errors are told and change nothing."""
        line = self._editor.read(self._prompt())
        try:
            if line.lstrip().startswith(_FENCE):
                text = self._read_fenced(line.lstrip())
                if text.strip():
                    self.ask(text)
            else:
                self.handle(line)
        except (LlavakitError, MemoryError) as error:
            self.complain(error)
        except (EOFError, KeyboardInterrupt, LeaveChat):
            raise
        except Exception as error:
            if is_output_error(error):
                raise  # nobody reads the answers any more
            self.complain(error)
            self.model.reset()

    def _prompt(self) -> str:
        return f"[{counted(len(self.waiting), 'picture')}] {_PROMPT}" if self.waiting else _PROMPT

    def _read_fenced(self, line: str) -> str:
        """Read up to the closing quotes; what is between them is text and nothing else. Ctrl-D gives it up."""
        text = line.removeprefix(_FENCE)
        try:
            while not text.rstrip().endswith(_FENCE):
                text += "\n" + self._editor.read(_CONTINUED)
        except EOFError:
            self.say('the unfinished message was dropped; """ ends one.')
            return ""
        return text.rstrip().removesuffix(_FENCE).strip("\n")

    def _on_interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        """End the answer after this token; the second time, or without an answer, at once."""
        running = self._running
        if running is None or self._was_stopped:
            raise KeyboardInterrupt
        self._was_stopped = True
        running.cancel()


def _is_command_like(word: str) -> bool:
    """Whether a word at the start of a line is meant as a command, not as a path."""
    return "/" not in word[1:] and "." not in word
