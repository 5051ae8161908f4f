"""A Hugging Face directory made a native checkpoint, a piece at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
import dataclasses
import json
from pathlib import Path
from typing import Any

import tensorstore as ts

from orthus_jax import files
from orthus_jax.config import to_dict
from orthus_jax.interop import huggingface, json_files, names, published_files
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


def to_native(
    source: Path,
    target: Path,
    *,
    dtype: str = "keep",
    decoder: str = "",
    seed: int = 0,
    image_head: str = "",
    progress: Progress | None = None,
) -> Result:
  """Writes a native checkpoint of a Hugging Face directory.

  Args:
    source: of Orthus, Anole or Chameleon.
    target: made here; may be an empty directory.
    dtype: of every array: "keep", "float32" or "bfloat16".
    decoder: a file with a VQGAN decoder; see `huggingface.open_checkpoint`.
    seed: of a fresh diffusion head.
    image_head: what it is read with, "diffusion" or "codes"; see `huggingface.open_checkpoint`.
    progress: called with (bytes done, in all).

  Raises:
    BadRequest: naming all that is wrong with the source, or why the target can't be written.
  """
  check_target(source, target)
  found = huggingface.open_checkpoint(source, decoder=decoder, seed=seed, image_head=image_head)
  specs = {}
  for name, shape in found.shapes.items():
    stacked = found.stacked(name)
    order = names.torch_order(name, len(shape) - stacked)
    specs[name] = zarr_arrays.Spec(shape, stored_dtype(found.dtype(name), dtype), order, stacked)
  total = huggingface.size_bytes((s.dtype, s.shape) for s in specs.values())
  check_space(target, total)
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
    (folder / "tokenizer.json").write_bytes(json_files.without_mark(source / "tokenizer.json"))  # else byte for byte
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
      if len(pending) == AHEAD:
        pending.popleft().result()
      where: tuple[Any, ...] = (layer, *index) if spec.stacked else tuple(index)
      pending.append(writer.write(name, where, value.astype(spec.dtype)))
      yield value.size * spec.dtype.itemsize
  while pending:
    pending.popleft().result()
