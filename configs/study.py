"""The paper's comparison in small: its systems and ablations on the built-in world, everything else equal (docs/study.md).

    orthus sweep --config=configs/study.py --workdir=study                # 30 runs, some five hours on two CPU cores
    orthus sweep --config=configs/study.py:systems --workdir=study        # Orthus, Chameleon and Show-o alone: 9 runs
    orthus sweep --config=configs/study.py:smoke --workdir=/tmp/smoke     # four systems for a few steps each

    orthus sweep --config=configs/study.py:converted=study --workdir=study     # from its discrete models, as the paper does

Arguments: `:systems` (Orthus, Chameleon, Show-o), `:embeddings` (from understanding alone), `:unified` (both tasks or one),
`:head` (diffusion against regression), `:both` (embeddings in the whole mix), `:ablations` (temperature, head, draws, weight,
target, schedule), `:converted=DIR` (each embedding in the place of the discrete one, from a sweep's understanding_argmin runs),
`:smoke`; none is all but the last three. All may share a workdir: a run is trained once. Each run is
configs/shapes.py with the same documents, steps and seeds.
"""

import importlib.util
import pathlib
from typing import Any

from ml_collections import ConfigDict

from orthus_jax import sweep

_SPEC = importlib.util.spec_from_file_location("shapes_config", pathlib.Path(__file__).with_name("shapes.py"))
shapes: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shapes)

SEEDS = range(3)
# Documents that are read, and that are drawn; each keeps the number of documents of its kinds that the whole mix sees.
_UNDERSTANDING = ("image_to_caption", "brief_question", "question")


def get_config(arg: str = "") -> ConfigDict:
  """A run's config: words of configs/shapes.py, and `understanding`, `generation` or `smoke`."""
  words = [w for w in arg.split(",") if w and w not in PARTS]
  own = [w for w in words if w in ("understanding", "generation", "converted", "smoke")]
  # The paper's systems draw at once, without words first.
  config = shapes.get_config(",".join(["direct", *(w for w in words if w not in own)]))
  config.run.sample_every = 0
  config.model.transformer.matmul_precision = "default"  # the same on every machine, so that runs compare
  if "understanding" in own:
    _keep(config, lambda kind: kind in _UNDERSTANDING)
  if "generation" in own:
    _keep(config, lambda kind: kind not in _UNDERSTANDING)
  if "converted" in own:
    _convert(config)
  if "smoke" in own:
    _smoke(config)
  return config


def _keep(config: ConfigDict, wanted) -> None:
  """Some kinds of documents alone, for as many steps as it takes to see as many of them as the whole mix does."""

  def share(kinds) -> float:
    return sum(weight for kind, weight in kinds if wanted(kind)) / sum(weight for _, weight in kinds)

  begins = [0, *(step for step, _ in config.data.later_kinds), config.run.steps]
  mixes = [config.data.kinds, *(kinds for _, kinds in config.data.later_kinds)]
  lengths = [round((b - a) * share(kinds)) for a, b, kinds in zip(begins, begins[1:], mixes)]
  kept = [tuple((kind, weight) for kind, weight in kinds if wanted(kind)) for kinds in mixes]
  config.data.kinds = kept[0]
  config.data.later_kinds = tuple((sum(lengths[: i + 1]), kinds) for i, kinds in enumerate(kept[1:]))
  config.run.steps = sum(lengths)


def _convert(config: ConfigDict) -> None:
  """A short training of a discrete model, on what it was trained with last: time to get used to another embedding."""
  config.data.update(kinds=config.data.later_kinds[-1][1], later_kinds=())
  config.optimizer.update(learning_rate=1e-3, warmup_steps=20)
  config.run.steps = 200


def _smoke(config: ConfigDict) -> None:
  config.model.transformer.layers = config.model.transformer.scan_unroll = 1
  if "diffusion" in config.model:
    config.model.diffusion.blocks = 1
  if "steps" in config.sampling:
    config.sampling.steps = 4
  config.run.update(steps=3, batch_size=2, log_every=1, report=False)
  few = {"caption_to_image": 40, "question": 20}
  config.data.update(
      cache_features=False, documents=tuple((kind, few.get(kind, 0)) for kind, _ in config.data.documents), later_kinds=()
  )
  config.data.kinds = (("caption_to_image", 1.0), ("question", 1.0))


def _runs(names: dict[str, str], overrides: dict[str, dict[str, Any]] | None = None) -> list[sweep.Run]:
  return [sweep.Run(name, argument=arg, overrides=(overrides or {}).get(name, {})) for name, arg in names.items()]


SYSTEMS = {"orthus": "", "chameleon": "chameleon", "showo": "showo"}
PARTS: dict[str, Any] = {
    "systems": lambda: _runs(SYSTEMS),
    "embeddings": lambda: _runs({
        "understanding_soft": "understanding", "understanding_argmin": "argmin,understanding",
        "understanding_linear": "linear,understanding",
    }),
    "unified": lambda: _runs({"orthus": "", "understanding_soft": "understanding", "generation": "generation"}),
    "head": lambda: _runs({"orthus": "", "regression": "regression"}),
    "both": lambda: _runs({"orthus": "", "argmin": "argmin", "linear": "linear"}),
    "ablations": lambda: _ablations(),
}  # fmt: skip
# What all embeddings have in common. The codebook is the vision tokenizer's, the projection of a linear one new.
_KEPT = (
    "transformer/", "token_embedding", "lm_head", "image_head/", "vision_tokenizer/", "vision_embedding/position_embedding",
)  # fmt: skip


def _ablations() -> list[sweep.Run]:
  head = "model.diffusion."
  overrides: dict[str, dict[str, Any]] = {
      "temperature_0.03": {"model.vision_embedding.temperature": 0.03},
      "temperature_3": {"model.vision_embedding.temperature": 3.0},
      "head_1_block": {head + "blocks": 1},
      "head_6_blocks": {head + "blocks": 6},
      "head_half_width": {head + "width": 96},
      "draws_1": {head + "draws": 1},
      "draws_8": {head + "draws": 8},
      "lambda_1": {head + "loss_weight": 1.0},
      "lambda_20": {head + "loss_weight": 20.0},
      "noise": {head + "target": "noise", head + "zero_terminal_snr": False},
      "paper_schedule": {head + "schedule": "linear", head + "beta_start": 1e-4, head + "beta_end": 0.02},
  }
  return _runs(dict.fromkeys(overrides, ""), overrides)


def _converted(place: str) -> list[sweep.Run]:
  """Each embedding on the discrete model of its seed, which was trained in the sweep at a place."""
  words = {"converted_soft": "", "converted_argmin": "argmin,", "converted_linear": "linear,"}
  return [
      sweep.Run(name, argument=f"{first}understanding,converted", overrides={"run.seed": seed, "run.init_from": tuple(
          (prefix, f"{place}/runs/understanding_argmin,seed={seed}") for prefix in _KEPT
      )}, named=frozenset({"run.init_from"}))
      for seed in SEEDS for name, first in words.items()
  ]  # fmt: skip


def get_sweep(arg: str = "") -> list[sweep.Run]:
  """The runs of a part of the study, each with every seed; of all parts without an argument."""
  if arg.startswith("converted="):
    return _converted(arg.removeprefix("converted="))
  if arg == "smoke":
    names = {**SYSTEMS, "regression": "regression"}
    return _runs({name: f"{words},smoke" if words else "smoke" for name, words in names.items()})
  if unknown := [w for w in arg.split(",") if w and w not in PARTS]:
    raise ValueError(f"configs/study.py has no part {unknown[0]!r}: {', '.join(PARTS)}, smoke")
  chosen = [w for w in arg.split(",") if w] or [p for p in PARTS if p != "ablations"]
  runs = {run.name: run for part in chosen for run in PARTS[part]()}
  # Seed by seed, so that what is finished first can be compared.
  return sweep.product(sweep.grid({"run.seed": SEEDS}), list(runs.values()))
