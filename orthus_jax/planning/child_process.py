"""Runs a function in a process of its own, which ends with it, whatever the function left running there."""

from __future__ import annotations

from collections.abc import Callable
import multiprocessing
from multiprocessing.connection import Connection
import os
import sys
import traceback
from typing import Any, TypeVar

from orthus_jax.errors import BadRequest, Stopped

T = TypeVar("T")


def run(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
  """What `function(*args, **kwargs)` returns; it, its arguments and its result must be ones that pickle.

  Raises:
    BadRequest, Stopped: as the function does.
    RuntimeError: for any other error, with its traceback.
    Stopped: if the process dies, as it does where memory runs out.
  """
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe(duplex=False)
  process = context.Process(target=_child, args=(theirs, function, args, kwargs), daemon=True)
  process.start()
  theirs.close()
  try:
    kind, value = ours.recv()
  except EOFError:
    process.join()
    raise Stopped(
      f"the process that compiled ended with status {process.exitcode}; -9 is a lack of memory on this machine"
    ) from None
  finally:
    process.kill()
    process.join()
  if kind == "returned":
    return value
  if kind == "raised":
    raise value
  raise RuntimeError(f"in the process that compiled:\n{value}")


def _child(pipe: Connection, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
  try:
    said = ("returned", function(*args, **kwargs))
  except (BadRequest, Stopped) as e:
    said = ("raised", e)
  except KeyboardInterrupt:
    os._exit(130)
  except Exception:
    said = ("failed", traceback.format_exc())
  sys.stdout.flush()
  sys.stderr.flush()
  pipe.send(said)  # upon which this process is killed
