"""A thin layer over Orbax: one layout on disk, whatever the mesh.

    WORKDIR/config.json  tokenizer.json  versions.json
    WORKDIR/checkpoints/STEP/params  average  optimizer

`params` holds every parameter under its name and in its trained dtype; `average` the running average where there is one.
A directory that `orthus convert` made has `params` alone, at step 0, in the layout of `interop/arrays.py`, which is read
like Orbax' own.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import importlib.metadata
import json
import logging
import os
from pathlib import Path
import platform
import tempfile
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from orthus_jax.config import BadRequest, Config, from_dict, to_dict
from orthus_jax.interop import arrays, huggingface
from orthus_jax.interop.huggingface import Place
from orthus_jax.models.params import Params
from orthus_jax.training.state import TrainState

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def write_text(path: Path, text: str) -> None:
  """Writes a file whole or not at all."""
  with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as f:
    f.write(text)
  os.chmod(f.name, 0o644)
  os.replace(f.name, path)


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


class Checkpointer:
  """Saves and restores a run's states, asynchronously.

  Args:
    workdir: the run's directory.
    keep: how many checkpoints stay.
  """

  def __init__(self, workdir: Path, *, keep: int):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=True)
    self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

  def latest(self) -> int | None:
    """The newest complete checkpoint's step."""
    return self._manager.latest_step()

  def save(self, state: TrainState) -> None:
    """Starts saving; returns once the state's buffers may be reused."""
    optimizer = {"step": state.step, "moments": state.moments}
    items = {"params": state.params, "optimizer": optimizer}
    if state.ema:
      items["average"] = state.ema
    args = {k: ocp.args.StandardSave(v, save_args=_in_pieces(v)) for k, v in items.items()}
    self._manager.save(int(state.step), args=ocp.args.Composite(**args))

  def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> TrainState:
    """Reads a checkpoint onto the mesh that `shardings` name."""
    def abstract(shape: Any, place: Any) -> Any:
      return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shape, place)

    s = abstract(shapes, shardings)
    items = {"params": s.params, "optimizer": {"step": s.step, "moments": s.moments}}
    if s.ema:
      items["average"] = s.ema
    args = {k: ocp.args.StandardRestore(v) for k, v in items.items()}
    read = self._manager.restore(step, args=ocp.args.Composite(**args))
    return TrainState(
        step=read["optimizer"]["step"],
        trained={n: read["params"][n] for n in s.trained},
        frozen={n: read["params"][n] for n in s.frozen},
        moments=read["optimizer"]["moments"],
        ema=read["average"] if s.ema else {},
    )

  def close(self) -> None:
    """Waits for what is being saved."""
    self._manager.wait_until_finished()
    self._manager.close()


def _in_pieces(tree: Any) -> Any:
  """Has large arrays saved in chunks of a layer or less, so that a conversion can read one at a time."""

  def args(path: Any, value: Any) -> ocp.SaveArgs:
    if value.nbytes <= arrays.PIECE:
      return ocp.SaveArgs()
    stacked = "/layers/" in jax.tree_util.keystr(path)
    return ocp.SaveArgs(chunk_byte_size=arrays.PIECE, shard_axes=(0,) if stacked else ())

  return jax.tree_util.tree_map_with_path(args, tree)


def find(path: str | os.PathLike) -> tuple[Path, int]:
  """The run directory and step that a path stands for: a run (its newest step) or one step's directory.

  Raises:
    BadRequest: if there is no complete checkpoint.
  """
  path = Path(path).absolute()
  if path.parent.name == "checkpoints" and path.name.isdigit() and path.is_dir():
    return path.parent.parent, int(path.name)
  folder = path / "checkpoints"
  steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
  if not steps:
    raise BadRequest(f"{path} holds no checkpoint: give a run's directory (with checkpoints/) or one of its checkpoints")
  return path, steps[-1]


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
    path = ASSETS / f"{text.removeprefix('asset:')}.npz"
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
  with _quiet(), ocp.StandardCheckpointer() as reader:
    folder = run / "checkpoints" / str(step)
    params = _read(reader, folder / "params", place)
    if average and (folder / "average").is_dir():
      params |= _read(reader, folder / "average", place)
  return params


def _read(reader: ocp.StandardCheckpointer, folder: Path, place: Place | None) -> Params:
  # Read as numpy unless told where to, so that a checkpoint made on other devices loads anywhere.
  target = {}
  for n, m in reader.metadata(folder).item_metadata.tree.items():
    sharding = place(n, m.shape, np.dtype(m.dtype)) if place else None
    target[n] = np.zeros(m.shape, m.dtype) if sharding is None else jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding)
  return {n: v if isinstance(v, jax.Array) else np.asarray(v) for n, v in reader.restore(folder, target).items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Orbax warns of a metadata file that one item of a checkpoint doesn't have of its own."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def check_workdir(workdir: Path, config: Config) -> bool:
  """Whether a run of this very config lives in `workdir` already; writes nothing.

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
  if there != wanted:
    field = _first_difference(there, wanted) if isinstance(there, dict) else "config.json"
    raise BadRequest(f"{workdir} holds a run of another config ({field} differs): choose another --workdir or remove it")
  return True


def open_workdir(workdir: Path, config: Config) -> None:
  """Makes a run's directory, or finds the one that is there; raises as `check_workdir` does."""
  if not check_workdir(workdir, config):
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", json.dumps(to_dict(config), indent=2) + "\n")
    write_text(workdir / "versions.json", json.dumps(versions(), indent=2) + "\n")


def _first_difference(a: Any, b: Any, where: str = "") -> str:
  if isinstance(a, dict) and isinstance(b, dict):
    for k in sorted({*a, *b}):
      if a.get(k) != b.get(k):
        return _first_difference(a.get(k), b.get(k), f"{where}.{k}" if where else k)
  return where or "config"
