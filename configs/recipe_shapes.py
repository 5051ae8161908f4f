"""The paper's recipe in small, on the built-in world: configs/orthus_7b.py's stages, and the two that it finds done.

    launch/recipe_shapes.sh runs/recipe            # all of them, then runs/recipe/index.html; 60 to 90 minutes on two CPU cores

The argument is the stage. Each begins with what the one before made, by `run.init_from`:

    tokenizer   the VQGAN, from pictures
    chameleon   a discrete model, from text and codes
    base        Orthus-base: codebook_in, token embedding and diffusion head learn from pictures alone, all else is frozen
    decoder     the VQGAN's decoder alone, on unquantised features
    post        everything but the VQGAN, from the whole mix
    edit        from Orthus-base: a picture, an instruction, the edited picture
    story       from Orthus-base: a picture a sentence

`,runlocal` behind a stage's name takes a few steps of a shallow model. Models, optimizer and mix are configs/shapes.py's.
"""

import importlib.util
import pathlib
from typing import Any

from ml_collections import ConfigDict


def _sibling(name: str) -> Any:
  spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name(f"{name}.py"))
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


shapes, shapes_tokenizer = _sibling("shapes"), _sibling("shapes_tokenizer")

# One data set for all stages, that is made once: the quickstart's, with pictures to be drawn again and more edits and stories.
_DOCUMENTS = (
    ("caption_to_image", 4000), ("image_to_caption", 2000), ("brief_question", 2000), ("question", 4000), ("copy", 3000),
    ("edit", 6000), ("story", 3000), *shapes.NO_OUTLINES,
)  # fmt: skip
_BASE = (r"token_embedding", r"vision_embedding/.*", r"image_head/.*")


def get_config(arg: str = "post") -> ConfigDict:
  """The config of a stage; see above."""
  stage, *words = arg.split(",")
  if stage not in STAGES or set(words) - {"runlocal"}:
    raise ValueError(f"configs/recipe_shapes.py has no argument {arg!r}: {', '.join(STAGES)}, each with ,runlocal or without")
  config = STAGES[stage]()
  config.run.init_from = ()  # launch/recipe_shapes.sh says from where
  if "runlocal" in words:
    config.run.update(steps=4, log_every=1, checkpoint_every=0, batch_size=4)
    config.data.documents = tuple((kind, min(n, 12)) for kind, n in _DOCUMENTS)
    if config.task == "orthus":
      config.model.transformer.update(layers=1, scan_unroll=1)
      if "diffusion" in config.model:
        config.model.diffusion.blocks = 1
      config.run.report = False
      config.data.later_kinds = ()
    else:
      config.tokenizer_loss.held_out = 16  # and it is scored on these alone
  return config


def _tokenizer() -> ConfigDict:
  config = shapes_tokenizer.get_config()
  config.data.documents = _DOCUMENTS
  config.run.steps = 4000
  return config


def _model(system: str, *, steps: int, learning_rate: float, kinds: tuple[tuple[str, float], ...]) -> ConfigDict:
  config = shapes.get_config(f"direct,{system}" if system else "direct")
  config.data.update(documents=_DOCUMENTS, kinds=kinds, later_kinds=())
  config.optimizer.update(learning_rate=learning_rate, warmup_steps=min(80, steps // 5))
  config.run.update(steps=steps, sample_every=0)
  return config


def _chameleon() -> ConfigDict:
  """The quickstart's mix, edits and stories left to later stages; copies, on which Orthus-base's pictures are learnt."""
  config = _model("chameleon", steps=1400, learning_rate=4e-3, kinds=(
      ("caption_to_image", 1.1), ("image_to_caption", 0.65), ("brief_question", 1.1), ("copy", 0.6),
  ))  # fmt: skip
  config.data.later_kinds = (
      (460, (
          ("caption_to_image", 1.05), ("image_to_caption", 0.75), ("brief_question", 0.65), ("question", 1.2), ("copy", 0.5),
      )),
  )  # fmt: skip
  return config


def _base() -> ConfigDict:
  config = _model("", steps=700, learning_rate=4e-3, kinds=(("copy", 1.0), ("caption_to_image", 0.3)))
  config.model.transformer.text_loss_weight = 0.0
  config.data.caption_dropout = 0.1
  config.optimizer.trainable = _BASE
  return config


def _decoder() -> ConfigDict:
  config = shapes.get_config("decoder")
  config.data.documents = _DOCUMENTS
  return config


def _post() -> ConfigDict:
  return _model("", steps=1400, learning_rate=3e-3, kinds=(
      ("caption_to_image", 1.05), ("image_to_caption", 0.75), ("brief_question", 0.65), ("question", 1.2), ("edit", 0.55),
      ("story", 0.85),
  ))  # fmt: skip


def _edit() -> ConfigDict:
  return _model("", steps=400, learning_rate=3e-3, kinds=(("edit", 1.0), ("copy", 0.2)))


def _story() -> ConfigDict:
  return _model("", steps=400, learning_rate=3e-3, kinds=(("story", 1.0), ("caption_to_image", 0.2)))


STAGES = {
    "tokenizer": _tokenizer, "chameleon": _chameleon, "base": _base, "decoder": _decoder, "post": _post, "edit": _edit,
    "story": _story,
}  # fmt: skip
