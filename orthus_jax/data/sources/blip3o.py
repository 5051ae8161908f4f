"""BLIP3o's tar files of pictures and captions: the webdataset layout, of which pictures are learnt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.webdataset import WebDataset


class Blip3o(WebDataset):
  """Drafts of kind "caption_to_image", unless the other direction is asked for."""

  name = "blip3o"
  usage = """BLIP3o-60k and its pretraining sets as they are downloaded: tar files of a picture and its caption.

    DIR/dalle3.tar, DIR/geneval_train.tar, …
      000000000.jpg
      000000000.txt      the prompt, of which the picture is learnt

  pairs: to_image where nothing is said; for captions of pictures too, read it as webdataset. geneval_train.tar has prompts
  like GenEval's own: --contamination=FILE counts those that are in a benchmark's file.
"""

  def __init__(self, path: Path, options: Options = Options()):
    if options.pairs == Options().pairs:
      options = dataclasses.replace(options, pairs="to_image")
    super().__init__(path, options)
    for file in self.files:
      if "geneval" in file.name.lower():
        self.remarks.add("tar files of prompts like GenEval's by their name (see --contamination)", self._name(file))

  @classmethod
  def recognise(cls, path: Path) -> str:
    named = next((part for part in reversed(path.absolute().parts[-3:]) if part.lower().startswith("blip3o")), "")
    why = super().recognise(path) if named else ""
    return why and f"{named} by its name, and {why}"
