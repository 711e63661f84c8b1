"""The text of ``llavakit --help``; imports nothing, so that it appears at once."""

__all__ = ["ABOUT", "OVERVIEW", "PROGRAM"]

PROGRAM = "llavakit"

ABOUT = {
    "run": "ask a model about pictures, once or in a chat",
    "serve": "answer other programs and browsers",
    "pull": "fetch a model",
    "list": "list the models on this machine",
    "show": "show what a model is",
    "rm": "remove a model from this machine",
    "convert": "quantize a model, or write it in another format",
    "calibrate": "measure what matters in a model, for better quantizing",
    "quality": "measure what quantizing a model has cost",
    "plan": "show what a model takes, in every quantization",
    "fits": "say whether a model fits a GPU, or this machine",
    "gpus": "list the devices that can run a model",
    "best": "find the best device for a budget",
    "build": "put a whole machine together for a budget",
    "verify": "compare a model with the transformers library",
    "bench": "measure where the time goes",
}
"""One line about each command, in the order of the help."""

_LINES = "\n".join(f"  {name:<10} {about}" for name, about in ABOUT.items())

OVERVIEW = f"""\
usage: {PROGRAM} COMMAND [options]

LLaVA-1.5: ask questions about pictures, on your own machine.

commands:
{_LINES}

options:
  -h, --help   show this text; after a command, the help of that command
  --version    show the version

exit status:
  0 done, 1 a check failed, 2 to 9 by kind of error (docs/errors.md),
  70 a fault in llavakit, 74 the output cannot be written, 130 Ctrl-C,
  141 nobody reads the output

examples:
  llavakit run llava:tiny "How many red circles are there?" --image shapes.png
  llavakit run llava:tiny
  llavakit serve
  llavakit run --help
"""
