"""Token ids with LLaMA's vocabulary: against transformers, sentencepiece and llama.cpp's own test strings."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llavakit.core.config_json import parse_llava_config
from llavakit.core.errors import PromptError
from llavakit.processing.chat import render, to_messages
from llavakit.processing.spm import pieces_to_tokenizer_json, read_sentencepiece
from llavakit.processing.tokenizer import StreamDecoder, Tokenizer
from tests.unit.core.test_config_json import PUBLISHED_7B

pytestmark = pytest.mark.needs_shared

_CONTROL_WORDS = ("<s>", "</s>", "<unk>", "<pad>", "<image>", "<0x0A>", "<0xFF>", "USER:", "ASSISTANT:", "▁", "[INST]")
# Ranges of letters: Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, Georgian, Ethiopic, kana, Han, Hangul,
# emoji, mathematical letters, private use, combining marks.
_SCRIPTS = (
    (0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A), (0x904, 0x939),
    (0xE01, 0xE3A), (0x10A0, 0x10FF), (0x1200, 0x1248), (0x3041, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
    (0x1F300, 0x1FAFF), (0x1D400, 0x1D4FF), (0xE000, 0xE0FF), (0x300, 0x36F),
)  # fmt: skip
_SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\u2028",
    "\ufeff",
    "\x00",
    "\x7f",
)
_WORDS = (
    "the", "What", "is", "picture", "naïve", "Übergröße", "façade", "coração", "żółć", "слово", "κόσμος", "שלום",
    "مرحبا", "नमस्ते", "สวัสดี", "გამარჯობა", "ሰላም", "こんにちは", "世界", "안녕하세요", "👩‍👩‍👧", "🏳️‍🌈", "🇩🇪",
    "1234567890", "3.14159",
    "don't", "e.g.", "http://example.org/a?b=c&d=%20", "def f(x):", "{\"a\": [1, 2]}", "\\frac{1}{2}",
    "ﬁ", "Å", "A\u030a",
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """LLaMA's pieces, and the same as a sentencepiece file."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    model_file: Path


@pytest.fixture(scope="module")
def vocabulary(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    gguf = pytest.importorskip("gguf")
    model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    fields = gguf.GGUFReader(shared_data / "llama-spm-vocab.gguf").fields
    text, score, kind = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    pieces = [bytes(text.parts[idx]).decode("utf-8") for idx in text.data]
    scores = [float(score.parts[idx][0]) for idx in score.data]
    types = [int(kind.parts[idx][0]) for idx in kind.data]
    proto = model_pb2.ModelProto()
    for piece, value, number in zip(pieces, scores, types, strict=True):
        proto.pieces.add(piece=piece, score=value, type=number)
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    file = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    file.write_bytes(proto.SerializeToString())
    return Vocabulary(pieces, scores, types, file)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    config = parse_llava_config(PUBLISHED_7B)
    return Tokenizer.from_pieces(vocabulary.pieces, vocabulary.scores, vocabulary.types, config=config)


@pytest.fixture(scope="module")
def theirs(vocabulary: Vocabulary) -> Any:
    """transformers' tokenizer: merges, normaliser and decoder are made by transformers from LLaMA's file."""
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as RustTokenizer
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import LlamaConverter, generate_merges

    slow = SimpleNamespace(vocab_file=str(vocabulary.model_file), legacy=True, add_prefix_space=True)
    converter = LlamaConverter(slow)
    ids = {piece: idx for idx, piece in enumerate(vocabulary.pieces)}
    merges = generate_merges(ids, dict(zip(vocabulary.pieces, vocabulary.scores, strict=True)))
    backend = RustTokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = converter.normalizer(converter.proto)
    backend.decoder = converter.decoder("▁", add_prefix_space=True)
    backend.add_special_tokens([AddedToken(word, normalized=False) for word in ("<unk>", "<s>", "</s>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    return fast


def _strings() -> list[str]:
    generator = random.Random(32_000)

    def letters() -> str:
        low, high = generator.choice(_SCRIPTS)
        return "".join(chr(generator.randint(low, high)) for _ in range(generator.randint(1, 12)))

    def pieces() -> Iterator[str]:
        for _ in range(generator.randint(1, 9)):
            yield generator.choice((letters, letters, lambda: generator.choice(_WORDS)))()
            if generator.random() < 0.8:
                yield generator.choice(_SPACES) * (generator.random() < 0.9 or generator.randint(1, 20))

    strings = [
        "",
        *_SPACES,
        *_WORDS,
        *(" " * count for count in range(1, 70)),
        *("\n" * count for count in range(1, 20)),
    ]
    strings += [f"{'=' * count}{' ' * count}{'-' * count}{'a' * count}" for count in range(1, 70)]
    while len(strings) < 10_500:
        strings.append("".join(pieces()))
    strings += ["word " * 3000, "äöü" * 3000, "日本語" * 2000, " " * 5000, "😀" * 1000]
    return strings


def test_ten_thousand_strings_equal_transformers(tokenizer: Tokenizer, theirs: Any) -> None:
    strings = _strings()
    assert len(set(strings)) > 10_000
    encodings = theirs(strings, add_special_tokens=False)["input_ids"]
    for text, expected in zip(strings, encodings, strict=True):
        assert tokenizer.encode(text) == expected, repr(text[:200])


def test_strings_equal_sentencepiece(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """The original repository tokenizes with sentencepiece itself."""
    sentencepiece = pytest.importorskip("sentencepiece")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.model_file))
    for text in _strings():
        if "▁" in text or "\x00" in text:  # sentencepiece cannot tell its own mark for a space from that character
            continue
        assert tokenizer.encode(text) == oracle.encode(text), repr(text[:200])


def test_control_words_with_special_parsing_equal_transformers(theirs: Any) -> None:
    """Drop-in prompts: control words that the developer wrote are control tokens, where transformers has them."""
    ours = Tokenizer(
        json.loads(theirs.backend_tokenizer.to_str()), bos_token_id=1, eos_token_id=2, image_token_id=32000
    )
    generator = random.Random(2)
    parts = (*_CONTROL_WORDS, *_SPACES, *_WORDS)
    for _ in range(2000):
        text = "".join(generator.choice(parts) for _ in range(generator.randint(1, 8)))
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, parse_special=True) == expected, repr(text)
        assert not set(ours.encode(text)) & (ours.special_ids | {32000, 32001}), repr(text)


def test_control_words_of_a_user_stay_text(tokenizer: Tokenizer) -> None:
    generator = random.Random(3)
    special = {0, 1, 2, tokenizer.image_token_id}
    for word in _CONTROL_WORDS:
        ids = tokenizer.encode(word)
        assert not special & set(ids), word
        assert tokenizer.decode(ids) == (word if word != "▁" else " ")
    for _ in range(500):
        text = "".join(generator.choice((*_CONTROL_WORDS, " ", "a", "<", ">")) for _ in range(6))
        assert not special & set(tokenizer.encode(text)), text
    # The byte for a newline comes from a newline only, not from its written name.
    assert 13 not in tokenizer.encode("<0x0A>")
    assert 13 in tokenizer.encode("\n")


def test_strings_of_llama_cpp(tokenizer: Tokenizer, shared_data: Path) -> None:
    inputs = (shared_data / "llama-spm-vocab.inputs.txt").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = (shared_data / "llama-spm-vocab.ids.txt").read_text(encoding="utf-8").splitlines()
    assert len(inputs) >= len(expected) > 30
    for text, line in zip(inputs, expected, strict=False):
        assert tokenizer.encode(text) == [int(number) for number in line.split()], repr(text)


def test_pinned_ids_around_a_picture(tokenizer: Tokenizer) -> None:
    """The ids that transformers' own LLaVA test pins."""
    text = "What's the content of the image?\nASSISTANT:"
    behind = [29871, 13, 5618, 29915, 29879, 278, 2793, 310, 278, 1967, 29973, 13, 22933, 9047, 13566, 29901]
    assert tokenizer.encode("USER: ", add_bos=True) == [1, 3148, 1001, 29901, 29871]
    assert tokenizer.encode(f"\n{text}") == behind
    assert tokenizer.encode("x ASSISTANT:")[1:] == [319, 1799, 9047, 13566, 29901]


@pytest.mark.parametrize(("template", "num_before"), [("vicuna_v1", 35), ("llava-hf", 5)])
def test_number_of_tokens_before_the_picture(tokenizer: Tokenizer, template: str, num_before: int) -> None:
    block = [{"type": "image", "image": b""}, {"type": "text", "text": "Q"}]
    first = render(to_messages([{"role": "user", "content": block}]), template)[0]
    assert len(tokenizer.encode(first.text, add_bos=True)) == num_before  # type: ignore[union-attr]


def test_sentencepiece_file_gives_the_same_tokenizer(vocabulary: Vocabulary) -> None:
    read = read_sentencepiece(vocabulary.model_file)
    assert read == (vocabulary.pieces, vocabulary.scores, vocabulary.types)
    assert pieces_to_tokenizer_json(*read)["model"]["vocab"]["▁the"] == 278


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d", "fine \udc00\ud800"])
def test_lone_surrogates_are_refused(tokenizer: Tokenizer, text: str) -> None:
    for parse_special in (False, True):
        with pytest.raises(PromptError, match="Unicode"):
            tokenizer.encode(text, parse_special=parse_special)


def test_decoding_equals_transformers(tokenizer: Tokenizer, theirs: Any) -> None:
    generator = random.Random(4)
    for idx in range(1000):
        low = generator.choice((0, 3, 250))
        ids = [generator.randint(low, generator.choice((300, 31_999))) for _ in range(generator.randint(0, 20))]
        expected = theirs.decode(ids, skip_special_tokens=idx % 2 == 0)
        assert tokenizer.decode(ids, skip_special=idx % 2 == 0) == expected, ids


@pytest.mark.parametrize("is_eager", [False, True])
def test_stream_of_real_strings_equals_decode(tokenizer: Tokenizer, is_eager: bool) -> None:
    for text in _strings()[:2000]:
        ids = tokenizer.encode(text)
        decoder = StreamDecoder(tokenizer, is_eager=is_eager)
        pieces = [decoder.push(token_id) for token_id in ids]
        whole = "".join(pieces) + decoder.finish()
        assert whole == tokenizer.decode(ids), repr(text)
        assert not any("\ufffd" in piece for piece in pieces)


def test_eager_stream_shows_a_character_with_its_last_byte(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer, is_eager=True)
    ids = tokenizer.encode("a\n\n😀🦙")
    assert [decoder.push(token_id) for token_id in ids] == ["a", "\n", "\n", "", "", "", "😀", "", "", "", "🦙"]
    lazy = StreamDecoder(tokenizer)
    assert [lazy.push(token_id) for token_id in ids] == ["a", *([""] * 10)]
    assert lazy.finish() == "\n\n😀🦙"


def test_stream_of_any_ids_equals_decode(tokenizer: Tokenizer) -> None:
    """Half characters, control tokens inside of characters, ids beyond the vocabulary."""
    generator = random.Random(5)
    for _ in range(3000):
        high = generator.choice((3, 260, 300, 32_100))
        ids = [generator.choice((0, 2, 29871, generator.randint(0, high))) for _ in range(generator.randint(0, 14))]
        decoder = StreamDecoder(tokenizer)
        whole = "".join(decoder.push(token_id) for token_id in ids) + decoder.finish()
        assert whole == tokenizer.decode(ids), ids
