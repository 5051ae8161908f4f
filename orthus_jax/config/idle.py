"""Settings that are of no effect beside others, which whoever set them may not know."""

from __future__ import annotations

import dataclasses
from typing import Any

from orthus_jax.config.experiment import Config


def settings(config: Config) -> list[str]:
  """A sentence for each setting that was changed and does nothing."""
  run, optimizer, lora, sampling, data = config.run, config.optimizer, config.model.lora, config.sampling, config.data
  rules: list[tuple[str, Any, tuple[str, ...], bool, str]] = [
      ("run", run, ("keep_every", "keep_best"), not run.checkpoint_every, "run.checkpoint_every is 0"),
      ("run", run, ("local_checkpoint_dir",), not run.local_checkpoint_every, "run.local_checkpoint_every is 0"),
      ("run", run, ("profile_steps",), run.profile_steps[:1] > (run.steps,), f"run.steps is {run.steps}"),
      ("run", run, ("evaluate",), all(every > run.steps for _, every in run.evaluate), f"run.steps is {run.steps}"),
      ("optimizer", optimizer, ("newton_schulz_steps",), optimizer.name != "muon", "optimizer.name isn't muon"),
      ("optimizer", optimizer, ("final_fraction",), optimizer.schedule == "constant", "optimizer.schedule is constant"),
      ("model.lora", lora, ("alpha", "targets"), not lora.rank, "model.lora.rank is 0"),
      ("data", data, ("annotations", "text", "pictures", "pairs", "learn"), data.source == "shapes", "data.source is shapes"),
      ("sampling", sampling, ("late_from",), not sampling.late_steps, "sampling.late_steps is 0"),
  ]  # fmt: skip
  if config.task != "orthus":
    rules = [rule for rule in rules if rule[0] in ("run", "optimizer", "data")]
  said = []
  for where, section, names, idle, why in rules:
    defaults = {f.name: f.default for f in dataclasses.fields(section)}
    for name in names:
      if idle and getattr(section, name) != defaults[name]:
        said.append(f"{where}.{name}={getattr(section, name)} is of no effect, as {why}")
  return said
