"""What a TPU's compiler writes down on its way: the scheduled program, and where each of its buffers lies.

Both are there long before machine code is, which takes nine tenths of a compilation. They are also what the compiler itself
goes by when it says that a program doesn't fit: a compiled program's `memory_analysis` counts temporaries that share a
place several times, and comes out up to half as large again.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import re
import tempfile
import threading
import time
from typing import Any

from orthus_jax.planning import hlo

_PROGRAM, _BUFFERS, _TOTALS = ".after_optimizations.txt", "-buffer-assignment.txt", "-memory-usage-report.txt"
_LAST = ".after_optimizations_after_buffer_assignment.txt"  # once this one is begun, those above are complete
_POLL = 0.1  # seconds
# libtpu 0.0.42 and 0.0.50 begin the last one after two thirds of a compilation; those above lie there after one, in the order
# that each sees fit, and are written anew with no other figures.
_SETTLED = 2.0  # seconds


def compile_watched(
  compile_: Callable[[dict[str, Any]], Any], *, whole: bool
) -> tuple[Any, str, dict[str, int] | None, Exception | None]:
  """Compiles, and reads what the compiler writes down.

  Args:
    compile_: compiles with the options given.
    whole: whether to wait for machine code. If not, and the program was scheduled, the compilation goes on in a thread of its
      own that nothing can stop: have the process end soon (`child_process.run`).

  Returns:
    (compiled or None, text of the scheduled program or "", bytes by part or None, the compiler's exception or None). Bytes:
    "arguments", "outputs", "temporaries" of the device's main memory, "host".
  """
  found: list[Any] = [None, None]

  def run() -> None:
    try:
      found[0] = compile_({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    except Exception as e:  # jaxlib raises its own class, and differs from version to version
      found[1] = e

  with tempfile.TemporaryDirectory(prefix="orthus_plan_", ignore_cleanup_errors=True) as folder:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    sizes, since = None, time.monotonic()
    while thread.is_alive() and (whole or not _latest(folder, _LAST)):
      if sizes != (sizes := _sizes(folder)):
        since = time.monotonic()
      if not whole and sizes and time.monotonic() - since > _SETTLED:
        break
      time.sleep(_POLL)
    text, totals, buffers = (_read(folder, ending) for ending in (_PROGRAM, _TOTALS, _BUFFERS))
  return found[0], text, read(totals, buffers) if totals and buffers else None, found[1]


def _sizes(folder: str) -> tuple[int, ...] | None:
  """Sizes of what a plan is made from; None until all of it has begun and the program's last line, a brace alone, is there."""
  files = [f for f in (_latest(folder, ending) for ending in (_PROGRAM, _TOTALS, _BUFFERS)) if f]
  sizes = tuple(f.stat().st_size for f in files)
  if len(files) < 3:
    return None
  with files[0].open("rb") as program:
    program.seek(max(sizes[0] - 16, 0))
    return sizes if all(sizes) and program.read().rstrip().endswith(b"\n}") else None


def _latest(folder: str, ending: str) -> pathlib.Path | None:
  return max(pathlib.Path(folder).glob(f"*{ending}"), key=lambda f: f.stat().st_size, default=None)


def _read(folder: str, ending: str) -> str:
  file = _latest(folder, ending)
  return file.read_text(encoding="utf-8") if file else ""


def read(totals: str, buffers: str) -> dict[str, int] | None:
  """Bytes by part, from a memory usage report and a buffer assignment; None where they aren't what they used to be."""
  by_space = {
    int(space): int(size) for space, size in re.findall(r"Memory Space: \S+ \(color=(\d+)\)\nTotal bytes: (\d+)", totals)
  }
  if 0 not in by_space:
    return None
  arguments = outputs = 0
  for size, kind in re.findall(r"^allocation \d+: size (\d+), (.*):$", buffers, re.MULTILINE):
    if re.search(r"\bcolor \d", kind):
      continue
    if "parameter " in kind:
      arguments += int(size)
    elif "maybe-live-out" in kind:
      outputs += int(size)
  temporaries = by_space[0] - arguments - outputs
  host = by_space.get(hlo.HOST_SPACE, 0)
  return {"arguments": arguments, "outputs": outputs, "temporaries": temporaries, "host": host}
