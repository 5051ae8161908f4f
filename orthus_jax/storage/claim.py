"""What the start of a run does in its bucket: what was cut off there goes, and on disk what is another run's."""

from __future__ import annotations

from collections.abc import Collection
import logging
from pathlib import Path
import uuid

from orthus_jax.storage import remote_run
from orthus_jax.storage.bucket import Bucket, Entry

_log = logging.getLogger(__name__)
ID = "run_id"  # what tells a run from another one that was at its URL before


def clean(bucket: Bucket) -> dict[str, Entry]:
  """Removes a run's checkpoints whose upload or removal was cut off; returns what it has beside."""
  found = bucket.list()
  for step in remote_run.unfinished(found):
    _log.warning("the upload of the checkpoint of step %d to %s was cut off: removed what is there", step, bucket.url)
    gone = remote_run.of_step(found, step)
    bucket.remove(gone)
    bucket.remove([remote_run.mark(step)])
    found = {n: e for n, e in found.items() if n not in gone and n != remote_run.mark(step)}
  return found


def settle_whose(bucket: Bucket, folder: Path, found: Collection[str]) -> None:
  """Moves what is on disk of another run, which was at this URL before, out of the way; a new run gets its id."""
  own = folder / ID
  there = bucket.read(ID).decode() if ID in found else ""
  if folder.is_dir() and (own.read_text(encoding="utf-8") if own.is_file() else "") != there:
    n = 1
    while (aside := folder.with_name(f"{folder.name}.before-{n}")).exists():
      n += 1
    folder.rename(aside)
    _log.warning("%s has another run by now than the one that was worked on here, which lies in %s", bucket.url, aside)
  folder.mkdir(parents=True, exist_ok=True)
  if not there:
    there = uuid.uuid4().hex
    bucket.write(ID, there.encode())
  own.write_text(there, encoding="utf-8")
