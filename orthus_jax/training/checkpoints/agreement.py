"""In which fields of its config a run may differ from what it goes on from.

`FREE` and `MOVED` may change when a run is started again; any other field makes it another run. Where a run begins with another
one's arrays, those fields of the model count that aren't in `_OWN`, as they give the same arrays another meaning: `_NEVER` is
refused, the others may be meant (another rope_theta for longer rows, say) and are told.
"""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from orthus_jax.config import Config, to_dict
from orthus_jax.training.optimizer import schedule

# Where and how fast the same numbers are computed, and what is logged, kept and drawn of them.
FREE = (
    "mesh", "optimizer.accumulation", "model.transformer.remat", "model.transformer.scan_unroll",
    "model.transformer.merge_positions", "model.transformer.attention", "model.transformer.attention_block",
    "model.transformer.attention_backward", "model.transformer.loss_chunk", "model.transformer.max_positions",
    "model.diffusion.loss_chunk", "sampling", "data.max_bad_share", "tokenizer_loss.whiten", "run.log_every",
    "run.sample_every", "run.evaluate", "run.checkpoint_every", "run.local_checkpoint_every", "run.local_checkpoint_dir",
    "run.keep_checkpoints", "run.keep_every", "run.keep_best",
    "run.report", "run.profile_steps", "run.compiler_options", "run.peak_tflops", "run.max_skipped", "run.spike_deviations",
    "run.hang_timeout", "run.loggers",
)  # fmt: skip
# Where the same things lie: what they hold is compared instead (`workdir.check_data`, `workdir.check_tokenizer`).
MOVED = ("data.path", "data.mixture", "data.annotations", "data.tokenizer")
# What only the first step of all asks for.
_FIRST = (
    "run.init_from", "run.resume_from", "model.transformer.embedding_std", "model.vision_embedding.fresh_rows",
    "tokenizer_loss.perceptual_weights",
)  # fmt: skip
# Of a model: how it is computed, trained and begun, which whoever takes its arrays settles anew.
_OWN = (
    *(f for f in FREE if f.startswith("model.")), *_FIRST, "model.transformer.dtype", "model.transformer.param_dtype",
    "model.transformer.quantization", "model.transformer.matmul_precision",
    "model.transformer.text_loss_weight", "model.vision_tokenizer.dtype", "model.diffusion.draws",
    "model.diffusion.loss_weight", "model.image_head.loss_weight", "model.vision_embedding.history_noise",
)  # fmt: skip
_NEVER = (
    "model.transformer.norm_placement", "model.vision_tokenizer.norm_groups", "model.image_token_start", "model.lora",
    "model.image_head.kind",
)  # fmt: skip
_OF_HEAD = ("model.image_head", "model.diffusion", "model.vision_embedding.kind")


class Difference(NamedTuple):
  """A field, dotted, and what it holds in either config."""

  field: str
  old: Any
  new: Any

  def __str__(self) -> str:
    return f"{self.field} {short(self.old)} -> {short(self.new)}"


def differences(old: Config, new: Config) -> list[Difference]:
  """Fields that two configs don't agree on."""
  return list(between(to_dict(old), to_dict(new)))


def between(a: Any, b: Any, where: str = "") -> Iterator[Difference]:
  """What two nested dicts, such as configs or records of a protocol, don't agree on."""
  if not isinstance(a, dict) or not isinstance(b, dict):
    yield Difference(where, a, b)
    return
  for k in sorted({*a, *b}):
    if a.get(k) != b.get(k):
      yield from between(a.get(k), b.get(k), f"{where}.{k}" if where else k)


def another_run(old: Config, new: Config, *, done: int | None, data_known: bool) -> list[Difference]:
  """What keeps a run of one config from going on with another one, to the very numbers.

  Args:
    old: what it was started with.
    new: what it is to go on with.
    done: steps of its newest checkpoint; None where it has none.
    data_known: whether its checkpoints say what data they saw.
  """

  def allowed(d: Difference) -> bool:
    if d.field == "run.steps":
      return done is None or _same_until(done, old, new)
    if d.field == "sampling.unconditional_prompt":  # what a dropped caption is replaced by
      return new.data.caption_dropout == 0
    if d.field == "data.mixture" and [w for _, w in d.old] != [w for _, w in d.new]:
      return False
    return within(d.field, FREE) or (within(d.field, MOVED) and (data_known or done is None)) or (
        within(d.field, _FIRST) and done is not None
    )

  return [d for d in differences(old, new) if not allowed(d)]


def other_model(
    old: Config, new: Config, *, part: str = "model", headless: bool = False
) -> tuple[list[Difference], list[Difference]]:
  """How a model's fields differ from those that some arrays were trained with: (what is refused, what is told).

  Args:
    old: what they were trained with.
    new: what they are to be used with.
    part: the part of the model that they are, as a field.
    headless: whether no image head is among them: then any may begin, and have pictures read as it needs them.
  """
  found = [d for d in differences(old, new) if within(d.field, (part,)) and not within(d.field, _OWN)]
  ranks = old.model.lora.rank, new.model.lora.rank
  if not ranks[0]:  # adapters begin anew, if there are to be any
    found = [d for d in found if not within(d.field, ("model.lora",))]
  elif not ranks[1]:  # the arrays have adapters that the model has no place for, whatever their scale
    found = [d for d in found if not within(d.field, ("model.lora.alpha", "model.lora.targets"))]
  if headless:
    found = [d for d in found if not within(d.field, _OF_HEAD)]
  return [d for d in found if within(d.field, _NEVER)], [d for d in found if not within(d.field, _NEVER)]


def other_settings(old: Config, new: Config) -> list[Difference]:
  """What may matter of how a config differs from the one whose whole state it takes over."""
  return [d for d in differences(old, new) if not within(d.field, (*FREE, *MOVED, *_FIRST))]


def digest(config: Config) -> str:
  """Of all fields that may not change when a run is started again, whatever the step: two equal ones give the same numbers."""

  def kept(tree: Any, where: str = "") -> Any:
    if not isinstance(tree, dict):
      return tree
    named = {k: f"{where}.{k}" if where else k for k in tree}
    return {k: kept(v, named[k]) for k, v in tree.items() if not within(named[k], (*FREE, *MOVED))}

  return hashlib.sha256(json.dumps(kept(to_dict(config)), sort_keys=True).encode()).hexdigest()[:16]


def listed(found: list[Difference]) -> str:
  """Differences in a line."""
  return ", ".join(map(str, found))


def within(field: str, table: tuple[str, ...]) -> bool:
  """Whether a table names a field, or a section that it is in."""
  return any(field == f or field.startswith(f"{f}.") for f in table)


def _same_until(done: int, old: Config, new: Config) -> bool:
  """Whether the steps done are those that a run of the new length would have done."""
  rates = [np.asarray(schedule(c.optimizer, c.run.steps)(np.arange(done))) for c in (old, new)]
  replaced = old.task == "vision_tokenizer" and old.tokenizer_loss.revive_every  # its codes, but near the end
  return np.array_equal(*rates) and (not replaced or done <= 0.8 * min(old.run.steps, new.run.steps))


def short(value: Any) -> str:
  """A field's value, to be shown."""
  text = str(value) if value != "" else "''"
  return text if len(text) <= 60 else f"{text[:57]}..."
