"""Which split files are of, by their names and folders, as Hugging Face's loaders tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
import re

from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.errors import BadRequest

_NAMES = (("train", "training"), ("validation", "valid", "dev", "val"), ("test", "testing", "eval", "evaluation"))
_BESIDE = "[-._ 0-9]"


def of_split(files: Sequence[Path], root: Path, split: str, remarks: Remarks) -> list[Path]:
  """The files of a split: train-00000-of-00002.parquet, train/a.parquet, …

  Where none is called train, all are meant by it; files that are called nothing go with it.

  Args:
    files: what there is.
    root: the folder below which names count.
    split: its name.
    remarks: gets the files of others.

  Raises:
    BadRequest: there is none, of any split but train.
  """
  own = next((names for names in _NAMES if split in names), (split,))
  mine = [f for f in files if _is_called(f, root, own)]
  if not mine and split == "train":
    return list(files)
  if not mine:
    raise BadRequest(f"{root} has no file of the split {split!r}, such as {files[0].name} or {split}/{files[0].name}")
  others = [name for names in _NAMES if names != own for name in names]
  kept = mine if split != "train" else [f for f in files if f in set(mine) or not _is_called(f, root, others)]
  for file in sorted({*files} - {*kept}):
    remarks.add("files of other splits passed over", file.relative_to(root).as_posix())
  return kept


def _is_called(file: Path, root: Path, names: Sequence[str]) -> bool:
  pattern = re.compile(rf"(^|{_BESIDE})({'|'.join(map(re.escape, names))})($|{_BESIDE})")
  return any(pattern.search(part.lower()) for part in file.relative_to(root).with_suffix("").parts)
