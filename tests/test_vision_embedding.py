"""How features enter the backbone: each kind by its formula, and through a whole step of training and of drawing."""

import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from orthus_jax.config import VisionEmbeddingConfig
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.errors import BadRequest
from orthus_jax.models import params as params_lib, vision_embedding
from orthus_jax.models.orthus import describe
from orthus_jax.training import losses
from orthus_jax.training.tasks import OrthusTask

TK = tiny.tokenizer()
rng = np.random.default_rng(0)
features_BPC = rng.standard_normal((2, 3, 4)).astype(np.float32)
rows_KD = rng.standard_normal((8, 5)).astype(np.float32)


def embed(**config):
  c = VisionEmbeddingConfig(**config)
  rngs = nnx.Rngs(params=0)
  e = vision_embedding.KINDS[c.kind](c, codes=8, latent_dim=4, patches=3, width=5, std=1.0, rngs=rngs)
  return e, np.asarray(e(features_BPC, jnp.asarray(rows_KD), patch_BP=np.arange(3)[None]))


def test_each_kind_is_its_formula():
  hard, found = embed(kind="argmin")
  distances = np.square(features_BPC[:, :, None] - np.asarray(hard.codebook[...])).sum(-1)
  np.testing.assert_array_equal(found, rows_KD[distances.argmin(-1)])
  soft, found = embed(kind="soft", temperature=1e-5)
  np.testing.assert_allclose(found, rows_KD[distances.argmin(-1)], atol=1e-6)  # the same codebook: the limit is the other
  linear, found = embed(kind="linear")
  expected = features_BPC @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  assert not hasattr(linear, "codebook")
  placed, found_placed = embed(kind="linear", patch_positions=True)
  assert found_placed.shape == (2, 3, 5) and np.ptp(found_placed - found, axis=0).max() < 1e-5
  both, found_both = embed(kind="soft", temperature=1e-5, projection=True)
  expected = rows_KD[distances.argmin(-1)] + features_BPC @ np.asarray(both.projection_kernel[...])
  np.testing.assert_allclose(found_both, expected, atol=1e-5)


def test_noise_is_on_pictures_to_be_drawn_alone():
  """Of each a strength of its own up to the config's; and of a row the same, wherever the row is computed."""
  most, M = 0.5, 6
  model = tiny.config(model__vision_embedding__history_noise=most).model
  learnt_BG = np.array([[0, 2, -1], [1, 3, 3], [-1, -1, -1], [5, 4, 0]])
  shape = (4, M, 400, 8)
  batch = types.SimpleNamespace(images=np.zeros(shape, np.float32), learnt_image_BG=jnp.asarray(learnt_BG))
  clean = jnp.ones(shape)

  def noise(rows, config=model):
    part = types.SimpleNamespace(images=batch.images[rows], learnt_image_BG=batch.learnt_image_BG[rows])
    return np.asarray(losses.as_read(clean[rows], part, jax.random.key(0), config, jnp.arange(4)[rows]) - 1.0)

  rows = slice(0, 4)
  found_BMPC = noise(rows)
  learnt_BM = np.array([[m in row for m in range(M)] for row in learnt_BG])
  size_BM = found_BMPC.std(axis=(2, 3))
  assert (size_BM[~learnt_BM] == 0).all() and (size_BM[learnt_BM] > 0).all()
  assert size_BM.max() < 1.05 * most and len(set(size_BM[learnt_BM].round(5))) == learnt_BM.sum()
  assert abs(found_BMPC[learnt_BM].mean()) < 0.01
  np.testing.assert_array_equal(noise(slice(1, 4)), found_BMPC[1:])
  assert not noise(rows, tiny.config().model).any()


def test_what_is_read_has_noise_and_what_is_to_be_drawn_has_none(monkeypatch):
  config = tiny.config(model__vision_embedding__history_noise=0.5, model__transformer__text_loss_weight=0.0).model
  read, drawn = [], []

  def model(tokens_BT, *, features_BJC, **rest):
    read.append(np.asarray(features_BJC).reshape(2, 3, 5, 4))

  def head(model, hidden_BTD, features_BMPC, *rest, **named):
    drawn.append(np.asarray(features_BMPC))
    return 0.0

  monkeypatch.setattr(losses, "_image_sum", head)
  fields = ("tokens_BT", "slot_BT", "position_BT", "segment_ids_BT", "shared_ids_BT")
  batch = types.SimpleNamespace(
      images=jnp.ones((2, 3, 5, 4)), learnt_image_BG=jnp.array([[0, 2], [1, -1]]), **dict.fromkeys(fields)
  )
  total = types.SimpleNamespace(image=1.0, text=1.0)
  for seed in (0, 1):
    losses.orthus_loss(model, batch, jax.random.key(seed), config=config, total=total, row_B=jnp.arange(2))
  assert (np.stack(drawn) == 1).all() and (read[0] != read[1]).any()
  changed = (read[0] != 1).any(axis=(2, 3))
  np.testing.assert_array_equal(changed, [[True, False, True], [False, True, False]])


@pytest.mark.parametrize(
    "config, said",
    [
        (dict(kind="argmin", temperature=0.5), "temperature is for kind=soft"),
        (dict(kind="linear", temperature=0.5), "temperature is for kind=soft"),
        (dict(kind="linear", projection=True), "projection is for kind=soft"),
        (dict(history_noise=-0.1), "history_noise"),
        (dict(kind="linear", fresh_rows="projected"), "fresh_rows=projected is of codes' rows"),
        (dict(kind="hard"), "hard"),
    ],
)
def test_what_a_kind_does_not_have_is_refused(config, said):
  with pytest.raises(BadRequest, match=said):
    tiny.config(**{f"model__vision_embedding__{k}": v for k, v in config.items()})


def test_noise_is_refused_where_codes_are_drawn():
  with pytest.raises(BadRequest, match="history_noise is of features that are drawn"):
    tiny.config(**tiny.SYSTEMS["chameleon"], model__vision_embedding__history_noise=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind, trained", [("argmin", {"token_embedding"}), ("linear", {"bias", "kernel"})])
def test_a_step_trains_what_the_kind_reads(kind, trained):
  """The pictures' way in gets gradients of the answer's loss, and nothing else of it does: a hard choice has none."""
  config = tiny.config(model__vision_embedding__kind=kind, model__transformer__layers=1, model__diffusion__loss_weight=0.0,
                       data__caption_dropout=0.0, data__kinds=[["ask", 1.0]])  # fmt: skip
  graphdef, shapes, _ = describe(config.model)
  values = {n: 0.1 * rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
  pipeline = Pipeline(tiny.TinySource(), TK, config)
  task, batch = OrthusTask(config, pipeline), pipeline.batch(0)
  row_B = np.arange(config.run.batch_size)

  @jax.jit
  def gradients(values):
    def loss(values):
      model = params_lib.merge(graphdef, values)
      return task.loss(model, batch, jax.random.key(0), total=task.counts(batch), row_B=row_B)[0]

    return jax.grad(loss)(values)

  found = gradients(values)
  ours = {n.rsplit("/", 1)[-1]: np.abs(g).max() for n, g in found.items() if n.startswith("vision_embedding/")}
  codes = np.abs(found["token_embedding"][config.model.image_token_start :][: config.model.vision_tokenizer.codes]).max()
  moved = {n for n, g in (ours | {"token_embedding": codes}).items() if g > 0}
  assert moved == trained
