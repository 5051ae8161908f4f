"""`orthus prepare`: makes the data set that a config reads, ahead of training, or lays it out on disk."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from orthus_jax.commands import common
from orthus_jax.config import Config
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest

_IMAGES = ("pixels", "jpeg", "features")
_HELP = """usage: orthus prepare --config=FILE[:ARGUMENT] [--out=DIR [--images=WHAT]] [--config.some.field=value ...]

Makes the data set that the config reads, unless it is there, and counts its documents.

  --out=DIR            lays the documents of data.split out into DIR, which training then reads piece by piece, however
                       large: --config.data.source=prepared --config.data.path=DIR
  --images=pixels      keeps pixels as they are (786 kB a picture at 512 x 512); jpeg: as JPEG files, about a tenth;
                       features: computed by the vision tokenizer of run.init_from, in bfloat16 (512 KiB)
"""


def main(argv: Sequence[str]) -> int:
  """Makes it, and counts its documents."""
  from orthus_jax.commands.train import read_config

  if "--help" in argv or "-h" in argv or not argv:
    print(_HELP, end="")
    return 0
  own = {k: a.partition("=")[2] for k in ("--out", "--images") for a in argv if a.startswith(f"{k}=")}
  config, _ = read_config([a for a in argv if not a.startswith(("--out=", "--images="))])
  images = own.get("--images", "pixels")
  if images not in _IMAGES:
    raise BadRequest(f"--images={images}: choose one of {', '.join(_IMAGES)}")
  if "--images" in own and not own.get("--out"):
    raise BadRequest("--images needs --out=DIR: say where the documents are to be laid out")
  common.start(verbose=True)
  if own.get("--out"):
    return _lay_out(config, Path(own["--out"]), images)
  splits = ("train", "validation", "test") if config.data.source == "shapes" else (config.data.split,)
  for split in splits:
    source = sources.open_source(config, split)
    documents = (source[i] for i in range(len(source)))
    kinds = collections.Counter(d.kind if d is not None else "bad" for d in documents)
    print(f"{split}: {len(source)} documents (" + ", ".join(f"{n} {k}" for k, n in sorted(kinds.items())) + ")")
    if set(kinds) == {"bad"}:
      raise BadRequest(f"{split} holds no good document")
  return 0


def _lay_out(config: Config, folder: Path, images: str) -> int:
  from orthus_jax.data.prepared import writer as prepared
  from orthus_jax.training_run import bar

  if config.data.source == "prepared":
    raise BadRequest("data.source=prepared is laid out already: set it to shapes or folder")
  tokenizer = sources.open_tokenizer(config)
  encode, digest = _encoder(config) if images == "features" else (None, "")
  source = sources.open_source(config, config.data.split)
  made = prepared.prepare(
      source, tokenizer, config, folder, images=images, encode=encode, encoded_by=digest, progress=bar("preparing")
  )
  print(f"{folder}: {made['documents']} documents, {made['pictures']} pictures as {images}")
  return 0


def _encoder(config: Config) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
  """The vision tokenizer that run.init_from brings: pictures → features, and the digest of its encoder."""
  from flax import nnx

  from orthus_jax.models import params as params_lib
  from orthus_jax.models.orthus import Orthus
  from orthus_jax.training import loop
  from orthus_jax.training.checkpoints import workdir as checkpoint

  graphdef, shapes, _ = params_lib.shapes_and_axes(lambda: Orthus(config.model, rngs=nnx.Rngs(params=0)))
  wanted = {n: s for n, s in shapes.items() if n.startswith("vision_tokenizer/")}
  found = {}
  for prefix, path in config.run.init_from:
    found |= {prefix + n: v for n, v in checkpoint.load_params(path).items() if prefix + n in wanted}
  lacking = [n for n, s in wanted.items() if n not in found or found[n].shape != s.shape]
  if lacking:
    raise BadRequest(
        f"--images=features needs a trained vision tokenizer, and run.init_from brings no {lacking[0]}:"
        " set run.init_from=(('vision_tokenizer/', RUN),)"
    )
  own = {n: np.asarray(v).astype(wanted[n].dtype) for n, v in found.items()}
  encode = loop.encoder(graphdef, shapes)
  return lambda pixels: np.asarray(encode(own, pixels)), loop.encoder_digest(own)
