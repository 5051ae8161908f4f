"""What a run, a model and a sampler are told: frozen dataclasses, and reading them."""

from orthus_jax.config.experiment import *  # noqa: F403
from orthus_jax.config.experiment import __all__ as __all__
