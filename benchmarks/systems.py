"""How many pictures a second each system of the study draws, in the same engine at the same batch.

    python benchmarks/systems.py                                   # Orthus, its regression head, Chameleon, Show-o
    python benchmarks/systems.py --batches=8,32 --rounds=5 --markdown

Each has its configuration in the study (`configs/study.py`: guidance, DDIM steps, passes) and random weights, which change no
time. `Model.generate` draws, without the VQGAN's decoding. Systems take turns, and a figure is the fastest round's, as other
work on the machine only ever slows one down.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from generate import FeatureModel, Ours, Tokens, random_params, show, timed
import jax

from orthus_jax.commands import common
from orthus_jax.config import Config
from orthus_jax.config.command_line import read_config

_STUDY = Path(__file__).resolve().parent.parent / "configs" / "study.py"
SYSTEMS = {"Orthus": "", "Orthus, regression head": "regression", "Chameleon": "chameleon", "Show-o": "showo"}


def build(argument: str) -> FeatureModel:
  """A system's model as the study trains it, with random weights."""
  config, _ = read_config([f"--config={_STUDY}:{argument}"])
  tokens = Tokens(config)
  sampling = dataclasses.replace(
      config.sampling, max_new_tokens=config.model.vision_tokenizer.patches + 2,
      unconditional_prompt=" ".join(str(tokens.first + i) for i in range(4)),
  )  # fmt: skip
  config = dataclasses.replace(config, sampling=sampling)
  return FeatureModel.create(config, random_params(config), tokens)


def told(config: Config) -> str:
  """What a picture takes of a system."""
  P, s, kind = config.model.vision_tokenizer.patches, config.sampling, config.model.image_head.kind
  turns = {"diffusion": f"{P} turns of {s.steps} solver steps", "masked": f"{s.steps} passes"}.get(kind, f"{P} turns")
  return f"{turns}, guidance {s.guidance:g}"


def main() -> None:
  """Measures and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batches", default="1,8,32", help="requests at once")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--markdown", action="store_true")
  options = parser.parse_args()
  common.initialize()
  batches = [int(b) for b in options.batches.split(",")]
  models = {name: build(argument) for name, argument in SYSTEMS.items()}
  best: dict[tuple[str, int], float] = {}
  for batch in batches:
    systems = {name: Ours(model, batch) for name, model in models.items()}
    for system in systems.values():
      system.draw()  # which compiles
    for _ in range(options.rounds):
      for name, system in systems.items():
        best[name, batch] = min(best.get((name, batch), float("inf")), timed(system))
  device = jax.devices()[0].device_kind
  rows = [[f"pictures/s on {device}", "a picture takes", *(f"batch {b}" for b in batches)]]
  for name, model in models.items():
    rows.append([name, told(model.config), *(f"{b / best[name, b]:.2f}" for b in batches)])
  show(rows, markdown=options.markdown)


if __name__ == "__main__":
  main()
