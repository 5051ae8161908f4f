"""The command `orthus`, a verb each.

A bad request ends with one line on standard error and exit status 2; `--debug` shows the traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import importlib
import os
import sys

from orthus_jax.errors import BAD_REQUEST, INTERRUPTED, BadRequest, Stopped, print_error
from orthus_jax.output import Output
from orthus_jax.parallel import platforms

_VERBS = {
    "train": "train a model from a config file",
    "launch": "start training on a cluster: SLURM, Kubernetes, Cloud TPU",
    "sweep": "train many runs that differ, and compare them",
    "generate": "draw, answer, edit or tell a story with a trained model",
    "serve": "serve a trained model over HTTP, as OpenAI's API has it",
    "evaluate": "score a trained model",
    "score": "score a benchmark's files, without a model",
    "compare": "put two runs of a benchmark side by side",
    "convert": "bring a published checkpoint in, or a trained one out",
    "prepare": "make the data set that a config reads",
    "runs": "list runs and their checkpoints, and check these for damage",
    "plan": "say what a config takes on devices that are not here",
}


def _usage() -> str:
  rows = "\n".join(f"  {verb:<10} {what}" for verb, what in _VERBS.items())
  return f"usage: orthus VERB [OPTIONS]\n\n{rows}\n\n`orthus VERB --help` tells more."


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit status."""
  out = Output(sys.stdout)
  with contextlib.redirect_stdout(out):  # type: ignore[type-var]
    return out.status(_run(argv))


def _run(argv: Sequence[str] | None) -> int:
  argv = list(sys.argv[1:] if argv is None else argv)
  debug = "--debug" in argv
  argv = [a for a in argv if a != "--debug"]
  if not argv or argv[0] in ("-h", "--help"):
    print(_usage())
    return 0 if argv else BAD_REQUEST
  verb = argv[0]
  if chosen := platforms.without_tpu():
    os.environ["JAX_PLATFORMS"] = chosen
  try:
    if verb not in _VERBS:
      raise BadRequest(f"unknown verb {verb!r}: choose one of {', '.join(_VERBS)}")
    command: Callable[[Sequence[str]], int] = importlib.import_module(f"orthus_jax.commands.{verb}").main
    return command(argv[1:])
  except BadRequest as e:
    if debug:
      raise
    print_error(e)
    return BAD_REQUEST
  except Stopped as e:
    print_error(e)
    return e.status
  except KeyboardInterrupt:
    print_error("interrupted")
    return INTERRUPTED


if __name__ == "__main__":
  sys.exit(main())
