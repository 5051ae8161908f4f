"""What arrays a model needs of a checkpoint: those that it never holds are lent or made, and the rest must fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from orthus_jax.config import ModelConfig
from orthus_jax.interop import names, safetensors
from orthus_jax.interop.published_arrays import DECODER
from orthus_jax.models import params as params_lib, systems

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_CODEBOOK_IN, _CODEBOOK = "model.codebook_in.weight", "model.vqmodel.quantize.embedding.weight"

_FRESH = "this is no Orthus yet: codebook_in starts as the VQGAN's codebook, and the diffusion head fresh"
_OF_CODES = "as a Chameleon it draws codes by the LM head's image rows, trained in Anole and not in the published Chameleon"


def tie(said: Mapping[str, Any], entries: dict[str, safetensors.Entry], notes: list[str]) -> None:
  """Where the token embedding and the LM head are one array, lends it to the one that isn't there."""
  if not said.get("tie_word_embeddings"):
    return
  if _HEAD in entries and _EMBEDDING in entries:
    notes.append(f"tie_word_embeddings is true, but {_HEAD} and {_EMBEDDING} are both there: each is read as it is")
  for missing, lent in ((_HEAD, _EMBEDDING), (_EMBEDDING, _HEAD)):
    if missing not in entries and lent in entries:
      entries[missing] = entries[lent]


def lacking(model: ModelConfig, entries: dict[str, safetensors.Entry], notes: list[str]) -> tuple[str, ...]:
  """Beginnings of the names of what this kind of checkpoint never holds; `codebook_in` is lent the VQGAN's codebook."""
  starts: list[str] = []
  if _CODEBOOK_IN not in entries and not any(k.startswith("mlp_head.") for k in entries):
    notes.append(_FRESH if systems.image_head(model).has_parameters else _OF_CODES)
    starts.append("image_head/")
    if _CODEBOOK in entries:
      entries[_CODEBOOK_IN] = entries[_CODEBOOK]
  if not any(k.startswith((DECODER, "model.vqmodel.post_quant_conv.")) for k in entries):
    starts.append("vision_tokenizer/post_quant_conv/")
  return tuple(starts)


def fresh(model: ModelConfig, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
  """New values of parameters that a checkpoint lacks: the diffusion head's, and zeros of a convolution never used.

  Args:
    model: that they are part of.
    shapes: theirs, by our names.
    seed: of the diffusion head.
  """
  values = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
  if any(n.startswith("image_head/") for n in shapes):
    head = systems.image_head(model)(model, rngs=params_lib.Keys(seed))
    values |= {f"image_head/{n}": np.asarray(v) for n, v in params_lib.split(head)[1].items()}
  return values


def lent(model: ModelConfig) -> dict[str, str]:
  """Parameters that a published checkpoint of this kind of model never holds, and which of its own each is.

  Where patches are codes, there is one codebook.
  """
  return {"vision_embedding/codebook": "vision_tokenizer/codebook"} if systems.image_head(model).of_codes else {}


def published(model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
  """Shapes of the parameters that a published checkpoint of a model holds."""
  return {n: s for n, s in shapes.items() if n not in lent(model)}


def check_arrays(
    entries: Mapping[str, safetensors.Entry],
    expected: Mapping[str, names.Place],
    absent: bool,
    problems: list[str],
    notes: list[str],
) -> None:
  """Notes every array that is missing, left over, of another shape, or of a dtype that isn't read.

  Args:
    entries: by published key.
    expected: where each belongs, by published key.
    absent: whether there may be more of them than could be found.
    problems: gets a line for each.
    notes: gets a line with parameters whose layers are of several dtypes.
  """
  if not absent:
    problems += [f"{k} {_dims(p.shape)} is missing" for k, p in expected.items() if k not in entries]
  problems += [f"{k} {_dims(e.shape)} is unknown" for k, e in entries.items() if k not in expected]
  dtypes: dict[str, set[np.dtype]] = {}
  for key, place in expected.items():
    if key not in entries:
      continue
    entry = entries[key]
    if entry.shape != place.shape:
      problems.append(f"{key} is {_dims(entry.shape)} where {_dims(place.shape)} is expected")
    if entry.numpy_dtype is None:
      problems.append(f"{key} is of dtype {entry.dtype}: only F64, F32, F16 and BF16 are read, so save it as one of them")
    else:
      dtypes.setdefault(place.name, set()).add(entry.numpy_dtype)
  mixed: dict[str, list[str]] = {}
  for name, found in dtypes.items():
    if len(found) > 1:
      mixed.setdefault(widest(found).name, []).append(name)
  notes += [f"layers of {', '.join(n)} differ in dtype: they are stacked as {dtype}" for dtype, n in mixed.items()]


def widest(dtypes: set[np.dtype]) -> np.dtype:
  """What holds every value of these floats; of float16 and bfloat16, neither holds the other."""
  if len(dtypes) == 1:
    return next(iter(dtypes))
  return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def _dims(shape: Iterable[int]) -> str:
  return "x".join(map(str, shape)) or "scalar"
