"""Runs and checkpoints on disk: one layout, whatever the mesh; `saver.py` writes it.

    WORKDIR/config.json  tokenizer.json  versions.json
    WORKDIR/checkpoints/STEP/params  average  optimizer  metrics  manifest.json

`params` holds every parameter under its name and in its trained dtype; `average` the running average where there is one.
Small arrays are kept as one (`small_arrays.py`); `orbax_items.read` gives them back by their names.
A directory that `orthus convert` made has `params` alone, at step 0, in the layout of `zarr_arrays.py`, which is read
like Orbax' own.
"""

from __future__ import annotations

from collections.abc import Callable
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
from orthus_jax.data import tokenizer_difference
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.errors import BadRequest
from orthus_jax.interop import huggingface
from orthus_jax.interop.huggingface import Place
from orthus_jax.models.params import Params
from orthus_jax.storage import bring
from orthus_jax.training.checkpoints import agreement, manifest, orbax_items

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
  path = Path(bring.local(os.fspath(path))).absolute()
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
  except (ValueError, AttributeError) as e:
    raise BadRequest(f"{file} is damaged: {e}") from e
  except BadRequest as e:
    raise BadRequest(f"{file} isn't of this version of orthus_jax ({e})") from e


def load_params(
    path: str | os.PathLike, *, average: bool = True, place: Place | None = None,
    wanted: Callable[[str], bool] = lambda name: True, image_head: str = "",
) -> Params:  # fmt: skip
  """The parameters of a checkpoint, averaged ones in the place of their own where there are any.

  Args:
    path: a run's directory, one checkpoint, a Hugging Face directory, an .npz of named arrays, or "asset:NAME" for
      weights in the package.
    average: prefer the running average.
    place: (name, shape, dtype) → the sharding that an array is read onto, each device's part alone; None for a numpy
      array, as all are without this argument and from an .npz.
    wanted: by name; others aren't read.
    image_head: what a Hugging Face directory is read with; see `huggingface.open_checkpoint`.
  """
  text = str(path)
  if text.startswith("asset:"):
    path = files.ASSETS / f"{text.removeprefix('asset:')}.npz"
    if not path.is_file():
      raise BadRequest(f"no shipped weights are called {text.removeprefix('asset:')!r}")
  else:
    path = bring.local(text)
  if str(path).endswith(".npz"):
    try:
      with np.load(path) as file:
        return {n: file[n].astype(np.float32) if file[n].dtype == np.float16 else file[n] for n in file.files if wanted(n)}
    except (OSError, ValueError) as e:
      raise BadRequest(f"{path} can't be read as named arrays: {e}") from e
  if huggingface.is_checkpoint(path):
    return huggingface.open_checkpoint(path, image_head=image_head).load(place, wanted)
  run, step = find(path)
  with orbax_items.quiet(), ocp.StandardCheckpointer() as reader:
    folder = run / "checkpoints" / str(step)
    params = orbax_items.read(reader, folder / "params", place, wanted)
    if average and (folder / "average").is_dir():
      params |= orbax_items.read(reader, folder / "average", place, wanted)
  return params


def load_tokenizer(run: Path, step: int) -> TextTokenizer:
  """The tokenizer that a run's checkpoint was trained with.

  Raises:
    BadRequest: if the run's directory has lost it, or holds another one by now.
  """
  file = run / tokenizer_difference.FILE_NAME
  if not file.is_file():
    raise BadRequest(f"{file} is missing: bring back the one that the run was trained with")
  tokenizer = TextTokenizer.load(run)
  wanted = manifest.facts(run / "checkpoints" / str(step)).get("tokenizer")
  if wanted not in (None, tokenizer_difference.saved_digest(run)):
    raise BadRequest(f"{file} isn't the tokenizer that the checkpoint of step {step} was trained with: bring that back")
  return tokenizer


def check_workdir(workdir: Path, config: Config) -> bool:
  """Whether a run of this config lives in `workdir` already, if one that differs where it may; writes nothing.

  Raises:
    BadRequest: if another config's run lives there.
  """
  file = workdir / "config.json"
  if not file.is_file():
    if workdir.exists() and not workdir.is_dir():
      raise BadRequest(f"{workdir} is a file: choose another --workdir")
    return False
  try:
    there, own = load_config(workdir), steps(workdir)
  except BadRequest as e:
    raise BadRequest(f"{e}; bring back the one that the run was started with; {_way_on(workdir)}") from e
  if own and own[-1] > config.run.steps:
    raise BadRequest(f"{workdir} has a checkpoint of step {own[-1]}, past run.steps={config.run.steps}: raise it")
  refused = agreement.another_run(there, config, done=max(own, default=None), data_known=_trained_on(workdir) is not None)
  if refused:
    first, more = refused[0], [d.field for d in refused[1:]]
    values = f"{agreement.short(first.old)} there, {agreement.short(first.new)} here"
    others = f", and so do {', '.join(more[:5])}{' …' if more[5:] else ''}" if more else ""
    raise BadRequest(
        f"{workdir} holds a run of another config ({first.field} differs): {values}{others}; {_way_on(workdir)}"
    )
  return True


def check_tokenizer(workdir: Path, tokenizer: TextTokenizer) -> None:
  """Refuses to go on in a workdir with another tokenizer than its run's.

  Raises:
    BadRequest: if they differ in what a text's ids are, or what they mean.
  """
  own = steps(workdir)
  if (workdir / tokenizer_difference.FILE_NAME).is_file():
    its = load_tokenizer(workdir, own[-1]) if own else TextTokenizer.load(workdir)
    if why := tokenizer_difference.change(its, tokenizer):
      raise BadRequest(
          f"{workdir} holds a run with another tokenizer ({why}): set data.tokenizer={workdir}, which has its own, or"
          " choose another --workdir"
      )
  elif own and manifest.facts(workdir / "checkpoints" / str(own[-1])).get("tokenizer") not in (None, tokenizer.digest()):
    raise BadRequest(f"{workdir} has lost its tokenizer, and data.tokenizer isn't the one it was trained with: bring it back")


def check_data(workdir: Path, contents: dict[str, Any]) -> None:
  """Refuses to go on in a workdir with other data than its run's: a step's batch would be another.

  Args:
    workdir: the run's.
    contents: of the task, as `tasks.OrthusTask.contents` tells them.
  """
  if why := other_data(_trained_on(workdir), contents):
    raise BadRequest(
        f"{workdir} was trained on other data ({why}): bring it back, or go on with what is there now:"
        f" --workdir=NEW --resume_from={workdir}"
    )


def made_with(workdir: Path, contents: dict[str, Any]) -> dict[str, Any]:
  """What a checkpoint is to say about itself: the data that it saw, and the tokenizer that its rows are of."""
  digest = tokenizer_difference.saved_digest(workdir)
  return {"data": contents} | ({"tokenizer": digest} if digest else {})


def other_data(there: dict[str, Any] | None, here: dict[str, Any]) -> str:
  """How the data differs from what a checkpoint saw, of which its manifest tells; empty where it doesn't."""
  if there is None or there.get("digest") == here["digest"]:
    return ""
  if there.get("documents") == here["documents"]:
    return f"{here['documents']} documents as before, and not the same"
  return f"{there.get('documents')} documents there, {here['documents']} here"


def _trained_on(workdir: Path) -> dict[str, Any] | None:
  """What data a run's checkpoints saw; those of earlier versions don't say."""
  known = (data_of(workdir / "checkpoints" / str(step)) for step in reversed(steps(workdir)))
  return next((d for d in known if d is not None), None)


def data_of(folder: Path) -> dict[str, Any] | None:
  """What data one checkpoint saw; see `made_with`."""
  data = manifest.facts(folder).get("data")
  return data if isinstance(data, dict) else None


def _way_on(workdir: Path) -> str:
  if steps(workdir):
    return f"to go on from it: --workdir=NEW --resume_from={workdir}"
  return "it has no checkpoint: choose another --workdir or remove it"


def open_workdir(workdir: Path, config: Config, tokenizer: TextTokenizer | None = None) -> None:
  """Makes a run's directory, or finds the one that is there; raises as `check_workdir` does.

  A tokenizer is kept beside the config; one that is there already, and means the same, stays as it is.
  """
  if check_workdir(workdir, config):
    if differing := agreement.differences(load_config(workdir), config):
      _log.info("other than when the run was last started: %s", agreement.listed(differing))
  else:
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(workdir / "versions.json", json.dumps(versions(), indent=2) + "\n")
  if tokenizer is not None:
    check_tokenizer(workdir, tokenizer)
    if not (workdir / tokenizer_difference.FILE_NAME).is_file():
      tokenizer.save(workdir)
  files.write_text(workdir / "config.json", json.dumps(to_dict(config), indent=2) + "\n")  # last: it marks a run
