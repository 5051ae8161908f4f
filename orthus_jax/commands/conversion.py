"""Between Hugging Face directories and native ones, both ways, a piece at a time.

What is held at once is a few pieces of at most 64 MiB, whatever the model's size (`interop/arrays.py` says how the
native arrays lie). A target appears under its name only when all of it is on the disk: it is written beside that name,
synced and renamed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import contextlib
import dataclasses
import errno
import json
import math
import os
from pathlib import Path
import re
import shutil
import tempfile
from typing import Any

import numpy as np
import tensorstore as ts

from orthus_jax.config import BadRequest, to_dict
from orthus_jax.interop import arrays, huggingface, names, published_files, safetensors
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import describe
from orthus_jax.training import checkpoint

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
    specs[name] = arrays.Spec(shape, _dtype(found.dtype(name), dtype), order, stacked)
  total = huggingface.size_bytes((s.dtype, s.shape) for s in specs.values())
  _check_space(target, total)
  model = found.config.model
  norm = specs["transformer/norm/scale"].dtype.name
  if norm != model.transformer.param_dtype and norm in ("float32", "bfloat16"):
    transformer = dataclasses.replace(model.transformer, param_dtype=norm)
    model = dataclasses.replace(model, transformer=transformer)
  config = dataclasses.replace(found.config, model=model)

  with _staged(target) as folder:
    (folder / "checkpoints" / "0").mkdir(parents=True)
    writer = arrays.Writer(folder / "checkpoints" / "0" / "params", specs)
    done, pending = 0, deque()
    for name, spec in specs.items():
      for index, value in _pieces(found, name, spec):
        value = value.astype(spec.dtype, copy=False)
        if len(pending) == _AHEAD:
          pending.popleft().result()
        pending.append(writer.write(name, index, value))
        done += value.nbytes
        if progress:
          progress(done, total)
    while pending:
      pending.popleft().result()
    checkpoint.write_text(folder / "config.json", json.dumps(to_dict(config), indent=2) + "\n")
    checkpoint.write_text(folder / "versions.json", json.dumps(checkpoint.versions(), indent=2) + "\n")
    found.tokenizer.save(folder)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")  # byte for byte
    published_files.keep(source, folder / ORIGINALS)
  return Result(len(specs), total, found.notes)


def _pieces(
    found: huggingface.Checkpoint, name: str, spec: arrays.Spec
) -> Iterator[tuple[tuple[int | slice, ...], np.ndarray]]:
  """A parameter's chunks: where each belongs, and its values in our axes."""
  if name in found.fresh:
    yield (slice(None),) * len(spec.shape), found.fresh[name]
    return
  axis, inner = spec.order[0], spec.layer_shape
  layout = names.published_name(name)[1]
  for layer in range(spec.shape[0] if spec.stacked else 1):
    entry = found.entry(name, layer)
    per_index = entry.shape[0] // inner[axis]  # published rows: q's are those of all heads, H of each
    for begin in range(0, inner[axis], spec.rows):
      index = [slice(None)] * len(inner)
      index[axis] = slice(begin, begin + spec.rows)
      shape = (*inner[:axis], spec.rows, *inner[axis + 1 :])
      value = entry.read(begin * per_index, (begin + spec.rows) * per_index)
      yield (layer, *index) if spec.stacked else tuple(index), names.from_torch(value, shape, layout)


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
  handles = _open_native(run / "checkpoints" / str(step))
  shapes = describe(config.model)[1]
  wrong = params_lib.differences({n: tuple(h.shape) for n, h in handles.items()}, shapes)
  if wrong:
    raise huggingface.refusal(f"{source} doesn't fit its config", wrong)
  table = names.table(shapes)
  dtypes = {n: _dtype(h.dtype.numpy_dtype, dtype) for n, h in handles.items()}
  total = huggingface.size_bytes((dtypes[n], s) for n, s in shapes.items())
  _check_space(target, total)
  shards = _shards(table, dtypes, shard_bytes)

  with _staged(target) as folder, contextlib.ExitStack() as files:
    where: dict[str, safetensors.Writer] = {}
    for file, keys in shards.items():
      rows = [(k, dtypes[table[k].name], table[k].shape) for k in keys]
      where |= dict.fromkeys(keys, files.enter_context(safetensors.Writer(folder / file, rows)))
    done = 0
    for keys, offset, value in _published_pieces(handles, table):
      for key, part in zip(keys, value):
        part = part.astype(dtypes[table[key].name], copy=False)
        rows = table[key].shape[0] if table[key].shape else 1
        size = math.prod(table[key].shape) * part.itemsize
        where[key].write(key, part, offset=size // rows * offset)
        done += part.nbytes
      if progress:
        progress(done, total)
    files.close()
    if len(shards) > 1:
      index = {"metadata": {"total_size": total}, "weight_map": {k: f for f, keys in shards.items() for k in keys}}
      checkpoint.write_text(folder / huggingface.INDEX_FILE, json.dumps(index, indent=2) + "\n")
    language = dtypes["transformer/norm/scale"].name
    notes = published_files.write(
        folder, config, run=run, originals=run / ORIGINALS, dtype=language, changed=dtype != "keep"
    )
  return Result(len(table), total, tuple(notes))


def _open_native(folder: Path) -> dict[str, ts.TensorStore]:
  try:
    handles = arrays.open_arrays(folder / "params")
    if (folder / "average").is_dir():
      handles |= arrays.open_arrays(folder / "average")
    return handles
  except Exception as e:  # the library's errors are of many kinds
    raise BadRequest(f"{folder} can't be read as a checkpoint: {_first_line(e)}") from e


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


def _published_pieces(
    handles: Mapping[str, ts.TensorStore], table: Mapping[str, names.Place]
) -> Iterator[tuple[list[str], int, np.ndarray]]:
  """All arrays in published order of axes: (keys of some layers, the first row, values [those layers, rows, …])."""
  keys: dict[str, list[str]] = {}
  for key, place in table.items():
    keys.setdefault(place.name, []).append(key)
  pending: deque[tuple[list[str], int, tuple[int, ...], ts.Future]] = deque()
  for name, handle in handles.items():
    chunk = tuple(handle.chunk_layout.read_chunk.shape)
    stacked = table[keys[name][0]].layer is not None
    if not stacked:
      handle, chunk = handle[ts.newaxis], (1, *chunk)
    shape = tuple(handle.shape)
    order = names.torch_order(name, len(shape) - 1)
    handle = handle.transpose([0, *(a + 1 for a in order)])
    axis = order[0] + 1
    per_index = table[keys[name][0]].shape[0] // shape[axis]
    # A chunk is decoded whole: whatever of it is wanted had better be read at once.
    rows = arrays.piece_rows(shape[axis], math.prod(shape[1:]) // shape[axis] * handle.dtype.numpy_dtype.itemsize)
    rows = -(-max(rows, chunk[axis]) // chunk[axis]) * chunk[axis]
    for layer in range(0, shape[0], chunk[0]):
      layers = slice(layer, min(layer + chunk[0], shape[0]))
      for begin in range(0, shape[axis], rows):
        if len(pending) == _AHEAD:
          yield _read(pending.popleft())
        end = min(begin + rows, shape[axis])
        published = ((end - begin) * per_index, *table[keys[name][0]].shape[1:])
        read = handle[layers, begin:end].read(order="C")
        pending.append((keys[name][layers], begin * per_index, published, read))
  while pending:
    yield _read(pending.popleft())


def _read(piece: tuple[list[str], int, tuple[int, ...], ts.Future]) -> tuple[list[str], int, np.ndarray]:
  keys, offset, shape, future = piece
  return keys, offset, future.result().reshape(len(keys), *shape)


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


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
  """A folder beside the target that takes its name once all is written and synced, and vanishes otherwise."""
  target = target.absolute()
  folder: Path | None = None
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.unfinished-"))
    os.chmod(folder, 0o755)
    yield folder
    with futures.ThreadPoolExecutor(16) as threads:  # a disk that is asked for many at once answers them together
      list(threads.map(_sync, (*folder.rglob("*"), folder)))
    os.rename(folder, target)  # onto nothing, or an empty directory
    folder = None
    _sync(target.parent)
  except BadRequest:
    raise
  except (OSError, ValueError, RuntimeError, safetensors.Damaged) as e:
    # tensorstore tells of a full disk by ValueError, whose text names it.
    full = getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(e)
    what = "the disk is full" if full else _first_line(e)
    raise BadRequest(f"--to={target} couldn't be written, and nothing is left of it: {what}") from e
  finally:
    if folder is not None:
      shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _first_line(error: Exception) -> str:
  return (str(error) or type(error).__name__).splitlines()[0]
