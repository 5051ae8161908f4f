"""The `shapes` data set: a TFDS builder in ArrayRecord format, and its documents read back at random. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
from typing import Any

from absl import logging
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from orthus_jax.data import processes
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.shapes import making, records, world
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line
from orthus_jax.progress import bar

TRAIN = {
    "caption_to_image": 0, "image_to_caption": 3000, "question": 0, "edit": 0, "story": 0, "brief_question": 0,
    "crowd_to_image": 0, "copy": 0, "planned_caption": 5000, "planned_edit": 11000, "outline": 5500, "planned_story": 3000,
    "planned_question": 6000, "planned_brief_question": 6000,
}  # fmt: skip
_WORTH = 4096  # documents: fewer are made before another process has started
_AT_ONCE = 64
TEST = {"caption_to_image": 600, "image_to_caption": 200, "question": 200, "edit": 100, "story": 50}


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
  """Which documents to make.

  Attributes:
    resolution: side of the pictures in pixels, one of world.RESOLUTIONS.
    seed: of everything sampled.
    train: documents of each kind in the training split.
    test: documents of each kind in the test split; validation has a quarter as many.
  """

  resolution: int = 32
  seed: int = 0
  train: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict(TRAIN))
  test: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict(TEST))

  def sizes(self, split: str) -> dict[str, int]:
    """Documents of each kind in a split."""
    if split == "validation":
      return {kind: -(-n // 4) for kind, n in self.test.items()}
    return dict(self.train if split == "train" else self.test)

  def split(self, name: str) -> making.Split:
    """What makes a split's documents."""
    return making.Split(name, self.sizes(name), self.seed, self.resolution)


def make_config(resolution: int = 32, *, seed: int = 0, train: Mapping[str, int] | None = None,
                test: Mapping[str, int] | None = None) -> ShapesConfig:
  """A config; kinds left out of `train` or `test` keep their default numbers.

  Raises:
    BadRequest: for an unknown resolution or kind, or a negative number.
  """
  if resolution not in world.RESOLUTIONS:
    raise BadRequest(f"shapes comes at {', '.join(map(str, world.RESOLUTIONS))} pixels, not {resolution}; choose one")
  for kind, n in [*(train or {}).items(), *(test or {}).items()]:
    if kind not in records.KINDS:
      raise BadRequest(f"shapes has no documents of kind {kind!r}; the kinds are {', '.join(records.KINDS)}")
    if not isinstance(n, int) or n < 0:
      raise BadRequest(f"the number of {kind} documents must be a whole number from 0, not {n!r}")
  sizes: dict[str, Any] = {"seed": seed, "train": TRAIN | dict(train or {}), "test": TEST | dict(test or {})}
  name = str(resolution)
  if sizes != {"seed": 0, "train": TRAIN, "test": TEST}:
    # Other contents, other directory: TFDS takes what lies there for what was asked for.
    name += "-" + hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:8]
  return ShapesConfig(name=name, description=f"{resolution}x{resolution} pixels", resolution=resolution, **sizes)


class Shapes(tfds.core.GeneratorBasedBuilder):
  """One to four coloured shapes on a grid: captions, questions, edits and stories."""

  name = "shapes"
  VERSION = tfds.core.Version("1.10.0")
  RELEASE_NOTES = {
      "1.0.0": "Initial release.", "1.1.0": "Other shares of kinds; easier scenes to ask about in training.",
      "1.2.0": "Simple questions are a kind of their own; other shares of kinds.",
      "1.3.0": "Brief questions in the place of simple ones.", "1.4.0": "Other shares of kinds.",
      "1.5.0": "Outlines, by themselves and ahead of pictures.", "1.6.0": "Outlines in stories.",
      "1.7.0": "Places ahead of counts.",
      "1.8.0": "Counts numbered thing by thing; more edits, stories, and pictures of several things to draw.",
      "1.9.0": "An edit's change is said where the thing that changes is named.",
      "1.10.0": "More things in pictures to draw.",
  }  # fmt: skip
  BUILDER_CONFIGS = [make_config(resolution) for resolution in world.RESOLUTIONS]

  def _info(self) -> tfds.core.DatasetInfo:
    side = self.builder_config.resolution
    picture = tfds.features.Image(shape=(side, side, 3), dtype=np.uint8, encoding_format="png")
    return tfds.core.DatasetInfo(
        builder=self,
        description="Interleaved documents about pictures of coloured shapes, made by a program.",
        features=tfds.features.FeaturesDict({
            "id": tfds.features.Text(),
            "kind": tfds.features.Text(),
            # A JSON list of [text, learn] and, for a picture, [null, learn]; pictures follow in order.
            "segments": tfds.features.Text(),
            "images": tfds.features.Sequence(picture),
            "metadata": tfds.features.Text(),
        }),
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager
    splits = [self.builder_config.split(name) for name in world.SPLITS]
    total = sum(map(len, splits))
    show, done = bar("making documents"), itertools.count(1)
    progress = (lambda: show(next(done), total)) if total >= _WORTH else lambda: None
    return {split.name: self._generate_examples(split, progress) for split in splits}

  def _generate_examples(self, split: making.Split, progress: Callable[[], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    spans = ((i, min(i + _AT_ONCE, len(split))) for i in range(0, len(split), _AT_ONCE))
    # Drawing takes four times as long as writing, which is done here.
    beside = min(processes.cores(), 4) if len(split) >= _WORTH and processes.can_start() else 0
    made = processes.ordered(split.records, spans, beside, alone_if_broken=True)
    for key, record in enumerate(itertools.chain.from_iterable(made)):
      yield key, record
      progress()


def make_builder(data_dir: str | os.PathLike[str], resolution: int = 32, **sizes: Any) -> Shapes:
  """The builder, prepared or not; for the arguments see `make_config`."""
  config = make_config(resolution, **sizes)
  known = config.name in Shapes.builder_configs  # TFDS wants its own configs by name
  with _quiet():
    return Shapes(data_dir=os.fspath(data_dir), config=config.name if known else config, file_format="array_record")


def prepare(data_dir: str | os.PathLike[str], resolution: int = 32, **sizes: Any) -> Shapes:
  """Makes the data set unless it is there; what was left half-made is made anew.

  Args:
    data_dir: where TFDS data sets lie; this one goes to `shapes/<config>/<version>` in it.
    resolution: side of the pictures in pixels.
    **sizes: `seed`, `train` and `test` as in `make_config`.

  Returns:
    The TFDS builder, ready for `as_data_source`.

  Raises:
    BadRequest: for sizes that can't be, or a directory that can't be written.
  """
  builder = make_builder(data_dir, resolution, **sizes)
  try:
    with _quiet():
      builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  except OSError as error:
    raise BadRequest(f"can't write shapes to {data_dir}: {error.strerror}; choose another data_dir") from error
  return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """TFDS prints a banner and warns of a config of one's own; neither helps here."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
    logging.set_verbosity(verbosity)


class ShapesDocuments(Sequence[Document | None]):
  """The documents of one split, by number. Can be pickled, and read from several threads or processes."""

  def __init__(self, builder: Shapes, split: str, *, max_bad_share: float = 0.01):
    # Raw records: TFDS's own decoding takes as long again as all the rest.
    self._source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    self._length = len(self._source)
    self._name = f"{builder.info.full_name}/{split}"
    self.bad = BadRecords(max_share=max_bad_share, total=self._length)

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Document | None:  # type: ignore[override]  # no slices
    """The document of a number; None where its record is damaged, which is counted.

    Raises:
      BadRequest: if too many are.
      IndexError: there is no such number.
    """
    if not -self._length <= index < self._length:
      raise IndexError(f"{self._name} has {self._length} documents, none numbered {index}")
    return self._read(index % self._length, lambda: self._source[index % self._length])

  def __getitems__(self, indices: Sequence[int]) -> list[Document | None]:
    """The documents of several numbers from 0 on, as one by one; read at once they take a fifth of the time."""
    try:
      found = self._source.__getitems__(list(indices))
    except Exception:  # one of them is damaged: which, turns out alone
      return [self[i] for i in indices]
    return [self._read(i, functools.partial(bytes, record)) for i, record in zip(indices, found)]

  def _read(self, index: int, record: Callable[[], bytes]) -> Document | None:
    self.bad.saw()
    try:
      return from_record(record())
    except Exception as e:  # ArrayRecord, protobuf, JSON and Pillow each have their own
      self.bad.report(self._name, f"record {index}", first_line(e))
    self.bad.check()
    return None

  def __repr__(self) -> str:
    return f"ShapesDocuments({self._name}, {len(self)})"


def from_record(record: bytes) -> Document:
  """A document from a serialized record of this builder."""
  features = tf_example_pb2.Example.FromString(record).features.feature

  def text(name: str) -> str:
    return features[name].bytes_list.value[0].decode()

  pictures = iter(features["images"].bytes_list.value)
  segments = tuple(
      Image(_pixels(next(pictures)), learn) if words is None else Text(words, learn)
      for words, learn in json.loads(text("segments")))
  return Document(segments, id=text("id"), kind=text("kind"), meta=json.loads(text("metadata")))


def _pixels(png: bytes) -> np.ndarray:
  return np.asarray(PIL.Image.open(io.BytesIO(png), formats=("PNG",)))


def documents(
    data_dir: str | os.PathLike[str], split: str, resolution: int = 32, *, max_bad_share: float = 0.01, **sizes: Any
) -> ShapesDocuments:
  """The documents of a split of a data set that `prepare` made with the same arguments.

  Args:
    data_dir: as for `prepare`.
    split: one of world.SPLITS.
    resolution: as for `prepare`.
    max_bad_share: the share of damaged records that is put up with.
    **sizes: as for `prepare`.

  Returns:
    A sequence of Documents with random access, all kinds mixed evenly; a damaged one is None.

  Raises:
    BadRequest: where there is no such split, or the data set isn't there.
  """
  if split not in world.SPLITS:
    raise BadRequest(f"shapes has no split {split!r}; the splits are {', '.join(world.SPLITS)}")
  builder = make_builder(data_dir, resolution, **sizes)
  if not builder.is_prepared():
    raise BadRequest(f"there is no shapes data set in {builder.data_dir}; make it first with `prepare`")
  return ShapesDocuments(builder, split, max_bad_share=max_bad_share)
