"""What several verbs share: start-up of JAX, and argument parsing with one-line errors."""

from __future__ import annotations

import argparse
from collections.abc import Callable, MutableMapping
import ctypes
import logging
import os
from pathlib import Path
import re
import subprocess
import sys
import warnings

from orthus_jax.config import Config
from orthus_jax.config.ranges import Range, shown
from orthus_jax.errors import BadRequest, above_bars
from orthus_jax.files import cache_dir, first_line
from orthus_jax.paths import check_writable
from orthus_jax.storage.bucket import is_url


class Parser(argparse.ArgumentParser):
  """An argument parser that reports a mistake as a BadRequest."""

  def error(self, message: str):
    raise BadRequest(f"{message} (`{self.prog} --help` lists the options)")


def number(kind: type[int] | type[float], within: Range) -> Callable[[str], int | float]:
  """A number of an option, for argparse's `type`; what lies outside its range is refused as the line is parsed."""

  def read(text: str) -> int | float:
    try:
      value = kind(text)
    except ValueError:
      what = "whole number" if kind is int else "number"
      raise argparse.ArgumentTypeError(f"{shown(text)} is no {what}") from None
    if value not in within:
      raise argparse.ArgumentTypeError(f"{shown(value)} must be {within}")
    return value

  return read


def check_data_place(config: Config) -> None:
  """Sees ahead that the built-in world, which is made where it isn't there, can be.

  Raises:
    BadRequest: if it can't.
  """
  if config.data.source != "shapes" or is_url(config.data.path):
    return
  if not os.path.isdir(config.data.path or cache_dir() / "datasets"):
    if config.data.path:
      check_writable(Path(config.data.path), option="data.path")
    else:
      check_writable(cache_dir(), option="$ORTHUS_CACHE")


class _ToStderr(logging.Handler):
  """Plain lines on whatever standard error is at the time."""

  def emit(self, record: logging.LogRecord) -> None:
    with above_bars():
      print(self.format(record), file=sys.stderr)


def keep_memory() -> None:
  """For training on a CPU: keeps freed memory with the process, where the C library is glibc.

  A step on a CPU frees its temporary arrays and asks for them again: with glibc's defaults the kernel takes the pages
  back and clears 250 MB anew at every step of the quickstart, a sixth of its time. To be called before jax makes threads: one
  that has got an arena of its own keeps it, and maps what is too large for that whatever is asked for here.
  """
  arena_max, mmap_max, trim_threshold = -8, -4, -1  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # another C library
    return
  mallopt(arena_max, 1)  # other arenas can't grow past 64 MiB, and would map larger blocks
  mallopt(mmap_max, 0)
  mallopt(trim_threshold, -1)


_TRIED = "ORTHUS_XLA_FLAGS_TRIED"  # what a command found good needn't be tried by those that it starts


def _check_xla_flags(given: str) -> None:
  """XLA aborts the process that has flags which it doesn't know: another tries them first."""
  if not given or os.environ.get(_TRIED) == given:
    return
  program = "from jaxlib import xla_client; xla_client.CompileOptions()"
  tried = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, errors="replace")
  said = [line.partition("] ")[2] for line in tried.stderr.splitlines() if re.match(r"[EF]\d{4} ", line)]
  if tried.returncode and said:
    raise BadRequest(f"XLA_FLAGS={given}: {said[0]}: unset it, or correct it")
  if not tried.returncode:
    os.environ[_TRIED] = given


def take_memory(environ: MutableMapping[str, str]) -> None:
  """Lets a process have 92% of a GPU's memory where nobody said how much: of jax's 75%, 20 GB of an 80 GB GPU lie idle."""
  if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & set(environ):
    environ["XLA_CLIENT_MEM_FRACTION"] = "0.92"


def initialize(*, verbose: bool = False, devices: bool = True) -> None:
  """Quiet logs, and compiled programs kept from one command to the next.

  Args:
    verbose: tell of more than warnings.
    devices: the command computes: see that jax has what the environment names.

  Raises:
    BadRequest: if JAX_PLATFORMS names devices that aren't here, or XLA_FLAGS what XLA doesn't know.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's C++ log: errors alone
  take_memory(os.environ)
  ours = logging.getLogger("orthus_jax")
  if not ours.handlers:
    ours.addHandler(_ToStderr())
  ours.setLevel(logging.INFO if verbose else logging.WARNING)
  ours.propagate = False
  for noisy in ("absl", "orbax", "jax", "tensorboardX", "urllib3", "mlflow", "wandb", "alembic"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of a save that failed, it would tell of every array
  warnings.filterwarnings("ignore", category=DeprecationWarning)
  _check_xla_flags(os.environ.get("XLA_FLAGS", "").strip())
  import jax

  if devices and (platforms := jax.config.jax_platforms):
    try:
      jax.devices()
    except Exception as e:  # RuntimeError; AssertionError of a plugin that isn't installed
      raise BadRequest(
          f"JAX_PLATFORMS={platforms}: there is no such device here{f' ({first_line(e)})' if str(e) else ''}: unset it,"
          " or set it to cpu"
      ) from e
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  from orthus_jax.parallel import compiled_programs

  compiled_programs.keep_whole()
