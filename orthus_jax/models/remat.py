"""What of a layer is kept for the backward pass, the rest being computed again."""

from __future__ import annotations

from collections.abc import Callable

import jax

from orthus_jax.models import attention, quantized_training


def policy(name: str, *, quantization: str) -> Callable[..., bool]:
  """The jax.checkpoint policy that TransformerConfig.remat names, where products are quantised as `quantization` says."""
  policies = jax.checkpoint_policies
  keep = policies.save_only_these_names
  if name == "offload":
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=["layer_input", "q", "kv", attention.RESIDUAL_NAME],
        offload_src="device", offload_dst="pinned_host",
    )  # fmt: skip
  # A quantised product is kept as its result: within it stand 32 bits a value.
  products = policies.dots_with_no_batch_dims_saveable if quantization == "none" else keep(quantized_training.PRODUCT_NAME)
  return {
      "dots": policies.save_from_both_policies(products, keep(attention.RESIDUAL_NAME)),
      "kv_mlp": keep("kv", "mlp", attention.RESIDUAL_NAME),
      "mlp": keep("mlp", attention.RESIDUAL_NAME),
      "qkv": keep("q", "kv", attention.RESIDUAL_NAME),
      "attention": keep(attention.RESIDUAL_NAME),
      "full": policies.nothing_saveable,
  }[name]
