"""Fine-tuning the vision tokenizer's decoder: its losses, what is trained, and what others take of it."""

import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from published_weights import write_safetensors
import pytest
import tiny

from orthus_jax.config import PixelsConfig
from orthus_jax.data import images
from orthus_jax.errors import BadRequest
from orthus_jax.models import params as params_lib, perceptual
from orthus_jax.models.perceptual import BLOCKS, Perceptual
from orthus_jax.training import perceptual_weights


def published_weights(rng) -> dict[str, np.ndarray]:
  """Random ones, by the names and shapes of torchvision's and lpips' files."""
  found, inputs = {}, 3
  for i, outputs in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (c for block in BLOCKS for c in block)):
    std = (2 / (9 * inputs)) ** 0.5
    found[f"features.{i}.weight"] = std * rng.standard_normal((outputs, inputs, 3, 3), np.float32)
    found[f"features.{i}.bias"] = 0.1 * rng.standard_normal(outputs).astype(np.float32)
    inputs = outputs
  for i, block in enumerate(BLOCKS):
    found[f"lin{i}.model.1.weight"] = rng.random((1, block[-1], 1, 1)).astype(np.float32)
  return found


WEIGHTS = published_weights(np.random.default_rng(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  file = tmp_path_factory.mktemp("weights") / "vgg_lpips.safetensors"
  write_safetensors(file, WEIGHTS)
  return file


def loaded(file) -> Perceptual:
  graphdef, _, _ = params_lib.shapes_and_axes(lambda: Perceptual(rngs=nnx.Rngs(params=0)))
  return params_lib.merge(graphdef, {n: jnp.asarray(v) for n, v in perceptual_weights.load(file).items()})


def test_lpips_is_the_published_one(weights):
  torch = pytest.importorskip("torch")
  w = {n: torch.from_numpy(v) for n, v in WEIGHTS.items()}

  def taps(x):
    """As torchvision's list of layers runs, up to the last tap."""
    shift, scale = (torch.tensor(v)[:, None, None] for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    x, found, at = (x - shift) / scale, [], 0
    for layer in ("C", "C", "M", "C", "C", "M", "C", "C", "C", "M", "C", "C", "C", "M", "C", "C", "C"):
      if layer == "M":
        found.append(x)
        x, at = torch.nn.functional.max_pool2d(x, 2), at + 1
      else:
        x = torch.relu(torch.nn.functional.conv2d(x, w[f"features.{at}.weight"], w[f"features.{at}.bias"], padding=1))
        at += 2
    return [*found, x]

  rng = np.random.default_rng(1)
  a, b = rng.uniform(-1, 1, (2, 2, 24, 32, 3)).astype(np.float32)
  expected = torch.zeros(2)
  for i, (x, y) in enumerate(zip(*(taps(torch.from_numpy(v).permute(0, 3, 1, 2)) for v in (a, b)))):
    x, y = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (x, y))
    expected += torch.nn.functional.conv2d((x - y) ** 2, w[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
  np.testing.assert_allclose(jax.jit(loaded(weights))(a, b), expected, rtol=1e-4)


def test_the_names_of_the_whole_lpips_module_serve_too(weights, tmp_path):
  slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
  whole = {re.sub(r"features\.(\d+)", lambda m: f"net.slice{slices[int(m[1])]}.{m[1]}", n): v for n, v in WEIGHTS.items()}
  file = tmp_path / "whole.safetensors"
  write_safetensors(file, whole | {"scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32)})
  one, two = (perceptual_weights.load(f) for f in (weights, file))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_place_without_features_has_a_finite_gradient():
  gradient = jax.grad(lambda x: (perceptual._unit(x) ** 2).sum())(jnp.zeros((1, 2, 2, 8)))
  np.testing.assert_array_equal(gradient, 0)


def test_pixels_reach_the_perceptual_distance_in_the_range_that_it_knows():
  for pixels in (PixelsConfig(), PixelsConfig(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))):
    x = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    np.testing.assert_allclose(images.to_unit(images.to_model(x, pixels), pixels), x / 127.5 - 1, atol=1e-5)


def test_weights_that_are_something_else(weights, tmp_path):
  (tmp_path / "vgg.pth").write_bytes(b"PK\x03\x04" + bytes(100))
  with pytest.raises(BadRequest, match=r"vgg.pth is no safetensors file.*docs/decoder.md.*pickles"):
    perceptual_weights.load(tmp_path / "vgg.pth")
  with pytest.raises(BadRequest, match="can't be read"):
    perceptual_weights.load(tmp_path / "none")
  write_safetensors(tmp_path / "no_heads", {n: v for n, v in WEIGHTS.items() if n != "lin3.model.1.weight"})
  with pytest.raises(BadRequest, match=r"lacks lin3.model.1.weight \[1, 512, 1, 1\]"):
    perceptual_weights.load(tmp_path / "no_heads")
  with pytest.raises(BadRequest, match="set tokenizer_loss.perceptual_weights=FILE"):
    tiny.config(tokenizer_loss={"perceptual": 1.0})
  with pytest.raises(BadRequest, match="16 pixels a side at least"):
    tiny.config(tokenizer_loss={"perceptual": 1.0, "perceptual_weights": str(weights)})
