"""``llavakit quality``: how far a quantized model's answers are from those of the model it came from.

In: two models and prompts. Out: a `QualityReport`: for prompts with pictures and without, the divergence of the next
token's probabilities at every token of an answer, how often both would choose the same token, and the perplexity of the
answer under both. Where a prompt brings no answer, the unquantized model's own greedy answer is scored. Intervals are
of 95 %, from resampling whole prompts: tokens of one answer are not independent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llavakit.api.loaded_model import LoadedModel
from llavakit.api.loading import load
from llavakit.core.errors import ConfigError, ContextOverflowError
from llavakit.core.shapes import weight_bytes
from llavakit.core.version import __version__
from llavakit.diagnostics.generated import make_questions
from llavakit.model.storage import count_bytes, is_stored
from llavakit.processing.prompt import PreparedPrompt

__all__ = [
    "Estimate", "QualityGroup", "QualityPrompt", "QualityReport", "answer_ids_of", "default_prompts", "forward_answer",
    "measure_quality", "read_prompts",
]  # fmt: skip

ProgressFn = Callable[[str, int, int], None]

_NUM_RESAMPLES = 1000
_DEFAULT_PROMPTS = 40
_PROMPT_KEYS = {"text", "images", "answer"}


@dataclass(frozen=True, slots=True)
class QualityPrompt:
    """A question, its pictures, and perhaps the answer to score."""

    text: str
    images: tuple[Any, ...] = ()
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityGroup:
    """Figures of the prompts with pictures, or of those without.

    Parameters
    ----------
    name : str
        ``pictures`` or ``text``.
    num_prompts, num_tokens : int
    divergence : Estimate
        Kullback-Leibler divergence of the quantized model's next-token probabilities from the model's, in nats a token.
    agreement : Estimate
        Share of tokens at which the same token is the most probable.
    perplexity, quantized_perplexity : float
        Of the scored answers.
    perplexity_ratio : Estimate
        The second over the first.
    """

    name: str
    num_prompts: int
    num_tokens: int
    divergence: Estimate
    agreement: Estimate
    perplexity: float
    quantized_perplexity: float
    perplexity_ratio: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityReport:
    """What quantizing a model has cost. ``model_bytes`` and ``quantized_bytes`` are of the weights as loaded."""

    model: str
    quantized: str
    model_bytes: int
    quantized_bytes: int
    version: str
    groups: tuple[QualityGroup, ...]

    def to_json(self) -> str:
        """Return the report as one JSON object; a figure beyond all numbers is ``null``."""
        return json.dumps(_without_infinities(asdict(self)), ensure_ascii=False, allow_nan=False)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class _Scored:
    """Sums over one answer."""

    has_pictures: bool
    num_tokens: int
    divergence: float
    num_agreed: int
    loss: float
    quantized_loss: float


def read_prompts(path: Path) -> list[QualityPrompt]:
    """Read prompts from a file of JSON lines: ``text``, and perhaps ``images`` (paths beside the file) and ``answer``.

    Raises
    ------
    ConfigError
        If the file cannot be read or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors on Windows begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompts {str(path)!r} cannot be read: {error}.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path.name}, line {number} is no JSON ({error}).") from error
        images = entry.get("images", []) if isinstance(entry, dict) else None
        answer = entry.get("answer") if isinstance(entry, dict) else None
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("text"), str)
            or not isinstance(images, list)
            or not all(isinstance(image, str) for image in images)
            or not isinstance(answer, str | None)
        ):
            raise ConfigError(
                f'{path.name}, line {number} is no prompt; {{"text": "...", "images": ["a.png"], "answer": "..."}} is '
                "needed, the last two if there are any."
            )
        if unknown := sorted(entry.keys() - _PROMPT_KEYS):
            raise ConfigError(
                f"{path.name}, line {number} has {unknown[0]!r}, which is not known; a prompt has text, and perhaps "
                "images and answer."
            )
        prompts.append(QualityPrompt(entry["text"], tuple(path.parent / image for image in images), answer))
    if not prompts:
        raise ConfigError(f"{str(path)!r} holds no prompts; give one JSON object a line.")
    return prompts


def default_prompts() -> list[QualityPrompt]:
    """Return generated questions, half of them about a generated picture."""
    return [QualityPrompt(q.text, q.images) for q in make_questions(_DEFAULT_PROMPTS, seed=7, max_images=1)]


def answer_ids_of(loaded: LoadedModel, prompt: QualityPrompt, max_new_tokens: int) -> list[int]:
    """Return the ids of the answer that a prompt brings, or of the model's own greedy one."""
    if prompt.answer is not None:
        return [*loaded.tokenizer.encode(" " + prompt.answer.strip()), loaded.config.eos_token_id]
    images = list(prompt.images) or None
    result = loaded.chat(prompt.text, images=images, max_new_tokens=max_new_tokens, temperature=0.0)
    return list(result.token_ids)


def measure_quality(
    model: str | Path | LoadedModel,
    quantized: str | Path | LoadedModel,
    *,
    mmproj: str | Path | None = None,
    prompts: Sequence[QualityPrompt] | None = None,
    max_new_tokens: int = 32,
    on_progress: ProgressFn | None = None,
) -> QualityReport:
    """Compare a quantized model with the model it came from.

    Parameters
    ----------
    model, quantized : str, Path or LoadedModel
        As for `llavakit.load`.
    mmproj : str or Path, optional
        Projector of the quantized model, a GGUF file; by default the one beside it.
    prompts : sequence of QualityPrompt, optional
        By default 40 generated questions, half of them about a generated picture. Prompts of your own kind tell more.
    max_new_tokens : int, default 32
        Of the model's own answer, where a prompt brings none.
    on_progress : callable, optional
        Called with what is done, prompts done and prompts in all.

    Returns
    -------
    QualityReport

    Raises
    ------
    ConfigError
        If the two tokenize a prompt differently: they are not the same model.
    StoreError, WeightsError, RequestError
        As `llavakit.load` and `LoadedModel.chat`.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; at least 1 is needed.")
    exact = model if isinstance(model, LoadedModel) else load(model)
    other = quantized if isinstance(quantized, LoadedModel) else load(quantized, mmproj=mmproj)
    other = other.with_preset(exact.preset.name)
    if prompts is None:
        prompts = default_prompts()
    scored = []
    for done, prompt in enumerate(prompts):
        if on_progress is not None:
            on_progress("scoring", done, len(prompts))
        scored.append(_score(exact, other, prompt, max_new_tokens))
    if on_progress is not None:
        on_progress("scoring", len(prompts), len(prompts))
    groups = [("pictures", [one for one in scored if one.has_pictures])]
    groups += [("text", [one for one in scored if not one.has_pictures])]
    return QualityReport(
        model=exact.name,
        quantized=other.name,
        model_bytes=_stored_bytes(exact),
        quantized_bytes=_stored_bytes(other),
        version=__version__,
        groups=tuple(_summarise(name, part) for name, part in groups if sum(one.num_tokens for one in part)),
    )


def _stored_bytes(loaded: LoadedModel) -> int:
    """Bytes of the weights as the model's files hold them.

    In memory a small float16 model is widened; of a GGUF pair only the two embeddings of the tower are.
    """
    if is_stored(loaded.model):
        return count_bytes(loaded.model)
    return weight_bytes(loaded.config, loaded.config.dtype)


def _score(exact: LoadedModel, other: LoadedModel, prompt: QualityPrompt, max_new_tokens: int) -> _Scored:
    images = list(prompt.images) or None
    ours, theirs = exact.prepare(prompt.text, images=images), other.prepare(prompt.text, images=images)
    if ours.token_ids != theirs.token_ids:
        raise ConfigError(
            f"{exact.name} and {other.name} tokenize {prompt.text[:40]!r} differently; they are not the same model."
        )
    answer_ids = answer_ids_of(exact, prompt, max_new_tokens)
    if not answer_ids:
        return _Scored(bool(prompt.images), 0, 0.0, 0, 0.0, 0.0)
    log_p, log_q = (
        torch.log_softmax(forward_answer(*side, answer_ids).cpu().double(), dim=-1)
        for side in ((exact, ours), (other, theirs))
    )
    width = min(log_p.shape[1], log_q.shape[1])  # files differ in rows that pad the vocabulary
    log_p, log_q = log_p[:, :width], log_q[:, :width]
    chosen = torch.tensor(answer_ids)[:, None]
    return _Scored(
        bool(prompt.images),
        len(answer_ids),
        float((log_p.exp() * (log_p - log_q)).sum()),
        int((log_p.argmax(-1) == log_q.argmax(-1)).sum()),
        -float(log_p.gather(1, chosen).sum()),
        -float(log_q.gather(1, chosen).sum()),
    )


@torch.inference_mode()
def forward_answer(loaded: LoadedModel, prompt: PreparedPrompt, answer_ids: Sequence[int]) -> torch.Tensor:
    """Return the logits (A, V) before each token of an answer, in one pass over all of its tokens, without a cache.

    Raises
    ------
    ContextOverflowError
        If the prompt and the answer are longer than the model's context.
    """
    model = loaded.model
    num_tokens, context = len(prompt.token_ids) + len(answer_ids), loaded.config.max_context_tokens
    if num_tokens > context:
        raise ContextOverflowError(
            f"a prompt of {len(prompt.token_ids)} tokens and its answer of {len(answer_ids)} are longer than "
            f"{loaded.name} can take: its context is {context}. Shorten that prompt or its answer."
        )
    features = None
    if prompt.pixel_values is not None:
        pictures = torch.from_numpy(prompt.pixel_values).to(loaded.device)
        features = torch.cat([model.encode_images(picture[None])[0] for picture in pictures])
    ids = torch.tensor([[*prompt.token_ids, *answer_ids[:-1]]], device=loaded.device)
    hidden = model.language_model(model.embed(ids, features), torch.arange(ids.shape[1], device=loaded.device)[None])
    return model.lm_head(hidden[0, len(prompt.token_ids) - 1 :])  # type: ignore[no-any-return]


def _summarise(name: str, scored: Sequence[_Scored]) -> QualityGroup:
    columns = np.array(
        [(one.num_tokens, one.divergence, one.num_agreed, one.loss, one.quantized_loss) for one in scored], dtype=float
    )
    picks = np.random.default_rng(0).integers(0, len(scored), (_NUM_RESAMPLES, len(scored)))
    sums = columns[picks].sum(axis=1)
    sums = sums[sums[:, 0] > 0]

    def estimate(of: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        with np.errstate(invalid="ignore"):  # between two infinite values lies none
            low, high = np.quantile(of(sums), (0.025, 0.975))
        return Estimate(float(of(columns.sum(axis=0, keepdims=True))[0]), float(low), float(high))

    tokens, _, _, loss, quantized_loss = columns.sum(axis=0)
    return QualityGroup(
        name=name,
        num_prompts=len(scored),
        num_tokens=int(tokens),
        divergence=estimate(lambda rows: rows[:, 1] / rows[:, 0]),
        agreement=estimate(lambda rows: rows[:, 2] / rows[:, 0]),
        perplexity=float(_exp(loss / tokens)),
        quantized_perplexity=float(_exp(quantized_loss / tokens)),
        perplexity_ratio=estimate(lambda rows: _exp((rows[:, 4] - rows[:, 3]) / rows[:, 0])),
    )


def _exp(value: Any) -> Any:
    """Infinite where a model holds an answer for impossible."""
    with np.errstate(over="ignore"):
        return np.exp(value)
