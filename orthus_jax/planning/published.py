"""Published training runs, and this planner's estimate of each: what the calibration is fitted to.

Each run is modelled by what it publishes: model, batch, sequence, mesh and what it recomputes, compiled as our own step of
a text-only model. AXLearn's attention is taken to have two kernels for gradients, which isn't published. Two differences
remain, both small: our backbone has QK-norm, and an untied LM head where AXLearn's
7B ties it to the embedding (the products are the same).

Sources. MaxText: AI-Hypercomputer/tpu-recipes, training/trillium/Llama3.1-8B-MaxText/{v6e-8,v6e-256}/README.md, whose logs show
7,138.9 and 7,207.3 tokens/s/device. AXLearn: apple/axlearn, axlearn/experiments/text/gpt/fuji.py, whose comments say 2.21 s
(7B v2, 4 x v5e-256, data=4, fsdp=256, matrix products saved) and 2.85 s (7B v1, v5p-512, that is 256 chips, fsdp=8) for
batches of 4 x 1024^2 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax import config as config_lib
from orthus_jax.config import Config, ModelConfig
from orthus_jax.models.orthus import Orthus
from orthus_jax.models.params import Keys, param
from orthus_jax.models.transformer import Transformer
from orthus_jax.training import chunked

_TOKENS = 4 * 1024**2
# Compiler options where theirs differ from ours. Both hide gathers. On v5p and v6e they fuse them into other work, which libtpu
# refuses from 0.0.50 on, so that a sparse core does them here. MaxText has a sparse core do the sums too (its
# llama3_1-8b-8192-no-collective-matmul and xla_flags_library.py); AXLearn (axlearn/common/compiler_options.py) asks for no
# asynchronous sums on v5, so that they are waited for.
_WAITING = (
    ("xla_enable_async_all_reduce", "false"), ("xla_tpu_enable_async_collective_fusion_fuse_all_reduce", "false"),
    ("xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions", "false"),
    ("xla_tpu_enable_sparse_core_collective_offload_all_reduce", "false"),
    ("xla_tpu_enable_sparse_core_collective_offload_reduce_scatter", "false"),
)  # fmt: skip
_MAXTEXT = (
    ("xla_tpu_scoped_vmem_limit_kib", "98304"), ("xla_jf_spmd_threshold_for_windowed_einsum_mib", "1000000"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
  """A published run.

  Attributes:
    name: of the run.
    source: who published it.
    topology, slices: what it ran on, as `orthus plan` takes them.
    seconds: of a step.
    tree: the config that models it.
  """

  name: str
  source: str
  topology: str
  slices: int
  seconds: float
  tree: dict[str, Any]

  @property
  def config(self) -> Config:
    return config_lib.from_dict(Config, self.tree)


def _llama(
  *, vocab: int, mlp: int, kv_heads: int, length: int, remat: str, batch: int, mesh: dict[str, int], block: int = 512,
  backward: str = "split", options: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
  return {
      "model": {
          "transformer": dict(
              vocab_size=vocab, width=4096, mlp_width=mlp, layers=32, heads=32, kv_heads=kv_heads, head_dim=128,
              max_positions=length, remat=remat, attention_block=block, attention_backward=backward,
          )
      },
      "data": dict(sequence_length=length),
      "optimizer": dict(trainable=[".*"]),
      "mesh": mesh,
      "run": dict(batch_size=batch, compiler_options=options),
  }  # fmt: skip


RUNS = (
    Run("8B, 8192, v6e-8", "MaxText", "v6e:2x4", 1, 3 * 8192 / 7138.89,
        _llama(vocab=128256, mlp=14336, kv_heads=8, length=8192, remat="offload", batch=3 * 8, mesh=dict(fsdp=-1), block=2048,
               backward="fused", options=_MAXTEXT)),
    Run("8B, 8192, v6e-256", "MaxText", "v6e:16x16", 1, 4 * 8192 / 7207.34,
        _llama(vocab=128256, mlp=14336, kv_heads=8, length=8192, remat="offload", batch=4 * 256, mesh=dict(fsdp=-1), block=2048,
               backward="fused", options=_MAXTEXT)),
    Run("7B, 4096, 4 x v5e-256", "AXLearn", "v5e:16x16", 4, 2.21,
        _llama(vocab=32768, mlp=11008, kv_heads=32, length=4096, remat="dots", batch=_TOKENS // 4096,
               mesh=dict(data=4, fsdp=256), options=_WAITING)),
    Run("7B, 2048, v5p-512", "AXLearn", "v5p:4x8x8", 1, 2.85,
        _llama(vocab=32768, mlp=11008, kv_heads=32, length=2048, remat="dots", batch=_TOKENS // 2048,
               mesh=dict(data=32, fsdp=8), options=_WAITING)),
)  # fmt: skip


class TextBatch(NamedTuple):
  """Rows of tokens [B, T]."""

  tokens_BT: jax.Array
  targets_BT: jax.Array
  position_BT: jax.Array
  segment_ids_BT: jax.Array


class TextModel(nnx.Module):
  """Our backbone between an embedding and an LM head."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    t = config.transformer
    self.config = config
    embedding_VD = t.embedding_std * jax.random.normal(rngs.params(), (t.vocab_size, t.width))
    self.token_embedding = param(embedding_VD.astype(t.param_dtype), "vocab", "embed")
    self.transformer = Transformer(t, rngs=rngs)
    lm_head_DV = t.width**-0.5 * jax.random.normal(rngs.params(), (t.width, t.vocab_size))
    self.lm_head = param(lm_head_DV.astype(t.param_dtype), "embed", "vocab")

  embed_tokens = Orthus.embed_tokens


class TextTask:
  """Cross-entropy over every position: a `LossTask` for published text models."""

  def __init__(self, config: Config):
    self.config = config

  def init(self) -> TextModel:
    return TextModel(self.config.model, rngs=Keys(self.config.run.seed))

  def counts(self, batch: TextBatch) -> jax.Array:
    return jnp.sum(batch.segment_ids_BT > 0, dtype=jnp.float32)

  def loss(
      self, model: TextModel, batch: TextBatch, key: jax.Array, *, total: jax.Array, row_B: jax.Array, step: Any = 0
  ):
    hidden_BTD = model.transformer(
      model.embed_tokens(batch.tokens_BT), position_BT=batch.position_BT, segment_ids_BT=batch.segment_ids_BT
    )
    nll, _ = chunked.cross_entropy(
        hidden_BTD, model.lm_head[...], batch.targets_BT, (batch.segment_ids_BT > 0).astype(jnp.float32),
        chunk=self.config.model.transformer.loss_chunk,
    )  # fmt: skip
    loss = nll / total
    return loss, {"loss": loss}


def text(config: Config) -> tuple[TextTask, TextBatch]:
  """(task, batch shapes): what `program.compile_step` builds for a published text model."""
  rows = jax.ShapeDtypeStruct((config.run.batch_size, config.data.sequence_length), jnp.int32)
  return TextTask(config), TextBatch(rows, rows, rows, rows)
