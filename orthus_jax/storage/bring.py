"""What lies in a bucket, brought to this machine: readers know paths alone.

A run is brought with its small files and one checkpoint, the one named or else the newest that is whole; prepared data shard by
shard, as they are read; anything else as a whole. What was brought lies below $ORTHUS_CACHE/storage, comes again only if it
has changed, and goes once it is gone from the bucket.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
import contextlib
import functools
import hashlib
import json
from pathlib import Path, PurePosixPath
import re
import shutil
import time
from typing import Any

from orthus_jax import files
from orthus_jax.errors import BadRequest
from orthus_jax.storage import brought, remote_run
from orthus_jax.storage.bucket import Bucket, Entry, for_all, is_url, transfer

_PREPARED, _UNPREPARED, _PARTS = "prepared.json", "unfinished.json", "parts/"
_EVERY = 10.0  # seconds between notes of what has come
_told: dict[Path, dict[str, list[Any]]] = {}  # of folders that this process brought: what comes when it is read


def local(path: str) -> str:
  """A path on this machine: the very path, or where what a URL names was brought to.

  Args:
    path: of a file or folder; or gs://… or s3://…

  Raises:
    BadRequest: if there is nothing, it can't be reached, or the disk is too small.
  """
  return _bring(path.rstrip("/")) if is_url(path) else path


@functools.cache  # one answer for all of a command: a run that is being trained has newer checkpoints a minute later
def _bring(url: str) -> str:
  bucket, target = Bucket(url), place(url)
  try:
    if entry := bucket.entry():
      parent, name = url.rsplit("/", 1)
      bring(Bucket(parent), target.parent, {name: entry})
      return str(target)
    parts = url.split("/")
    if len(parts) > 5 and parts[-2] == "checkpoints" and parts[-1].isdigit():
      run = "/".join(parts[:-2])
      remote_run_to(Bucket(run), place(run), step=int(parts[-1]))
      return str(target)  # an earlier run's newer ones beside it are no matter
    found = bucket.list()
    if not found:
      bucket.check()
      raise BadRequest(f"there is nothing at {url}")
    if remote_run.is_run(found):
      remote_run_to(bucket, target, found)
      _leave_out_earlier(target, found)
    elif _PREPARED in found:
      found = {n: e for n, e in found.items() if n != _UNPREPARED and not n.startswith(_PARTS)}
      brought.leave_out_gone(bucket.url, target, found.keys(), whole=True)
      shards = {n: e for n, e in found.items() if n.endswith(".array_record")}
      bring(bucket, target, {n: e for n, e in found.items() if n not in shards}, later=shards)
    elif _UNPREPARED in found:
      raise BadRequest(f"{url} isn't prepared to its end yet: the `orthus prepare` command that began it goes on there")
    else:
      brought.leave_out_gone(bucket.url, target, found.keys(), whole=True)
      bring(bucket, target, found)
  except OSError as e:
    raise BadRequest(f"{url} can't be brought here: {files.first_line(e)}") from e
  return str(target)


@functools.cache
def only(path: str, names: tuple[str, ...]) -> str:
  """As `local`, bringing of a folder no more than its files of some names, where they are there.

  Args:
    path: of the folder, or of one of the files.
    names: of files.
  """
  if not is_url(path):
    return path
  url, _, name = path.rstrip("/").rpartition("/")
  folder = url if name in names else path.rstrip("/")
  bucket, wanted = Bucket(folder), {}
  try:
    for n in names:
      if entry := bucket.entry(n):
        wanted[n] = entry
    if not wanted:
      bucket.check()
    brought.leave_out_gone(bucket.url, place(folder), {*wanted, *(brought.index(place(folder)).keys() - set(names))})
    bring(bucket, place(folder), wanted)
  except OSError as e:
    raise BadRequest(f"{path} can't be brought here: {files.first_line(e)}") from e
  return str(place(path.rstrip("/")))


def remote_run_to(bucket: Bucket, target: Path, found: dict[str, Entry] | None = None, *, step: int | None = None) -> None:
  """Brings a run's small files and one checkpoint.

  Raises:
    BadRequest: if it has no such checkpoint that is whole.
  """
  found = bucket.list() if found is None else found
  whole = remote_run.whole_steps(found)
  if step is not None and step not in whole:
    raise BadRequest(f"{bucket.url} has no whole checkpoint of step {step}: it has {', '.join(map(str, whole)) or 'none'}")
  chosen = whole[-1] if step is None and whole else step
  bring(bucket, target, remote_run.beside_checkpoints(found))
  if chosen is not None:
    bring(bucket, target, remote_run.of_step(found, chosen))


def overview(url: str) -> list[tuple[str, Path, list[int], list[int]]]:
  """The runs below a URL: of each its URL, where its small files are, steps of whole checkpoints, and of those that were cut
  off or are on their way.

  Raises:
    BadRequest: if the bucket can't be read.
  """
  bucket, told = Bucket(url), []
  try:
    found = bucket.list()
    if not found:
      bucket.check()
    all_ = _by_folder(found, remote_run.folders(found))
    for folder, own in all_.items():
      run = bucket if not folder else Bucket(f"{bucket.url}/{folder}")
      bring(run, place(run.url), {n: e for n, e in own.items() if "/" not in n and n.endswith((".json", ".jsonl"))})
      _leave_out_earlier(place(run.url), own)
      told.append((run.url, place(run.url), remote_run.whole_steps(own), remote_run.unfinished(own)))
  except OSError as e:
    raise BadRequest(f"{url} can't be read: {files.first_line(e)}") from e
  return told


def _by_folder(found: Mapping[str, Entry], folders: Collection[str]) -> dict[str, dict[str, Entry]]:
  """What lies below each of some folders, by names relative to it."""
  own: dict[str, dict[str, Entry]] = {folder: {} for folder in folders}
  depths = {folder.count("/") + 1 if folder else 0 for folder in folders}
  for name, entry in found.items():
    parts = name.split("/")
    for depth in depths:
      if (folder := "/".join(parts[:depth])) in own and len(parts) > depth:
        own[folder]["/".join(parts[depth:])] = entry
  return own


def bring(bucket: Bucket, target: Path, wanted: dict[str, Entry], later: dict[str, Entry] | None = None) -> None:
  """Downloads what isn't there as it is in the bucket.

  Args:
    bucket: which has it.
    target: the folder.
    wanted: objects by their names.
    later: objects that `file` brings when they are read, as they are now; by default those of which it was told before.

  Raises:
    BadRequest: if a name leads elsewhere, or the disk is too small.
    OSError: if the bucket fails.
  """
  for name in wanted:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
      raise BadRequest(f"{bucket.url} has an object {name!r}, which leads out of its folder: rename it")
  there = brought.index(target)
  new = {n: e for n, e in wanted.items() if there.get(n) != [e.size, e.tag] or not brought.has(target / n, e.size)}
  if later is not None:
    _told[target] = {n: [e.size, e.tag] for n, e in later.items()}
  if not new:
    if later is not None:
      brought.note(bucket.url, target, later=later)
    return
  size = sum(e.size for e in new.values())
  target.mkdir(parents=True, exist_ok=True)
  if size > (free := shutil.disk_usage(target).free):
    raise BadRequest(f"{bucket.url} takes {size:,} bytes, and {target} has {free:,} left: make room, or set ORTHUS_CACHE")
  moved = transfer(f"bringing {bucket.url}", size)

  done: dict[str, Entry] = {}
  next_note = time.monotonic() + _EVERY

  def get(name: str) -> None:
    nonlocal next_note
    bucket.get(name, target / name)
    done[name] = new[name]
    moved(new[name].size)
    if (begin := time.monotonic()) > next_note:
      next_note = begin + 3600  # by one of the threads
      brought.note(bucket.url, target, done.copy())
      now = time.monotonic()
      next_note = now + max(_EVERY, 20 * (now - begin))

  try:
    for_all(get, sorted(new, key=lambda n: new[n].size, reverse=True))
  except BaseException:
    with contextlib.suppress(OSError):
      brought.note(bucket.url, target, done.copy())  # what came needn't come again
    raise
  brought.note(bucket.url, target, new, later=later)


def _leave_out_earlier(target: Path, found: dict[str, Entry]) -> None:
  """Removes what an earlier run at a run's URL left here: small files that are gone, checkpoints newer than its newest."""
  for name in brought.index(target):
    if name not in found and "/" not in name:
      (target / name).unlink(missing_ok=True)
  newest = max(remote_run.whole_steps(found), default=-1)
  for folder in (target / "checkpoints").glob("*"):
    if folder.name.isdigit() and int(folder.name) > newest:
      shutil.rmtree(folder, ignore_errors=True)


def file(path: Path) -> Path:
  """A file of a brought folder, brought itself if it wasn't yet, or was another then; any other path as it is.

  Raises:
    OSError: if the bucket fails.
    BadRequest: if it has another one by now than when the folder was brought.
  """
  if noted := files.read_json(path.parent / brought.INDEX):
    # As this command was told: another one may have been told of newer ones since.
    wanted = _told.get(path.parent, noted.get("later", {})).get(path.name)
    if not path.exists() or (wanted is not None and noted["objects"].get(path.name) != wanted):
      bucket = Bucket(noted["url"])
      entry = bucket.entry(path.name)
      if wanted is not None and (entry is None or [entry.size, entry.tag] != wanted):
        path.unlink(missing_ok=True)  # which goes with what was there before
        raise BadRequest(f"{bucket.url}/{path.name} has changed since this command began: start it again")
      if entry:
        bring(bucket, path.parent, {path.name: entry})
  return path


def place(url: str) -> Path:
  """Where a URL's things are brought to. A run that is trained here works elsewhere (`mirror.place`)."""
  scheme, _, rest = url.partition("://")
  return files.cache_dir() / "storage" / scheme / rest


def origin(path: Path) -> str:
  """The URL of what was brought to a path; empty for a path of anything else."""
  try:
    scheme, *rest = path.relative_to(files.cache_dir() / "storage").parts
  except ValueError:
    return ""
  return f"{scheme}://{'/'.join(rest)}" if rest else ""


def by_url(text: str) -> str:
  """A text in which URLs stand for the paths that they were brought to, the same on each machine."""
  return re.sub(re.escape(f"{files.cache_dir() / 'storage'}/") + r"(gs|s3)/", r"\1://", text)


def stamp(path: Path) -> tuple[int, str]:
  """What tells whether a file is still what it was: its size in bytes, and its time.

  Of what was brought it is the object's tag in place of the time, which is another on each machine; of a folder that was
  brought, how many objects it holds and a digest of theirs.

  Raises:
    OSError: if it isn't there.
  """
  found = path.stat()
  indices = [i for folder in (path, *path.parents) if origin(folder) and (i := folder / brought.INDEX).is_file()]
  within: dict[str, list] = {}
  for index in sorted(indices, key=lambda i: i.stat().st_mtime_ns, reverse=True):  # a folder may be brought within another
    there = brought.index_at(index.parent, index.stat().st_mtime_ns)
    name = path.relative_to(index.parent).as_posix()
    if name in there:
      return there[name][0], there[name][1]
    prefix = "" if name == "." else f"{name}/"
    within = {n.removeprefix(prefix): e for n, e in there.items() if n.startswith(prefix)} | within
  if within:
    return len(within), hashlib.blake2b(json.dumps(sorted(within.items())).encode(), digest_size=8).hexdigest()
  return found.st_size, str(found.st_mtime_ns)
