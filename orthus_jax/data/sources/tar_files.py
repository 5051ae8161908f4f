"""The tar files at a place, and what img2dataset writes beside them."""

from __future__ import annotations

from pathlib import Path
import re

from orthus_jax.data.sources.folders import walk
from orthus_jax.data.sources.remarks import Remarks, printable
from orthus_jax.errors import BadRequest

_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_STATS = "_stats.json"


def stem(name: str) -> str:
  """A tar file's name without its extension, compressed or not; empty for any other file's."""
  if match := _PACKED.search(name):
    return name[: match.start()]
  return name[: -len(".tar")] if name.lower().endswith(".tar") else ""


def find(path: Path, remarks: Remarks, broken: list[tuple[str, str, str]]) -> list[Path]:
  """The tar files at a place, in order.

  Args:
    path: one, or a folder.
    remarks: gets what is passed over.
    broken: gets folders that can't be read.

  Raises:
    BadRequest: there is none.
  """
  if path.is_file():
    return [path]
  files: list[Path] = []
  for folder, folders, names in walk(path, broken):
    shards = {stem(name): name for name in names if stem(name)}
    for name in sorted([*names, *(f for f in folders if f.startswith("."))]):
      file = Path(folder, name)
      inside = file.relative_to(path).as_posix()
      if name.startswith("."):
        remarks.add("hidden files or folders passed over", inside)
      elif _PACKED.search(name) and f"{stem(name)}.tar" in names:
        remarks.add("compressed files passed over beside what they were unpacked to", inside)
      elif stem(name):
        files.append(file)
      elif name.endswith(".parquet") and name[: -len(".parquet")] in shards:
        _count_failed(file, inside, remarks)
      elif not (name.endswith(_STATS) and name[: -len(_STATS)] in shards):
        remarks.add(f"{printable(file.suffix.lower()) or 'other'} files passed over, which are no tar files", inside)
  if not files:
    raise BadRequest(f"there is no tar file at {str(path)!r}; give one, or a folder that holds some")
  return sorted(files)


def _count_failed(file: Path, inside: str, remarks: Remarks) -> None:
  """Counts the rows that have no sample in the tar file, which img2dataset's table beside it lists with the others."""
  try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
  except ImportError:
    remarks.add("tables of img2dataset's passed over, which pyarrow would read", inside)
    return
  try:
    status = pq.read_table(file, columns=["status"])["status"]
    failed = len(status) - (pc.sum(pc.equal(status, "success")).as_py() or 0)
  except (OSError, pa.ArrowException, KeyError):
    remarks.add(".parquet files passed over, which are no tar files and have no status to read", inside)
    return
  if failed:
    remarks.add("rows that img2dataset failed to fetch", inside, failed)
