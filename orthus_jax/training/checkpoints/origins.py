"""What is known of the arrays that a run begins with: the config, tokenizer and data that they were trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from orthus_jax.config import Config
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.errors import BadRequest
from orthus_jax.interop import huggingface
from orthus_jax.models import systems
from orthus_jax.storage import bring
from orthus_jax.training.checkpoints import workdir as checkpoint


class Origin(NamedTuple):
  """Where arrays come from; None for what can't be known, as of an .npz.

  Attributes:
    folder: that holds them.
    config: which they were trained with.
    tokenizer: of an Orthus.
    data: what the last step saw; see `workdir.made_with`.
    headless: whether no image head is among them: a Chameleon has none, and draws by its LM head.
    unknown: what can't be told of them, and why; empty for nothing.
  """

  folder: Path
  config: Config | None = None
  tokenizer: TextTokenizer | None = None
  data: dict[str, Any] | None = None
  headless: bool = False
  unknown: str = ""


def of(path: str) -> Origin:
  """What is known of a run, one of its checkpoints, a Hugging Face directory, an .npz or "asset:NAME".

  Raises:
    BadRequest: if there is no such thing, or its tokenizer isn't the one it was trained with.
  """
  if not path.startswith("asset:"):
    path = bring.local(path)
  if path.endswith(".npz") or path.startswith("asset:"):
    checkpoint.load_params(path)
    return Origin(Path(path))
  if huggingface.is_checkpoint(path):
    found = huggingface.open_checkpoint(path)
    if any(n.startswith("image_head/") for n in found.fresh):
      found = huggingface.open_checkpoint(path, image_head="codes")  # what it is, and not what may be made of it
    return Origin(Path(path), found.config, found.tokenizer, headless=_headless(found.config))
  run, step = checkpoint.find(path)
  data = checkpoint.data_of(run / "checkpoints" / str(step))
  try:
    config = checkpoint.load_config(run)
  except BadRequest as e:  # its arrays may still be read
    return Origin(run, data=data, unknown=f"{e}: whether its parameters are of this kind of model can't be told")
  if config.task != "orthus":
    return Origin(run, config, data=data)
  headless = _headless(config)
  if not (run / "tokenizer.json").is_file():
    unknown = f"{run / 'tokenizer.json'} is missing: whether the parameters were trained with this tokenizer can't be told"
    return Origin(run, config, data=data, headless=headless, unknown=unknown)
  return Origin(run, config, checkpoint.load_tokenizer(run, step), data, headless)


def _headless(config: Config) -> bool:
  return not systems.image_head(config.model).has_parameters
