"""Fine-tuning the vision tokenizer's decoder: its losses, what is trained, and what others take of it."""

import collections
import json
from pathlib import Path
import re
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from published_weights import write_safetensors
import pytest
import tiny

from orthus_jax import training_run
from orthus_jax.config import PixelsConfig
from orthus_jax.config.command_line import load_config
from orthus_jax.data import images
from orthus_jax.data.prepared import writer as prepared
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest
from orthus_jax.models import params as params_lib, perceptual
from orthus_jax.models.discriminator import PatchDiscriminator
from orthus_jax.models.orthus import Orthus
from orthus_jax.models.perceptual import Perceptual
from orthus_jax.models.vision_tokenizer import VisionTokenizer
from orthus_jax.parallel.mesh import make_mesh
from orthus_jax.training import initial_state, perceptual_weights, tokenizer_losses
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.optimizer import make_optimizer, trainable_names
from orthus_jax.training.state import plan_run
from orthus_jax.training.tasks import TokenizerTask
from orthus_jax.training.tokenizer_losses import JudgedTokenizer

ROOT = Path(__file__).parent.parent


def published_weights(rng, blocks=perceptual.BLOCKS) -> dict[str, np.ndarray]:
  """Random ones, by the names and shapes of torchvision's and lpips' files."""
  found, inputs, at = {}, 3, 0
  for tap, block in enumerate(blocks):
    for outputs in block:
      std = (2 / (9 * inputs)) ** 0.5
      found[f"features.{at}.weight"] = std * rng.standard_normal((outputs, inputs, 3, 3), np.float32)
      found[f"features.{at}.bias"] = 0.1 * rng.standard_normal(outputs).astype(np.float32)
      inputs, at = outputs, at + 2
    found[f"lin{tap}.model.1.weight"] = rng.random((1, block[-1], 1, 1)).astype(np.float32)
    at += 1
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


@pytest.mark.slow
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


def test_the_perceptual_distance_is_brought_by_its_file_and_never_trained(weights):
  c = tiny.config(
      task="vision_tokenizer", optimizer__trainable=[".*"], model__vision_tokenizer__resolution=16,
      tokenizer_loss={"perceptual": 1.0, "perceptual_weights": str(weights)},
  )  # fmt: skip
  layout, _ = plan_run(
      c, TokenizerTask(c, tiny.TinySource(4)).init, optimizer=make_optimizer(c.optimizer, c.run), mesh=make_mesh(c.mesh)
  )
  parts = {n.split("/")[0] for n in layout.shapes.params}
  assert {n.split("/")[0] for n in layout.names} == parts - {"perceptual"}
  values = initial_state.initial_values(c, layout)
  assert set(values) == {n for n in layout.shapes.params if n.startswith("perceptual/")}


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


FINE_TUNED = dict(task="vision_tokenizer", optimizer__trainable=["decoder/.*", "post_quant_conv/.*", "discriminator/.*"])


def fine_tuning(**changes):
  loss = dict(commitment=0.0, codebook=0.0, quantised_share=0.0, revive_every=0) | changes.pop("tokenizer_loss", {})
  return tiny.config(**FINE_TUNED, tokenizer_loss=loss, **changes)


def lively(init):
  """A module's structure and random parameters."""
  graphdef, shapes, _ = params_lib.shapes_and_axes(init)
  rng = np.random.default_rng(0)
  return graphdef, {n: np.float32(np.prod(v.shape[:-1]) ** -0.5 * rng.standard_normal(v.shape)) for n, v in shapes.items()}


@pytest.mark.slow
def test_each_adversary_learns_from_its_own_loss_alone():
  graphdef, params = lively(lambda: PatchDiscriminator(8, rngs=nnx.Rngs(params=0)))
  x, z, w = np.random.default_rng(1).standard_normal((3, 2, 16, 16, 3)).astype(np.float32)

  def both(gain, params):
    model = types.SimpleNamespace(discriminator=params_lib.merge(graphdef, params))
    generator_B, discriminator_B = tokenizer_losses.adversarial(model, z + gain * w, x)
    return 3.0 * generator_B.mean() + discriminator_B.mean()

  def one(gain, params, generator, discriminator):
    judge = params_lib.merge(graphdef, params)
    real, fake = judge(x), judge(z + gain * w)
    hinge = 0.5 * (jnp.maximum(1 - real, 0).mean() + jnp.maximum(1 + fake, 0).mean())
    return discriminator * hinge - generator * fake.mean()

  of_gain, of_params = jax.jit(jax.grad(both, argnums=(0, 1)))(0.7, params)
  alone = jax.jit(jax.grad(one, argnums=(0, 1)))
  np.testing.assert_allclose(of_gain, alone(0.7, params, 3.0, 0.0)[0], rtol=1e-3)
  gain, expected = alone(0.7, params, 0.0, 1.0)
  assert abs(gain) > 1e-4
  for name, g in of_params.items():
    np.testing.assert_allclose(g, expected[name], rtol=1e-3, atol=1e-6, err_msg=name)
  assert max(float(jnp.abs(g).max()) for g in of_params.values()) > 1e-3


def test_the_discriminator_judges_pieces_of_each_picture_by_itself():
  graphdef, params = lively(lambda: PatchDiscriminator(8, rngs=nnx.Rngs(params=0)))
  judge = jax.jit(lambda x: params_lib.merge(graphdef, params)(x))
  x = np.random.default_rng(0).standard_normal((2, 24, 32, 3)).astype(np.float32)
  whole = judge(x)
  assert whole.shape == (2, 3, 4)
  np.testing.assert_allclose(whole[::-1], judge(x[::-1]), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(whole[1], judge(np.stack([0 * x[0], x[1]]))[1], rtol=1e-4, atol=1e-5)


def test_adversaries_that_cannot_be():
  with pytest.raises(BadRequest, match="adversarial needs pictures of 8 pixels"):
    fine_tuning(tokenizer_loss=dict(adversarial=1.0), model__vision_tokenizer__resolution=4)
  with pytest.raises(BadRequest, match="discriminator_channels=20 must be a multiple of 8"):
    fine_tuning(tokenizer_loss=dict(adversarial=1.0, discriminator_channels=20))
  c = tiny.replace(fine_tuning(tokenizer_loss=dict(adversarial=1.0)), "optimizer", trainable=("decoder/.*",))
  _, shapes, _ = params_lib.shapes_and_axes(TokenizerTask(c, tiny.TinySource(4)).init)
  with pytest.raises(BadRequest, match="add 'discriminator/.*' to optimizer.trainable"):
    trainable_names(c.optimizer, shapes)


@pytest.mark.parametrize("machine", ["h100-8", "h200-1", "v5e-256", "2xv5p-128"])
def test_the_published_decoder_and_what_leads_into_it_are_trained_alone(machine):
  c = load_config(f"{ROOT}/configs/orthus_7b.py:decoder-{machine}")
  graphdef, shapes, _ = params_lib.shapes_and_axes(
      lambda: JudgedTokenizer(c.model.vision_tokenizer, c.tokenizer_loss, rngs=nnx.Rngs(params=0))
  )
  sizes = collections.Counter()
  for name in trainable_names(c.optimizer, shapes):
    sizes[name.split("/")[0]] += int(np.prod(shapes[name].shape))
  assert sizes == {"decoder": 39_294_851, "post_quant_conv": 256 * 256 + 256}
  loss, devices = c.tokenizer_loss, c.mesh.data * c.mesh.fsdp
  assert (loss.quantised_share, loss.commitment, loss.codebook, loss.revive_every) == (0, 0, 0, 0)
  assert (c.run.batch_size, c.run.steps, c.optimizer.learning_rate) == (256, 15_000, 1e-5)
  assert c.run.batch_size % (devices * c.optimizer.accumulation) == 0


def test_the_miniature_takes_the_quickstart_s_tokenizer():
  c, quickstart = (load_config(f"{ROOT}/configs/shapes.py{arg}") for arg in (":decoder", ""))
  assert c.model == quickstart.model
  graphdef, shapes, _ = params_lib.shapes_and_axes(lambda: VisionTokenizer(c.model.vision_tokenizer, rngs=nnx.Rngs(params=0)))
  start = initial_state.initial_tokenizer(c, shapes)
  assert set(start) == set(shapes)
  assert {n.split("/")[0] for n in trainable_names(c.optimizer, shapes)} == {"decoder", "post_quant_conv"}


@pytest.mark.slow
def test_fine_tuning_improves_unquantised_pictures_and_leaves_what_makes_features(tmp_path, monkeypatch):
  few = ((4,), (8, 8))  # VGG-16 itself takes minutes here
  monkeypatch.setattr(perceptual, "BLOCKS", few)
  monkeypatch.setattr(perceptual_weights, "BLOCKS", few)
  weights, published = tmp_path / "few.safetensors", published_weights(np.random.default_rng(0), few)
  write_safetensors(weights, published)
  (tmp_path / "pictures").mkdir()
  sizes = dict(data__sequence_length=80, model__vision_tokenizer__resolution=16)
  laid = tiny.config(data__path=str(tiny.write_folder(tmp_path / "pictures", 12)), **sizes)
  source = sources.open_source(laid, "train")
  prepared.prepare(source, tiny.tokenizer(), laid, tmp_path / "prepared", images="pixels")
  size = sizes | dict(
      data__source="prepared", data__path=str(tmp_path / "prepared"), run__report=True, run__batch_size=8, mesh__fsdp=8
  )  # fmt: skip
  _, old = lively(lambda: VisionTokenizer(tiny.config(**size).model.vision_tokenizer, rngs=nnx.Rngs(params=0)))
  np.savez(tmp_path / "first.npz", **old)
  c = fine_tuning(
      tokenizer_loss=dict(
          held_out=4, perceptual=0.1, perceptual_weights=str(weights), adversarial=0.01, adversarial_start=20,
          discriminator_channels=8,
      ),
      run__init_from=[["", str(tmp_path / "first.npz")]], run__steps=40, **size,
  )  # fmt: skip
  figures = training_run.run(c, tmp_path / "second", begin=0.0)
  before, after = figures["scores_before"], figures["scores"]
  assert before["pictures"] == after["pictures"] == 4
  assert after["psnr_unquantised"] > before["psnr_unquantised"] + 0.5
  assert json.loads((tmp_path / "second" / "report.json").read_text())["scores_before"] == before

  new = checkpoint.load_params(tmp_path / "second")
  changed = {n.split("/")[0] for n in old if not np.array_equal(old[n], new[n])}
  assert changed == {"decoder", "post_quant_conv"}
  assert {n.split("/")[0] for n in set(new) - set(old)} == {"perceptual", "discriminator"}
  np.testing.assert_array_equal(new["perceptual/conv/0/kernel"], published["features.0.weight"].transpose(2, 3, 1, 0))
  records = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
  assert len({r["discriminator"] for r in records[:20]}) > 1 and records[-1]["discriminator"] < records[19]["discriminator"]

  # What others take of it is the tokenizer alone.
  whole = tiny.config(run__init_from=[["vision_tokenizer/", str(tmp_path / "second")]], **size)
  layout, _ = plan_run(
      whole, lambda: Orthus(whole.model, rngs=nnx.Rngs(params=0)), optimizer=make_optimizer(whole.optimizer, whole.run),
      mesh=make_mesh(whole.mesh),
  )  # fmt: skip
  values = initial_state.initial_values(whole, layout)
  assert set(values) == {f"vision_tokenizer/{n}" for n in old} | {"vision_embedding/codebook"}
  np.testing.assert_array_equal(values["vision_tokenizer/decoder/conv_in/kernel"], new["decoder/conv_in/kernel"])
  with np.load(tmp_path / "second" / "weights.npz") as file:
    assert set(file.files) == set(old)
