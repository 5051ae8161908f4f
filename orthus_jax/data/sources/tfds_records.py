"""A TFDS data set on disk: where it lies, what its features are, and its records as their bytes. No TensorFlow.

TFDS's own reading without TensorFlow decodes pictures unconverted (palettes, CMYK, 16 bits); here they stay as encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import io
import itertools
import json
import os
from pathlib import Path
import re
from typing import Any

from orthus_jax.data.sources.row_groups import Parquet
from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line

_LOOKED_AT = 64  # entries of a folder
_AT_RANDOM = ("array_record", "parquet")


@dataclasses.dataclass(frozen=True)
class Feature:
  """A feature of a record, nested ones by their path: "captions/text".

  Attributes:
    kind: "image", "text", "class", or else its class in TFDS.
    many: how many sequences it stands in.
    names: of classes.
  """

  kind: str
  many: int = 0
  names: tuple[str, ...] = ()

  def __str__(self) -> str:
    return f"list of {self.kind}" if self.many else self.kind


def folders(path: Path, name: str) -> list[Path]:
  """Folders of data sets at a place; of each, and each of its configs, the latest version.

  Args:
    path: TFDS's data_dir, or a folder below it.
    name: "NAME" or "NAME/CONFIG", either with ":VERSION"; empty: any.
  """
  wanted, *parts = [p for p in re.split(r"[/:]", name) if p] or [""]
  versions = [p for p in parts if _version(p)]
  latest: dict[tuple[str, str], tuple[tuple[int, ...], Path]] = {}
  for folder in _below(path / wanted if wanted and (path / wanted).is_dir() else path, 3):
    try:
      told = json.loads((folder / "dataset_info.json").read_bytes())
      own, config, number = (str(told.get(key, "")) for key in ("name", "configName", "version"))
    except (OSError, ValueError, AttributeError):
      continue
    if wanted and (own != wanted or not {config} >= {p for p in parts if p not in versions} or not {number} >= set(versions)):
      continue
    latest[own, config] = max(latest.get((own, config), ((), folder)), (_version(number) or (), folder))
  return sorted(folder for _, folder in latest.values())


def _below(path: Path, depth: int) -> Iterator[Path]:
  """Folders with a features.json, none within another; of a folder's entries the first few are looked at."""
  if (path / "features.json").is_file():
    yield path
  elif depth:
    with os.scandir(path) as entries:
      inside = [e.path for e in itertools.islice(entries, _LOOKED_AT) if e.is_dir() and not e.name.startswith(".")]
    for folder in sorted(inside):
      yield from _below(Path(folder), depth - 1)


def _version(name: str) -> tuple[int, ...] | None:
  return tuple(map(int, name.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", name) else None


class Records:
  """The serialized records of a split.

  Attributes:
    features: by path.
    broken: (file, where, why) of files that can't be read.

  Raises:
    BadRequest: what lies there is no data set, has no such split, or can't be read at random.
  """

  def __init__(self, folder: Path, split: str):
    import tensorflow_datasets as tfds  # takes long

    self.broken: list[tuple[str, str, str]] = []
    with contextlib.redirect_stdout(io.StringIO()):
      try:
        builder = tfds.builder_from_directory(folder)
        formats = [builder.info.file_format, *builder.info.alternative_file_formats]
        held = [f.value for f in formats if f]
        usable = next((f for f in _AT_RANDOM if f in held), "")
      except Exception as e:  # whatever a broken dataset_info.json or features.json makes of it
        raise BadRequest(f"{str(folder)!r} can't be read as a TFDS data set: {first_line(e)}") from e
    if not usable:
      raise BadRequest(
          f"{str(folder)!r} is {' and '.join(held) or 'of an unknown format'}, which can't be read at random: convert it by"
          f" `python -m tensorflow_datasets.scripts.convert_format --dataset_version_dir={folder}"
          " --out_file_format=array_record` (TensorFlow must be installed there)"
      )
    self.features = _features(builder.info.features)
    splits = dict(builder.info.splits)
    if split not in splits and split == "train" and len(splits) == 1:
      split = next(iter(splits))
    if split not in splits:
      raise BadRequest(f"{str(folder)!r} has no split {split!r}: choose {', '.join(splits) or 'another folder'} by --split")
    lengths = list(splits[split].shard_lengths)
    # By the format's own name: TFDS doesn't open a data set in any but its first one.
    names = splits[split].filename_template.replace(filetype_suffix=usable)
    files = [Path(f) for f in names.sharded_filepaths(num_shards=len(lengths))]
    self._rows = _array_records(files, lengths, self.broken) if usable == "array_record" else Parquet(files)
    if isinstance(self._rows, Parquet):
      self.broken += self._rows.broken
    self._name = f"{builder.info.full_name}/{split}"

  def __len__(self) -> int:
    return len(self._rows) if self._rows is not None else 0

  def place(self, row: int) -> tuple[str, str]:
    return self._name, f"record {row}"

  def record(self, row: int) -> Mapping[str, Any]:
    """A record: by feature's path, a list of bytes or numbers.

    Raises:
      BadRequest: it is damaged.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    if isinstance(self._rows, Parquet):
      data = next(iter(self._rows.row(row).values()))
    else:
      try:
        data = self._rows[row]
      except Exception as e:  # ArrayRecord's own
        raise BadRequest(f"it can't be read: {first_line(e)}") from e
    try:
      features = tf_example_pb2.Example.FromString(data).features.feature
    except Exception as e:  # protobuf's own, and a value that is no bytes
      raise BadRequest(f"it isn't a record of TFDS: {first_line(e)}") from e
    return {k: list(getattr(v, v.WhichOneof("kind")).value) if v.WhichOneof("kind") else [] for k, v in features.items()}


def _array_records(files: list[Path], lengths: list[int], broken: list[tuple[str, str, str]]) -> Any:
  from array_record.python import array_record_data_source, array_record_module

  whole = []
  for file, length in zip(files, lengths):
    # One that was cut has no records, and says that something is wrong only when it is asked.
    if not file.is_file():
      broken.append((str(file), "all of it", "it isn't there"))
      continue
    reader = array_record_module.ArrayRecordReader(str(file))
    if not reader.ok():
      broken.append((str(file), "all of it", "it was cut short or damaged"))
    elif (found := reader.num_records()) != length:
      broken.append((str(file), "all of it", f"it has {found} records, and the data set says {length}"))
    elif found:
      whole.append(str(file))
  return array_record_data_source.ArrayRecordDataSource(whole) if whole else None


def _features(feature: Any, name: str = "", many: int = 0) -> dict[str, Feature]:
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.FeaturesDict):
    below = [_features(f, f"{name}/{k}" if name else k, many) for k, f in feature.items()]
    return {k: f for d in below for k, f in d.items()}
  if isinstance(feature, (tfds.features.Sequence, tfds.features.Video)):
    return _features(feature.feature, name, many + 1)
  if isinstance(feature, tfds.features.Image) and "float" not in str(feature.np_dtype):
    return {name: Feature("image", many)}
  if isinstance(feature, tfds.features.ClassLabel):
    return {name: Feature("class", many, tuple(feature.names))}
  if isinstance(feature, tfds.features.Text):
    return {name: Feature("text", many)}
  return {name: Feature(type(feature).__name__, many)}
