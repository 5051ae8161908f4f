"""How drawn pictures differ from real ones as a whole: a Fréchet distance over the vision tokenizer's features, and sharpness.

Axes: I pictures, P patches, C latent values, N samples, R resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def compare(model: Any, drawn: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> dict[str, float]:
  """Measures of drawn pictures beside as many real ones of the same prompts.

  Args:
    model: has `encode`, as `inference.model.Model`; only its vision tokenizer counts, so that models that share it can be
      compared.
    drawn, real: uint8 [R, R, 3].

  Returns:
    "frechet": the distance of patches' features; "sharpness": the drawn pictures' over the real ones', 1 where they are
    alike and less where the drawn ones are washed out.
  """
  features = [np.asarray(model.encode(list(pictures))) for pictures in (drawn, real)]
  a_NC, b_NC = (f.reshape(-1, f.shape[-1]) for f in features)
  return {"frechet": frechet(a_NC, b_NC), "sharpness": sharpness(drawn) / max(sharpness(real), 1e-12)}


def frechet(a_NC: np.ndarray, b_NC: np.ndarray) -> float:
  """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of Gaussians fitted to two samples (Heusel et al., arXiv 1706.08500)."""
  a_NC, b_NC = a_NC.astype(np.float64), b_NC.astype(np.float64)
  mean = np.sum((a_NC.mean(0) - b_NC.mean(0)) ** 2)
  a_CC, b_CC = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a_NC, b_NC))
  # tr (S_a S_b)^(1/2) by the symmetric matrix with the same eigenvalues.
  values, vectors = np.linalg.eigh(a_CC)
  root_CC = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
  shared = np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh(root_CC @ b_CC @ root_CC), 0.0)))
  return float(max(mean + np.trace(a_CC) + np.trace(b_CC) - 2.0 * shared, 0.0))


def sharpness(pictures: Sequence[np.ndarray]) -> float:
  """Mean square of the Laplacian of the grey values, over all pictures."""
  grey_IRR = np.stack(pictures).astype(np.float64).mean(-1)
  inner = grey_IRR[:, 1:-1, 1:-1]
  around = grey_IRR[:, :-2, 1:-1] + grey_IRR[:, 2:, 1:-1] + grey_IRR[:, 1:-1, :-2] + grey_IRR[:, 1:-1, 2:]
  return float(np.mean((around - 4.0 * inner) ** 2))
