"""Runs and checkpoints on disk: one layout, whatever the mesh; `saver.py` writes it.

    WORKDIR/config.json  tokenizer.json  versions.json
    WORKDIR/checkpoints/STEP/params  average  optimizer  metrics  manifest.json

`params` holds every parameter under its name and in its trained dtype; `average` the running average where there is one.
Small arrays are kept as one (`small_arrays.py`); `orbax_items.read` gives them back by their names.
A directory that `orthus convert` made has `params` alone, at step 0, in the layout of `zarr_arrays.py`, which is read
like Orbax' own.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
from pathlib import Path
import platform
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from orthus_jax import files
from orthus_jax.config import Config, from_dict, to_dict
from orthus_jax.errors import BadRequest
from orthus_jax.interop import huggingface
from orthus_jax.interop.huggingface import Place
from orthus_jax.models.params import Params
from orthus_jax.training.checkpoints import manifest, orbax_items

_log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
  """What a run was made with."""
  names = ("orthus_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  found = {"python": platform.python_version()}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "not installed"
  return found


def find(path: str | os.PathLike) -> tuple[Path, int]:
  """The run directory and step that a path stands for: a run (its newest step) or one step's directory.

  Raises:
    BadRequest: if there is no complete checkpoint.
  """
  path = Path(path).absolute()
  if path.parent.name == "checkpoints" and path.name.isdigit() and path.is_dir():
    if reason := manifest.damage(path, read=False):
      raise BadRequest(f"the checkpoint {path} is damaged: {reason}; `orthus runs {path.parent.parent}` shows which aren't")
    return path.parent.parent, int(path.name)
  found = steps(path)
  if not found:
    raise BadRequest(f"{path} holds no checkpoint: give a run's directory (with checkpoints/) or one of its checkpoints")
  for step in reversed(found):
    reason = manifest.damage(path / "checkpoints" / str(step), read=False)
    if reason is None:
      return path, step
    _log.warning("passed over the checkpoint of step %d: %s", step, reason)
  raise BadRequest(f"all {len(found)} checkpoints of {path} are damaged (step {step}: {reason}): bring one back")


def steps(run: Path) -> list[int]:
  """The steps of a run's checkpoints, in order; what a save left half-written isn't one."""
  folder = run / "checkpoints"
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def free_name(path: Path) -> Path:
  """The path, or the first of PATH-2, PATH-3, … that isn't taken."""
  n, place = 1, path
  while place.exists():
    n += 1
    place = path.with_name(f"{path.name}-{n}")
  return place


def load_config(run: Path) -> Config:
  """The config that a run was started with."""
  file = run / "config.json"
  try:
    return from_dict(Config, json.loads(file.read_text(encoding="utf-8")))
  except FileNotFoundError as e:
    raise BadRequest(f"{file} is missing: a run's directory holds it beside its checkpoints") from e
  except ValueError as e:
    raise BadRequest(f"{file} is damaged: {e}") from e


def load_params(path: str | os.PathLike, *, average: bool = True, place: Place | None = None) -> Params:
  """All parameters of a checkpoint, averaged ones in the place of their own where there are any.

  Args:
    path: a run's directory, one checkpoint, a Hugging Face directory, an .npz of named arrays, or "asset:NAME" for
      weights in the package.
    average: prefer the running average.
    place: (name, shape, dtype) → the sharding that an array is read onto, each device's part alone; None for a numpy
      array, as all are without this argument and from an .npz.
  """
  text = str(path)
  if text.startswith("asset:"):
    path = files.ASSETS / f"{text.removeprefix('asset:')}.npz"
    if not path.is_file():
      raise BadRequest(f"no shipped weights are called {text.removeprefix('asset:')!r}")
  if str(path).endswith(".npz"):
    try:
      with np.load(path) as file:
        return {n: file[n].astype(np.float32) if file[n].dtype == np.float16 else file[n] for n in file.files}
    except (OSError, ValueError) as e:
      raise BadRequest(f"{path} can't be read as named arrays: {e}") from e
  if huggingface.is_checkpoint(path):
    return huggingface.open_checkpoint(path).load(place)
  run, step = find(path)
  with orbax_items.quiet(), ocp.StandardCheckpointer() as reader:
    folder = run / "checkpoints" / str(step)
    params = orbax_items.read(reader, folder / "params", place)
    if average and (folder / "average").is_dir():
      params |= orbax_items.read(reader, folder / "average", place)
  return params


# What may change from one start to the next: where and how fast the same numbers are computed, and what is kept of them.
_FREE = (
    "mesh", "optimizer.accumulation", "model.transformer.remat", "model.transformer.scan_unroll",
    "model.transformer.attention", "model.transformer.attention_block", "model.transformer.attention_backward",
    "model.transformer.loss_chunk", "run.log_every",
    "run.sample_every", "run.checkpoint_every", "run.keep_checkpoints", "run.keep_every", "run.keep_best", "run.report",
    "run.profile_steps", "run.compiler_options", "run.peak_tflops", "run.max_skipped", "run.spike_deviations",
    "run.hang_timeout",
)  # fmt: skip


def check_workdir(workdir: Path, config: Config) -> bool:
  """Whether a run of this config lives in `workdir` already, if on another mesh; writes nothing.

  Raises:
    BadRequest: if another config's run lives there.
  """
  file = workdir / "config.json"
  if not file.is_file():
    if workdir.exists() and not workdir.is_dir():
      raise BadRequest(f"{workdir} is a file: choose another --workdir")
    return False
  wanted = to_dict(config)
  try:
    there = json.loads(file.read_text(encoding="utf-8"))
  except ValueError:
    there = None
  differing = _differences(there, wanted) if isinstance(there, dict) else ["config.json"]
  refused = [field for field in differing if not any(field == f or field.startswith(f"{f}.") for f in _FREE)]
  if refused:
    raise BadRequest(f"{workdir} holds a run of another config ({refused[0]} differs): choose another --workdir or remove it")
  if differing:
    _log.info("other than when the run began: %s", ", ".join(differing))
  return True


def open_workdir(workdir: Path, config: Config) -> None:
  """Makes a run's directory, or finds the one that is there; raises as `check_workdir` does."""
  if not check_workdir(workdir, config):
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(workdir / "versions.json", json.dumps(versions(), indent=2) + "\n")
  files.write_text(workdir / "config.json", json.dumps(to_dict(config), indent=2) + "\n")  # last: it marks a run


def _differences(a: Any, b: Any, where: str = "") -> list[str]:
  """Fields that two configs don't agree on, dotted."""
  if isinstance(a, dict) and isinstance(b, dict):
    return [
        field for k in sorted({*a, *b}) if a.get(k) != b.get(k)
        for field in _differences(a.get(k), b.get(k), f"{where}.{k}" if where else k)
    ]  # fmt: skip
  return [where or "config"]
