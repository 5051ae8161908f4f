"""How well a vision tokenizer gives pictures back: PSNR, SSIM and the share of codes in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import functools
from typing import Any

import numpy as np
from scipy import ndimage

from orthus_jax.data import images as images_lib
from orthus_jax.models import params as params_lib
from orthus_jax.models.params import Params
from orthus_jax.parallel import compiler

_BATCH, _BATCH_PIXELS = 128, 2**21  # pictures decoded at once, at most


def psnr(a: np.ndarray, b: np.ndarray) -> float:
  """Peak signal-to-noise ratio in dB of two uint8 pictures, peak 255; equal pictures give infinity."""
  error = np.mean(np.square(a.astype(np.float64) - b.astype(np.float64)))
  return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
  """Structural similarity of two uint8 pictures [H, W, 3] (Wang et al., 2004): Gaussian window of sigma 1.5 cut at 5
  pixels, population covariance, mean over channels and over the places where the whole window lies inside.

  Raises:
    ValueError: if a side is shorter than the window of 11 pixels.
  """
  if min(a.shape[:2]) < 11:
    raise ValueError(f"SSIM needs sides of at least 11 pixels, got {a.shape}")
  x, y = a.astype(np.float64), b.astype(np.float64)

  def blur(v: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(v, sigma=(1.5, 1.5, 0), radius=(5, 5, 0))[5:-5, 5:-5]

  mx, my = blur(x), blur(y)
  vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  return float(np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))))


@functools.lru_cache(maxsize=2)  # samples of one run are compiled once
def _both_ways(graphdef: Any) -> Callable[..., Any]:
  """Compiled (params, uint8 [B, R, R, 3]) -> that back from features and from codes, codes [B, P], features [B, P, C]."""

  @compiler.jit
  def both(params, pixels):
    model = params_lib.merge(graphdef, params)
    z_BPC = model.encode(images_lib.to_model(pixels, model.config.pixels))
    codes_BP = model.quantise(z_BPC)
    decoded = (model.decode(v) for v in (z_BPC, model.codebook[...][codes_BP]))
    back = (images_lib.from_model(x, model.config.pixels) for x in decoded)
    return (*back, codes_BP, z_BPC)

  return both


def evaluate(graphdef: Any, params: Params, pictures: Iterable[np.ndarray]) -> tuple[dict[str, float], list[np.ndarray]]:
  """Scores a VisionTokenizer on pictures of its resolution.

  Returns:
    (scores: mean PSNR in dB and SSIM, unquantised and quantised, share of codes in use, mean and standard deviation of
    the features; rows of the first pictures: original, unquantised, quantised).
  """

  both = _both_ways(graphdef)
  pixels = np.stack(list(pictures))
  batch = min(_BATCH, len(pixels), max(1, _BATCH_PIXELS // (pixels.shape[1] * pixels.shape[2])))
  blocks: list[list[np.ndarray]] = [[] for _ in range(4)]
  for i in range(0, len(pixels), batch):
    block = pixels[i : i + batch]
    padded = np.pad(block, ((0, batch - len(block)), (0, 0), (0, 0), (0, 0)))
    for kept, value in zip(blocks, both(params, padded)):
      kept.append(np.asarray(value)[: len(block)])
  soft, hard, codes, features = map(np.concatenate, blocks)
  scores = {
      "psnr_unquantised": float(np.mean([psnr(a, b) for a, b in zip(pixels, soft)])),
      "psnr_quantised": float(np.mean([psnr(a, b) for a, b in zip(pixels, hard)])),
      "ssim_unquantised": float(np.mean([ssim(a, b) for a, b in zip(pixels, soft)])),
      "ssim_quantised": float(np.mean([ssim(a, b) for a, b in zip(pixels, hard)])),
      "codes_in_use": len(np.unique(codes)) / params["codebook"].shape[0],
      "feature_mean": float(features.mean()),
      "feature_std": float(features.std()),
      "pictures": len(pixels),
  }
  rows = [image for i in range(min(8, len(pixels))) for image in (pixels[i], soft[i], hard[i])]
  return scores, rows
