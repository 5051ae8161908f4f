"""What each choice of generation costs in quality: a trained model's scores beside 100 DDIM steps in full precision.

    python benchmarks/choices.py runs/shapes [--captions-per-tag=42] [--samples=2] [--only=NAME,...] [--markdown]

Every choice answers the same prompts from the same seeds, so that what is compared is the choice alone. Intervals are of
the difference, 95%, documents resampled (paired bootstrap); those that a choice can't touch are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import sys
import time

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

# Name → fields of the sampling config beside the base's.
BASE = dict(solver="ddim", steps=100, image_temperature=1.0)
CHOICES = {
    "ddim 25": dict(steps=25),
    "ddim 20": dict(steps=20),
    "dpm 20": dict(solver="dpm", steps=20),
    "dpm 10": dict(solver="dpm", steps=10),
    "ddpm 100": dict(solver="ddpm"),
    "100 then 25": dict(late_steps=25),
    "half the noise": dict(image_temperature=0.5),
    "guidance at t < 0.8": dict(guidance_interval=(0.0, 0.8)),
    "int8 weights": dict(weights="int8"),
    "int8 cache": dict(cache="int8"),
    "int8 both + dpm 20": dict(weights="int8", cache="int8", solver="dpm", steps=20),
}
SCORES = ("single_object", "geneval_overall", "edits", "open_accuracy", "yes_no_accuracy", "caption_attributes")
_RESAMPLES = 2000


def difference(a: Sequence, b: Sequence, parts: Sequence[str], rng: np.random.Generator) -> tuple[float, float, float]:
  """How much higher b's score is than a's, and the interval; a score may be the mean of several."""
  parts = [_paired(a, b, name, rng) for name in parts]
  values, resampled = np.mean([p[0] for p in parts]), np.mean([p[1] for p in parts], axis=0)
  return (float(values), *(float(q) for q in np.quantile(resampled, (0.025, 0.975))))


def _paired(a: Sequence, b: Sequence, score: str, rng: np.random.Generator) -> tuple[float, np.ndarray]:
  rows: dict[str, np.ndarray] = {}
  for x, y in zip(a, b, strict=True):
    assert (x.id, x.prompt) == (y.id, y.prompt)
    if score in x.marks:
      rows.setdefault(x.id, np.zeros(4))[:] += (*x.marks[score], *y.marks[score])
  table = np.stack(list(rows.values()))

  def of(t: np.ndarray) -> np.ndarray:
    s = t.sum(axis=-2)
    return s[..., 2] / np.maximum(s[..., 3], 1e-9) - s[..., 0] / np.maximum(s[..., 1], 1e-9)

  drawn = rng.integers(0, len(table), (_RESAMPLES, len(table)))
  return float(of(table)), of(table[drawn])


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("run", help="a trained run's directory")
  parser.add_argument("--captions-per-tag", type=int, default=42)
  parser.add_argument("--samples", type=int, default=2, help="pictures a caption")
  parser.add_argument("--questions", type=int, default=64, help="pictures to ask about")
  parser.add_argument("--edits", type=int, default=32)
  parser.add_argument("--only", default="", help="names, separated by commas")
  parser.add_argument("--markdown", action="store_true")
  options = parser.parse_args()
  chosen = [c for c in options.only.split(",") if c] or list(CHOICES)
  if unknown := [c for c in chosen if c not in CHOICES]:
    parser.error(f"unknown choice {unknown[0]!r}: choose from {', '.join(CHOICES)}")

  from orthus_jax.commands import common

  common.initialize()
  from orthus_jax.data.sources import registry as sources
  from orthus_jax.evaluation import shapes
  from orthus_jax.inference import model as model_lib

  model = model_lib.load(options.run)
  documents = sources.open_source(model.config, "test")
  limits = shapes.Limits(
      caption_images=options.captions_per_tag, samples=options.samples, questions=options.questions, captions=32,
      edits=options.edits, stories=0,
  )  # fmt: skip

  def run(**fields):
    sampling = dataclasses.replace(model.config.sampling, **{**BASE, **fields})
    begin = time.monotonic()
    result = shapes.evaluate(model, documents, limits=limits, sampling=sampling)
    return result, time.monotonic() - begin

  base, seconds = run()
  scores = [s for s in SCORES if s in base.scores]
  pictures = sum(c.kind in ("caption_to_image", "edit") for c in base.cases)
  print(f"{pictures} pictures, {sum(c.kind == 'question' for c in base.cases)} questions", flush=True)
  print("base: " + ", ".join(f"{s} {base.scores[s]:.3f}" for s in scores) + f" ({seconds:.0f} s)", flush=True)
  lines = [f"| choice | {' | '.join(scores)} |", "|---|" + "---|" * len(scores)]
  lines.append("| 100 DDIM steps, full precision | " + " | ".join(f"{base.scores[s]:.3f}" for s in scores) + " |")
  for name in chosen:
    result, seconds = run(**CHOICES[name])
    rng = np.random.default_rng(0)
    parts = {s: shapes.TAGS if s == "geneval_overall" else (s,) for s in scores}
    told = {s: difference(base.cases, result.cases, parts[s], rng) for s in scores}
    row = [f"{d:+.3f} ({low:+.3f} … {high:+.3f})" for d, low, high in told.values()]
    print(f"{name:22} " + ", ".join(f"{s} {r}" for s, r in zip(scores, row)) + f" ({seconds:.0f} s)", flush=True)
    lines.append(f"| {name} | " + " | ".join(row) + " |")
  if options.markdown:
    print("\n" + "\n".join(lines))
  return 0


if __name__ == "__main__":
  sys.exit(main())
