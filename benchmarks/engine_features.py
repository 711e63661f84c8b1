"""What guesses gain and what forms cost in the server's engine: ``python -m benchmarks.engine_features``.

Guesses: the answer is bound to a passage of the prompt by a regular expression, so that any model quotes it; the same
request is run with and without guesses. Forms: answers to random JSON schemas are parsed and checked, and a step with a
form is timed beside one without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from statistics import median
from typing import Any

from benchmarks.common import make_manifest, make_table, write_result
from llavakit.api.loading import load
from llavakit.api.serving import ServedModel, ServeSettings
from llavakit.core.requests import ConstraintKind, GenerateRequest, OutputConstraint
from llavakit.core.types import FinishReason, GenerationResult, Message, Role, SamplingParams, TextPart
from llavakit.kernels.machine import count_cpus

_PASSAGE = (
    "There is a large red circle at the top left. There is a small blue rectangle at the bottom right. "
    "There is a small green star at the top right. There is a large black diamond at the bottom left."
)
_COLUMNS = ("measured", "with", "without", "ratio")


def _request(text: str, params: SamplingParams, constraint: OutputConstraint | None = None) -> GenerateRequest:
    message = Message(Role.USER, (TextPart(text),))
    return GenerateRequest(messages=(message,), sampling=params, constraint=constraint)


async def _answer(served: ServedModel, request: GenerateRequest) -> tuple[GenerationResult, float]:
    answer = await served.submit(request)
    first_s = last_s = 0.0
    async for _ in answer:
        last_s = time.perf_counter()
        first_s = first_s or last_s
    return answer.result, last_s - first_s


def _serve(model: str, *, with_guesses: bool = True) -> ServedModel:
    settings = ServeSettings(num_parallel=1, cache_bytes=1 << 30, max_draft_tokens=None if with_guesses else 0)
    return ServedModel(load(model), settings, name=model, fingerprint="", available_bytes=1 << 30)


async def measure_guesses(model: str, rounds: int) -> dict[str, Any]:
    """Time the same quoting answer with guesses and without, in turns."""
    sides = {name: _serve(model, with_guesses=name == "with") for name in ("with", "without")}
    constraint = OutputConstraint(kind=ConstraintKind.REGEX, text=re.escape(_PASSAGE))
    request = _request(f"Repeat: {_PASSAGE}", SamplingParams(max_new_tokens=200), constraint)
    times: dict[str, list[float]] = {name: [] for name in sides}
    tokens = set()
    for idx in range(rounds + 1):
        for name in ("with", "without") if idx % 2 else ("without", "with"):
            result, elapsed_s = await _answer(sides[name], request)
            tokens.add(result.token_ids)
            if idx:  # the first round reads the weights
                times[name].append(elapsed_s / (len(result.token_ids) - 1))
    if len(tokens) != 1:
        raise SystemExit("guesses changed the tokens")
    stats = sides["with"].stats()
    for served in sides.values():
        served.close(grace_s=1)
    row = _row("time per token of an answer that quotes the prompt", times)
    return {**row, "num_drafted": stats.num_drafted_tokens, "num_accepted": stats.num_accepted_tokens}


def make_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a random JSON schema whose values have an end."""
    kind = rng.choice(("object", "array", "string", "integer", "boolean", "enum") if depth < 2 else ("integer", "enum"))
    if kind == "object" or depth == 0:
        names = rng.sample(("color", "count", "shape", "is_large", "where", "items"), rng.randint(1, 4))
        properties = {name: make_schema(rng, depth + 1) for name in names}
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": make_schema(rng, depth + 1), "minItems": 1, "maxItems": rng.randint(1, 3)}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(1, 12)}
    if kind == "integer":
        return {"type": "integer", "minimum": 0, "maximum": rng.choice((9, 99))}
    if kind == "boolean":
        return {"type": "boolean"}
    return {"enum": rng.sample(("red", "blue", "green", "large", "small"), rng.randint(1, 4))}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is valid under a schema of `make_schema`."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "object":
        properties = schema["properties"]
        return (
            isinstance(value, dict)
            and set(value) == set(properties)
            and all(fits(value[name], properties[name]) for name in properties)
        )
    if kind == "array":
        is_size = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return is_size and all(fits(item, schema["items"]) for item in value)
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    if kind == "integer":
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and schema["minimum"] <= value <= schema["maximum"]
    return isinstance(value, bool)


async def measure_validity(model: str, num_schemas: int) -> dict[str, Any]:
    """Answer random schemas with random seeds; count the answers that are valid and whole."""
    settings = ServeSettings(num_parallel=8, max_waiting=num_schemas, cache_bytes=1 << 30)
    served = ServedModel(load(model), settings, name=model, fingerprint="", available_bytes=1 << 30)

    async def one(idx: int) -> bool:
        schema = make_schema(random.Random(idx))
        constraint = OutputConstraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(schema))
        params = SamplingParams(max_new_tokens=600, temperature=1.0, seed=idx)
        result, _ = await _answer(served, _request("Answer in JSON.", params, constraint))
        return result.finish_reason is FinishReason.STOP and fits(json.loads(result.text), schema)

    valid = sum(await asyncio.gather(*(one(idx) for idx in range(num_schemas))))
    served.close(grace_s=1)
    return {"measured": f"answers to {num_schemas} random schemas that are valid", "with": valid, "without": None,
            "ratio": valid / num_schemas}  # fmt: skip


async def measure_forms(model: str, rounds: int) -> dict[str, Any]:
    """Time a token under a JSON schema beside a token without."""
    served = _serve(model, with_guesses=False)
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 400}}, "required": ["text"]}
    form = OutputConstraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(schema))
    params = SamplingParams(max_new_tokens=64, ignore_eos=True)
    times: dict[str, list[float]] = {"with": [], "without": []}
    for idx in range(rounds + 1):
        for name in ("with", "without") if idx % 2 else ("without", "with"):
            request = _request("Answer in JSON.", params, form if name == "with" else None)
            result, elapsed_s = await _answer(served, request)
            if idx:
                times[name].append(elapsed_s / (len(result.token_ids) - 1))
    served.close(grace_s=1)
    return _row("time per token under a JSON schema", times)


def _row(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    shown = {side: f"{1000 * median(seconds):.1f} ms" for side, seconds in times.items()}
    return {"measured": name, **shown, "ratio": median(times["without"]) / median(times["with"]), "all_s": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="llava:tiny", help="for the times")
    parser.add_argument("--label", help="what to call it in the results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--schemas", type=int, default=500, help="random schemas for llava:tiny; 0 for none")
    options = parser.parse_args()
    rows = [
        asyncio.run(measure_guesses(options.model, options.rounds)),
        asyncio.run(measure_forms(options.model, options.rounds)),
    ]
    if options.schemas:
        rows.append(asyncio.run(measure_validity("llava:tiny", options.schemas)))
    label = options.label or options.model
    write_result("engine_features", make_manifest(num_threads=count_cpus()), [{"model": label, **row} for row in rows])
    print(make_table(rows, _COLUMNS))


if __name__ == "__main__":
    main()
