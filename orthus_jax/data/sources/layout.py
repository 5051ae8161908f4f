"""What a layout of data on disk is to the rest of the house: rows, each of which makes some drafts of documents.

A layout is one small file in this room and a line in `registry.LAYOUTS`. It finds its rows when it is opened, holds little
more than their places in memory, and reads one when it is asked for. `source.LayoutSource` makes Documents of drafts.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import os
from pathlib import Path
import types
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from orthus_jax.data.documents import Text
from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.errors import BadRequest
from orthus_jax.storage import bring

Pairs = Literal["both", "to_image", "to_text"]


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture of a draft, still to be read.

  Attributes:
    file: where it lies, or the bytes of a picture file.
    learn: as of `documents.Image`.
  """

  file: Path | bytes
  learn: bool = False


@dataclasses.dataclass(frozen=True)
class Draft:
  """A Document whose pictures are still to be read; its fields are as there."""

  segments: tuple[Text | Picture, ...]
  id: str = ""
  kind: str = ""
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Options:
  """What a user can say of a layout; one that has no use for an option refuses a value of it.

  Attributes:
    text: columns, fields or parts that hold the text, in order of preference; empty: the layout's own.
    pictures: the folder that paths of pictures start from; None: the one beside the rows.
    annotations: the file that holds the rows, within the layout's folder; empty: the layout's own.
    split: of the data. Where there is none of the usual name, "train", all of it is meant.
    pairs: which documents a picture and its caption become.
    argument: what stands behind the layout's name and a colon.
  """

  text: tuple[str, ...] = ()
  pictures: Path | None = None
  annotations: str = ""
  split: str = "train"
  pairs: Pairs = "both"
  argument: str = ""


class Layout(abc.ABC):
  """Rows of one data set.

  It is pickled to processes that prepare data, so whatever it keeps open is opened anew there.

  Attributes:
    name: how commands and configs call it.
    usage: how its files lie, for a person: the first line says what it is, the others show it.
    takes: the options that it has a use for.
    path: where it lies.
    options: what the user said.
    remarks: the count of what is passed over by its rules.
    broken: (file, where in it, why) for whatever of its files can't be read and so makes no row.
  """

  name: ClassVar[str]
  usage: ClassVar[str]
  takes: ClassVar[frozenset[str]] = frozenset()

  def __init__(self, path: Path, options: Options = Options()):
    """Finds the rows.

    Raises:
      BadRequest: there are none, or what lies there isn't this layout; it names the fields expected beside those found.
    """
    if options.pairs not in get_args(Pairs):
      raise BadRequest(f"pairs must be one of {', '.join(get_args(Pairs))}, got {options.pairs!r}")
    for field in dataclasses.fields(Options):
      if getattr(options, field.name) != field.default and field.name not in self.takes:
        raise BadRequest(f"{self.name} has no use for the option {field.name}: leave it out")
    self.path, self.options = Path(path), options
    self.remarks = Remarks()
    self.broken: list[tuple[str, str, str]] = []

  @classmethod
  @abc.abstractmethod
  def recognise(cls, path: Path) -> str:
    """Why what lies at a place looks like this layout, in a few words; empty where it doesn't. Reads little."""

  @abc.abstractmethod
  def __len__(self) -> int:
    """Rows."""

  @property
  def drafts_per_row(self) -> int | np.ndarray:
    """How many drafts a row makes; one number for each row where they differ."""
    return 1

  @abc.abstractmethod
  def place(self, row: int) -> tuple[str, str]:
    """(file, record): where a row lies, as a person knows it: "pairs/metadata.jsonl", "line 3"."""

  @abc.abstractmethod
  def drafts(self, row: int) -> Sequence[Draft]:
    """The drafts of a row, as many as `drafts_per_row` says.

    Raises:
      BadRequest: what is wrong with the row; it is skipped, counted and named.
      OSError: its file can't be read now.
    """

  def row_files(self) -> Iterable[Path]:
    """The files that hold the rows: those at its place, if the layout knows no better."""
    return [self.path] if self.path.is_file() else [Path(e) for e in os.scandir(self.path) if e.is_file()]

  def fingerprint(self) -> str:
    """Tells whether the data is still what it was, by names, sizes and times of the files that hold the rows; where these were
    brought from a bucket, by their objects' tags, so that it is the same on each machine."""
    return digest(sorted((f.name, *bring.stamp(f)) for f in self.row_files()))

  def fields(self) -> Mapping[str, str]:
    """Names of what a row holds, each with a word on it or an example; for `orthus prepare --look`."""
    return {}


def digest(stamps: Iterable[tuple[str, int, str]]) -> str:
  """Of files' names and what `bring.stamp` says of them."""
  found = hashlib.blake2b(digest_size=8)
  for name, size, time in stamps:
    found.update(f"{name}\0{size}\0{time}\0".encode(errors="surrogateescape"))
  return found.hexdigest()


def pair(
    text: str, picture: Path | bytes, pairs: Pairs, *, name: str, meta: Mapping[str, Any] = types.MappingProxyType({})
) -> tuple[Draft, ...]:
  """The drafts that a picture and its caption become: the text, or else the picture, is to be learnt; or each in turn."""
  to_image = Draft((Text(text), Picture(picture, learn=True)), f"{name}:to_image", "caption_to_image", meta)
  to_text = Draft((Picture(picture), Text(text, learn=True)), f"{name}:to_text", "image_to_caption", meta)
  return {"both": (to_image, to_text), "to_image": (to_image,), "to_text": (to_text,)}[pairs]


def pair_count(pairs: Pairs) -> int:
  """How many drafts `pair` makes."""
  return 2 if pairs == "both" else 1
