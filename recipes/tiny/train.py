"""Make `llava:tiny` from nothing: ``python -m recipes.tiny.train``. Run it again after a kill and it goes on.

The stages of LLaVA in small: the vision tower learns to see (dense labels of the renderer; its second half shows mostly
signs, since letters are what takes longest), the projector learns to say it in the decoder's words, and projector and
decoder are tuned on conversations about pictures. Then the model is written as a folder and evaluated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import llavakit
from llavakit.core.config import LlavaConfig
from llavakit.model.llama import LlamaModel
from llavakit.model.llava import Llava
from recipes.tiny.alignment import PatchWords
from recipes.tiny.batches import TextBatch, VisionBatch, instruction_batch, vision_batch
from recipes.tiny.conversations import SYSTEM, image_turns, text_turns
from recipes.tiny.dense_labels import DenseHeads
from recipes.tiny.evaluate import evaluate
from recipes.tiny.export import export
from recipes.tiny.grounding import Gaze, PlaceHead, gaze_at_all, gaze_at_patches, gaze_at_tokens
from recipes.tiny.muon import Muon
from recipes.tiny.questions import describe
from recipes.tiny.report import draw_loss_curve, write_card
from recipes.tiny.scenes import make_scene
from recipes.tiny.settings import Budget, Stage, llava_config
from recipes.tiny.vocabulary import Vocabulary, build_tokenizer_json

__all__ = ["Trainer", "main"]

_EMBEDDED = Path("src/llavakit/assets/tiny")
_SAVE_EVERY_S = 120.0
_LOG_EVERY = 20
_PLACE_WEIGHT = 2.0
_GAZE_WEIGHT = 0.3
# Without the instructions torch emulates bfloat16, at a tenth of float32's speed.
_HAS_BFLOAT16 = torch.cpu.get_capabilities()["avx512_bf16"]


class Trainer:
    """One training run in one folder.

    Parameters
    ----------
    folder : Path
        Checkpoints, log and tokenizer.
    budget : Budget
    config : LlavaConfig, optional
        Another architecture (tests).
    """

    def __init__(self, folder: Path, budget: Budget, *, config: LlavaConfig | None = None) -> None:
        self.folder = folder
        self.budget = budget
        self.vocabulary = load_vocabulary(folder)
        self.config = config or llava_config(
            vocab_size=-(-self.vocabulary.size // 64) * 64,
            image_token_id=self.vocabulary.image_id,
            pad_token_id=self.vocabulary.pad_id,
        )
        torch.manual_seed(0)
        self.model = Llava(self.config)
        self.heads = DenseHeads(self.config.vision_config.hidden_size)
        width = self.config.text_config.hidden_size
        self.place_heads = nn.ModuleDict({"place": PlaceHead(width), "gap": PlaceHead(width)})
        _initialize(self.model)
        self._patch_words = PatchWords(self.model.language_model.embed_tokens.weight.detach().clone(), self.vocabulary)

    def run(self) -> None:
        """Run what is left of every stage."""
        budget, model = self.budget, self.model
        self._stage("vision", budget.vision, [model.vision_tower, self.heads], self._vision_loss)
        self._stage("reading", budget.reading, [model.vision_tower, self.heads], self._reading_loss)
        self._stage("seeing", budget.seeing, [model.vision_tower, self.heads], self._seeing_loss)
        self._stage("alignment", budget.alignment, [model.multi_modal_projector], self._alignment_loss)
        self._stage("instruction", budget.instruction, self._tuned, self._instruction_loss)

    def prolong(self, start: Path, stage: Stage, *, first_batch: int) -> None:
        """Practise on from a finished folder's float16 weights, with conversations from ``first_batch`` on."""
        self.model.load_state_dict(llavakit.load(start, dtype="float32").model.state_dict())

        def loss(step: int, stage: Stage) -> tuple[Tensor, dict[str, float]]:
            return self._instruction_loss(first_batch + step, stage)

        self._stage("prolonged", stage, self._tuned, loss)

    @property
    def _tuned(self) -> list[nn.Module]:
        """What conversations train."""
        model = self.model
        return [model.multi_modal_projector, model.language_model, model.lm_head, self.place_heads]

    def _stage(self, name: str, stage: Stage, trained: list[nn.Module], loss_of: Callable[[int, Stage], Any]) -> None:
        file = self.folder / f"{name}.pt"
        parameters = [p for module in trained for p in module.parameters()]
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizers = _make_optimizers(trained, stage)
        step = self._resume(file, optimizers)
        saved = time.monotonic()
        while step < stage.num_steps:
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = group["peak_lr"] * _schedule(step, stage)
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=_HAS_BFLOAT16):
                loss, extra = loss_of(step, stage)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            if torch.isfinite(norm):
                for optimizer in optimizers:
                    optimizer.step()
            else:
                self._log(stage=name, step=step, skipped="the gradient is not finite")
            for parameter in parameters:
                parameter.grad = None
            step += 1
            if step % _LOG_EVERY == 0 or step == stage.num_steps:
                self._log(stage=name, step=step, loss=loss.item(), step_s=time.perf_counter() - started, **extra)
            if time.monotonic() - saved > _SAVE_EVERY_S or step == stage.num_steps:
                self._save(file, step, optimizers)
                saved = time.monotonic()

    def _resume(self, file: Path, optimizers: list[torch.optim.Optimizer]) -> int:
        if not file.exists():
            return 0
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.place_heads.load_state_dict(state["place_heads"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])

    def _save(self, file: Path, step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """Write a checkpoint; a kill leaves either the old one or the new one."""
        partial = file.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "place_heads": self.place_heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
        }
        torch.save(state, partial)
        partial.replace(file)

    def _log(self, **entry: Any) -> None:
        line = json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in entry.items()})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, flush=True)

    def _vision_loss(self, step: int, stage: Stage) -> tuple[Tensor, dict[str, float]]:
        batch = vision_batch(self.config, step, stage.batch_size)
        return self._dense_loss(batch)

    def _reading_loss(self, step: int, stage: Stage) -> tuple[Tensor, dict[str, float]]:
        batch = vision_batch(self.config, step, stage.batch_size, stage=4, with_more_signs=True)
        return self._dense_loss(batch)

    def _seeing_loss(self, step: int, stage: Stage) -> tuple[Tensor, dict[str, float]]:
        """Shapes again, which reading has pushed aside: what the tower takes for another shape nobody can count."""
        batch = vision_batch(self.config, step, stage.batch_size, stage=5, with_more_signs=step % 4 == 0)
        return self._dense_loss(batch)

    def _dense_loss(self, batch: VisionBatch) -> tuple[Tensor, dict[str, float]]:
        with sdpa_kernel(SDPBackend.MATH):  # see `_text_loss`
            patches = self.model.vision_tower(batch.pixels)
        return self.heads.loss(patches, batch.patches, batch.words)  # type: ignore[no-any-return]

    def _alignment_loss(self, step: int, stage: Stage) -> tuple[Tensor, dict[str, float]]:
        """Share of the targets' variance that the projected features leave."""
        batch = vision_batch(self.config, step, stage.batch_size, stage=2)
        with torch.no_grad():
            patches = self.model.vision_tower(batch.pixels)
            wanted = self._patch_words(batch.patches)
        projected = self.model.multi_modal_projector(patches)
        return F.mse_loss(projected.float(), wanted) / wanted.var(), {}

    def _instruction_loss(self, step: int, stage: Stage) -> tuple[Tensor, dict[str, float]]:
        return self._text_loss(instruction_batch(self.config, self.vocabulary, step, stage.batch_size))

    def _text_loss(self, batch: TextBatch) -> tuple[Tensor, dict[str, float]]:
        features = None
        if batch.pixels is not None:
            with torch.no_grad():
                patches = self.model.vision_tower(batch.pixels)
            features = self.model.multi_modal_projector(patches)
        embeds = self.model.embed(batch.ids, features)
        # At these sizes plain products in bfloat16 are three times as fast as the fused kernel and its gradient.
        # A phrase is looked up in the first half of the layers; two of them are compared after that.
        middle = (self.config.text_config.num_hidden_layers - 1) // 2
        later = min(middle + 1, self.config.text_config.num_hidden_layers - 1)
        with (
            sdpa_kernel(SDPBackend.MATH),
            _streams(self.model.language_model) as streams,
            _gazes(self.model.language_model, {middle, later}) as gazes,
        ):
            hidden = self.model.language_model(embeds, torch.arange(batch.ids.shape[1])[None])[:, :-1]
        wanted = batch.labels[:, 1:]
        is_learnt = wanted != -100
        logits, target = self.model.lm_head(hidden[is_learnt]).float(), wanted[is_learnt]
        accuracy = (logits.argmax(-1) == target).float().mean().item()
        loss, extra = F.cross_entropy(logits, target), {"accuracy": accuracy}
        for name, targets, stream in (
            ("place", batch.places, streams[middle]),
            ("gap", batch.gaps, streams[min(middle + 2, len(streams) - 1)]),
        ):
            if len(targets.rows):
                error, extra[f"{name}_error"] = self.place_heads[name].loss(
                    stream[targets.rows, targets.positions], targets.wanted
                )
                loss = loss + _PLACE_WEIGHT * error
        for name, error in self._gaze_errors(batch, gazes[middle], gazes[later]):
            extra[f"{name}_seen"] = math.exp(-error.item())
            loss = loss + _GAZE_WEIGHT * error
        if len(batch.tallies.rows):
            divergence, extra["tally_error"] = self._tally_error(batch, gazes[later])
            extra["tally_divergence"] = divergence.item()
            loss = loss + _GAZE_WEIGHT * divergence
        return loss, extra

    def _tally_error(self, batch: TextBatch, at_patches: Gaze) -> tuple[Tensor, float]:
        vision, tallies = self.config.vision_config, batch.tallies
        starts = (batch.ids == self.config.image_token_id).int().argmax(-1)[tallies.rows]
        head = min(2, self.config.text_config.num_attention_heads - 1)  # two look at phrases already
        weights = at_patches.log_weights(tallies.rows, tallies.positions, head=head)
        return gaze_at_all(
            weights, starts, tallies.questions, tallies.wanted, side=vision.image_size // vision.patch_size
        )

    def _gaze_errors(self, batch: TextBatch, at_patches: Gaze, at_tokens: Gaze) -> Iterator[tuple[str, Tensor]]:
        vision, places, gaps = self.config.vision_config, batch.places, batch.gaps
        if len(places.rows):
            starts = (batch.ids == self.config.image_token_id).int().argmax(-1)[places.rows]
            weights = at_patches.log_weights(places.rows, places.positions, head=0)
            yield "place", gaze_at_patches(weights, starts, places.wanted, side=vision.image_size // vision.patch_size)
        if len(gaps.rows):
            for idx, name in enumerate(("first", "second")):
                weights = at_tokens.log_weights(gaps.rows, gaps.positions, head=idx)
                yield name, gaze_at_tokens(weights, gaps.compared[:, idx])


@contextmanager
def _gazes(decoder: LlamaModel, layers: set[int]) -> Iterator[dict[int, Gaze]]:
    """Keep where the heads of some layers look, of every forward pass while this is open."""
    gazes: dict[int, Gaze] = {}
    projected: dict[tuple[int, str], Tensor] = {}

    def keep(idx: int, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            projected[idx, name] = output

        return hook

    def gather(idx: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, _output: Tensor) -> None:
            gazes[idx] = Gaze(projected[idx, "q"], projected[idx, "k"], inputs[1], head_dim=module.head_dim)

        return hook

    hooks = []
    for idx in layers:
        attention = decoder.layers[idx].self_attn
        hooks += [
            attention.q_proj.register_forward_hook(keep(idx, "q")),
            attention.k_proj.register_forward_hook(keep(idx, "k")),
            attention.register_forward_hook(gather(idx)),
        ]
    try:
        yield gazes
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _streams(decoder: LlamaModel) -> Iterator[list[Tensor]]:
    """Keep what every layer puts out while this is open."""
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for layer in decoder.layers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def load_vocabulary(folder: Path) -> Vocabulary:
    """Train the tokenizer on the sentences of the generators, once."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tokenizer.json"
    if not file.exists():
        sentences: list[str] = []
        for index in range(4000):
            rng = np.random.default_rng((index, 11))
            scene = make_scene("train", index)
            if scene.sign is None:  # words on signs stay spelled
                sentences += [f"USER: {q} ASSISTANT: {a}" for q, a in image_turns(scene, rng)]
                sentences.append(describe(scene))
            sentences += [f"{q} {a}" for q, a in text_turns(rng)]
            sentences += [SYSTEM] * (index % 10 == 0) + list(_SIGN_SENTENCES)
        content = build_tokenizer_json(sentences, vocab_size=1024)
        file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return Vocabulary(file)


_SIGN_SENTENCES = (
    "What does the sign say? The sign says", "What is the first letter of the word? The first letter is",
    "What word is written in the picture? Read the word. Which word is shown?", "What is written here? Is the word",
    "A sign that says",
)  # fmt: skip


def _initialize(model: Llava) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.ones_(parameter) if "norm" in name and name.endswith("weight") else nn.init.zeros_(parameter)
        elif "embed_tokens" in name:
            # As large as what the layers add, so that pictures and words weigh the same.
            nn.init.normal_(parameter, std=0.5)
        elif "patch_embedding" in name:
            nn.init.normal_(parameter, std=0.04)
        else:
            nn.init.normal_(
                parameter, std=0.02 if "embed" in name or "lm_head" in name else parameter.shape[-1] ** -0.5 * 0.5
            )


def _make_optimizers(trained: list[nn.Module], stage: Stage) -> list[torch.optim.Optimizer]:
    """AdamW with weight decay on matrices only; Muon for the decoder's and projector's own matrices if asked."""
    named = [(name, parameter) for module in trained for name, parameter in module.named_parameters()]
    by_muon = [p for name, p in named if stage.peak_lr_muon is not None and p.dim() == 2 and _is_hidden(name)]
    chosen = {id(p) for p in by_muon}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": 0.02},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=stage.peak_lr, betas=(0.9, 0.98), eps=1e-8)]
    if by_muon and stage.peak_lr_muon is not None:
        optimizers.append(
            Muon(
                by_muon, lr=stage.peak_lr_muon, weight_decay=0.02,
                dtype=torch.bfloat16 if _HAS_BFLOAT16 else torch.float32,
            )
        )  # fmt: skip
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


def _is_hidden(name: str) -> bool:
    """Whether a matrix is neither an embedding nor the head (whose module names it only ``weight``)."""
    return "embed" not in name and name != "weight"


def _schedule(step: int, stage: Stage) -> float:
    """Linear warm-up, then a cosine to 2 %."""
    if step < stage.num_warmup_steps:
        return (step + 1) / stage.num_warmup_steps
    done = (step - stage.num_warmup_steps) / max(1, stage.num_steps - stage.num_warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def main() -> None:
    """Train, write the folder, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("recipes/tiny/runs/default"), help="folder of this run")
    parser.add_argument(
        "--out", type=Path, default=_EMBEDDED, help="folder of the finished model (default: the embedded one)"
    )
    parser.add_argument(
        "--prolong", type=int, metavar="STEPS", help="go on from the finished model by so many steps of tuning"
    )
    parser.add_argument(
        "--first-batch", type=int, default=20_000, help="with --prolong: the first batch of conversations, none met yet"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # despite its name, for every device
    folder = args.out
    if args.prolong is not None:
        args.run.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "tokenizer.json", args.run / "tokenizer.json")
    trainer = Trainer(args.run, Budget())
    if args.prolong is not None:
        stage = dataclasses.replace(trainer.budget.instruction, num_steps=args.prolong)
        trainer.prolong(folder, stage, first_batch=args.first_batch)
    else:
        trainer.run()
    export(trainer.model, args.run / "tokenizer.json", folder)
    # The recipe's own records are those of the embedded model.
    records = Path(__file__).parent if folder.resolve() == _EMBEDDED.resolve() else args.run
    draw_loss_curve(args.run / "log.jsonl", records / "loss.png")
    result = evaluate(folder)
    (records / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_card(folder, result, is_prolonged=args.prolong is not None)


if __name__ == "__main__":
    main()
