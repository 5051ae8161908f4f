"""A trained vision tokenizer's features, spread evenly: the same tokenizer in other coordinates.

Trained for reconstruction alone, a VQGAN writes most of what a picture says into the large strokes of a few directions,
and what tells a square from a circle into the small print of others. A diffusion head, whose loss counts all values
alike, learns the small print last. Two 1 x 1 convolutions stand around the features, so that any invertible map of them
can be put into the one and undone in the other, without a change to any unquantised picture.
"""

from __future__ import annotations

import numpy as np

from orthus_jax.models.params import Params

_ROUNDS = 10  # of Lloyd's algorithm


def whiten(params: Params, features_NC: np.ndarray, *, power: float) -> Params:
  """A VisionTokenizer's parameters in whitened coordinates.

  Args:
    params: the tokenizer's, by name.
    features_NC: its features of many patches.
    power: directions of variance s are scaled by s ** (-power / 2), and all by what keeps the mean variance: 0 turns
      nothing but the mean, 1 makes every direction as loud as every other, noise included.

  Returns:
    The parameters, fp32: features have a mean of 0; codes are moved along, then fitted to the new features by Lloyd's
    algorithm.
  """
  features_NC = np.asarray(features_NC, np.float64)
  mean_C = features_NC.mean(axis=0)
  variance_C, basis_CC = np.linalg.eigh(np.cov(features_NC.T))
  variance_C = np.maximum(variance_C, 1e-6 * variance_C.max())
  scale_C = variance_C ** (-power / 2)
  scale_C *= np.sqrt(variance_C.mean() / (variance_C * scale_C**2).mean())
  there_CC = (basis_CC * scale_C) @ basis_CC.T
  back_CC = (basis_CC / scale_C) @ basis_CC.T
  new = {n: np.asarray(v, np.float64) for n, v in params.items()}
  new["quant_conv/kernel"] = new["quant_conv/kernel"] @ there_CC
  new["quant_conv/bias"] = (new["quant_conv/bias"] - mean_C) @ there_CC
  kernel_CD = new["post_quant_conv/kernel"][0, 0]
  new["post_quant_conv/kernel"] = (back_CC @ kernel_CD)[None, None]
  new["post_quant_conv/bias"] = new["post_quant_conv/bias"] + mean_C @ kernel_CD
  codes_KC = (new["codebook"] - mean_C) @ there_CC
  new["codebook"] = _fit_codes(codes_KC, (features_NC - mean_C) @ there_CC)
  return {n: v.astype(np.float32) for n, v in new.items()}


def _fit_codes(codes_KC: np.ndarray, features_NC: np.ndarray) -> np.ndarray:
  """Codes as the means of the features nearest to them; a code that is nearest to none stays."""
  for _ in range(_ROUNDS):
    distance_NK = (codes_KC**2).sum(axis=1) - 2.0 * features_NC @ codes_KC.T
    nearest_N = distance_NK.argmin(axis=1)
    count_K = np.bincount(nearest_N, minlength=len(codes_KC))
    sum_KC = np.zeros_like(codes_KC)
    np.add.at(sum_KC, nearest_N, features_NC)
    codes_KC = np.where(count_K[:, None] > 0, sum_KC / np.maximum(count_K, 1)[:, None], codes_KC)
  return codes_KC
