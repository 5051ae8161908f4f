"""A native checkpoint made a Hugging Face directory, a piece at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import functools
import json
import math
from pathlib import Path
import re

import numpy as np
import tensorstore as ts

from orthus_jax import files
from orthus_jax.config import LoraConfig, ModelConfig
from orthus_jax.errors import BadRequest
from orthus_jax.interop import huggingface, names, needed_arrays, published_arrays, published_files, safetensors
from orthus_jax.interop.published_config import write_config
from orthus_jax.models import lora, params as params_lib
from orthus_jax.models.orthus import describe
from orthus_jax.training.checkpoints import workdir as checkpoint, zarr_arrays
from orthus_jax.training.checkpoints.conversion import (
  AHEAD,
  ORIGINALS,
  Progress,
  Result,
  check_space,
  check_target,
  stored_dtype,
)
from orthus_jax.training.checkpoints.merging import Merging


def to_huggingface(
    source: Path,
    target: Path,
    *,
    dtype: str = "keep",
    shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> Result:
  """Writes a Hugging Face directory of a native checkpoint, its averaged parameters where it has some, adapters merged.

  Args:
    source: a run's directory, or one of its checkpoints.
    target: made here; may be an empty directory.
    dtype: of every array: "keep", "float32" or "bfloat16".
    shard_bytes: a file holds no more, unless one array does.
    progress: called with (bytes done, in all).

  Raises:
    BadRequest: naming all that is wrong with the source, or why the target can't be written.
  """
  check_target(source, target)
  run, step = checkpoint.find(source)
  config = checkpoint.load_config(run)
  if config.task != "orthus":
    raise BadRequest(f"{source} holds a {config.task}, not an Orthus: give a run of task \"orthus\"")
  checkpoint.load_tokenizer(run, step)
  write_config(config.model, config.sampling, dtype="float32")  # refuses what the format can't say before work is done
  stored = _open_native(run / "checkpoints" / str(step))
  handles = {n: handle for n, (_, handle) in stored.items()}
  wrong = params_lib.differences({n: tuple(h.shape) for n, h in handles.items()}, describe(config.model)[1])
  if wrong:
    raise huggingface.refusal(f"{source} doesn't fit its config", wrong)
  _check_lent(config.model, handles)
  own = lora.names(handles)
  # Each adapter is read with its weight.
  merging = {
      n: functools.partial(Merging.read, handles, n, config.model.lora) for n in handles if lora.names_of(n)[0] in own
  }
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LoraConfig()))
  shapes = needed_arrays.published(config.model, describe(config.model)[1])
  stored = {n: v for n, v in stored.items() if n in shapes}
  table = names.table(shapes)
  dtypes = {n: stored_dtype(h.dtype.numpy_dtype, dtype) for n, (_, h) in stored.items()}
  total = huggingface.size_bytes((dtypes[n], s) for n, s in shapes.items())
  check_space(target, total)
  shards = _shards(table, dtypes, shard_bytes)

  with files.staged(target) as folder, contextlib.ExitStack() as opened:
    where: dict[str, safetensors.Writer] = {}
    for file, keys in shards.items():
      rows = [(k, dtypes[table[k].name], table[k].shape) for k in keys]
      where |= dict.fromkeys(keys, opened.enter_context(safetensors.Writer(folder / file, rows)))
    keys_of: dict[str, list[str]] = {}
    for key, place in table.items():
      keys_of.setdefault(place.name, []).append(key)
    done = 0
    for name, (folder_of, handle) in stored.items():
      adapter = merging[name]() if name in merging else None
      for size in _export(folder_of, name, handle, keys_of[name], table, where, dtypes[name], adapter):
        done += size
        if progress:
          progress(done, total)
    opened.close()
    if len(shards) > 1:
      index = {"metadata": {"total_size": total}, "weight_map": {k: f for f, keys in shards.items() for k in keys}}
      files.write_text(folder / published_arrays.INDEX_FILE, json.dumps(index, indent=2) + "\n")
    language = dtypes["transformer/norm/scale"].name
    notes = published_files.write(
        folder, config, run=run, originals=run / ORIGINALS, dtype=language, changed=dtype != "keep"
    )
  if merging:
    coarse = any(dtypes[n] != np.float32 for n in merging)
    rounded = ", which rounds them to bfloat16; --dtype=float32 doesn't" if coarse else ""
    notes = [f"the adapters of {len(merging)} stacked weights are merged into them{rounded}", *notes]
  return Result(len(table), total, tuple(notes))


def _check_lent(model: ModelConfig, handles: Mapping[str, ts.TensorStore]) -> None:
  """Refuses a model that reads by one codebook and draws by another, where the published format has a place for one."""
  for name, lent in needed_arrays.lent(model).items():
    if not np.array_equal(handles[name].read().result(), handles[lent].read().result()):
      raise BadRequest(
          f"{name} differs from {lent}, and a published Chameleon has a place for one codebook: such a model can't be exported"
      )


def _open_native(folder: Path) -> dict[str, tuple[Path, ts.TensorStore]]:
  """Every array and the folder that holds it: the averaged parameters', or the others'."""
  stored = {}
  try:
    for part in (folder / "params", folder / "average"):
      if part.is_dir() or part.name == "params":
        stored |= {n: (part, handle) for n, handle in zarr_arrays.open_arrays(part).items()}
  except Exception as e:  # the library's errors are of many kinds
    raise BadRequest(f"{folder} can't be read as a checkpoint: {files.first_line(e)}") from e
  return stored


def _shards(
    table: Mapping[str, names.Place], dtypes: Mapping[str, np.dtype], limit: int
) -> dict[str, list[str]]:
  """Which file holds which keys: in the order of layers, filled up to the limit."""

  def natural(key: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]

  groups: list[list[str]] = [[]]
  held = 0
  for key in sorted(table, key=natural):
    size = math.prod(table[key].shape) * dtypes[table[key].name].itemsize
    if groups[-1] and held + size > limit:
      groups.append([])
      held = 0
    groups[-1].append(key)
    held += size
  if len(groups) == 1:
    return {published_arrays.SINGLE_FILE: groups[0]}
  return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": keys for i, keys in enumerate(groups, 1)}


def _export(
    folder: Path,
    name: str,
    handle: ts.TensorStore,
    keys: list[str],
    table: Mapping[str, names.Place],
    where: Mapping[str, safetensors.Writer],
    dtype: np.dtype,
    merging: Merging | None,
) -> Iterator[int]:
  """Writes the published arrays of one parameter, one of `keys` a layer; yields the bytes of each piece."""
  shape = tuple(handle.shape)
  stacked = table[keys[0]].layer is not None
  order = names.torch_order(name, len(shape) - stacked)
  spec = zarr_arrays.Spec(shape, handle.dtype.numpy_dtype, order, stacked)
  axis, published = order[0], table[keys[0]].shape
  per_index = published[0] // spec.layer_shape[axis]
  row_bytes = math.prod(published[1:]) * dtype.itemsize
  chunks = zarr_arrays.raw_chunks(folder, name, spec) if dtype == spec.dtype and not merging else None
  if chunks is not None:
    for layer, begin, size, file in chunks:
      where[keys[layer]].copy(keys[layer], file, size, offset=begin * per_index * row_bytes)
      yield size
    return
  # Orbax' own layout, another dtype, or an adapter. A chunk is decoded whole: what of it is wanted had better be read at once.
  chunk = zarr_arrays.read_chunk(handle)
  if not stacked:
    handle, chunk = handle[ts.newaxis], (1, *chunk)
  handle = handle.transpose([0, *(a + 1 for a in order)])
  of_one = math.prod(spec.layer_shape) // spec.layer_shape[axis] * spec.dtype.itemsize
  rows = zarr_arrays.piece_rows(spec.layer_shape[axis], of_one * chunk[0])
  rows = -(-max(rows, chunk[axis + 1]) // chunk[axis + 1]) * chunk[axis + 1]
  pending: deque[tuple[slice, int, ts.Future]] = deque()

  def write() -> int:
    layers, begin, future = pending.popleft()
    value = future.result()
    if merging:
      value = value.astype(np.float32) + merging.piece(layers, order, begin, value.shape[1])
    value = value.astype(dtype, copy=False)
    for key, part in zip(keys[layers], value):
      where[key].write(key, part, offset=begin * per_index * row_bytes)
    return value.nbytes

  for layer in range(0, len(keys), chunk[0]):
    layers = slice(layer, min(layer + chunk[0], len(keys)))
    for begin in range(0, spec.layer_shape[axis], rows):
      if len(pending) == AHEAD:
        yield write()
      part = handle[layers, begin : min(begin + rows, spec.layer_shape[axis])]
      pending.append((layers, begin, part.read(order="C")))
  while pending:
    yield write()
