"""The solver loop's kernel, compiled for TPUs at the published size."""


from flax import nnx
import jax
import jax.numpy as jnp
import pytest
from test_plan import needs_libtpu

from orthus_jax.config import ModelConfig, TransformerConfig
from orthus_jax.models.heads.diffusion import DiffusionHead
from orthus_jax.planning import hardware

WEIGHTS = 3 * 2 * 1536 * 1536 + 2 * 256 * 1536  # that each step multiplies by


@pytest.mark.slow
@needs_libtpu()
@pytest.mark.parametrize(
  "chip, shape, rows",
  [*((c, s, r) for c, s in (("v5e", (2, 2)), ("v5p", (2, 2, 1)), ("v6e", (2, 2))) for r in (1, 32)), ("tpu7x", (2, 2, 1), 32)],
)
def test_the_kernel_compiles_at_7b(chip, shape, rows):
  config = ModelConfig(transformer=TransformerConfig(dtype="bfloat16"))
  device = hardware.devices(hardware.Topology(hardware.CHIPS[chip], shape))[0]
  place = jax.sharding.SingleDeviceSharding(device)
  graphdef, state = nnx.split(nnx.eval_shape(lambda: DiffusionHead(config, rngs=nnx.Rngs(params=0))))
  lanes = 2 * rows

  def draw(state, z_XD, mix_BX, seed_B):
    return nnx.merge(graphdef, state).sample(
        z_XD, jnp.zeros((rows, 256)), owner_X=jnp.arange(lanes) % rows, mix_BX=mix_BX,
        key_B=jax.vmap(jax.random.key)(seed_B), solvers=(("ddim", 100),), solver_B=jnp.zeros(rows, jnp.int32),
        interval_B2=jnp.full((rows, 2), 1000.0), wanted_B=jnp.ones(rows, bool), kernel=True,
    )  # fmt: skip

  def of(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  state = jax.tree.map(lambda x: of(x.shape, jnp.bfloat16), state)
  compiled = jax.jit(draw).lower(state, of((lanes, 4096), jnp.bfloat16), of((rows, lanes)), of((rows,), jnp.int32)).compile()
  text = compiled.as_text()
  assert "solver_loop" in text and "while" not in text.split("ENTRY")[1]
