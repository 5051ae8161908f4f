"""A model and a source small enough to compile in seconds."""

import copy
import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from orthus_jax import config as config_lib
from orthus_jax.config import Config
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.sequence import layout
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.data.tokenizer_training import train_tokenizer
from orthus_jax.inference.model import Model
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import Orthus, describe

WORDS = ("red", "green", "blue", "one", "two", "draw", "what", "is", "this", "a", "box", "generate", "an", "image")
CODES = 16


def tokenizer() -> TextTokenizer:
  return train_tokenizer([" ".join(WORDS)] * 50 + list(WORDS) * 50, 400, CODES)


def config(**changes) -> Config:
  """A tiny experiment; changes are dotted with double underscores, as run__steps=3."""
  tree = {
      "model": {
          "transformer": dict(
              vocab_size=400, width=32, mlp_width=64, layers=2, heads=4, kv_heads=2, head_dim=8, max_positions=128,
              dtype="float32", remat="none",
          ),
          "vision_tokenizer": dict(
              resolution=8, base_channels=8, channel_multipliers=[1, 1], res_blocks=1, latent_dim=4, codes=CODES,
              norm_groups=4,
          ),
          "diffusion": dict(width=16, blocks=1, latent_scale=1.0, draws=2, loss_weight=1.0),
      },
      "data": dict(source="folder", path="unused", sequence_length=64, images_per_row=3, learnt_images_per_row=2),
      "sampling": dict(steps=4, guidance=2.0, unconditional_prompt="generate an image", max_new_tokens=24),
      "optimizer": dict(learning_rate=1e-2, warmup_steps=2),
      "run": dict(steps=4, batch_size=8, log_every=1),
  }  # fmt: skip
  for key, value in copy.deepcopy(changes).items():  # a later change goes into an earlier one's dict
    node = tree
    *path, last = key.split("__")
    for part in path:
      node = node.setdefault(part, {})
    node[last] = value
  return config_lib.from_dict(Config, tree)


_DIFFUSION = dict(width=16, blocks=1, latent_scale=0.5, loss_weight=1.0)
_SAMPLING = dict(guidance=2.0, unconditional_prompt="generate an image", max_new_tokens=24)
SYSTEMS = {
    "orthus": {},
    "regression": dict(model__image_head__kind="regression", model__diffusion=_DIFFUSION, sampling=_SAMPLING),
    "chameleon": dict(
        model__image_head__kind="codes", model__vision_embedding__kind="argmin", model__diffusion={}, sampling=_SAMPLING
    ),
    "showo": dict(
        model__image_head__kind="masked", model__vision_embedding__kind="argmin", model__diffusion={},
        model__transformer__image_attention="full", sampling=dict(steps=4, **_SAMPLING),
    ),
}  # fmt: skip


class TinySource:
  """Coloured pictures with captions, both ways round, edits and free stories; document i is always the same."""

  def __init__(self, n: int = 40):
    self._n = n

  def __len__(self) -> int:
    return self._n

  def __getitem__(self, i: int) -> Document:
    rng = np.random.default_rng(i)

    def picture(color: int) -> np.ndarray:
      pixels = rng.integers(0, 40, (8, 8, 3)).astype(np.uint8)
      pixels[2:6, 2:6, color] = 220
      return pixels

    color = int(rng.integers(3))
    name = WORDS[color]
    kinds = {
        "draw": lambda: (Text(f"draw a {name} box"), Image(picture(color), True)),
        "ask": lambda: (
            Image(picture(color)), Text("what is this"), Text(name, True), Text("is this a box"), Text("one", True)
        ),
        "edit": lambda: (Image(picture(color)), Text("draw a blue box"), Image(picture(2), True)),
        "story": lambda: (
            Text("two"), Text(f"a {name} box", True), Image(picture(color), True), Text("blue", True),
        ),
    }  # fmt: skip
    kind = sorted(kinds)[i % 4]
    return Document(kinds[kind](), id=f"tiny-{i}", kind=kind)


def check_rows(batch, ids: list[str], tokenizer: TextTokenizer, *, patches: int) -> None:
  """Fails unless a batch holds these documents of a TinySource, one after the other, and nothing else."""
  source, left = TinySource(), iter(ids)
  by_id = {source[i].id: source[i] for i in range(len(source))}
  for b in range(len(batch.tokens_BT)):
    learnt_images = []
    for segment in range(1, batch.segment_ids_BT[b].max() + 1):
      d = by_id[next(left)]
      s = layout(d, tokenizer, patches=patches)
      at = np.flatnonzero(batch.segment_ids_BT[b] == segment)
      np.testing.assert_array_equal(batch.tokens_BT[b, at], s.tokens_T)
      np.testing.assert_array_equal(batch.position_BT[b, at], np.arange(len(s)))
      # What a position is to predict is the next token of its own document.
      learnt = np.flatnonzero(batch.text_weight_BT[b, at])
      np.testing.assert_array_equal(learnt, np.flatnonzero(s.learn_T[1:]))
      np.testing.assert_array_equal(batch.targets_BT[b, at[learnt]], s.tokens_T[1:][learnt])
      slots = batch.slot_BT[b, at][s.image_T >= 0]
      for i, image in enumerate(d.images):
        numbers = slots[i * patches : (i + 1) * patches]
        np.testing.assert_array_equal(numbers % patches, np.arange(patches))
        np.testing.assert_array_equal(batch.images[b, numbers[0] // patches], image.pixels)
        learnt_images += [numbers[0] // patches] * image.learn
    G = batch.learnt_image_BG.shape[1]
    assert batch.learnt_image_BG[b].tolist() == ((learnt_images * G)[:G] or [-1] * G)
    for which, start in zip(batch.learnt_image_BG[b], batch.learnt_start_BG[b]):
      if which >= 0:
        assert batch.tokens_BT[b, start] == tokenizer.boi
        assert batch.slot_BT[b, start + 1] == which * patches
  assert next(left, None) is None
  assert (batch.learnt_image_BG >= 0).any()


def write_folder(folder: Path, n: int = 12) -> Path:
  """The same pictures as files with a JSON-lines file."""
  import json

  from orthus_jax.data import images

  rows = []
  source = TinySource(4 * n)
  for i in range(1, 4 * n, 4):
    d = source[i]
    images.save_png(folder / f"{i}.png", d.images[0].pixels)
    rows.append(json.dumps({"image": f"{i}.png", "text": d.texts[0].text}))
  (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
  return folder


def replace(config: Config, part: str, **changes) -> Config:
  return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **changes)})


def lively_model(**changes) -> Model:
  """A model with random weights whose outputs differ from position to position.

  A fresh head has zero outputs, fresh logits are nearly flat and fresh positions small: none would show a mistake.
  """
  c = config(model__vision_embedding__patch_positions=True, **changes)
  graphdef, shapes, _ = describe(c.model)
  rng = np.random.default_rng(0)

  def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    last = name.rsplit("/", 1)[-1]
    if last.endswith("scale"):
      return 1 + 0.1 * rng.standard_normal(shape)
    if last.endswith("bias"):
      return 0.1 * rng.standard_normal(shape)
    dull = name.startswith(("image_head", "lm_head", "vision_embedding/position_embedding"))
    inputs = np.prod(shape[1 if "/layers/" in name else 0 : -1])
    std = 0.3 if dull else 1.0 if "codebook" in name else 0.02 if name == "token_embedding" else inputs**-0.5
    return std * rng.standard_normal(shape)

  params = {n: jnp.asarray(value(n, shape), jnp.float32) for n, shape in shapes.items()}
  return Model(c, graphdef, params, tokenizer())


def eager_to_draw(model: Model, prompt: Document) -> Model:
  """The model with its LM head leaning towards begin-of-image, so that it opens images by itself, again and again."""
  tk = model.tokenizer
  laid = layout(prompt, tk, patches=model.config.model.vision_tokenizer.patches, respond=True)
  net: Orthus = params_lib.merge(model.graphdef, model.params)
  n, C = len(laid), model.config.model.vision_tokenizer.latent_dim
  state_D = net(
      jnp.asarray(laid.tokens_T)[None], features_BJC=jnp.zeros((1, 1, C)), slot_BT=jnp.full((1, n), -1),
      position_BT=jnp.arange(n)[None], segment_ids_BT=jnp.ones((1, n), int),
  )[0, -1]  # fmt: skip
  params = dict(model.params)
  params["lm_head"] = params["lm_head"].at[:, tk.boi].set(30.0 * state_D / jnp.sum(state_D**2))
  return dataclasses.replace(model, params=params)
