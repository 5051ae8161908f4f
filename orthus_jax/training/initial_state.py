"""Where a run's state comes from: its own checkpoint > `run.resume_from` > `run.init_from` > scratch."""

from __future__ import annotations

from collections.abc import Callable
import logging

import jax
import numpy as np

from orthus_jax import files
from orthus_jax.config import Config
from orthus_jax.errors import BadRequest
from orthus_jax.interop import huggingface
from orthus_jax.models.params import Params
from orthus_jax.training import hosts
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.checkpoints.saver import Checkpointer, read_state
from orthus_jax.training.state import Layout, TrainState, replace_params

_log = logging.getLogger(__name__)


def first_state(config: Config, layout: Layout, create: Callable[[], TrainState], saver: Checkpointer) -> TrainState:
  """The state that training starts or goes on from.

  Args:
    config: the experiment.
    layout, create: from `state.plan_run`.
    saver: of the run's directory.

  Raises:
    BadRequest: if all of the run's checkpoints are damaged, or what the config names doesn't fit.
  """
  run = config.run
  state = saver.restore_newest(layout.shapes, layout.shardings)
  if state is not None:
    more = ", not from run.resume_from" if run.resume_from else ", not from run.init_from" if run.init_from else ""
    _log.info("going on from this run's own checkpoint of step %d%s", int(state.step), more)
  elif run.resume_from:
    state = _other_run(config, layout)
    _log.info("going on from step %d of %s (run.resume_from)", int(state.step), run.resume_from)
  else:
    values = initial_values(config, layout)
    _check_values(values, layout.shapes.params)
    state = replace_params(create(), values, layout.shardings)
    state = replace_params(state, projected_rows(config, state, values), layout.shardings)
    named = ", ".join(f"{prefix or 'all'} from {path}" for prefix, path in run.init_from)
    _log.info("starting from scratch%s", f", but for {named} (run.init_from)" if named else "")
  if int(state.step) > run.steps:
    raise BadRequest(f"the checkpoint is of step {int(state.step)}, past run.steps={run.steps}: raise it")
  return state


def _other_run(config: Config, layout: Layout) -> TrainState:
  run, step = checkpoint.find(config.run.resume_from)
  try:
    return read_state(run / "checkpoints" / str(step), layout.shapes, layout.shardings)
  except Exception as e:  # whatever Orbax makes of arrays that don't fit
    raise BadRequest(
        f"run.resume_from={config.run.resume_from} isn't a state of this model and optimizer ({files.first_line(e)}):"
        " to take its parameters alone, set run.init_from"
    ) from e


def initial_values(config: Config, layout: Layout) -> Params:
  """The parameters that `run.init_from` names, read where they belong.

  The soft VQ's codebook starts as the VQGAN's, unless it is given.
  """
  values: Params = {}
  shapes, shardings = layout.shapes.params, layout.shardings.params
  for prefix, path in config.run.init_from:

    def place(name, shape, dtype, prefix=prefix):
      fits = prefix + name in shapes and shapes[prefix + name].shape == tuple(shape)
      return shardings[prefix + name] if fits else None  # what doesn't fit is refused once all is known

    values |= {prefix + n: v for n, v in checkpoint.load_params(path, place=place).items()}
  if "vision_tokenizer/codebook" in values:
    values.setdefault("vision_embedding/codebook", values["vision_tokenizer/codebook"])
  return values


def check_sources(config: Config) -> None:
  """Refuses a `run.resume_from` or `run.init_from` that leads nowhere, before any work is done."""
  if config.run.resume_from:
    checkpoint.find(config.run.resume_from)
  for _, path in config.run.init_from:
    if path.endswith(".npz") or path.startswith("asset:"):
      checkpoint.load_params(path)
    elif not huggingface.is_checkpoint(path):
      checkpoint.find(path)


def projected_rows(config: Config, state: TrainState, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The token embedding with its image rows as a random projection of the codes, where the config wants that."""
  model = config.model
  name, codes = "token_embedding", "vision_embedding/codebook"
  if config.task != "orthus" or model.vision_embedding.fresh_rows == "random" or name in values:
    return {}
  embedding_VD, codebook_KC = np.array(hosts.fetch(state.params[name])), hosts.fetch(state.params[codes])
  C, D = codebook_KC.shape[1], embedding_VD.shape[1]
  centred_KC = codebook_KC - codebook_KC.mean(axis=0)
  projection_CD = np.random.default_rng(config.run.seed).standard_normal((C, D)) / np.sqrt(C)
  rows_KD = centred_KC / centred_KC.std() @ projection_CD
  start = model.image_token_start
  embedding_VD[start : start + len(rows_KD)] = model.transformer.embedding_std * rows_KD
  return {name: embedding_VD}


def _check_values(values: dict[str, np.ndarray], shapes: dict[str, jax.ShapeDtypeStruct]) -> None:
  wrong = [
      f"{n} ({'unknown' if n not in shapes else f'{v.shape} for {shapes[n].shape}'})"
      for n, v in values.items()
      if n not in shapes or shapes[n].shape != v.shape
  ]
  if wrong:
    raise BadRequest(f"run.init_from doesn't fit the model: {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}")
