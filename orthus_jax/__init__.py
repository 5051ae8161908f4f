"""Orthus in JAX: an autoregressive model of interleaved text and continuous images (arXiv 2412.00127).

    import orthus_jax as oj
    model = oj.load("runs/shapes")
    answer = oj.generate(model, oj.document("a red circle at the top left"))
"""

import importlib

from orthus_jax.config import (
  BadRequest,
  Config,
  DataConfig,
  DiffusionConfig,
  MeshConfig,
  ModelConfig,
  OptimizerConfig,
  RunConfig,
  SamplingConfig,
  TransformerConfig,
  VisionEmbeddingConfig,
  VisionTokenizerConfig,
)  # fmt: skip
from orthus_jax.data.documents import Document, Image, Text, document

__version__ = "0.1.0"

__all__ = [
    "BadRequest", "Config", "DataConfig", "DiffusionConfig", "Document", "Image", "MeshConfig", "ModelConfig",
    "OptimizerConfig", "RunConfig", "SamplingConfig", "Text", "TransformerConfig", "VisionEmbeddingConfig",
    "VisionTokenizerConfig", "document", "generate", "load", "scores",
]  # fmt: skip


def __getattr__(name: str):
  # Loaded on first use, as they bring JAX along, and the data side runs without it.
  if name in ("load", "generate", "Model"):
    from orthus_jax.inference import model

    return getattr(model, name)
  if name == "scores":
    return importlib.import_module("orthus_jax.scores")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
