"""Where a run's state comes from: its own checkpoint > `run.resume_from` > `run.init_from` > scratch."""

from __future__ import annotations

from collections.abc import Callable
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from orthus_jax import files
from orthus_jax.config import Config
from orthus_jax.data import tokenizer_difference
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.errors import BadRequest
from orthus_jax.models import lora
from orthus_jax.models.params import Params
from orthus_jax.storage.bucket import is_url
from orthus_jax.training import hosts, perceptual_weights
from orthus_jax.training.checkpoints import agreement, manifest, origins, workdir as checkpoint
from orthus_jax.training.checkpoints.agreement import Difference
from orthus_jax.training.checkpoints.local_tier import LocalTier
from orthus_jax.training.checkpoints.saver import Checkpointer, read_state
from orthus_jax.training.optimizer import trainable_names
from orthus_jax.training.state import Layout, TrainState, replace_params
from orthus_jax.training.tokenizer_losses import JUDGES

_log = logging.getLogger(__name__)


def first_state(
    config: Config, layout: Layout, create: Callable[..., TrainState], saver: Checkpointer, contents: dict[str, Any],
    tier: LocalTier | None = None,
) -> TrainState:  # fmt: skip
  """The state that training starts or goes on from.

  Args:
    config: the experiment.
    layout, create: from `state.plan_run`.
    saver: of the run's directory.
    contents: of the task: what its batches are made of.
    tier: of the run's local checkpoints.

  Raises:
    BadRequest: if all of the run's checkpoints are damaged, or what the config names doesn't fit.
  """
  run = config.run
  state = saver.restore_newest(layout.shapes, layout.shardings, tier)
  if state is not None:
    more = ", not from run.resume_from" if run.resume_from else ", not from run.init_from" if run.init_from else ""
    if tier is not None and tier.taken is not None:
      _log.info("going on from this run's local checkpoint of step %d in %s, the newest that is whole", tier.taken, tier.folder)
    else:
      _log.info("going on from this run's own checkpoint of step %d%s", int(state.step), more)
  elif run.resume_from:
    state = _other_run(config, layout)
    _log.info("going on from step %d of %s (run.resume_from)", int(state.step), run.resume_from)
    _tell_of_run(config, contents)
  else:
    values = initial_values(config, layout)
    _check_values(values, layout.shapes.params)
    state = replace_params(create(brought=frozenset(values)), values, layout.shardings)
    state = replace_params(state, projected_rows(config, state, values), layout.shardings)
    named = ", ".join(f"{prefix or 'all weights'} from {path}" for prefix, path in run.init_from)
    _log.info("starting at step 0: %s", f"{named} (run.init_from)" if named else "from scratch")
    _tell_of_fresh(config, layout.shapes.params, set(values))
    for prefix, path in run.init_from:
      _tell_of_model(config, prefix, path)
  if int(state.step) > run.steps:
    raise BadRequest(f"the checkpoint is of step {int(state.step)}, past run.steps={run.steps}: raise it")
  return state


def _other_run(config: Config, layout: Layout) -> TrainState:
  run, step = checkpoint.find(config.run.resume_from)
  folder = run / "checkpoints" / str(step)
  # What lies in a bucket each has brought to its own disk, if it has one.
  share = (0, 1) if is_url(config.run.resume_from) else (jax.process_index(), jax.process_count())
  if reason := hosts.agree(manifest.damage(folder, part=share)):
    raise BadRequest(f"the checkpoint {folder} is damaged: {reason}; name an earlier one in run.resume_from")
  try:
    return read_state(folder, layout.shapes, layout.shardings)
  except Exception as e:  # whatever Orbax makes of arrays that don't fit
    raise BadRequest(
        f"run.resume_from={config.run.resume_from} isn't a state of this model and optimizer ({files.first_line(e)}):"
        " to take its parameters alone, set run.init_from"
    ) from e


def initial_values(config: Config, layout: Layout) -> Params:
  """The parameters that `run.init_from` names, read where they belong.

  The vision embedding's codebook starts as the VQGAN's, unless it is given.
  """
  values: Params = {}
  shapes, shardings = layout.shapes.params, layout.shardings.params
  for prefix, path in config.run.init_from:
    values |= {prefix + n: v for n, v in _taken(config, path, prefix, shapes, shardings).items()}
  if "vision_tokenizer/codebook" in values and "vision_embedding/codebook" in shapes:
    values.setdefault("vision_embedding/codebook", values["vision_tokenizer/codebook"])
  if config.tokenizer_loss.perceptual:
    values |= {f"perceptual/{n}": v for n, v in perceptual_weights.load(config.tokenizer_loss.perceptual_weights).items()}
  return values


def initial_tokenizer(config: Config, shapes: Params) -> Params:
  """The vision tokenizer that a run of one begins with, as numpy arrays; nothing where `run.init_from` doesn't bring all of it.

  Args:
    config: of the run.
    shapes: of the vision tokenizer's parameters.
  """
  values: Params = {}
  for prefix, path in config.run.init_from if not config.run.resume_from else ():
    values |= {prefix + n: v for n, v in _taken(config, path, prefix, {}, {}).items()}
  fits = all(n in values and values[n].shape == s.shape for n, s in shapes.items())
  return {n: np.asarray(values[n]).astype(s.dtype) for n, s in shapes.items()} if fits else {}


def _taken(config: Config, path: str, prefix: str, shapes: Params, shardings: dict[str, Any]) -> Params:
  """What one source brings: all of it but a vision tokenizer's judges; of a whole model for a part, that part alone."""
  origin = origins.of(path)
  whole = origin.config is not None and origin.config.task == "orthus"
  part = ("vision_tokenizer/" if config.task == "vision_tokenizer" else prefix) if whole else ""

  def place(name, shape, dtype):
    own = prefix + name.removeprefix(part)
    fits = own in shapes and shapes[own].shape == tuple(shape)
    return shardings[own] if fits else None  # what doesn't fit is refused once all is known

  def wanted(name):
    return name.startswith(part) and not name.startswith(JUDGES)

  head = "codes" if origin.headless else ""  # the run makes its own
  params = checkpoint.load_params(path, place=place, wanted=wanted, image_head=head)
  if not params:
    raise BadRequest(f"run.init_from: {path} has no parameter {part}…")
  return {n.removeprefix(part): v for n, v in params.items()}


def check_sources(config: Config, workdir: Path | None = None, tokenizer: TextTokenizer | None = None) -> None:
  """Refuses a source that leads nowhere or is of another kind of model, before any work is done.

  Args:
    config: the experiment; of its `run.resume_from` and `run.init_from`, only what will be read is looked at.
    workdir: the run's; one with checkpoints of its own needs no source.
    tokenizer: the text tokenizer.

  Raises:
    BadRequest: if a source isn't there, was trained with another tokenizer, or with a model whose arrays mean something else.
  """
  run = config.run
  if workdir is not None and checkpoint.steps(workdir):
    return
  if run.resume_from:
    checkpoint.find(run.resume_from)
    check_source(config, "", run.resume_from, tokenizer, option="run.resume_from")
    return
  if config.tokenizer_loss.perceptual:
    perceptual_weights.load(config.tokenizer_loss.perceptual_weights)
  for prefix, path in run.init_from:
    check_source(config, prefix, path, tokenizer)


def check_source(
    config: Config, prefix: str, path: str, tokenizer: TextTokenizer | None = None, *, option: str = "run.init_from"
) -> None:
  """As `check_sources`, for one of them."""
  origin = origins.of(path)
  if origin.unknown:
    _log.warning("%s", origin.unknown)
  if refused := _other_model(config, prefix, origin)[0]:
    field, old, new = refused[0]
    merge = ", or merge its adapters first: orthus convert" if field.startswith("model.lora.") else ""
    raise BadRequest(f"{option}={path} was trained with {field}={old}, and means nothing with {new}: set it to {old}{merge}")
  if origin.tokenizer is None or tokenizer is None or prefix:
    return
  if why := tokenizer_difference.difference(origin.tokenizer, tokenizer):
    raise BadRequest(
        f"{option}={path} was trained with another tokenizer ({why}): set data.tokenizer={origin.folder}, which has its own"
    )


def _other_model(config: Config, prefix: str, origin: origins.Origin) -> tuple[list[Difference], list[Difference]]:
  """Differences of what some parameters were trained with that are refused, and those that are told."""
  if origin.config is None:
    return [], []
  part = "model"
  if prefix or "vision_tokenizer" in (origin.config.task, config.task):
    part = f"model.{prefix.removesuffix('/') or 'vision_tokenizer'}"
  return agreement.other_model(origin.config, config, part=part, headless=origin.headless)


def _tell_of_fresh(config: Config, shapes: Params, brought: set[str]) -> None:
  """What of the model begins anew beside what `run.init_from` brings."""
  names = set(shapes)
  adapters = lora.names(names) - brought
  if adapters:
    _log.info("%d adapters (model.lora) begin anew, and change nothing yet", len(adapters) // 2)
  fresh = names - brought - adapters
  head = {n for n in fresh if n.startswith("image_head/")}
  whole = [path for prefix, path in config.run.init_from if not prefix]
  if head and (headless := [path for path in whole if origins.of(path).headless]):
    _log.info(
        "%s has no image head: this model's (model.image_head.kind=%s, %d parameters) starts fresh",
        headless[0], config.model.image_head.kind, len(head),
    )  # fmt: skip
    fresh -= head
  if fresh and whole:
    some = ", ".join(sorted(fresh)[:5])
    _log.warning("%d parameters start fresh, as run.init_from brings none of them: %s", len(fresh), some)
  if still := names - brought - adapters - trainable_names(config.optimizer, shapes):
    some = ", ".join(sorted(still)[:3])
    _log.warning(
        "%d parameters stay as drawn at random: optimizer.trainable freezes them, and run.init_from brings none of them: %s",
        len(still), some,
    )  # fmt: skip


def _tell_of_model(config: Config, prefix: str, path: str) -> None:
  told = _other_model(config, prefix, origins.of(path))[1]
  if told:
    _log.warning("%s was trained with other settings than this run's: %s", path, agreement.listed(told))


def _tell_of_run(config: Config, contents: dict[str, Any]) -> None:
  """What another run's state goes on with that isn't as it was there."""
  origin = origins.of(config.run.resume_from)
  settings = agreement.other_settings(origin.config, config) if origin.config else []
  if settings:
    _log.warning("with other settings than that run's: %s", agreement.listed(settings))
  if why := checkpoint.other_data(origin.data, contents):
    _log.warning("with other data than that run's: %s", why)


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
