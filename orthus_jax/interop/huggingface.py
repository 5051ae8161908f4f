"""A Hugging Face directory of Orthus, Anole or Chameleon, checked whole and read a piece at a time.

Everything that is wrong with a directory is found, and told at once, before a byte of an array is read. What a plain
Chameleon or Anole lacks is made: `codebook_in` is the VQGAN's codebook and the diffusion head is fresh, the start of the
paper's first stage. On request it stays the Chameleon that it is, and draws codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import logging
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from orthus_jax.config import Config, DataConfig, ModelConfig
from orthus_jax.data.text_tokenizer import TextTokenizer, image_code_name
from orthus_jax.errors import BadRequest, one_line
from orthus_jax.interop import json_files, names, needed_arrays, processor, published_head, safetensors
from orthus_jax.interop.published_arrays import (
  DECODER,
  INDEX_FILE,
  canonical_entries,
  decoder_entries,
  find_entries,
  read_json,
)
from orthus_jax.interop.published_config import read_config
from orthus_jax.models.orthus import describe

_log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
_SHOWN, _LONGEST = 20, 500  # problems that are told, and characters of each
Place = Callable[[str, tuple[int, ...], np.dtype], jax.sharding.Sharding | None]


def is_checkpoint(path: str | os.PathLike) -> bool:
  """Whether a directory is one of Hugging Face's, be it a complete one or not."""
  path = Path(path)
  if not path.is_dir() or (path / "checkpoints").is_dir():
    return False
  if any(any(path.glob(pattern)) for pattern in ("*.safetensors", INDEX_FILE, "pytorch_model*")):
    return True
  return "model_type" in read_json(path / CONFIG_FILE, [])


def refusal(what: str, problems: list[str]) -> BadRequest:
  """All problems in one line; of hundreds the first, and a count; of a long one its beginning."""
  more = f"; … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
  count = "" if len(problems) == 1 else f" ({len(problems)} problems)"
  shown = (one_line(p if len(p) <= _LONGEST else f"{p[:_LONGEST]} …") for p in problems[:_SHOWN])
  return BadRequest(f"{what}{count}: {'; '.join(shown)}{more}")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A directory that was found sound.

  Attributes:
    directory: where.
    config: the model's; everything but `model` and `sampling` is a default.
    tokenizer: the directory's.
    shapes: of our parameters, by name.
    entries: the arrays, by published key.
    fresh: parameters that no file holds.
    notes: what was made up or can't be done, a line each.
  """

  directory: Path
  config: Config
  tokenizer: TextTokenizer
  shapes: Mapping[str, tuple[int, ...]]
  entries: Mapping[str, safetensors.Entry]
  fresh: Mapping[str, np.ndarray]
  notes: tuple[str, ...]

  def entry(self, name: str, layer: int) -> safetensors.Entry:
    """The published array of one layer of a parameter that isn't fresh."""
    return self.entries[names.published_name(name)[0].format(layer)]

  def dtype(self, name: str) -> np.dtype:
    """Of a parameter as it is stored; where its layers differ, one that holds what all of them hold."""
    if name in self.fresh:
      return self.fresh[name].dtype
    layers = self.shapes[name][0] if self.stacked(name) else 1
    return needed_arrays.widest({self.entry(name, i).numpy_dtype for i in range(layers)})

  def stacked(self, name: str) -> bool:
    """Whether a parameter's first axis is the layers'."""
    return "{}" in names.published_name(name)[0]

  def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A block of a parameter: no more is read than the layers, and of them the pages, that it lies in."""
    if name in self.fresh:
      return self.fresh[name][index]
    shape, layout = self.shapes[name], names.published_name(name)[1]
    if not self.stacked(name):
      return np.ascontiguousarray(names.from_torch(self.entry(name, 0).view(), shape, layout)[index])
    layers = range(*index[0].indices(shape[0]))
    inner = tuple(len(range(*s.indices(n))) for s, n in zip(index[1:], shape[1:]))
    value = np.empty((len(layers), *inner), self.dtype(name))
    for at, layer in enumerate(layers):
      value[at] = names.from_torch(self.entry(name, layer).view(), shape[1:], layout)[index[1:]]
    return value

  def load(self, place: Place | None = None, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    """All parameters that are wanted, one at a time; logs the notes.

    Args:
      place: (name, shape, dtype) → where the array is to lie, or None for a numpy array. A sharding's devices are given
        their blocks and nothing else is read.
      wanted: by name.
    """
    for note in self.notes:
      _log.warning("%s: %s", self.directory, note)
    loaded = {}
    for name, shape in self.shapes.items():
      if not wanted(name):
        continue
      sharding = place(name, shape, self.dtype(name)) if place else None
      if sharding is None:
        loaded[name] = self.part(name, (slice(None),) * len(shape))
      else:
        loaded[name] = jax.make_array_from_callback(shape, sharding, lambda index, name=name: self.part(name, index))
    return loaded


def open_checkpoint(
    directory: str | os.PathLike, *, decoder: str | os.PathLike = "", seed: int = 0, image_head: str = ""
) -> Checkpoint:
  """Checks a directory, and opens it.

  Args:
    directory: config.json, safetensors in one file or several with an index, and tokenizer.json.
    decoder: a safetensors file with the VQGAN's decoder, in the place of the directory's.
    seed: of a fresh diffusion head.
    image_head: what it is read with: "diffusion", Orthus', fresh for a Chameleon or Anole; "codes", as the Chameleon that it
      is; empty for what its config.json says under our key, and Orthus' where it says nothing.

  Raises:
    BadRequest: naming everything that is missing, left over, cut off, of another shape or dtype, or not supported.
  """
  published_head.check_asked(image_head)
  directory, problems, notes = Path(directory), [], []
  said = read_json(directory / CONFIG_FILE, problems)
  sound = not problems
  found, absent = find_entries(directory, problems, notes)
  entries = canonical_entries(found, problems)
  if decoder:
    taken = decoder_entries(Path(decoder), problems)
    entries = {k: v for k, v in entries.items() if not (k.startswith(DECODER) and taken)} | taken
  said = {**said, "vq_config": _with_resolution(said.get("vq_config"), directory)}
  others = len(problems)
  model, sampling = read_config(said, {k: e.shape for k, e in entries.items()}, problems, notes, image_head=image_head)
  sound &= len(problems) == others
  tokenizer = None
  try:
    tokenizer = processor.read_tokenizer(directory)
    if sound:
      model = _with_tokens(model, tokenizer, said)
    if sound and any((directory / f).is_file() for f in (processor.IMAGE_FILE, processor.PROCESSOR_FILE)):
      pixels = processor.read_pixels(directory, resolution=model.vision_tokenizer.resolution)
      vision = dataclasses.replace(model.vision_tokenizer, pixels=pixels)
      model = dataclasses.replace(model, vision_tokenizer=vision)
  except BadRequest as e:
    problems.append(str(e).removeprefix(f"{directory}/"))
  fresh: dict[str, np.ndarray] = {}
  shapes: dict[str, tuple[int, ...]] = {}
  if sound:
    shapes = describe(model)[1]
    needed_arrays.tie(said, entries, notes)
    lacking = () if absent else needed_arrays.lacking(model, entries, notes)
    expected = {k: p for k, p in names.table(shapes).items() if not p.name.startswith(lacking)}
    needed_arrays.check_arrays(entries, expected, absent, problems, notes)
    if not problems:
      fresh = needed_arrays.fresh(model, {n: s for n, s in shapes.items() if n.startswith(lacking)}, seed)
  if problems:
    raise refusal(f"{directory} can't be read as a checkpoint", problems)
  language = entries["model.norm.weight"].numpy_dtype
  param_dtype: Any = "bfloat16" if language == np.dtype("bfloat16") else "float32"
  transformer = dataclasses.replace(model.transformer, param_dtype=param_dtype)
  model = dataclasses.replace(model, transformer=transformer)
  if not model.vision_tokenizer.decoder:
    notes.append("there is no VQGAN decoder: this model can read pictures and not draw them (--decoder=FILE adds one)")
  assert tokenizer is not None, "its lack is a problem, and told above"
  return Checkpoint(directory, _config(model, sampling), tokenizer, shapes, entries, fresh, tuple(notes))


def _config(model: ModelConfig, sampling: Any) -> Config:
  """An experiment's config around a model: rows as long as fit."""
  length = min(DataConfig().sequence_length, model.transformer.max_positions)
  return Config(model=model, sampling=sampling, data=dataclasses.replace(DataConfig(), sequence_length=length))


def _with_resolution(vq: Any, directory: Path) -> Any:
  """The VQGAN's config with the resolution that the image processor's file says, where it says none itself."""
  if vq is None:
    vq = {}
  if not isinstance(vq, Mapping) or vq.get("resolution") is not None:
    return vq
  for file in (processor.IMAGE_FILE, processor.PROCESSOR_FILE):
    try:
      said = json_files.load(directory / file)
      crop = said.get("image_processor", said)["crop_size"]
      return {**vq, "resolution": crop["height"] if isinstance(crop, Mapping) else crop}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      continue  # what is wrong with it is told where it is read in earnest
  return vq


def _with_tokens(model: ModelConfig, tokenizer: TextTokenizer, said: Mapping[str, Any]) -> ModelConfig:
  """The model with image codes where its tokenizer has them."""
  codes, vocabulary = model.vision_tokenizer.codes, model.transformer.vocab_size
  if tokenizer.vocab_size > vocabulary:
    raise BadRequest(f"tokenizer.json has ids up to {tokenizer.vocab_size - 1}, config.json vocab_size={vocabulary}")
  if len(tokenizer.image_codes) != codes:
    raise BadRequest(f"tokenizer.json has {len(tokenizer.image_codes)} image codes, the VQGAN {codes}")
  start = tokenizer.image_codes.start
  mapped = said.get("vocabulary_map")
  if isinstance(mapped, Mapping) and mapped.get(image_code_name(0), start) != start:
    raise BadRequest(f"config.json: vocabulary_map and tokenizer.json differ about {image_code_name(0)}")
  return dataclasses.replace(model, image_token_start=start)


def size_bytes(arrays: Iterable[tuple[np.dtype, tuple[int, ...]]]) -> int:
  """Of all arrays together."""
  return sum(np.dtype(d).itemsize * math.prod(s) for d, s in arrays)
