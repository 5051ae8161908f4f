"""A text tokenizer trained from scratch, with Chameleon's layout of ids."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from orthus_jax.data.text_tokenizer import TextTokenizer, TokenNames, image_code_name
from orthus_jax.errors import BadRequest


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    image_codes: int,
    *,
    names: TokenNames | None = None,
    min_frequency: int = 2,
) -> TextTokenizer:
  """Trains a byte-level BPE with Chameleon's layout; the same texts always give the same tokenizer.

  Ids: 0 bos, 1 pad, 2 eos, 3 unknown (never produced), then the image codes from 4, then end of image, begin of image,
  sep and image, then the 256 bytes, then the merges.

  Args:
    texts: what to learn merges from.
    vocab_size: how many ids at most; fewer come out where the texts don't have that many merges to offer.
    image_codes: how many image codes; 0 for none.
    names: what to call the special tokens.
    min_frequency: how often a pair must occur to be merged.

  Raises:
    BadRequest: the vocabulary is too small for the special tokens, the image codes and the bytes.
  """
  names = names or TokenNames()
  if image_codes < 0:
    raise BadRequest(f"a tokenizer can't have {image_codes} image codes; give 0 or more")
  specials = [names.bos, names.pad, names.eos, "<unk>", *map(image_code_name, range(image_codes))]
  specials += [names.end_of_image, names.begin_of_image, names.sep, names.image]
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  if vocab_size < (least := len(specials) + len(alphabet)):
    raise BadRequest(f"a vocabulary of {vocab_size} is too small for {image_codes} image codes; give at least {least}")
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=vocab_size,
      min_frequency=min_frequency,
      special_tokens=specials,
      initial_alphabet=alphabet,
      show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return TextTokenizer(tokenizer, names=names)
