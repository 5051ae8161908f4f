"""`orthus prepare`: makes the data set that a config reads, ahead of training, or lays it out on disk."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from orthus_jax import lock
from orthus_jax.commands import common
from orthus_jax.config import Config
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest
from orthus_jax.paths import check_writable, user_path
from orthus_jax.progress import bar

_Images = Literal["pixels", "jpeg", "features"]
_IMAGES: tuple[_Images, ...] = get_args(_Images)
_HELP = """usage: orthus prepare --config=FILE[:ARGUMENT] [--out=DIR [--images=WHAT]] [--config.some.field=value ...]

Makes the data set that the config reads, unless it is there, and counts its documents.

  --out=DIR            lays the documents of data.split out into DIR, which training then reads piece by piece, however
                       large: --config.data.source=prepared --config.data.path=DIR
  --images=pixels      keeps pixels as they are (786 kB a picture at 512 x 512); jpeg: as JPEG files, about a tenth;
                       features: computed by the vision tokenizer of run.init_from, in bfloat16 (512 KiB)
"""


def main(argv: Sequence[str]) -> int:
  """Makes it, and counts its documents."""
  from orthus_jax.config.command_line import read_config

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
  folder = Path(user_path(own["--out"])) if own.get("--out") else None
  if folder is not None:
    check_writable(folder, option="--out")
  common.check_data_place(config)
  common.initialize(verbose=True, devices=images == "features")
  if folder is not None:
    return _lay_out(config, folder, images)
  splits = ("train", "validation", "test") if config.data.source == "shapes" else (config.data.split,)
  for split in splits:
    source = sources.open_source(config, split)
    documents = (source[i] for i in range(len(source)))
    kinds = collections.Counter(d.kind if d is not None else "bad" for d in documents)
    print(f"{split}: {len(source)} documents (" + ", ".join(f"{n} {k}" for k, n in sorted(kinds.items())) + ")")
    if set(kinds) == {"bad"}:
      raise BadRequest(f"{split} holds no good document")
  return 0


def _lay_out(config: Config, folder: Path, images: _Images) -> int:
  from orthus_jax.data.prepared import writer as prepared
  from orthus_jax.training import feature_encoder

  if config.data.source == "prepared":
    raise BadRequest("data.source=prepared is laid out already: set it to shapes or folder")
  tokenizer = sources.open_tokenizer(config)
  encode, digest = feature_encoder.encoder_of(config) if images == "features" else (None, "")
  source = sources.open_source(config, config.data.split)
  with lock.hold(folder):
    made = prepared.prepare(
        source, tokenizer, config, folder, images=images, encode=encode, encoded_by=digest, progress=bar("preparing")
    )
  print(f"{folder}: {made['documents']} documents, {made['pictures']} pictures as {images}")
  return 0
