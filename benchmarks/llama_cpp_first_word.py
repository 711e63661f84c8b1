"""llama.cpp's side of `benchmarks.first_word`: one picture question as its users write it; the first word goes out.

Runs under an interpreter that has llama-cpp-python: MODEL PROJECTOR PICTURE QUESTION THREADS CONTEXT.
"""

from __future__ import annotations

import os
import pathlib
import sys


def main() -> None:
    """Ask, and write the answer as it comes. What the library prints must not be taken for it."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]
    from llama_cpp.llama_chat_format import (  # type: ignore[import-not-found, unused-ignore]
        Llava15ChatHandler,
    )

    model, projector, picture, question, threads, context = sys.argv[1:]
    llama = Llama(
        model, chat_handler=Llava15ChatHandler(clip_model_path=projector, verbose=False), n_ctx=int(context),
        n_threads=int(threads), n_threads_batch=int(threads), verbose=False,
    )  # fmt: skip
    content = [
        {"type": "image_url", "image_url": {"url": pathlib.Path(picture).resolve().as_uri()}},
        {"type": "text", "text": question},
    ]
    parts = llama.create_chat_completion(
        [{"role": "user", "content": content}], max_tokens=2, temperature=0.0, stream=True
    )
    for part in parts:
        answer.write(part["choices"][0]["delta"].get("content") or "")
        answer.flush()


if __name__ == "__main__":
    main()
