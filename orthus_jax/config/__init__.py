"""What a run, a model and a sampler are told: frozen dataclasses, and reading them."""

from orthus_jax.config.data import DataConfig
from orthus_jax.config.experiment import Config, MeshConfig, RunConfig, TokenizerLossConfig
from orthus_jax.config.image_head import DiffusionConfig, ImageHeadConfig
from orthus_jax.config.model import LoraConfig, ModelConfig, TransformerConfig
from orthus_jax.config.optimizer import OptimizerConfig
from orthus_jax.config.sampling import SamplingConfig
from orthus_jax.config.typed import from_dict, to_dict
from orthus_jax.config.vision import PixelsConfig, VisionEmbeddingConfig, VisionTokenizerConfig
from orthus_jax.errors import BadRequest

__all__ = [
    "BadRequest", "Config", "DataConfig", "DiffusionConfig", "ImageHeadConfig", "LoraConfig", "MeshConfig", "ModelConfig",
    "OptimizerConfig", "PixelsConfig", "RunConfig", "SamplingConfig", "TokenizerLossConfig", "TransformerConfig",
    "VisionEmbeddingConfig", "VisionTokenizerConfig", "from_dict", "to_dict",
]  # fmt: skip
