"""Buckets at gs:// and s3://, through fsspec's own drivers, with retries and errors that a user can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent import futures
import contextlib
import dataclasses
import logging
import os
from pathlib import Path, PurePosixPath
import threading
import time
from typing import Any, TypeVar
import uuid

from orthus_jax.errors import BadRequest
from orthus_jax.progress import bar

_log = logging.getLogger(__name__)
_WAITS = (0.5, 2.0, 8.0)  # seconds before each further try of what may have failed for a moment
_THREADS = 8  # files on their way at once
_MANY = 1 << 26  # bytes that take a while
_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}  # extras of ours have the schemes' names
_LOGIN = {
    "gs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS=FILE",
    "s3": "`aws configure`, AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
# What no second try mends. The drivers raise botocore's and google.auth's own classes too, which have no common one.
_LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, TypeError)
_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound", "RefreshError",
)  # fmt: skip

T = TypeVar("T")


class Unreachable(OSError):
  """A bucket that didn't answer, try after try; what it said."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """An object.

  Attributes:
    size: bytes.
    tag: differs once the object's bytes do.
  """

  size: int
  tag: str


def is_url(path: str) -> bool:
  """Whether a path names something in a bucket."""
  return path.partition("://")[0] in _DRIVERS and "://" in path


class Bucket:
  """What lies below one URL. Names are relative to it, with "/" between their parts.

  Args:
    url: gs://BUCKET/PATH or s3://BUCKET/PATH.

  Raises:
    BadRequest: if the driver isn't installed, or no URL of a bucket is given.
  """

  def __init__(self, url: str):
    self.url = url.rstrip("/")
    self._scheme, _, rest = self.url.partition("://")
    self._root = rest
    if not is_url(url) or not rest.partition("/")[0]:
      raise BadRequest(f"{url} names no bucket: write gs://BUCKET/PATH or s3://BUCKET/PATH")
    if ".." in PurePosixPath(rest).parts:
      raise BadRequest(f"{url} leads out of itself by ..: write where it leads to")
    import fsspec  # here, as most commands need none of it

    try:
      self._files = fsspec.filesystem(self._scheme, use_listings_cache=False, **_options(self._scheme))
    except ImportError as e:
      driver = _DRIVERS[self._scheme]
      raise BadRequest(f"{url} needs {driver}: pip install 'orthus_jax[{self._scheme}]'") from e
    except Exception as e:  # noqa: BLE001 - a driver's own
      raise self._refusal(e) from e

  def path(self, name: str) -> str:
    return f"{self._root}/{name}" if name else self._root

  def list(self, below: str = "") -> dict[str, Entry]:
    """Objects below a name, by their names (relative to the bucket's URL); none where there is nothing."""

    def find() -> dict[str, Any]:
      try:
        return self._files.find(self.path(below), detail=True)
      except FileNotFoundError:
        return {}

    prefix = f"{self._root}/"
    return {
        k.removeprefix(prefix): _entry(v) for k, v in self._try("list", below, find).items()
        if k.startswith(prefix) and v.get("type") == "file" and not k.endswith("/")
    }  # fmt: skip

  def check(self) -> None:
    """Sees that the bucket is there and answers.

    Raises:
      BadRequest: if not.
    """
    bucket = self._root.partition("/")[0]

    def look() -> None:  # below the URL first: credentials may be for what is there alone
      try:
        self._files.ls(self._root, detail=False)
      except FileNotFoundError:
        if self._root == bucket:
          raise
        with contextlib.suppress(PermissionError):
          self._files.ls(bucket, detail=False)

    try:
      self._try("look at", "", look)
    except (OSError, BadRequest) as e:
      raise self._refusal(e) from e

  def entry(self, name: str = "") -> Entry | None:
    """One object; None where there is none of that name."""

    def info() -> Entry | None:
      try:
        found = self._files.info(self.path(name))
      except FileNotFoundError:
        return None
      return _entry(found) if found.get("type") == "file" else None

    return self._try("look at", name, info)

  def read(self, name: str) -> bytes:
    """An object's bytes.

    Raises:
      FileNotFoundError: if there is none.
    """
    return self._try("read", name, lambda: self._files.cat_file(self.path(name)))

  def write(self, name: str, data: bytes, *, new: bool = False) -> None:
    """Writes an object, whole or not at all.

    Args:
      name: its name.
      data: its bytes.
      new: only if there is none of that name; several who try at once are told apart by the bucket.

    Raises:
      FileExistsError: if `new`, and there is one.
    """
    mode = "create" if new else "overwrite"
    self._try("write", name, lambda: self._files.pipe_file(self.path(name), data, mode=mode))

  def put(self, file: Path, name: str) -> None:
    """Uploads a file, whole or not at all.

    Raises:
      FileNotFoundError: if the file has gone.
    """
    size = file.stat().st_size
    self._try("write", name, lambda: self._files.put_file(str(file), self.path(name)))
    there = self.entry(name)
    if there is None or there.size < size:  # a log may have grown meanwhile
      raise Unreachable(f"{self.url}/{name} has {there.size if there else 0:,} bytes, not {size:,}")

  def get(self, name: str, file: Path) -> None:
    """Downloads an object to a file, which appears whole or not at all.

    Raises:
      FileNotFoundError: if there is none.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{uuid.uuid4().hex}")  # without the name, which may be as long as one may be
    try:
      self._try("read", name, lambda: self._files.get_file(self.path(name), str(half)))
      half.replace(file)
    finally:
      half.unlink(missing_ok=True)

  def remove(self, names: Iterable[str]) -> None:
    """Removes objects; those that aren't there count as removed."""

    def one(name: str) -> None:
      with contextlib.suppress(FileNotFoundError):
        self._try("remove", name, lambda: self._files.rm_file(self.path(name)))

    for_all(one, names)

  def _try(self, what: str, name: str, do: Callable[[], T]) -> T:
    for wait in (*_WAITS, None):
      try:
        return do()
      except Exception as e:  # noqa: BLE001 - each driver has its own classes beside OSError
        if type(e).__name__ in _NO_CREDENTIALS:
          raise self._refusal(e) from e
        if isinstance(e, (*_LASTING, BadRequest)):
          raise
        where = f"{self.url}/{name}".rstrip("/")
        if wait is None:
          raise Unreachable(f"couldn't {what} {where}: {_said(e)}") from e
        _log.debug("couldn't %s %s (%s); trying again in %g s", what, where, _said(e), wait)
        time.sleep(wait)
    raise AssertionError

  def _refusal(self, e: Exception) -> BadRequest:
    if isinstance(e, BadRequest):
      return e
    if type(e).__name__ in _NO_CREDENTIALS or "anonymous caller" in str(e).lower():
      return BadRequest(f"{self.url}: no credentials are found: {_LOGIN[self._scheme]}")
    if isinstance(e, PermissionError):
      return BadRequest(f"{self.url}: these credentials may not ({_said(e)}): ask for access, or use others")
    if isinstance(e, FileNotFoundError):
      return BadRequest(f"{self.url}: there is no bucket {self._root.partition('/')[0]!r}: make it first, or correct the name")
    return BadRequest(f"{self.url} can't be reached: {_said(e)}")


def _options(scheme: str) -> dict[str, Any]:
  """What a driver is given."""
  if scheme == "s3":
    return {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60}}
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each try's traceback; what fails in the end is told by us
  if "STORAGE_EMULATOR_HOST" in os.environ:
    # gcsfs (2026.10.1) asks for each bucket's layout by gRPC too, which such a server doesn't speak: a minute a call.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    return {"token": "anon"}
  return {}


def for_all(do: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
  """`do` of each, several at once; the first failure is raised once those under way have ended."""
  with futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="storage") as threads:
    return list(threads.map(do, list(items)))


def transfer(what: str, size: int) -> Callable[[int], None]:
  """A function that is told, from any thread, of bytes that have been moved, and draws a bar where there are many.

  Args:
    what: is being done.
    size: bytes in all.
  """
  if size < _MANY:
    return lambda n: None
  show, lock, total = bar(what, unit="MB"), threading.Lock(), -(-size // 10**6)
  done, shown = 0, -1

  def moved(n: int) -> None:
    nonlocal done, shown
    with lock:
      done += n
      if (now := total if done >= size else min(done // 10**6, total - 1)) > shown:
        shown = now
        show(now, total, now)

  return moved


def _entry(info: dict[str, Any]) -> Entry:
  tag = next((info[k] for k in ("ETag", "generation", "md5Hash", "LastModified", "updated") if info.get(k)), "")
  return Entry(int(info.get("size") or 0), str(tag))


def _said(e: Exception) -> str:
  return (str(e) or type(e).__name__).splitlines()[0][:200]
