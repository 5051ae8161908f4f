"""A small Chameleon of `transformers` with random weights, and the same weights in our modules.

PyTorch is imported on first use, so that collecting tests doesn't cost its start.
"""

import dataclasses
import functools
import importlib
import math
import os
from types import ModuleType
from typing import Any
import zlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest

from orthus_jax.config import ModelConfig, TransformerConfig, VisionEmbeddingConfig, VisionTokenizerConfig
from orthus_jax.data.text_tokenizer import image_code_name
from orthus_jax.interop.names import published_name
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import Orthus

CODES, VOCAB = 96, 160
EOI, BOI, SEP, IMAGE = CODES + 4, CODES + 5, CODES + 6, CODES + 7
TEXT = range(CODES + 8, VOCAB)


def reference(name: str) -> ModuleType:
  """Imports a library to compare with; the test is skipped where it isn't installed.

  With ORTHUS_REQUIRE_PARITY set, as in CI, a missing library is a failure: there, nothing may be skipped unnoticed.
  """
  try:
    return importlib.import_module(name)
  except ImportError:
    if os.environ.get("ORTHUS_REQUIRE_PARITY"):
      raise
    pytest.skip(f"{name} isn't installed: pip install -e '.[test,parity]' to compare with it")


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
  """The same model twice: `theirs` of transformers, in fp32, and ours as a config, a structure and parameters."""

  theirs: Any
  config: ModelConfig
  params: dict[str, jax.Array]

  @functools.cache
  def ours(self, dtype: str = "float32") -> Orthus:
    """Our model, computing in a dtype."""
    transformer = dataclasses.replace(self.config.transformer, dtype=dtype)
    config = dataclasses.replace(self.config, transformer=transformer)
    graphdef, _, _ = params_lib.shapes_and_axes(lambda: Orthus(config, rngs=nnx.Rngs(params=0)))
    return params_lib.merge(graphdef, self.params)


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A parameter drawn by its name, with norms far enough from one and zero, and heads from each other, to be seen."""
  x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
  if "norm" in name.split(".")[-2]:
    return 1 + 0.4 * x if name.endswith("weight") else 0.4 * x
  if name.endswith("bias"):
    return 0.1 * x
  if "quantize.embedding" in name or "embed_tokens" in name:
    return 0.5 * x
  return x / np.float32(math.sqrt(math.prod(shape[1:])))


@functools.cache
def pair(style: str, *, levels: tuple[int, ...] = (1, 2), resolution: int = 8, base: int = 32) -> Pair:
  """Builds both models with the same weights.

  Args:
    style: "7B" (pre-norm, as many key-value heads as heads) or "34B" (swin norm, fewer key-value heads).
    levels: channel multipliers of the vision tokenizer.
    resolution: of its pictures.
    base: its channels at full resolution; theirs must be multiples of 32.
  """
  torch, transformers = reference("torch"), reference("transformers")
  torch.set_num_threads(1)  # more of them cost more than they give, at these sizes
  t = TransformerConfig(
      vocab_size=VOCAB, width=64, mlp_width=96, layers=3, heads=4, kv_heads=4 if style == "7B" else 2, head_dim=16,
      max_positions=128, norm_placement="pre" if style == "7B" else "swin", dtype="float32", remat="none",
  )  # fmt: skip
  v = VisionTokenizerConfig(
      resolution=resolution, base_channels=base, channel_multipliers=levels, res_blocks=2, latent_dim=32, codes=CODES,
  )  # fmt: skip
  # Towards temperature 0 the soft VQ takes the nearest code, as Chameleon does.
  config = ModelConfig(transformer=t, vision_tokenizer=v, vision_embedding=VisionEmbeddingConfig(temperature=1e-5))
  names = ["<s>", "<pad>", "</s>", "<unk>", *map(image_code_name, range(CODES))]
  names += ["<eoss>", "<racm3:break>", "<reserved08706>", "<image>"]
  described = transformers.ChameleonConfig(
      vocab_size=t.vocab_size, hidden_size=t.width, intermediate_size=t.mlp_width, num_hidden_layers=t.layers,
      num_attention_heads=t.heads, num_key_value_heads=t.kv_heads, max_position_embeddings=t.max_positions,
      rms_norm_eps=t.norm_eps, swin_norm=t.norm_placement == "swin", pad_token_id=1,
      rope_parameters={"rope_type": "default", "rope_theta": t.rope_theta},
      vocabulary_map={name: i for i, name in enumerate(names)}, attn_implementation="eager",
      vq_config=dict(
          embed_dim=v.latent_dim, latent_channels=v.latent_dim, num_embeddings=v.codes, resolution=v.resolution,
          base_channels=v.base_channels, channel_multiplier=list(v.channel_multipliers), num_res_blocks=v.res_blocks,
      ),
  )  # fmt: skip
  theirs = transformers.ChameleonForConditionalGeneration(described).eval()
  published = {k: draw(k, tuple(x.shape)) for k, x in theirs.state_dict().items()}
  theirs.load_state_dict({k: torch.from_numpy(x) for k, x in published.items()})
  # Orthus' own codebook starts as the vision tokenizer's.
  published["model.codebook_in.weight"] = published["model.vqmodel.quantize.embedding.weight"]
  _, shapes, _ = params_lib.shapes_and_axes(lambda: Orthus(config, rngs=nnx.Rngs(params=0)))
  params = {}
  for name, shape in shapes.items():
    if published_name(name)[0].format(0) in published:
      params |= plain.import_params(published, {name: shape.shape})
    else:  # the decoder and the image head, which Chameleon lacks
      params[name] = np.zeros(shape.shape, np.float32)
  taken = {published_name(n)[0].format(l) for n in params for l in range(t.layers)}
  left = set(published) - taken
  assert not left, f"nothing of ours takes {sorted(left)}"
  return Pair(theirs, config, {n: jnp.asarray(x) for n, x in params.items()})


def layer_states(theirs: Any, run: Any) -> list[np.ndarray]:
  """What enters the first layer and what leaves each, in order, of one call `run()` of theirs."""
  states = []
  hooks = [theirs.model.layers[0].register_forward_pre_hook(lambda m, args: states.append(args[0]))]
  hooks += [
      layer.register_forward_hook(lambda m, args, out: states.append(out[0] if isinstance(out, tuple) else out))
      for layer in theirs.model.layers
  ]
  try:
    with reference("torch").no_grad():
      run()
  finally:
    for hook in hooks:
      hook.remove()
  return [s.float().numpy() for s in states]
