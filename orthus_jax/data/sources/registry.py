"""Opening what a config names: a source of Documents, and the text tokenizer that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from pathlib import Path

from orthus_jax.config import Config
from orthus_jax.config.data import DataConfig
from orthus_jax.data.documents import Source
from orthus_jax.data.sources.blip3o import Blip3o
from orthus_jax.data.sources.coco import Coco
from orthus_jax.data.sources.comm import Comm
from orthus_jax.data.sources.imagefolder import ImageFolder
from orthus_jax.data.sources.img2dataset import Img2dataset
from orthus_jax.data.sources.instructpix2pix import InstructPix2Pix
from orthus_jax.data.sources.joined import Joined
from orthus_jax.data.sources.journeydb import JourneyDB
from orthus_jax.data.sources.jsonl import Jsonl
from orthus_jax.data.sources.layout import Layout, Options
from orthus_jax.data.sources.llava import Llava
from orthus_jax.data.sources.mmc4 import Mmc4
from orthus_jax.data.sources.obelics import Obelics
from orthus_jax.data.sources.parquet import ParquetTable
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.storystream import StoryStream
from orthus_jax.data.sources.tfds import Tfds
from orthus_jax.data.sources.webdataset import WebDataset
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.errors import BadRequest
from orthus_jax.files import ASSETS, cache_dir
from orthus_jax.storage import bring
from orthus_jax.storage.bucket import is_url

# All layouts by name; where a place could be several, the first that recognises it is meant.
_ALL: tuple[type[Layout], ...] = (
    Jsonl, Llava, InstructPix2Pix, StoryStream, Obelics, Mmc4, Comm, Tfds, ImageFolder, Blip3o, WebDataset,
    Img2dataset, ParquetTable, JourneyDB, Coco,
)  # fmt: skip
LAYOUTS = {layout.name: layout for layout in _ALL}


def open_world(config: Config, split: str = "test", path: str | None = None, *, seed: int | None = None) -> Source:
  """The built-in world's documents, whatever the config's own data are.

  Args:
    config: the experiment.
    split: of the world.
    path: where it lies; by default where the config says, if its data are the world.
    seed: of documents made now, in the place of those that lie there: as many as a split has by default.

  Raises:
    BadRequest: if there is no such split.
  """
  if seed is not None:
    from orthus_jax.data.shapes import builder  # TFDS is slow to import

    made = builder.make_config(config.model.vision_tokenizer.resolution, seed=seed).split(split)
    return made.documents(0, len(made))
  there = config.data.path if config.data.source == "shapes" else ""
  data = dataclasses.replace(config.data, source="shapes", path=there if path is None else path)
  return open_source(dataclasses.replace(config, data=data), split)


def open_source(config: Config, split: str, paths: Sequence[str] = ()) -> Source:
  """The documents of a split; the built-in world is made first if it isn't there.

  Args:
    config: the experiment.
    split: of the built-in world; of a layout the config says it.
    paths: of a layout, in the place of the config's own.

  Raises:
    BadRequest: if the source isn't there or has no such split.
  """
  data, vision = config.data, config.model.vision_tokenizer
  if data.source == "shapes":
    from orthus_jax.data.shapes import builder  # TFDS is slow to import

    if is_url(data.path):
      raise BadRequest(f"data.path={data.path}: the built-in world is made on disk: leave data.path out")
    where = Path(data.path) if data.path else cache_dir() / "datasets"
    sizes = {"train": dict(data.documents)}
    if split != data.split and not builder.make_builder(where, vision.resolution, **sizes).is_prepared():
      sizes = {}  # the other splits are the same beside any number of training documents: take those made soonest
    builder.prepare(where, vision.resolution, **sizes)
    return builder.documents(where, split, vision.resolution, max_bad_share=data.max_bad_share, **sizes)
  if data.source == "prepared":  # the few documents that samples are made of; training reads the rest otherwise
    folder = Path(bring.local(data.mixture[0][0] if data.mixture else data.path)) / "shown"
    if not folder.is_dir():
      raise BadRequest(
          f"{folder.parent} holds no complete prepared data: make it with `orthus prepare --out={folder.parent}`"
      )
    return LayoutSource(Jsonl(folder), resolution=vision.resolution, pixels=vision.pixels)
  if not (paths or data.path):
    raise BadRequest(f"data.path is empty: set it to where the {data.source} data lies (--config.data.path=DIR)")
  sources = [open_layout(config, path) for path in paths or (data.path,)]
  return sources[0] if len(sources) == 1 else Joined(sources, max_bad_share=data.max_bad_share)


def options(data: DataConfig) -> Options:
  """What a config says of a layout."""
  return Options(
      text=tuple(data.text), pictures=Path(data.pictures) if data.pictures else None, annotations=data.annotations,
      pairs=data.pairs, split=data.split, argument=data.source.partition(":")[2],
  )  # fmt: skip


def open_layout(config: Config, path: str) -> LayoutSource:
  """The documents of what lies at a path, in the layout that the config names.

  Raises:
    BadRequest: it isn't that layout.
  """
  data, vision = config.data, config.model.vision_tokenizer
  kind = data.source.partition(":")[0]
  layout = LAYOUTS[kind](Path(bring.local(path)), options(data))
  return LayoutSource(
      layout, resolution=vision.resolution, pixels=vision.pixels, max_bad_share=data.max_bad_share, learn=data.learn
  )


def open_tokenizer(config: Config) -> TextTokenizer:
  """The config's text tokenizer, checked against the model's vocabulary.

  Raises:
    BadRequest: if it is missing, or its ids don't fit the model.
  """
  model = config.model
  tokenizer = TextTokenizer.load(config.data.tokenizer or ASSETS / "shapes_tokenizer.json")
  name = "the tokenizer" if config.data.tokenizer else "the built-in tokenizer, as data.tokenizer names none,"
  if tokenizer.vocab_size > model.transformer.vocab_size:
    raise BadRequest(
        f"{name} has {tokenizer.vocab_size} tokens, the model's vocabulary {model.transformer.vocab_size}:"
        f" set model.transformer.vocab_size={tokenizer.vocab_size}, or another data.tokenizer"
    )
  codes = tokenizer.image_codes
  if len(codes) != model.vision_tokenizer.codes or (codes and codes.start != model.image_token_start):
    raise BadRequest(
        f"{name} has {len(codes)} image codes from id {codes.start if codes else '-'}, the model"
        f" {model.vision_tokenizer.codes} from {model.image_token_start}: set the model's data.tokenizer, or make"
        " model.vision_tokenizer.codes and model.image_token_start agree"
    )
  return tokenizer
