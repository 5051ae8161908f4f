"""The released implementation's values at a tiny size, array by array (tests/golden)."""

import csv
import json
import math
from pathlib import Path
import re
import zlib

from flax import nnx
import jax
import jax.numpy as jnp
from measured import close
import numpy as np
import plain
import pytest

from orthus_jax.config import DiffusionConfig, ModelConfig, TransformerConfig, VisionTokenizerConfig
from orthus_jax.diffusion import process
from orthus_jax.interop.names import published_name
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import Orthus

FOLDER = Path(__file__).parent / "golden"
P = 16
INPUTS = {
    "pixels", "patches", "input_ids", "logits_stride", "text_ids", "head_x", "head_t", "head_z", "q_x0", "q_eps", "ddim_x",
    "ddim_z", "loss_t", "loss_eps",
}  # fmt: skip


def _draw(name: str, shape: list[int]) -> np.ndarray:
  """A parameter of the golden model: drawn by its name."""
  x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
  parent = name.split(".")[-2]
  if "norm" in parent or parent == "in_ln":
    return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
  if name.endswith("bias"):
    return 0.05 * x
  if "quantize.embedding" in name or "codebook_in" in name:
    return 0.25 * x
  if "embed_tokens" in name:
    return 0.5 * x
  return x / np.float32(math.sqrt(math.prod(shape[1:]) if len(shape) > 1 else shape[0]))


@pytest.fixture(scope="module")
def golden():
  with np.load(FOLDER / "orthus_tiny.npz") as file:
    return {k: file[k] for k in file.files}


@pytest.fixture(scope="module")
def model() -> Orthus:
  description = json.loads((FOLDER / "orthus_tiny.json").read_text())
  c, v = description["config"], description["config"]["vq_config"]
  config = ModelConfig(
      transformer=TransformerConfig(
          vocab_size=c["vocab_size"], width=c["hidden_size"], mlp_width=c["intermediate_size"],
          layers=c["num_hidden_layers"], heads=c["num_attention_heads"], kv_heads=c["num_key_value_heads"],
          head_dim=c["hidden_size"] // c["num_attention_heads"], dtype="float32", remat="none",
      ),
      vision_tokenizer=VisionTokenizerConfig(
          resolution=v["resolution"], base_channels=v["base_channels"],
          channel_multipliers=tuple(v["channel_multiplier"]), res_blocks=v["num_res_blocks"],
          latent_dim=v["embed_dim"], codes=v["num_embeddings"],
      ),
  )  # fmt: skip
  graphdef, shapes, _ = params_lib.shapes_and_axes(lambda: Orthus(config, rngs=nnx.Rngs(params=0)))
  published = {k: _draw(k, s) for k, s in description["shapes"].items()}
  params = plain.import_params(published, {n: s.shape for n, s in shapes.items()})
  return params_lib.merge(graphdef, {n: jnp.asarray(v) for n, v in params.items()})


def check(golden, name: str, value, limit: float) -> None:
  close(f"golden {name}", value, golden[name], limit)


def nchw(x):
  return np.asarray(x).transpose(0, 3, 1, 2)


def hidden_of(model, golden):
  ids = golden["input_ids"]
  image = ids == 8711
  slot = np.where(image, np.cumsum(image, axis=1) - 1, -1)
  position = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
  return jax.jit(
      lambda model, f: model(
          jnp.asarray(ids), features_BJC=f, slot_BT=jnp.asarray(slot), position_BT=jnp.asarray(position),
          segment_ids_BT=jnp.ones_like(ids),
      )
  )(model, golden["patches"])  # fmt: skip


@pytest.mark.slow
def test_vision_tokenizer(model, golden):
  pixels = golden["pixels"].transpose(0, 2, 3, 1)
  latents = jax.jit(lambda m, x: m.vision_tokenizer.encode(x))(model, pixels)
  check(golden, "latents", latents.reshape(2, 4, 4, 256), 1e-4)
  np.testing.assert_array_equal(model.vision_tokenizer.quantise(latents), golden["vq_indices"])
  decode = jax.jit(lambda m, z: m.vision_tokenizer.decode(z))
  check(golden, "decoded", nchw(decode(model, golden["latents"][:1].reshape(1, 16, 256))), 1e-4)
  rows = model.vision_tokenizer.codebook[...][golden["vq_indices"][:1]]
  check(golden, "decoded_from_indices", nchw(decode(model, rows)), 1e-4)


def test_soft_vq_embedding(model, golden):
  check(golden, "soft_vq_embedding", model.embed_features(golden["patches"]), 1e-5)


def test_hidden_states_and_logits(model, golden):
  hidden = hidden_of(model, golden)
  check(golden, "hidden", hidden, 1e-5)
  check(golden, "logits", model.logits(hidden)[..., :: int(golden["logits_stride"])], 1e-5)


def test_text_alone(model, golden):
  ids = jnp.asarray(golden["text_ids"])
  hidden = model(
      ids, features_BJC=jnp.zeros((2, 1, 256)), slot_BT=jnp.full_like(ids, -1),
      position_BT=jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape), segment_ids_BT=jnp.ones_like(ids),
  )  # fmt: skip
  check(golden, "text_hidden", hidden, 1e-5)


def test_cross_entropy(model, golden):
  logits = np.asarray(model.logits(jnp.asarray(golden["hidden"])))[:, :-1]
  targets = golden["input_ids"][:, 1:]
  logp = np.asarray(jax.nn.log_softmax(logits))
  nll = -np.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
  check(golden, "loss_ce_text_only", nll[targets != 8711].mean(), 1e-5)


def test_head(model, golden):
  v = model.image_head(jnp.asarray(golden["head_x"]), jnp.asarray(golden["head_t"]), jnp.asarray(golden["head_z"]))
  check(golden, "head_v", v, 1e-5)


def test_schedule_noising_and_target(golden):
  config = DiffusionConfig()
  abar = process.alphas_cumprod(config)
  check(golden, "alphas_cumprod", abar, 1e-5)
  assert abar[999] == 0
  np.testing.assert_array_equal(process.timesteps(config, 100), golden["ddim_timesteps"])
  at = jnp.asarray(abar)[golden["head_t"]]
  check(golden, "q_xt", process.add_noise(golden["q_x0"], golden["q_eps"], at), 1e-5)
  check(golden, "q_v", process.target(golden["q_x0"], golden["q_eps"], at, kind="velocity"), 1e-5)


@pytest.mark.parametrize(
    "name, rows, weights, steps",
    [
        ("ddim_plain", [[0], [1]], [1.0], 100),
        ("ddim_plain_25", [[0], [1]], [1.0], 25),
        ("ddim_cfg5", [[0, 2], [1, 3]], [5.0, -4.0], 100),
        ("ddim_edit", [[0, 2, 4], [1, 3, 5]], [7.5, 1.5 - 7.5, 1 - 1.5], 100),
    ],
)
def test_sampling(model, golden, name, rows, weights, steps):
  z = golden["ddim_z"][np.asarray(rows)]
  check(golden, name, plain.draw(model.image_head, z, weights, golden["ddim_x"], steps=steps), 1e-4)


def test_diffusion_loss(model, golden):
  # Patches and the states that predict them (BOI … patch 15), flattened and tiled: here, one draw each.
  start = int(np.flatnonzero(golden["input_ids"][0] == 8197)[0])
  z = np.tile(golden["hidden"][:, start : start + P].reshape(-1, 64), (4, 1))
  features = np.tile(golden["patches"].reshape(-1, 256), (4, 1))
  t, eps = golden["loss_t"][:, None], golden["loss_eps"][:, None]
  errors = jax.vmap(model.image_head.errors)(z, features, t, eps)
  check(golden, "loss_diffusion", errors.mean(), 1e-5)


def test_no_array_is_left_out(golden):
  # An output counts as compared where its name follows check(golden, or stands among the parameters of test_sampling.
  source = Path(__file__).read_text()
  compared = set(re.findall(r'check\(golden, "(\w+)"', source)) | set(re.findall(r'\("(ddim_\w+)", \[', source))
  exact = set(re.findall(r'assert_array_equal\(.*golden\["(\w+)"\]\)', source))
  assert compared | exact | INPUTS == set(golden)
  assert not (compared | exact) & INPUTS


def test_published_keys_and_sizes_of_the_7b_model():
  # The same modules at 7B sizes are a config apart: every published key, every shape, every number of parameters.
  _, shapes, axes = params_lib.shapes_and_axes(lambda: Orthus(ModelConfig(), rngs=nnx.Rngs(params=0)))
  with (FOLDER / "orthus_state_dict_keys.tsv").open() as file:
    published = {r["key"]: tuple(map(int, r["shape(torch)"].split("x"))) for r in csv.DictReader(file, delimiter="\t")}
  found = {}
  for name, shape in shapes.items():
    assert len(axes[name]) == len(shape.shape)
    key, layout = published_name(name)
    n = shape.shape[0] if "{}" in key else 1
    for i in range(n):
      found[key.format(i)] = math.prod(shape.shape) // n
  assert found == {k: math.prod(s) for k, s in published.items()}
  assert sum(math.prod(s.shape) for s in shapes.values()) == 7_134_462_595
  head = sum(math.prod(s.shape) for n, s in shapes.items() if n.startswith("image_head/"))
  assert head == 49_980_160
