"""Show-o's image head: all of a picture's codes by the LM head at once, those that are known shown to it, the others hidden.

Training hides a share of each learnt picture's patches, cos(u pi / 2) for u uniform on [0, 1), and predicts these. Drawing
begins with all hidden, and at each of S passes keeps the codes of which the model is surest. Axes: B rows, M images a row,
P patches, K codes, D width, X rows and then their guides. Sources: MaskGIT (arXiv 2202.04200), Show-o (arXiv 2408.12528) and
its released code, which anneals the confidence's noise by the product of all steps' 1 - s / S.
"""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.config import ModelConfig
from orthus_jax.models.heads.base import ImageHead
from orthus_jax.models.params import param

HIDDEN = -1  # stands for a code that isn't known yet


class MaskedHead(ImageHead):
  """Has a learnt embedding for hidden patches; logits are the LM head's."""

  of_codes = True
  whole_pictures = True

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    t = config.transformer
    self.hidden_embedding = param(t.embedding_std * jax.random.normal(rngs.params(), (t.width,)), "embed")

  @classmethod
  def most_steps(cls, config: ModelConfig) -> tuple[float, str]:
    return config.vision_tokenizer.patches, "patches of a picture"

  @classmethod
  def hidden(cls, key: jax.Array, row_B: jax.Array, *, images: int, patches: int) -> jax.Array:
    M, P = images, patches

    def row(number: jax.Array) -> jax.Array:
      share_key, order_key = jax.random.split(jax.random.fold_in(key, number))
      count_M1 = _hidden_patches(jax.random.uniform(share_key, (M, 1)), P)
      rank_MP = jnp.argsort(jnp.argsort(jax.random.uniform(order_key, (M, P)), axis=-1), axis=-1)
      return rank_MP < count_M1

    return jax.vmap(row)(row_B)

  @classmethod
  def learnt_patches(cls, patches: int) -> float:
    # The mean over u of what `hidden` hides, by the midpoints of many intervals.
    u = (np.arange(100_000) + 0.5) / 100_000
    return float(np.mean(np.maximum(np.round(patches * np.cos(u * np.pi / 2)), 1.0)))

  def refine(
      self, logits_BPK: jax.Array, code_BP: jax.Array, *, step_B: jax.Array, steps_B: jax.Array, key_B: jax.Array,
      temperature_B: jax.Array,
  ) -> jax.Array:  # fmt: skip
    """One pass: draws all hidden codes, then hides again those that it is least sure of; the last pass hides none.

    Args:
      logits_BPK: guided, fp32.
      code_BP: int32, `HIDDEN` where not known yet.
      step_B: int32, the pass, from 1.
      steps_B: int32, how many there are.
      key_B: random keys.
      temperature_B: of the noise that is added to confidences, annealed to 0; 0 goes by the confidence alone.

    Returns:
      int32 [B, P].
    """
    B, P, _ = logits_BPK.shape
    draw_B, noise_B = (jax.vmap(lambda k, n=n: jax.random.fold_in(k, n))(key_B) for n in (0, 1))
    hidden_BP = code_BP == HIDDEN
    drawn_BP = jax.vmap(lambda k, logits_PK: jax.random.categorical(k, logits_PK))(draw_B, logits_BPK)
    drawn_BP = jnp.where(hidden_BP, drawn_BP, code_BP).astype(jnp.int32)
    log_p_BP = jnp.take_along_axis(jax.nn.log_softmax(logits_BPK, axis=-1), drawn_BP[..., None], axis=-1)[..., 0]
    noise_BP = jax.vmap(lambda k: jax.random.gumbel(k, (P,)))(noise_B)
    sure_BP = log_p_BP + (temperature_B * annealing(step_B, steps_B))[:, None] * noise_BP
    sure_BP = jnp.where(hidden_BP, sure_BP, jnp.inf)
    left_B = jnp.floor(P * jnp.cos(step_B / steps_B * (np.pi / 2)) + 1e-4).astype(jnp.int32)
    left_B = jnp.maximum(jnp.minimum(left_B, hidden_BP.sum(-1) - 1), 1)
    rank_BP = jnp.argsort(jnp.argsort(sure_BP, axis=-1), axis=-1)
    again_BP = (rank_BP < left_B[:, None]) & (step_B < steps_B)[:, None]
    return jnp.where(again_BP, HIDDEN, drawn_BP)


def _hidden_patches(u: jax.Array, patches: int) -> jax.Array:
  return jnp.maximum(jnp.round(patches * jnp.cos(u * (np.pi / 2))), 1.0)


def annealing(step: jax.Array, steps: jax.Array) -> jax.Array:
  """The product of 1 - s / S over s = 1 … step: what is left of the noise's temperature at a pass."""
  S, s = jnp.asarray(steps, jnp.float32), jnp.asarray(step, jnp.float32)
  left = jnp.maximum(S - s, 1.0)
  log = jax.lax.lgamma(S) - jax.lax.lgamma(left) - s * jnp.log(S)
  return jnp.where(s < S, jnp.exp(log), 0.0)
