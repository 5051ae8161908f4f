"""InstructPix2Pix's figures of edited pictures, from CLIP's embeddings of pictures and captions ahead of and after the edit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import arrays
from orthus_jax.evaluation.benchmarks.base import Notes, Score, bootstrap

LAYOUT = """PATH is embeddings.npz with image_in, image_out, text_in and text_out, each [samples, dimensions]: CLIP's embeddings
of the picture and the caption ahead of the edit and after it, normalised or not. Its figures, means over samples:
  sim_0          picture and caption ahead of the edit
  sim_1          picture and caption after it (CLIP-T)
  sim_image      the two pictures (CLIP-I)
  sim_direction  the pictures' difference and the captions' (CLIP-D)"""
OPTIONS = {"network": "the CLIP that made the embeddings, such as ViT-L/14; it is recorded beside the figures"}
PROTOCOL = "metrics/clip_similarity.py of timothybrooks/instruct-pix2pix 0dffd1ee"
NAMES = ("image_in", "image_out", "text_in", "text_out")
_OF_PAPERS = {"CLIP-T": "sim_1", "CLIP-I": "sim_image", "CLIP-D": "sim_direction"}
_WHAT = f"embeddings {', '.join(NAMES)}"


def score(path: str | Path, *, network: str | None = None) -> Score:
  """InstructPix2Pix's four figures, cosines from -1 to 1, also by the names that papers have for them.

  Args:
    path: the embeddings (LAYOUT).
    network: the CLIP that made them, which is recorded.

  Raises:
    BadRequest: if the file isn't there, or holds something else.
  """
  path, notes = Path(path), Notes()
  found = arrays.load(path, _WHAT)
  if missing := [n for n in NAMES if n not in found]:
    raise BadRequest(f"{path} has no {', '.join(missing)} (it has {', '.join(list(found)[:6]) or 'nothing'}): {_WHAT}")
  embeddings = [arrays.rows(path, found[n], n, _WHAT) for n in NAMES]
  if len({e.shape for e in embeddings}) > 1:
    shapes = ", ".join(f"{n} {list(e.shape)}" for n, e in zip(NAMES, embeddings))
    raise BadRequest(f"{path}: the four must have one shape, a row a sample: {shapes}")
  a_SD, b_SD, s_SD, t_SD = map(_normalised, embeddings)  # pictures ahead of and after the edit, captions ahead and after
  by_sample = {
      "sim_0": _cosine(a_SD, s_SD), "sim_1": _cosine(b_SD, t_SD), "sim_direction": _cosine(b_SD - a_SD, t_SD - s_SD),
      "sim_image": _cosine(a_SD, b_SD),
  }  # fmt: skip
  still_S = (a_SD == b_SD).all(1) | (s_SD == t_SD).all(1)
  for s in np.flatnonzero(still_S):
    notes.add("samples of no change in picture or caption have the direction 0, which stays in the mean", path, name=f"row {s}")
  for s in np.flatnonzero(np.isnan(list(by_sample.values())).any(0)):
    notes.add("samples with an embedding of length 0 (or beyond float32) make figures nan; a straight reading leaves them out",
              path, name=f"row {s}")  # fmt: skip
  scores, straight = {}, {}
  for name, of in [*zip(by_sample, by_sample), *_OF_PAPERS.items()]:
    value_S = by_sample[of]
    scores[name] = float(np.mean(value_S, dtype=np.float64))
    if np.isnan(value_S).any() and not np.isnan(value_S).all():
      straight[name] = float(np.nanmean(value_S, dtype=np.float64))
  units_SK = np.stack([*by_sample.values(), np.ones(len(still_S))], axis=1)
  of_K = list(by_sample)
  intervals = bootstrap(units_SK, lambda sums_NK: {
      n: sums_NK[:, of_K.index(_OF_PAPERS.get(n, n))] / sums_NK[:, -1] for n in scores
  })  # fmt: skip
  return Score(
      "ip2p", f"{PROTOCOL}, with embeddings of {network or 'a CLIP that is not named'}", scores, intervals=intervals,
      counts=dict.fromkeys(scores, len(still_S)), straight=straight, notes=notes.lines(),
      rows=tuple({"row": s, **{n: _json(v[s]) for n, v in by_sample.items()}} for s in range(len(still_S))),
  )  # fmt: skip


def _normalised(values_SD: np.ndarray) -> np.ndarray:
  """Of length 1, ahead of any difference; nan where the length is 0."""
  with np.errstate(invalid="ignore", over="ignore"):
    float_SD = values_SD.astype(np.float32)
    return float_SD / np.linalg.norm(float_SD, axis=1, keepdims=True)


def _cosine(a_SD: np.ndarray, b_SD: np.ndarray) -> np.ndarray:
  """Cosines, 0 where one side is 0; not held within -1 and 1, as the original's aren't."""
  a_S, b_S = (np.maximum(np.linalg.norm(v, axis=1), np.float32(1e-8)) for v in (a_SD, b_SD))
  return np.einsum("sd,sd->s", a_SD / a_S[:, None], b_SD / b_S[:, None])


def _json(value: np.floating) -> float | str:
  return float(value) if np.isfinite(value) else str(value)
