"""The weights of `models/perceptual.py`, from a safetensors file with the names of torchvision and of the `lpips` package.

Both publish pickles, which can run code where they are opened; docs/decoder.md has the command that makes one safetensors
file of them.
"""

from __future__ import annotations

import os
from pathlib import Path
import re

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.interop import safetensors
from orthus_jax.models.params import Params
from orthus_jax.models.perceptual import BLOCKS


def _published() -> dict[str, tuple[str, tuple[int, ...]]]:
  """Name of ours → (published name, published shape)."""
  names: dict[str, tuple[str, tuple[int, ...]]] = {}
  at, inputs, n = 0, 3, 0  # in torchvision's sequence, where each convolution is followed by a ReLU and each block by a pool
  for tap, block in enumerate(BLOCKS):
    for outputs in block:
      names[f"conv/{n}/kernel"] = f"features.{at}.weight", (outputs, inputs, 3, 3)
      names[f"conv/{n}/bias"] = f"features.{at}.bias", (outputs,)
      at, inputs, n = at + 2, outputs, n + 1
    names[f"weight/{tap}"] = f"lin{tap}.model.1.weight", (1, block[-1], 1, 1)
    at += 1
  return names


def load(path: str | os.PathLike) -> Params:
  """A Perceptual's parameters, fp32, by name.

  Args:
    path: a safetensors file that holds "features.N.weight" and "features.N.bias" as torchvision's vgg16 names them (or
      "net.sliceM.N.…", as a whole `lpips.LPIPS` does) and "linM.model.1.weight"; more may be there.

  Raises:
    BadRequest: if it isn't one, or lacks any.
  """
  path = Path(path)
  try:
    entries = {re.sub(r"^net\.slice\d\.", "features.", n): e for n, e in safetensors.read_header(path).items()}
  except safetensors.Damaged as e:
    raise BadRequest(
        f"tokenizer_loss.perceptual_weights={path}: {e}; it must be the safetensors file that docs/decoder.md says how to"
        " make of torchvision's and lpips' .pth files, which aren't opened, as they are pickles"
    ) from e
  values = {}
  for name, (published, shape) in _published().items():
    entry = entries.get(published)
    if entry is None or entry.shape != shape or entry.numpy_dtype is None:
      found = "lacks" if entry is None else f"has {entry.dtype}{list(entry.shape)} for"
      raise BadRequest(
          f"tokenizer_loss.perceptual_weights={path} {found} {published} {list(shape)}: docs/decoder.md says how to make it"
      )
    value = entry.read().astype(np.float32)
    values[name] = value.transpose(2, 3, 1, 0) if name.endswith("kernel") else value.reshape(-1)
  return values
