"""Measures of pictures against closed forms."""

import numpy as np
import pytest

from orthus_jax.evaluation import picture_quality as quality

rng = np.random.default_rng(0)


def test_the_frechet_distance_is_that_of_gaussians():
  a, b = rng.standard_normal((200_000, 3)), 2.0 * rng.standard_normal((200_000, 3)) + [1.0, 0.0, -1.0]
  assert quality.frechet(a, b) == pytest.approx(2.0 + 3 * (1 - 2) ** 2, rel=0.02)  # |m|^2 + sum (s_a - s_b)^2
  assert quality.frechet(a, a) == pytest.approx(0.0, abs=1e-9)
  assert quality.frechet(a, b) == pytest.approx(quality.frechet(b, a))
  turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]  # no choice of axes counts
  assert quality.frechet(a @ turn, b @ turn) == pytest.approx(quality.frechet(a, b))


def test_washed_out_pictures_are_less_sharp():
  real = [rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(4)]
  soft = [np.mean([np.roll(p, s, axis=a) for s in (-1, 0, 1) for a in (0, 1)], axis=0).astype(np.uint8) for p in real]

  class Model:
    def encode(self, pictures):
      return np.stack(pictures).reshape(len(pictures), -1, 3).astype(np.float32)

  found = quality.compare(Model(), soft, real)
  assert found["sharpness"] < 0.6 and found["frechet"] > 0
  assert quality.compare(Model(), real, real) == {"frechet": pytest.approx(0, abs=1e-6), "sharpness": 1.0}
