"""Holds what only an accelerator runs against what is plain, and times both; `gpu.sh` calls it.

    python benchmarks/gpu_checks.py [--small]

Attention: the platform's kernel (cuDNN on GPUs, splash elsewhere) in bfloat16 beside XLA's in float32, results and gradients,
of packed rows: three documents and padding, and one document. The head's solver loop: `models/heads/solver_kernel.py` (a TPU's
kernel, interpreted on others) beside the plain loop in float32; and how long the plain loop takes in bfloat16 beside the
memory's limit. A line of JSON for each, as soon as it is known.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import re
import time

from flax import nnx
import generate
from gpu_table import Row, row
import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.commands import common
from orthus_jax.config import Config, DiffusionConfig, ModelConfig, TransformerConfig
from orthus_jax.models import attention
from orthus_jax.models.heads.diffusion import DiffusionHead
from orthus_jax.parallel import sharded

_ATTENTION_ERROR = 1e-2  # of the norm; bfloat16 has 8 bits
_SOLVER_ERROR = 1e-4  # of the largest value, in float32
_REPEATS = 5


def fastest(function: Callable[[], object]) -> float:
  """Seconds of the fastest of some calls, once compiled."""
  jax.block_until_ready(function())
  seconds = []
  for _ in range(_REPEATS):
    begin = time.perf_counter()
    jax.block_until_ready(function())
    seconds.append(time.perf_counter() - begin)
  return min(seconds)


def check_attention(T: int, N: int, H: int) -> Row:
  """Of two rows of T positions, N heads of H values."""
  kernel = "cudnn" if sharded.platform() == "gpu" else "splash"
  thirds = np.repeat([1, 2, 3], T * 3 // 10)
  segments_BT = jnp.asarray(np.stack([np.pad(thirds, (0, T - len(thirds))), np.ones(T, int)]), jnp.int32)
  *qkv, weight = (jax.random.normal(k, (2, T, N, H)).astype(jnp.bfloat16) for k in jax.random.split(jax.random.key(0), 4))
  weight = weight * (segments_BT > 0)[:, :, None, None]  # nothing is asked of padding

  def graded(backend: str, dtype: jnp.dtype) -> Callable[[], list[jax.Array]]:
    def f(*qkv):
      o = attention.causal_attention(*qkv, segment_ids_BT=segments_BT, backend=backend)
      return (o.astype(jnp.float32) * weight).sum(), o * (weight != 0)

    step = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))

    def run():
      (_, o), gradients = step(*(x.astype(dtype) for x in qkv))
      return [o, *gradients]

    return run

  with jax.default_matmul_precision("highest"):
    expected = [np.asarray(x, np.float32) for x in graded("xla", jnp.float32)()]
  by_kernel = graded(kernel, jnp.bfloat16)
  found = [np.asarray(x, np.float32) for x in by_kernel()]
  errors = [float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(expected, found, strict=True)]
  what = f"attention by {kernel} beside XLA, 2 packed rows of {T:,}"
  told = "largest relative error {:.1e} (of the results {:.1e}; gradients of q, k, v {:.1e}, {:.1e}, {:.1e})".format(
    max(errors), *errors
  )
  if not all(e < _ATTENTION_ERROR for e in errors):  # not finite isn't less either
    return row(what, failed=f"{told}; {_ATTENTION_ERROR:g} is allowed")
  mine, xla = fastest(by_kernel), fastest(graded("xla", jnp.bfloat16))
  return row(
    what, measured=f"{1e3 * mine:.2f} ms", limit=f"{1e3 * xla:.2f} ms (XLA's)", share=f"{xla / mine:.2f} times as fast",
    aim=f"error < {_ATTENTION_ERROR:g}", note=f"{told}; forwards and backwards",
  )  # fmt: skip


def make_head(config: ModelConfig, dtype: jnp.dtype) -> tuple[nnx.GraphDef, nnx.State]:
  """A head whose output depends on its state: a fresh one's modulations and output are zero."""
  graphdef, state = nnx.split(DiffusionHead(config, rngs=nnx.Rngs(params=0)))
  leaves, tree = jax.tree.flatten(state)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [
    (x + (0.5 * x.shape[0] ** -0.5 if x.ndim > 1 else 0.1) * jax.random.normal(k, x.shape)).astype(dtype)
    for k, x in zip(keys, leaves)
  ]
  return graphdef, jax.tree.unflatten(tree, leaves)


def drawing(config: ModelConfig, rows: int, steps: int, *, kernel: bool) -> Callable[[], jax.Array]:
  """A patch for each row, guided."""
  t = config.transformer
  graphdef, state = make_head(config, t.dtype)
  lanes = 2 * rows
  z_XD = jax.random.normal(jax.random.key(2), (lanes, t.width)).astype(t.dtype)
  mix_BX = jnp.concatenate([3.0 * jnp.eye(rows), -2.0 * jnp.eye(rows)], axis=1)

  @jax.jit
  def draw(state, z_XD):
    head = nnx.merge(graphdef, state)
    key_B = jax.vmap(jax.random.key)(jnp.arange(rows))
    return head.sample(
        z_XD, head.initial_noise(key_B), owner_X=jnp.arange(lanes) % rows, mix_BX=mix_BX, key_B=key_B,
        solvers=(("ddim", steps),), solver_B=jnp.zeros(rows, jnp.int32),
        interval_B2=jnp.broadcast_to(jnp.asarray([0.0, 1e6]), (rows, 2)), wanted_B=jnp.ones(rows, bool), kernel=kernel,
    )  # fmt: skip

  return lambda: draw(state, z_XD)


def check_solver(model: dict[str, object], rows: int, steps: int) -> Row:
  """The kernel beside the plain loop, in float32."""
  config = ModelConfig(transformer=TransformerConfig(dtype="float32", **model["transformer"]), diffusion=model["diffusion"])
  with jax.default_matmul_precision("highest"):
    plain, kernel = (np.asarray(drawing(config, rows, steps, kernel=k)()) for k in (False, True))
  error = float(np.abs(kernel - plain).max() / np.abs(plain).max())
  what = f"solver kernel beside the plain loop, {rows} rows, {steps} steps"
  if not error < _SOLVER_ERROR:
    return row(what, failed=f"differs by {error:.1e} of the largest value; {_SOLVER_ERROR:g} is allowed")
  how = "compiled" if sharded.platform() == "tpu" else "interpreted, as it is for TPUs"
  return row(what, measured=f"error {error:.1e}", aim=f"error < {_SOLVER_ERROR:g}", note=f"float32; the kernel {how}")


def time_solver(model: dict[str, object], rows: int, steps: int) -> Row:
  """The plain loop in bfloat16, beside reading at every step what depends on x."""
  config = ModelConfig(transformer=TransformerConfig(dtype="bfloat16", **model["transformer"]), diffusion=model["diffusion"])
  _, state = make_head(config, "bfloat16")
  each_step = sum(
    x.size * 2 for path, x in jax.tree.leaves_with_path(state) if re.search(r"\b(up|down|norm_\w+|input|output)\b", str(path))
  )
  seconds = fastest(drawing(config, rows, steps, kernel=False))
  bandwidth = generate.bandwidth_of(jax.devices()[0].device_kind)
  least = steps * each_step / bandwidth if bandwidth else None
  return row(
    f"solver loop, {rows} rows, {steps} steps", measured=f"{1e3 * seconds:.2f} ms a patch",
    limit=f"{1e3 * least:.2f} ms (memory)" if least else "", share=f"{least / seconds:.0%}" if least else "",
    note="bfloat16; less than the limit is possible where a cache holds the weights",
  )  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--small", action="store_true", help="tiny shapes")
  small = parser.parse_args().small
  common.initialize()
  published = Config().model
  model = {"transformer": {}, "diffusion": published.diffusion}
  if small:
    model = {"transformer": dict(width=64), "diffusion": DiffusionConfig(width=32, blocks=2)}
  t, steps = published.transformer, 4 if small else 100
  checks: dict[str, Callable[[], Row]] = {
    "attention": lambda: check_attention(128, 2, 64) if small else check_attention(4096, t.heads, t.head_dim),
    "solver kernel": lambda: check_solver(model, 2, steps),
  }
  for rows in (2,) if small else (1, 8, 64):
    checks[f"solver loop, {rows} rows"] = lambda rows=rows: time_solver(model, rows, steps)
  for name, check in checks.items():
    print(f"checking {name}", flush=True)
    try:
      print(check(), flush=True)
    except Exception as e:  # the others are still to be checked
      print(row(name, failed=f"{type(e).__name__}: {str(e).strip().splitlines()[0]}"), flush=True)


if __name__ == "__main__":
  main()
