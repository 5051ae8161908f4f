"""The optimizer."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from orthus_jax.config import ranges
from orthus_jax.config.ranges import Decay, Range, Share, Whole
from orthus_jax.config.typed import require

ALL_BUT_VQGAN = (r"^(?!vision_tokenizer/).*",)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer: AdamW, or Muon for matrices with AdamW for everything else.

  Attributes:
    name: "adamw" (the published recipe) or "muon" (optax.contrib's, its updates scaled to AdamW's size; for the matrices
      of layers), which learns more from each step and costs some matrix products more.
    learning_rate: at its peak.
    adamw_learning_rate: under Muon, the peak for what AdamW trains; 0 means the same.
    warmup_steps: linear rise to the peak, which is that of step `warmup_steps`; no longer than the run.
    schedule: after warm-up: "constant", "cosine" or "linear", both down to `final_fraction` of the peak.
    final_fraction: of the peak, which the schedule would reach one step behind the last; see `schedule`.
    b1, b2, eps: AdamW's; Muon adds eps to the norm that it divides momentum by.
    newton_schulz_steps: of Muon's orthogonalisation. Fewer cost less and leave small singular values smaller.
    weight_decay: on matrices alone, not on norms, biases or embeddings.
    clip_norm: the global gradient norm is clipped to it; 0 turns that off.
    accumulation: microbatches that one step adds up.
    moment_dtype: what the optimizer's moments are kept in; its arithmetic is float32 always.
    rounding: how new values are rounded to bfloat16 parameters (model.transformer.param_dtype) and moments: at random in
      proportion to the distance ("stochastic"), so that small updates count on average, or to the "nearest".
    frozen_dtype: what frozen parameters are kept in: as trained ones are ("param"), or in the dtype that they are
      computed in ("compute"), which gives the same numbers in half the memory.
    ema_decay: of the averaged copy of the parameters that is evaluated and saved beside them; 0 turns it off.
    trainable: regular expressions over parameter names; a parameter that matches none is frozen. Adapters (model.lora)
      are trained always, and where there are any, the default stands for them alone.
  """

  name: Literal["adamw", "muon"] = "adamw"
  learning_rate: Annotated[float, Range(0, 10, above=True)] = 1e-4
  adamw_learning_rate: Annotated[float, Range(0, 10)] = 0.0
  warmup_steps: Whole = 100
  schedule: Literal["constant", "cosine", "linear"] = "constant"
  final_fraction: Share = 0.0
  b1: Decay = 0.9
  b2: Decay = 0.99
  eps: Annotated[float, Range(1e-20, 1, note="AdamW divides by it where a gradient is 0")] = 1e-8
  newton_schulz_steps: Annotated[int, Range(1, 100)] = 5
  weight_decay: Annotated[float, Range(0, 100)] = 0.0
  clip_norm: Annotated[float, Range(0, 1e9, note="0 turns it off")] = 1.0
  accumulation: Annotated[int, Range(1, 2**20)] = 1
  moment_dtype: Literal["float32", "bfloat16"] = "float32"
  rounding: Literal["stochastic", "nearest"] = "stochastic"
  frozen_dtype: Literal["param", "compute"] = "param"
  ema_decay: Decay = 0.0
  trainable: tuple[str, ...] = ALL_BUT_VQGAN

  def __post_init__(self):
    ranges.check(self, "optimizer")
    require(
        self.adamw_learning_rate == 0 or self.name == "muon",
        "optimizer.adamw_learning_rate is for optimizer.name=muon; with adamw, set optimizer.learning_rate",
    )
