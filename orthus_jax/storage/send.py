"""What is made on disk and belongs in a bucket: uploaded once it is whole, or nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from pathlib import Path
import tempfile

from orthus_jax import files
from orthus_jax.errors import BadRequest
from orthus_jax.storage.bucket import Bucket, for_all, is_url, transfer

_LAST = "config.json"  # uploaded last: without it neither a run nor a Hugging Face directory is one


@contextlib.contextmanager
def sent(target: str) -> Iterator[Path]:
  """A block that makes a folder, given its path; what it makes for a URL is uploaded at its end.

  Args:
    target: a path on disk, which the block is given as it is, or gs://… or s3://…

  Raises:
    BadRequest: if the bucket can't be used, something lies there, or an upload fails; nothing is left there then.
  """
  if not is_url(target):
    yield Path(target)
    return
  bucket = Bucket(target)
  bucket.check()
  try:
    there = bucket.list()
  except OSError as e:
    raise BadRequest(f"{target} can't be read: {files.first_line(e)}") from e
  if there:
    raise BadRequest(f"{target} isn't empty: choose another place")
  files.cache_dir().mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=files.cache_dir(), prefix="sending-") as made:
    folder = Path(made) / "made"
    yield folder
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    sizes = {n: (folder / n).stat().st_size for n in names}
    moved = transfer(f"uploading to {target}", sum(sizes.values()))

    def put(name: str) -> None:
      bucket.put(folder / name, name)
      moved(sizes[name])

    try:
      for_all(put, [n for n in names if n != _LAST])
      for_all(put, [n for n in names if n == _LAST])
    except BaseException as e:  # credentials may expire, or somebody stops it: what is there would be in the next one's way
      with contextlib.suppress(OSError, BadRequest):
        bucket.remove(names)
      if not isinstance(e, OSError):
        raise
      raise BadRequest(f"{target} couldn't be written, and nothing is left of it: {files.first_line(e)}") from e
