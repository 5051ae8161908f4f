"""The diffusion head: generates the next patch's feature given the backbone's state.

An MLP with adaptive LayerNorm (MAR's), one position at a time; callers vmap over positions. Axes: C latent values,
D backbone width, W head width, Q draws, R guidance rows, S solver steps.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.config import ModelConfig
from orthus_jax.diffusion import process, solvers as solver_lib
from orthus_jax.models.heads import solver_kernel
from orthus_jax.models.heads.base import FeatureHead, Turn, mixed
from orthus_jax.models.heads.layers import Linear, layer_norm
from orthus_jax.models.params import param
from orthus_jax.parallel import sharded

_FREQUENCIES = 256
_CACHE = 8 << 20  # bytes of a processor's cache
_OWN_CACHE = 2 << 20  # and of a core's


def sinusoid(t: jax.Array, *, dtype: str | jnp.dtype = jnp.float32) -> jax.Array:
  """[cos, sin] of the step at 128 frequencies of periods up to 10000: [..., 256]."""
  half = _FREQUENCIES // 2
  frequency = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
  angle = t[..., None].astype(jnp.float32) * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1).astype(dtype)


class Block(nnx.Module):
  """x + gate * MLP(LN(x) * (1 + scale) + shift)."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.norm_scale = param(jnp.ones((width,)), "head_width")
    self.norm_bias = param(jnp.zeros((width,)), "head_width")
    self.modulation = Linear(width, 3 * width, ("head_in", "head_width"), rngs=rngs, std=0.0)
    self.up = Linear(width, width, ("head_in", "head_width"), rngs=rngs)
    self.down = Linear(width, width, ("head_in", "head_width"), rngs=rngs)

  def __call__(self, x: jax.Array, modulation: jax.Array) -> jax.Array:
    shift, scale, gate = jnp.split(modulation, 3, axis=-1)
    h = layer_norm(x) * self.norm_scale[...].astype(x.dtype) + self.norm_bias[...].astype(x.dtype)
    h = h * (1.0 + scale) + shift
    return x + gate * self.down(jax.nn.silu(self.up(h)))


class Modulations(NamedTuple):
  """Every shift, scale and gate: they depend on (t, z) alone, never on x_t, so a sampler computes them ahead."""

  blocks: tuple[jax.Array, ...]
  final: jax.Array


class DiffusionHead(FeatureHead):
  """Predicts velocity (or noise) of a noised feature given the step and the backbone's state."""

  zero_when_fresh = "output/kernel"

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    c, W = config.diffusion, config.diffusion.width
    latent_dim, width = config.vision_tokenizer.latent_dim, config.transformer.width
    process.alphas_cumprod(c)  # what it refuses is refused before anything is made
    self.config = c
    self.latent_dim = latent_dim
    self.dtype = config.transformer.dtype
    self.time_in = Linear(_FREQUENCIES, W, (None, "head_width"), rngs=rngs, std=0.02)
    self.time_out = Linear(W, W, ("head_in", "head_width"), rngs=rngs, std=0.02)
    self.condition = Linear(width, W, ("embed", "head_width"), rngs=rngs)
    self.input = Linear(latent_dim, W, (None, "head_width"), rngs=rngs)
    self.blocks = nnx.List([Block(W, rngs=rngs) for _ in range(c.blocks)])
    self.final_modulation = Linear(W, 2 * W, ("head_in", "head_width"), rngs=rngs, std=0.0)
    self.output = Linear(W, latent_dim, ("head_in", None), rngs=rngs, std=0.0)

  @classmethod
  def products(cls, config: ModelConfig) -> dict[str, float]:
    c, C = config.diffusion, config.vision_tokenizer.latent_dim
    W = c.width
    per_draw = _FREQUENCIES * W + W * W + 2 * C * W + c.blocks * 5 * W * W + 2 * W * W
    state = config.transformer.width * W
    # Nobody asks for gradients of the noised features or of the step's sinusoid.
    return {"all": float(c.draws * per_draw + state), "inputs": float(c.draws * (_FREQUENCIES * W + C * W))}

  @classmethod
  def most_steps(cls, config: ModelConfig) -> tuple[float, str]:
    return config.diffusion.timesteps, "model's timesteps"

  def modulations(self, t: jax.Array, z_D: jax.Array) -> Modulations:
    """All shifts, scales and gates for steps t [...] (any leading shape) and one state z [..., D]."""
    return self._modulate(self._time(t) + self.condition(z_D.astype(self.dtype)))

  def _time(self, t: jax.Array) -> jax.Array:
    return self.time_out(jax.nn.silu(self.time_in(sinusoid(t, dtype=self.dtype))))

  def _modulate(self, y: jax.Array) -> Modulations:
    y = jax.nn.silu(y)
    return Modulations(tuple(b.modulation(y) for b in self.blocks), self.final_modulation(y))

  def denoise(self, x: jax.Array, modulations: Modulations) -> jax.Array:
    """The prediction, [..., C] in fp32, for noised features x [..., C]."""
    h = self.input(x.astype(self.dtype))
    for block, m in zip(self.blocks, modulations.blocks):
      h = block(h, m)
    shift, scale = jnp.split(modulations.final, 2, axis=-1)
    return self.output(layer_norm(h) * (1.0 + scale) + shift).astype(jnp.float32)

  def __call__(self, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
    """Prediction for x [..., C] at steps t [...] given states z [..., D]."""
    return self.denoise(x, self.modulations(t, z))

  def loss(self, z_D: jax.Array, feature_C: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error of one position over its draws of (t, eps), in fp32 (paper, Eq. 3)."""
    return jnp.mean(self.errors(z_D, feature_C, *self.draw(key)))

  def draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Steps t [Q] and noises [Q, C] of one position."""
    t_key, eps_key = jax.random.split(key)
    Q = self.config.draws
    return jax.random.randint(t_key, (Q,), 0, self.config.timesteps), jax.random.normal(eps_key, (Q, self.latent_dim))

  def errors(self, z: jax.Array, feature: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """Squared errors [..., C] at steps t [...] and noises [..., C]; states z and features broadcast against them."""
    c = self.config
    abar = jnp.asarray(process.alphas_cumprod(c))[t]
    x0 = c.latent_scale * feature.astype(jnp.float32)
    prediction = self(process.add_noise(x0, eps, abar), t, z)
    return jnp.square(prediction - process.target(x0, eps, abar, kind=c.target))

  def merged_losses(self, z_BGPD: jax.Array, feature_BGPC: jax.Array, key_BGP: jax.Array) -> jax.Array:
    """Draws are merged into the rows too."""
    t_BGPQ, eps_BGPQC = jax.vmap(jax.vmap(jax.vmap(self.draw)))(key_BGP)
    Q = t_BGPQ.shape[-1]

    def split(x):  # said of the merged axis, as a compiler would else gather every row for the head's first product
      return sharded.constrain(x, "batch", *(None,) * (x.ndim - 1))

    def rows(x):  # one per position and draw
      return split(jnp.repeat(x.reshape(-1, x.shape[-1]), Q, axis=0))

    t_X, eps_XC = split(t_BGPQ.reshape(-1)), split(eps_BGPQC.reshape(-1, eps_BGPQC.shape[-1]))
    errors_XC = split(self.errors(rows(z_BGPD), rows(feature_BGPC), t_X, eps_XC))
    return jnp.mean(errors_XC.reshape(*t_BGPQ.shape[:3], -1), axis=-1)

  def next_feature(self, z_XD: jax.Array, turn: Turn) -> jax.Array:
    return self.sample(
        z_XD, self.initial_noise(turn.key_B), owner_X=turn.owner_X, mix_BX=turn.mix_BX, key_B=turn.key_B,
        solvers=turn.solvers, solver_B=turn.solver_B, interval_B2=turn.interval_B2, wanted_B=turn.wanted_B,
        temperature_B=turn.temperature_B, kernel=turn.kernel, guided=turn.guided,
    )  # fmt: skip

  def initial_noise(self, key_B: jax.Array) -> jax.Array:
    """What sampling starts from at a temperature of 1, standard normal [B, C]."""
    return jax.vmap(lambda key: jax.random.normal(key, (self.latent_dim,)))(key_B)

  def sample(
      self,
      z_XD: jax.Array,
      noise_BC: jax.Array,
      *,
      owner_X: jax.Array,
      mix_BX: jax.Array,
      key_B: jax.Array,
      solvers: tuple[tuple[str, int], ...],
      solver_B: jax.Array,
      interval_B2: jax.Array,
      wanted_B: jax.Array,
      temperature_B: jax.Array | float = 1.0,
      kernel: bool = False,
      guided: bool = True,
  ) -> jax.Array:
    """A feature for each row, [B, C], each from one noise shared with its guides.

    Every shift, scale and gate depends on (t, z) alone, so those of all steps are one product ahead of the loop. Axes
    here: B rows, X rows and then guides, K solvers.

    Args:
      z_XD: states.
      noise_BC: what it starts from, see `initial_noise`.
      owner_X: the row that each state belongs to.
      mix_BX: the prediction followed is sum_x mix_BX[b, x] v_x; it adds up to 1 in each row.
      key_B: random keys, of what random solvers add on the way.
      solvers: (name, steps) of each, see `solvers.table`; fixed at compile time.
      solver_B: which of them each row takes.
      interval_B2: guidance holds at steps t in [low, high); at others a row follows its own prediction.
      wanted_B: bool, the rows whose feature counts; no more steps are taken than they need.
      temperature_B: all noise is multiplied by it: below 1, features are likelier and vary less.
      guided: whether any state is a guide's.
      kernel: take the steps in one kernel; off TPUs it is interpreted, which is slow.
    """
    steps = np.asarray([n for _, n in solvers])
    counts = sorted(set(steps.tolist()))
    temperature_B1 = jnp.reshape(jnp.asarray(temperature_B, jnp.float32), (-1, 1))
    run = functools.partial(
        self._run, z_XD, temperature_B1 * noise_BC, owner_X, mix_BX, key_B, temperature_B1, solvers, solver_B, interval_B2,
        kernel, guided,
    )  # fmt: skip
    if len(counts) == 1:
      return run(counts[0])
    needed = jnp.max(jnp.where(wanted_B, jnp.asarray(steps)[solver_B], 0))
    return jax.lax.switch(jnp.searchsorted(jnp.asarray(counts), needed), [functools.partial(run, n) for n in counts])

  def _run(
      self, z_XD, start_BC, owner_X, mix_BX, key_B, temperature_B1, solvers, solver_B, interval_B2, kernel, guided, S: int
  ) -> jax.Array:
    """S steps: of solvers with fewer, the last are idle; rows of solvers with more aren't wanted."""
    c, B = self.config, mix_BX.shape[0]
    tables = [solver_lib.table(c, solver=name, steps=n) for name, n in solvers]
    tables = [solver_lib.pad(t, S) if len(t.t) < S else jax.tree.map(lambda x: x[:S], t) for t in tables]
    table_SK = jax.tree.map(lambda *x: np.stack(x, axis=1), *tables)
    random = bool(np.any(table_SK.noise))

    def noise(s):
      return temperature_B1 * _normal(key_B, s + 1, start_BC.shape[1])

    time_SKW = self._time(jnp.asarray(table_SK.t))
    if len(tables) == 1:  # one column serves all rows
      row_SB, time_SXW = table_SK, time_SKW
    else:
      row_SB = jax.tree.map(lambda x: jnp.asarray(x)[:, solver_B], table_SK)
      time_SXW = time_SKW[:, solver_B[owner_X]]
    condition_XW = self.condition(z_XD.astype(self.dtype))
    if kernel:
      modulations_SX = self._modulate(time_SXW + condition_XW)
      return self._by_kernel(start_BC, modulations_SX, row_SB, owner_X, mix_BX, interval_B2, noise if random else None)

    def step(carry, scanned):
      x_BC, previous_BC = carry
      modulations_X, row_B, s = scanned
      v_XC = self.denoise(x_BC[owner_X] if guided else x_BC, modulations_X)
      v_BC = v_XC[:B]
      if guided:
        inside_B = (row_B.t >= interval_B2[:, 0]) & (row_B.t < interval_B2[:, 1])
        v_BC = jnp.where(inside_B[:, None], mixed(v_XC, mix_BX), v_BC)
      more_BC = noise(s) if random else jnp.float32(0.0)
      return solver_lib.step(x_BC, v_BC, previous_BC, more_BC, row_B), None

    def steps(carry, scanned):
      time_NXW, *others = scanned
      return jax.lax.scan(step, carry, (self._modulate(time_NXW + condition_XW), *others))

    begin, scanned = (start_BC, jnp.zeros_like(start_BC)), (time_SXW, row_SB, jnp.arange(S))
    N = self._steps_at_once(S, len(owner_X))
    if N == S:
      (x_BC, _), _ = steps(begin, scanned)
    else:
      scanned = jax.tree.map(lambda x: jnp.reshape(x, (S // N, N, *x.shape[1:])), scanned)
      (x_BC, _), _ = jax.lax.scan(steps, begin, scanned)
    return x_BC / c.latent_scale

  def _steps_at_once(self, S: int, X: int) -> int:
    """Of how many steps the modulations are computed in one product: all, which reads the weights once, unless a processor's
    cache holds them and a core's doesn't hold what they make."""
    width = self.final_modulation.kernel.shape[1] + sum(b.modulation.kernel.shape[1] for b in self.blocks)
    if self.config.width * width * 4 > _CACHE or S * X * width * 4 <= _OWN_CACHE:
      return S
    fitting = max(_OWN_CACHE // (X * width * 4), 1)
    found = max(n for n in range(1, fitting + 1) if S % n == 0)
    return found if 4 * found >= fitting else S  # a number of steps that has no such divisor

  def _by_kernel(self, start_BC, modulations_SX, row_SB, owner_X, mix_BX, interval_B2, noise) -> jax.Array:
    S, (B, X) = len(row_SB.t), mix_BX.shape
    row_SB = jax.tree.map(lambda c: jnp.broadcast_to(jnp.reshape(c, (S, -1)), (S, B)), row_SB)
    inside_SB = (row_SB.t >= interval_B2[:, 0]) & (row_SB.t < interval_B2[:, 1])
    mix_SBX = jnp.where(inside_SB[..., None], mix_BX, jnp.eye(B, X))
    more_SBC = None
    if noise is not None:
      more_SBC = jax.vmap(noise)(jnp.arange(S))

    def run(*, interpret: bool) -> jax.Array:
      return solver_kernel.solve(
          self, _read_each_step, DiffusionHead.denoise, start_BC, modulations_SX, row_SB, owner_X=owner_X, mix_SBX=mix_SBX,
          more_SBC=more_SBC, interpret=interpret,
      )  # fmt: skip

    x_BC = jax.lax.platform_dependent(
        tpu=functools.partial(run, interpret=False), default=functools.partial(run, interpret=True)
    )  # fmt: skip
    return x_BC / self.config.latent_scale


def _read_each_step(path: tuple, _) -> bool:
  return path[0] in ("input", "output") or (path[0] == "blocks" and "modulation" not in path)


def _normal(key_B: jax.Array, n: jax.Array, size: int) -> jax.Array:
  """Noise [B, size] of each row's n-th step."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, n), (size,)))(key_B)
