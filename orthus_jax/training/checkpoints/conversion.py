"""Between Hugging Face directories and native ones, both ways, a piece at a time.

What is held at once is a few pieces of at most 64 MiB, whatever the model's size (`interop/arrays.py` says how the
native arrays lie). A target appears under its name only when all of it is on the disk: it is written beside that name,
synced and renamed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import json
import math
from pathlib import Path
import re
import shutil

import numpy as np
import tensorstore as ts

from orthus_jax import files
from orthus_jax.config import to_dict
from orthus_jax.errors import BadRequest
from orthus_jax.interop import huggingface, names, published_files, safetensors
from orthus_jax.interop.published_config import write_config
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import describe
from orthus_jax.training.checkpoints import workdir as checkpoint, zarr_arrays

ORIGINALS = "huggingface"  # where a native directory keeps the files that it came with
_AHEAD = 2  # pieces on their way while another is worked on

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Result:
  """What was written: arrays, their bytes, and what the reader should know, a line each."""

  arrays: int
  bytes: int
  notes: tuple[str, ...]


def to_native(
    source: Path,
    target: Path,
    *,
    dtype: str = "keep",
    decoder: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
  """Writes a native checkpoint of a Hugging Face directory.

  Args:
    source: of Orthus, Anole or Chameleon.
    target: made here; may be an empty directory.
    dtype: of every array: "keep", "float32" or "bfloat16".
    decoder: a file with a VQGAN decoder; see `huggingface.open_checkpoint`.
    seed: of a fresh diffusion head.
    progress: called with (bytes done, in all).

  Raises:
    BadRequest: naming all that is wrong with the source, or why the target can't be written.
  """
  _check_target(source, target)
  found = huggingface.open_checkpoint(source, decoder=decoder, seed=seed)
  specs = {}
  for name, shape in found.shapes.items():
    stacked = found.stacked(name)
    order = names.torch_order(name, len(shape) - stacked)
    specs[name] = zarr_arrays.Spec(shape, _dtype(found.dtype(name), dtype), order, stacked)
  total = huggingface.size_bytes((s.dtype, s.shape) for s in specs.values())
  _check_space(target, total)
  model = found.config.model
  norm = specs["transformer/norm/scale"].dtype.name
  if norm != model.transformer.param_dtype and norm in ("float32", "bfloat16"):
    transformer = dataclasses.replace(model.transformer, param_dtype=norm)
    model = dataclasses.replace(model, transformer=transformer)
  config = dataclasses.replace(found.config, model=model)

  with files.staged(target) as folder:
    (folder / "checkpoints" / "0").mkdir(parents=True)
    writer = zarr_arrays.Writer(folder / "checkpoints" / "0" / "params", specs)
    done = 0
    for name, spec in specs.items():
      for size in _import(found, name, spec, writer):
        done += size
        if progress:
          progress(done, total)
    files.write_text(folder / "config.json", json.dumps(to_dict(config), indent=2) + "\n")
    files.write_text(folder / "versions.json", json.dumps(checkpoint.versions(), indent=2) + "\n")
    found.tokenizer.save(folder)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")  # byte for byte
    published_files.keep(source, folder / ORIGINALS)
  return Result(len(specs), total, found.notes)


def _import(found: huggingface.Checkpoint, name: str, spec: zarr_arrays.Spec, writer: zarr_arrays.Writer) -> Iterator[int]:
  """Writes one parameter; yields the bytes of each piece."""
  if name in found.fresh:
    value = found.fresh[name].astype(spec.dtype)
    writer.write(name, (slice(None),) * len(spec.shape), value).result()
    yield value.nbytes
    return
  axis, inner = spec.order[0], spec.layer_shape
  layout = names.published_name(name)[1]
  pending: deque[ts.Future] = deque()
  for layer in range(spec.shape[0] if spec.stacked else 1):
    entry = found.entry(name, layer)
    per_index = entry.shape[0] // inner[axis]  # published rows: q's are those of all heads, H of each
    for begin in range(0, inner[axis], spec.rows):
      first, last = begin * per_index, (begin + spec.rows) * per_index
      if entry.numpy_dtype == spec.dtype:
        yield writer.copy(name, layer, begin, entry.file, entry.begin + first * entry.row_bytes)
        continue
      index = [slice(None)] * len(inner)
      index[axis] = slice(begin, begin + spec.rows)
      value = names.from_torch(entry.read(first, last), (*inner[:axis], spec.rows, *inner[axis + 1 :]), layout)
      if len(pending) == _AHEAD:
        pending.popleft().result()
      where = (layer, *index) if spec.stacked else tuple(index)
      pending.append(writer.write(name, where, value.astype(spec.dtype)))
      yield value.size * spec.dtype.itemsize
  while pending:
    pending.popleft().result()


def to_huggingface(
    source: Path,
    target: Path,
    *,
    dtype: str = "keep",
    shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> Result:
  """Writes a Hugging Face directory of a native checkpoint, its averaged parameters where it has some.

  Args:
    source: a run's directory, or one of its checkpoints.
    target: made here; may be an empty directory.
    dtype: of every array: "keep", "float32" or "bfloat16".
    shard_bytes: a file holds no more, unless one array does.
    progress: called with (bytes done, in all).

  Raises:
    BadRequest: naming all that is wrong with the source, or why the target can't be written.
  """
  _check_target(source, target)
  run, step = checkpoint.find(source)
  config = checkpoint.load_config(run)
  if config.task != "orthus":
    raise BadRequest(f"{source} holds a {config.task}, not an Orthus: give a run of task \"orthus\"")
  write_config(config.model, config.sampling, dtype="float32")  # refuses what the format can't say before work is done
  stored = _open_native(run / "checkpoints" / str(step))
  handles = {n: handle for n, (_, handle) in stored.items()}
  shapes = describe(config.model)[1]
  wrong = params_lib.differences({n: tuple(h.shape) for n, h in handles.items()}, shapes)
  if wrong:
    raise huggingface.refusal(f"{source} doesn't fit its config", wrong)
  table = names.table(shapes)
  dtypes = {n: _dtype(h.dtype.numpy_dtype, dtype) for n, h in handles.items()}
  total = huggingface.size_bytes((dtypes[n], s) for n, s in shapes.items())
  _check_space(target, total)
  shards = _shards(table, dtypes, shard_bytes)

  with files.staged(target) as folder, contextlib.ExitStack() as opened:
    where: dict[str, safetensors.Writer] = {}
    for file, keys in shards.items():
      rows = [(k, dtypes[table[k].name], table[k].shape) for k in keys]
      where |= dict.fromkeys(keys, opened.enter_context(safetensors.Writer(folder / file, rows)))
    keys: dict[str, list[str]] = {}
    for key, place in table.items():
      keys.setdefault(place.name, []).append(key)
    done = 0
    for name, (folder_of, handle) in stored.items():
      for size in _export(folder_of, name, handle, keys[name], table, where, dtypes[name]):
        done += size
        if progress:
          progress(done, total)
    opened.close()
    if len(shards) > 1:
      index = {"metadata": {"total_size": total}, "weight_map": {k: f for f, keys in shards.items() for k in keys}}
      files.write_text(folder / huggingface.INDEX_FILE, json.dumps(index, indent=2) + "\n")
    language = dtypes["transformer/norm/scale"].name
    notes = published_files.write(
        folder, config, run=run, originals=run / ORIGINALS, dtype=language, changed=dtype != "keep"
    )
  return Result(len(table), total, tuple(notes))


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
    return {huggingface.SINGLE_FILE: groups[0]}
  return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": keys for i, keys in enumerate(groups, 1)}


def _export(
    folder: Path,
    name: str,
    handle: ts.TensorStore,
    keys: list[str],
    table: Mapping[str, names.Place],
    where: Mapping[str, safetensors.Writer],
    dtype: np.dtype,
) -> Iterator[int]:
  """Writes the published arrays of one parameter, one of `keys` a layer; yields the bytes of each piece."""
  shape = tuple(handle.shape)
  stacked = table[keys[0]].layer is not None
  order = names.torch_order(name, len(shape) - stacked)
  spec = zarr_arrays.Spec(shape, handle.dtype.numpy_dtype, order, stacked)
  axis, published = order[0], table[keys[0]].shape
  per_index = published[0] // spec.layer_shape[axis]
  row_bytes = math.prod(published[1:]) * dtype.itemsize
  chunks = zarr_arrays.raw_chunks(folder, name, spec) if dtype == spec.dtype else None
  if chunks is not None:
    for layer, begin, size, file in chunks:
      where[keys[layer]].copy(keys[layer], file, size, offset=begin * per_index * row_bytes)
      yield size
    return
  # Orbax' own layout, or another dtype. A chunk is decoded whole: whatever of it is wanted had better be read at once.
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
    value = future.result().astype(dtype, copy=False)
    for key, part in zip(keys[layers], value):
      where[key].write(key, part, offset=begin * per_index * row_bytes)
    return value.nbytes

  for layer in range(0, len(keys), chunk[0]):
    layers = slice(layer, min(layer + chunk[0], len(keys)))
    for begin in range(0, spec.layer_shape[axis], rows):
      if len(pending) == _AHEAD:
        yield write()
      part = handle[layers, begin : min(begin + rows, spec.layer_shape[axis])]
      pending.append((layers, begin, part.read(order="C")))
  while pending:
    yield write()


def _dtype(stored: np.dtype, asked: str) -> np.dtype:
  return np.dtype(stored if asked == "keep" else asked)


def _check_target(source: Path, target: Path) -> None:
  if not source.is_dir():
    raise BadRequest(f"--from={source} is no directory")
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise BadRequest(f"--to={target} exists already: choose another place, or remove it")
  if target.absolute().resolve().is_relative_to(source.absolute().resolve()):
    raise BadRequest(f"--to={target} lies within --from={source}: choose another place")


def _check_space(target: Path, size: int) -> None:
  place = target.absolute()
  while not place.exists():
    place = place.parent
  free = shutil.disk_usage(place).free
  if free < size:
    raise BadRequest(f"--to={target} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")
