"""The one table from a model's config to its parts: it is all that tells the systems of the paper apart.

| system | vision_embedding.kind | image_head.kind | transformer.image_attention |
|---|---|---|---|
| Orthus | soft | diffusion | causal |
| Chameleon | argmin | codes | causal |
| Show-o | argmin | masked | full |
| ablations | argmin, linear | regression | causal |
"""

from __future__ import annotations

from orthus_jax.config import ModelConfig
from orthus_jax.models.heads.base import ImageHead
from orthus_jax.models.heads.codes import CodesHead
from orthus_jax.models.heads.diffusion import DiffusionHead
from orthus_jax.models.heads.masked import MaskedHead
from orthus_jax.models.heads.regression import RegressionHead

IMAGE_HEADS: dict[str, type[ImageHead]] = {
    "diffusion": DiffusionHead, "regression": RegressionHead, "codes": CodesHead, "masked": MaskedHead,
}  # fmt: skip


def image_head(config: ModelConfig) -> type[ImageHead]:
  """The class of a model's image head, which says what it needs."""
  return IMAGE_HEADS[config.image_head.kind]
