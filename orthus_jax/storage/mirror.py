"""A run whose directory is in a bucket: it works in one on disk, and what is new there is uploaded in the background.

So a save costs what a save to disk does, everything that holds on disk holds here, and a bucket that is away for a while only
delays the uploads. The same command on another machine brings the newest whole checkpoint back and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import contextlib
import logging
import os
from pathlib import Path
import shutil
import threading
import time

from orthus_jax import files
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.storage import bring, claim, remote_run
from orthus_jax.storage.bucket import Bucket, Entry, for_all
from orthus_jax.storage.remote_lock import RemoteLock

_log = logging.getLogger(__name__)
EVERY = 30.0  # seconds between two looks for what is new
_NOT_MIRRORED = ("checkpoints", "damaged", remote_run.LOCK)
_PINNED = ".uploading"


@contextlib.contextmanager
def mirrored(
    url: str, *, kept: Callable[[list[int]], set[int]] = set, damage: Callable[[Path], str | None] = lambda checkpoint: None
) -> Iterator[Path]:
  """A block with a directory on disk whose content is that of a run's in a bucket, in the end too.

  Args:
    url: the run's.
    kept: which of some steps' checkpoints are to stay, where those on disk don't tell: another machine's. All by default.
    damage: what is wrong with a checkpoint that was brought, in which case the one before it is brought too.

  Raises:
    BadRequest: if the bucket can't be used, or another command works there.
    Stopped: if in the end something couldn't be uploaded, unless the block raised something itself.
  """
  bucket, folder = Bucket(url), place(url)
  bucket.check()
  try:
    lock = RemoteLock(bucket)
  except OSError as e:
    raise BadRequest(f"{url} can't be written to: {e}") from e
  try:
    try:
      mirror = Mirror(bucket, folder, kept, damage)
    except OSError as e:
      raise BadRequest(f"{url} can't be brought here: {e}") from e
    _log.info("working in %s; what is new goes to %s", folder, url)
    over = threading.Event()
    thread = threading.Thread(target=mirror.keep, args=(over, EVERY), name="mirror", daemon=True)
    thread.start()
    failed = False
    try:
      yield folder
    except BaseException:
      failed = True
      raise
    finally:
      over.set()
      thread.join()
      begin = time.monotonic()
      left = mirror.close()
      if left and not failed:
        raise Stopped(f"{url} lacks some of the run ({left}), which is whole in {folder}: the same command uploads the rest")
      if left:
        _log.error("%s lacks some of the run (%s), which is whole in %s", url, left, folder)
      elif (took := time.monotonic() - begin) > 1:
        _log.info("uploaded the last of the run in %.0f s", took)
  finally:
    lock.release()


def place(url: str, process: int | None = None) -> Path:
  """The directory on disk in which a run of a URL works; what readers are brought of it lies elsewhere (`bring.place`).

  Args:
    url: the run's.
    process: which of several, whose checkpoints there are parts.
  """
  scheme, _, rest = url.rstrip("/").partition("://")
  return files.cache_dir() / "runs" / scheme / (rest if process is None else f"{rest}.process-{process}")


class Mirror:
  """What of a run's directory on disk is in the bucket already.

  On creation, what was cut off there is removed, and a newer state than the disk's is brought.

  Args:
    bucket, folder: the run's.
    kept, damage: as `mirrored` has them.

  Raises:
    OSError: if the bucket fails.
  """

  def __init__(
      self, bucket: Bucket, folder: Path, kept: Callable[[list[int]], set[int]] = set,
      damage: Callable[[Path], str | None] = lambda checkpoint: None,
  ):  # fmt: skip
    self._bucket, self._folder, self._kept = bucket, folder, kept
    self._sent: dict[str, tuple[int, int]] = {}  # file → its time and size when it was uploaded
    self._refused = ""
    shutil.rmtree(folder / _PINNED, ignore_errors=True)  # of a command that was killed
    found = claim.clean(bucket)
    claim.settle_whose(bucket, folder, found)
    self._mark_sent([claim.ID])
    self._begin(found, damage)
    self._seen = set(self._steps())  # steps that were on this disk
    self._aside = self._set_aside()

  def _begin(self, found: dict[str, Entry], damage: Callable[[Path], str | None]) -> None:
    """Brings a newer state than the disk's, and sees which checkpoints are the bucket's already."""
    bucket, folder = self._bucket, self._folder
    there, here = remote_run.whole_steps(found), self._steps()
    if "config.json" in found and (not (folder / "config.json").is_file() or max(there, default=-1) > max(here, default=-1)):
      newest_first: list[int | None] = [*reversed(there)] or [None]
      for step in newest_first:
        bring.remote_run_to(bucket, folder, found, step=step)
        if step is None or damage(folder / "checkpoints" / str(step)) is None:
          break  # of those that are damaged the run itself tells, and passes over them
      self._mark_sent(remote_run.beside_checkpoints(found))
    # A checkpoint of the same step that another attempt wrote is another one.
    self._there = {step for step in there if step not in self._steps() or self._same(step, found)}

  def _mark_sent(self, names: Iterable[str]) -> None:
    self._sent |= {name: _stamp(self._folder / name) for name in names}

  def _same(self, step: int, found: dict[str, Entry]) -> bool:
    name = f"checkpoints/{step}/{remote_run.MANIFEST}"
    own = self._folder / name
    if not own.is_file() or name not in found:
      return not own.is_file() and name not in found
    return self._bucket.read(name) == own.read_bytes()

  def keep(self, over: threading.Event, every: float) -> None:
    """Uploads what is new, until it is told that it is over."""
    while not over.wait(every):
      self._look()

  def _look(self) -> None:
    left = self.sync()
    if left and left != self._refused:
      _log.warning("can't upload to %s (%s); the run goes on, and it is tried again", self._bucket.url, left)
    elif self._refused and not left:
      _log.info("uploads to %s work again", self._bucket.url)
    self._refused = left

  def sync(self) -> str:
    """Uploads what is new and removes what is gone; returns why something is left, and nothing where nothing is."""
    try:
      # What the bucket has of those stays there, and one of the same step that is saved again takes its place.
      self._there -= {int(n) for name in self._set_aside() - self._aside if (n := name.split("-")[0]).isdigit()}
      self._aside = self._set_aside()
      self._upload_checkpoints()
      for step in sorted(self._given_up(set(self._steps()))):
        self._remove(step)
      self._upload_small()
    except (OSError, BadRequest) as e:
      return str(e)
    return ""

  def close(self) -> str:
    """As `sync`, for the last time; leaves nothing of a run that never began."""
    if (self._folder / "config.json").is_file():
      return self.sync()
    with contextlib.suppress(OSError, BadRequest):  # why it never began is what is to be told
      self._bucket.remove([claim.ID])
    shutil.rmtree(self._folder, ignore_errors=True)
    return ""

  def _given_up(self, here: set[int]) -> set[int]:
    """Steps whose checkpoints are in the bucket alone and are to go: they went from the disk, or are old ones of elsewhere.

    Never the newest that it has: where uploads are slow, that may have gone from the disk before a newer one is there.
    """
    self._seen |= here
    if not here:  # none goes from disk but for a newer one: the disk itself is gone, and these are all that is left
      return set()
    elsewhere = self._there - self._seen
    gone = ((self._there & self._seen) - here) | (elsewhere - self._kept(sorted(self._there | here)))
    return gone - {max(self._there, default=-1)}

  def _upload_checkpoints(self) -> None:
    for step in sorted(set(self._steps()) - self._there, reverse=True):
      self._upload(step)

  def _upload(self, step: int) -> None:
    """Uploads one checkpoint: its marker, its files, its manifest; then the marker goes."""
    begin = time.monotonic()
    try:
      folder = self._pin(step)
    except FileNotFoundError:
      return
    there = {f"checkpoints/{step}/{p.relative_to(folder).as_posix()}": p for p in folder.rglob("*") if p.is_file()}
    last = f"checkpoints/{step}/{remote_run.MANIFEST}"
    self._bucket.write(remote_run.mark(step), b"")
    try:
      for_all(lambda n: self._bucket.put(there[n], n), sorted(there.keys() - {last}))
      if last in there:
        self._bucket.put(there[last], last)
    except FileNotFoundError:  # it gave way to newer ones meanwhile
      if all(p.is_file() for p in there.values()):
        raise
      self._remove(step)
      return
    finally:
      shutil.rmtree(self._folder / _PINNED, ignore_errors=True)
    self._bucket.remove([remote_run.mark(step)])
    self._there.add(step)
    self._seen.add(step)
    _log.info("uploaded the checkpoint of step %d in %.1f s", step, time.monotonic() - begin)

  def _pin(self, step: int) -> Path:
    """A checkpoint's files under a second name, so that they last until they are uploaded; where there are no links, itself.

    Raises:
      FileNotFoundError: if it gave way to newer ones, or is about to.
    """
    source, pinned = self._folder / "checkpoints" / str(step), self._folder / _PINNED
    shutil.rmtree(pinned, ignore_errors=True)
    try:
      for path in [p for p in source.rglob("*") if p.is_file()]:
        name = pinned / path.relative_to(source)
        name.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, name)
    except FileNotFoundError:
      raise
    except OSError:
      return source
    listed = files.read_json(pinned / remote_run.MANIFEST).get("crc32", {})
    if not source.is_dir() or any(not (pinned / name).is_file() for name in listed):
      raise FileNotFoundError(source)
    return pinned

  def _remove(self, step: int) -> None:
    self._bucket.write(remote_run.mark(step), b"")
    self._bucket.remove(self._bucket.list(f"checkpoints/{step}"))
    self._bucket.remove([remote_run.mark(step)])
    self._there.discard(step)

  def _upload_small(self) -> None:
    """Uploads the files beside the checkpoints that have changed. config.json is last: it marks a run."""
    changed = {}
    for where, folders, names in os.walk(self._folder):  # which passes over a folder that has just gone
      above = Path(where).relative_to(self._folder)
      folders[:] = [f for f in folders if f[0] != "." and (above.parts or f not in _NOT_MIRRORED)]
      for name in (above / n for n in names if n[0] != "." and (above.parts or n not in _NOT_MIRRORED)):
        with contextlib.suppress(FileNotFoundError):
          if self._sent.get(name.as_posix()) != (stamp := _stamp(self._folder / name)):
            changed[name.as_posix()] = stamp

    def put(name: str) -> None:
      with contextlib.suppress(FileNotFoundError):
        self._bucket.put(self._folder / name, name)
        self._sent[name] = changed[name]

    for_all(put, [n for n in changed if n != "config.json"])
    for_all(put, [n for n in changed if n == "config.json"])

  def _set_aside(self) -> set[str]:
    """Names of checkpoints that were found damaged, and moved away."""
    return {p.name for p in (self._folder / "damaged").glob("*")}

  def _steps(self) -> list[int]:
    folder = self._folder / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def _stamp(path: Path) -> tuple[int, int]:
  found = path.stat()
  return found.st_mtime_ns, found.st_size
