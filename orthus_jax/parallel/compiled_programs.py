"""jax's cache of compiled programs, kept whole.

A process that is killed while it writes an entry leaves half of one. jax (0.10.2, 0.12.0) warns when it reads that, compiles,
and writes nothing, as there is an entry already: each later start would warn and compile again
(`findings/jax_never_replaces_half_a_compiled_program.sh`).
"""

from __future__ import annotations

import logging
from pathlib import Path
import re
import warnings
import zlib

import jax

_log = logging.getLogger(__name__)
_BROKEN = re.compile(r"Error reading persistent compilation cache entry for '(.+?)': ")
_ZSTD = b"\x28\xb5\x2f\xfd"


def keep_whole() -> None:
  """From here on, entries that turn out broken are removed as they are met, so that what is compiled instead is kept."""
  if getattr(warnings.showwarning, "mends", False):
    return
  show = warnings.showwarning

  def mend_or_show(message, category, filename, lineno, file=None, line=None):
    if (found := _BROKEN.match(str(message))) is None:
      show(message, category, filename, lineno, file, line)
      return
    gone = _remove_broken(Path(jax.config.jax_compilation_cache_dir or ""), found.group(1))
    if gone:
      _log.info("%d compiled program(s) in %s had been cut short: compiling anew", gone, jax.config.jax_compilation_cache_dir)
    else:
      show(message, category, filename, lineno, file, line)

  mend_or_show.mends = True  # type: ignore[attr-defined]
  warnings.showwarning = mend_or_show


def _remove_broken(folder: Path, program: str) -> int:
  """Removes a program's broken entries; how many they were."""
  gone = 0
  for file in folder.glob(f"{program}-*-cache"):
    try:
      if not _whole(file.read_bytes()):
        file.unlink()
        gone += 1
    except OSError:  # another process was sooner, or it isn't ours to remove
      continue
  return gone


def _whole(entry: bytes) -> bool:
  """Whether it can be unpacked; what can't be judged here counts as whole."""
  if not entry.startswith(_ZSTD):  # jax takes zstandard where it is installed
    try:
      zlib.decompress(entry)
    except zlib.error:
      return False
    return True
  try:
    import zstandard
  except ImportError:
    return True
  try:
    zstandard.ZstdDecompressor().decompress(entry)
  except zstandard.ZstdError:
    return False
  return True
