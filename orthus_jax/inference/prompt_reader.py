"""Prompts in chunks of fixed shapes, as the engine reads them into its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from orthus_jax.config import ModelConfig
from orthus_jax.inference import engine
from orthus_jax.inference.requests import Lane

_CHUNK = 256  # positions that are read at once
_SHORTEST = 32
_READ = 64  # lanes that are read into at once, at most; a power of 4


def chunks(
    prompts: Sequence[tuple[int, Lane, list[np.ndarray]]], config: ModelConfig, *, lanes: int, sep: int
) -> Iterator[tuple[engine.Prompts, int]]:
  """Lays prompts out for reading; the last token of a row's prompt is read too, and overwritten by itself.

  Args:
    prompts: (the lane it goes to, the prompt, its pictures' features [P, C]) of each.
    config: the model's.
    lanes: X, of the batch.
    sep: a token that stands where there is nothing.

  Yields:
    (a chunk, where the furthest of its positions may stand).
  """
  whole_pictures, most = _whole_pictures(config), _most(config)
  prompts = sorted(prompts, key=lambda item: -len(item[1]))
  for first in range(0, len(prompts), _READ):
    group = prompts[first : first + _READ]
    T = min(_power(len(group[0][1]), 2, at_least=_SHORTEST), most)
    cut = [cuts(lane, T, whole_pictures=whole_pictures) for _, lane, _ in group]
    A = _power(len(group), 4)
    for n in range(max(map(len, cut)) - 1):
      tokens = np.full((A, T), sep, np.int32)
      patch = np.full((A, T), -1, np.int32)
      drawn = np.zeros((A, T, config.vision_tokenizer.latent_dim), np.float32)
      where, starts = np.full(A, lanes, np.int32), np.zeros(A, np.int32)
      for a, ((lane, prompt, features), c) in enumerate(zip(group, cut)):
        if n + 1 >= len(c):
          continue  # its prompt is over; what a padding row computes goes nowhere
        start, stop = c[n], c[n + 1]
        where[a], starts[a] = lane, start
        tokens[a, : stop - start], patch[a, : stop - start] = prompt.tokens_T[start:stop], prompt.patch_T[start:stop]
        at = np.flatnonzero(patch[a] >= 0)
        if len(at):
          before = int((prompt.patch_T[:start] >= 0).sum())
          drawn[a, at] = np.concatenate(features)[before : before + len(at)]
      yield engine.Prompts(
          tokens_AT=tokens, patch_AT=patch, features_ATC=drawn if (patch >= 0).any() else None, start_A=starts, lane_A=where
      ), int(starts.max()) + T  # fmt: skip


def sizes(config: ModelConfig, *, lanes: int) -> list[tuple[int, int]]:
  """(A, T) of all programs that read prompts: few, as each takes long to compile."""
  longest = min(_power(config.transformer.max_positions, 2, at_least=_SHORTEST), _most(config))
  lengths = [T for n in range(32) if (T := _SHORTEST << n) < longest] + [longest]
  return [(4**n, T) for n in range(4) if n == 0 or 4 ** (n - 1) < min(lanes, _READ) for T in lengths]


def empty(config: ModelConfig, A: int, T: int, *, lanes: int, sep: int, pictures: bool) -> engine.Prompts:
  """A chunk that reads nothing, for its program to be compiled."""
  drawn = np.zeros((A, T, config.vision_tokenizer.latent_dim), np.float32) if pictures else None
  return engine.Prompts(
      tokens_AT=np.full((A, T), sep, np.int32), patch_AT=np.full((A, T), -1, np.int32), features_ATC=drawn,
      start_A=np.zeros(A, np.int32), lane_A=np.full(A, lanes, np.int32),
  )  # fmt: skip


def _whole_pictures(config: ModelConfig) -> bool:
  """With full attention within pictures, none of them may be read in two pieces."""
  return config.transformer.image_attention == "full"


def _most(config: ModelConfig) -> int:
  """Positions that are read at once at most."""
  return max(_CHUNK, config.vision_tokenizer.patches) if _whole_pictures(config) else _CHUNK


def _power(n: int, base: int, *, at_least: int = 1) -> int:
  """The least power of the base, times `at_least`, that n doesn't exceed."""
  size = at_least
  while size < n:
    size *= base
  return size


def cuts(prompt: Lane, most: int, *, whole_pictures: bool) -> list[int]:
  """Where a prompt is cut into pieces, its ends included.

  Args:
    prompt: at least one position.
    most: positions of a piece at most; P at least, if pictures are to stay whole.
    whole_pictures: cut none of them in two.
  """
  found = [0]
  while found[-1] < len(prompt):
    cut = min(found[-1] + most, len(prompt))
    if whole_pictures and cut < len(prompt) and prompt.patch_T[cut] > 0:
      cut -= int(prompt.patch_T[cut])  # where that picture's first patch stands
    found.append(cut)
  return found
