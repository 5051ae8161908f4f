"""Makes the text tokenizer that the package ships for `shapes`: python -m orthus_jax.data.shapes.tokenizer FILE."""

from __future__ import annotations

from pathlib import Path
import shutil
import sys
import tempfile

from orthus_jax.data.shapes import corpus
from orthus_jax.data.text_tokenizer import FILE_NAME, TextTokenizer
from orthus_jax.data.tokenizer_training import train_tokenizer

VOCAB_SIZE = 1024
IMAGE_CODES = 512
UNCONDITIONAL_PROMPT = "generate an image"


def make_tokenizer() -> TextTokenizer:
  """A BPE over the world's text; the same every time."""
  return train_tokenizer([*corpus.texts(), *[UNCONDITIONAL_PROMPT] * 100], VOCAB_SIZE, IMAGE_CODES)


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as folder:
    make_tokenizer().save(folder)
    shutil.copyfile(Path(folder) / FILE_NAME, sys.argv[1])
