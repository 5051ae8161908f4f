"""Where the package keeps things, and files and folders that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
import contextlib
import errno
import glob
import json
import os
from pathlib import Path
import resource
import shutil
import signal
import tempfile
import threading
import time
from typing import IO, Any

from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.paths import user_path

_ABANDONED = 3600.0  # seconds
ASSETS = Path(__file__).resolve().parent / "assets"


def cache_dir() -> Path:
  """Where made data sets and compiled programs are kept: $ORTHUS_CACHE, else under the user's cache directory."""
  base = os.environ.get("ORTHUS_CACHE")
  return Path(user_path(base or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "orthus_jax")))


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
  """A block that writes a file, which takes its name once all is on the disk, or leaves what was there."""
  with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
    half = Path(f.name)
    try:
      yield f
      f.flush()
      os.fsync(f.fileno())
      half.chmod(0o644)
      half.replace(path)
    except BaseException:
      half.unlink(missing_ok=True)
      raise


def write_text(path: Path, text: str) -> None:
  """Writes a file whole or not at all."""
  with whole(path) as f:
    f.write(text.encode())


def read_json(path: Path) -> dict[str, Any]:
  """A file's JSON object; {} where there is none, or none that can be read."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}


def allow_many_open() -> int:
  """Has the system give this process all the open files and connections that it may, at most 65,536; returns how many."""
  most = 1 << 16
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    with contextlib.suppress(OSError, ValueError):
      resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
      soft = wanted
  return most if soft == resource.RLIM_INFINITY else soft


def copy_range(source: Path, begin: int, target: int, at: int, size: int) -> None:
  """Copies bytes begin..begin + size of a file to `at` in an open one, and has the disk set to work on them.

  Raises:
    EOFError: if the source is shorter.
  """
  left = size
  with open(source, "rb", buffering=0) as f:
    while left:
      done = size - left
      try:
        n = os.copy_file_range(f.fileno(), target, left, begin + done, at + done)
      except (AttributeError, OSError) as e:  # not on this system, or not between these disks
        if getattr(e, "errno", None) not in (None, errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
          raise
        n = os.pwrite(target, os.pread(f.fileno(), min(left, 1 << 18), begin + done), at + done)
      if not n:
        raise EOFError(f"{source.name} ends early")
      left -= n
  start_writing(target, at, size)


def start_writing(handle: int, at: int, size: int) -> None:
  """Sets the disk to work on bytes that won't be read again, so that it isn't left with all of them at the end."""
  if hasattr(os, "posix_fadvise"):
    os.posix_fadvise(handle, at, size, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
  """A block that SIGTERM and a lost terminal end as an exception does, so that what it has begun is removed.

  The process then ends with the status that shells give such a signal. Where Python code handles a signal, or it is ignored,
  and in another thread than the first, nothing changes. Not for several processes: jax handles their SIGTERM without telling.
  """

  def end(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would leave half of it
    raise SystemExit(128 + number)

  first = threading.current_thread() is threading.main_thread()
  watched = [n for n in (signal.SIGTERM, signal.SIGHUP) if first and signal.getsignal(n) is signal.SIG_DFL]
  for number in watched:
    signal.signal(number, end)
  try:
    yield
  finally:
    for number in watched:
      signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
  """A folder beside the target that takes its name once all is written and synced, and vanishes otherwise."""
  target = target.absolute()
  folder: Path | None = None
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    begun = f".{target.name}.unfinished-"
    for left in target.parent.glob(f"{glob.escape(begun)}*"):
      if _abandoned(left):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=begun))
    os.chmod(folder, 0o755)
    yield folder
    with futures.ThreadPoolExecutor(16) as threads:  # a disk that is asked for many at once answers them together
      list(threads.map(_sync, (*folder.rglob("*"), folder)))
    os.rename(folder, target)  # onto nothing, or an empty directory
    folder = None
    _sync(target.parent)
  except BadRequest:
    raise
  except (OSError, ValueError, RuntimeError, EOFError) as e:
    # tensorstore tells of a full disk by ValueError, whose text names it.
    full = getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(e)
    what = "the disk is full" if full else first_line(e)
    if getattr(e, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST):
      raise BadRequest(f"another command made {target} meanwhile, which is left as it is: choose another place") from e
    raise BadRequest(f"{target} couldn't be written, and nothing is left of it: {what}") from e
  finally:
    if folder is not None:
      shutil.rmtree(folder, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
  """Whether a process that was killed was at it: nothing in it has changed for an hour."""
  try:
    return time.time() - max(p.stat().st_mtime for p in (folder, *folder.rglob("*"))) > _ABANDONED
  except OSError:  # whoever is at it has just ended
    return False


def _sync(path: Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


@contextlib.contextmanager
def after_training(path: Path) -> Iterator[None]:
  """A block that writes what comes after a run's last checkpoint.

  Raises:
    Stopped: if it can't be written.
  """
  try:
    yield
  except OSError as e:
    raise Stopped(
        f"the run is trained and saved, but {path} can't be written ({first_line(e)}): make room, and start the same command"
        " again"
    ) from e


@contextlib.contextmanager
def writing(place: Path, then: str = "the same command goes on") -> Iterator[None]:
  """A block that writes to a place that was found fit ahead, and nothing else that may fail by the system.

  Raises:
    BadRequest: if it can't be written.
  """
  try:
    yield
  except OSError as e:
    raise BadRequest(f"{place} can't be written ({e.strerror or first_line(e)}): see to the disk, and {then}") from e


def first_line(error: Exception) -> str:
  """What an error says in its first line; its type where it says nothing."""
  return (str(error) or type(error).__name__).splitlines()[0]
