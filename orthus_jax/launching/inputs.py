"""What a run reads, as far as it can be told before it is submitted."""

from __future__ import annotations

from collections.abc import Iterator
import os

from orthus_jax.config import Config
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest
from orthus_jax.storage.bucket import is_url


def check(config: Config, *, container: bool) -> None:
  """Refuses a run that would find neither its tokenizer nor its data.

  Args:
    container: it sees no more than its image and what is mounted.

  Raises:
    BadRequest: saying what to set.
  """
  if config.task == "orthus" and not config.data.tokenizer:
    sources.open_tokenizer(config)  # the built-in one, which must be the model's
  for field, path in _paths(config) if container else ():
    if not is_url(path) and not os.path.isabs(path):
      raise BadRequest(
          f"{field}={path} is relative, and a container has no current directory of yours: give a path in its image or on a"
          " --volume, or a bucket's address"
      )


def _paths(config: Config) -> Iterator[tuple[str, str]]:
  data = config.data
  named = [
      ("data.path", data.path), *(("data.mixture", path) for path, _ in data.mixture), ("data.tokenizer", data.tokenizer),
      ("data.pictures", data.pictures), *(("run.init_from", path) for _, path in config.run.init_from),
  ]  # fmt: skip
  if config.task == "vision_tokenizer":
    named.append(("tokenizer_loss.perceptual_weights", config.tokenizer_loss.perceptual_weights))
  return ((field, path) for field, path in named if path and not path.startswith("asset:"))
