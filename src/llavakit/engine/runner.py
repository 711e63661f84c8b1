"""Runs the model for the engine: prompts and single steps over a cache, and pictures encoded once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from llavakit.core.bounded_cache import BoundedCache
from llavakit.core.config import LlavaConfig
from llavakit.engine.generation import EnginePrompt, Generation
from llavakit.engine.kv_cache import DecodeView, KVCache, PrefillView
from llavakit.model.llava import Llava
from llavakit.scheduling.blocks import PositionKey

__all__ = ["ModelRunner", "position_keys"]

_FEATURE_CACHE_BYTES = 256 * 1024**2


class ModelRunner:
    """A model with its picture features. Adds the time of each step to the answers' timings."""

    def __init__(self, model: Llava) -> None:
        self.model = model
        self._device = model.device
        self._features: BoundedCache[str, Tensor] = BoundedCache(max_bytes=_FEATURE_CACHE_BYTES)

    def forget_pictures(self) -> None:
        """Drop all picture features."""
        self._features.clear()

    def new_cache(self, *, num_rows: int, max_len: int) -> KVCache:
        """Allocate a cache for this model."""
        config = self.model.config.text_config
        return KVCache(config, num_rows=num_rows, max_len=max_len, dtype=self.model.kv_dtype, device=self._device)

    def prefill(self, generation: Generation, cache: KVCache, *, row: int, num_cached: int) -> Tensor:
        """Compute the prompt from position ``num_cached`` on; return float32 logits (1, V) of its last token."""
        features = self._image_features(generation, num_cached)
        started = time.perf_counter()
        ids = torch.tensor([generation.prompt.token_ids[num_cached:]], device=self._device)
        embeds = self.model.embed(ids, features)
        positions = torch.arange(num_cached, num_cached + ids.shape[1], device=self._device)[None]
        view = PrefillView(cache, row=row, start=num_cached)
        logits = self.model(embeds, positions, cache=view, mask=view.mask(ids.shape[1]), last_only=True)[:, -1].float()
        self._wait()
        generation.timings.prefill_s = time.perf_counter() - started
        generation.timings.num_cached_tokens = num_cached
        return logits  # type: ignore[no-any-return]

    def decode(self, active: Sequence[Generation], cache: KVCache) -> Tensor:
        """Compute one token of every active row; return float32 logits (n, V)."""
        started = time.perf_counter()
        last_ids = torch.tensor([[generation.token_ids[-1]] for generation in active], device=self._device)
        logits = self.decode_step(last_ids, DecodeView(cache, [g.num_cache_slots for g in active]))
        elapsed = time.perf_counter() - started
        for generation in active:
            generation.timings.decode_s += elapsed
        return logits

    def decode_step(self, last_ids: Tensor, view: DecodeView) -> Tensor:
        """Compute one token (n, 1) of each row of the view; return float32 logits (n, V)."""
        embeds = self.model.language_model.embed_tokens(last_ids)
        logits = self.model(embeds, view.positions, cache=view, mask=view.mask())[:, -1].float()
        self._wait()
        return logits  # type: ignore[no-any-return]

    def _wait(self) -> None:
        """Let asynchronous devices finish, so that timings are true."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _image_features(self, generation: Generation, num_cached: int) -> Tensor | None:
        """Features of the image positions from ``num_cached`` on, as rows (M, D)."""
        prompt = generation.prompt
        image_token_id = self.model.config.image_token_id
        num_cached_rows = sum(token_id == image_token_id for token_id in prompt.token_ids[:num_cached])
        num_rows = self.model.config.num_image_tokens
        if prompt.pixel_values is None or num_cached_rows == len(prompt.image_keys) * num_rows:
            return None
        started = time.perf_counter()
        first = num_cached_rows // num_rows
        rows = torch.cat([self._encode(generation, idx) for idx in range(first, len(prompt.image_keys))])
        self._wait()
        generation.timings.image_encode_s = time.perf_counter() - started
        return rows[num_cached_rows - first * num_rows :]

    def _encode(self, generation: Generation, image_idx: int) -> Tensor:
        """Features (num_image_tokens, D) of one picture, from the cache if it was seen before."""
        key = generation.prompt.image_keys[image_idx]
        features = self._features.get(key)
        if features is None:
            pixels = generation.prompt.pixel_values
            assert pixels is not None  # noqa: S101 - the caller has looked
            # One picture at a time: at 577 tokens a batch gains nothing on a CPU, and the result is that of a solo run.
            batch = torch.from_numpy(pixels[image_idx : image_idx + 1]).to(self._device)
            features = self.model.encode_images(batch)[0]
            self._features.put(key, features)
            generation.timings.num_images_encoded += 1
        return features


def position_keys(prompt: EnginePrompt, config: LlavaConfig) -> list[PositionKey]:
    """Say what stands at every position, pictures by content."""
    keys: list[PositionKey] = []
    num_seen = 0
    for token_id in prompt.token_ids:
        if token_id == config.image_token_id:
            image_idx, offset = divmod(num_seen, config.num_image_tokens)
            keys.append((prompt.image_keys[image_idx], offset))
            num_seen += 1
        else:
            keys.append(token_id)
    return keys
