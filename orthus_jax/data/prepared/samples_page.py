"""A page of random documents of prepared data, read back from it: what a model will be shown, and what it is to learn."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import PIL.Image

from orthus_jax.config import Config
from orthus_jax.data.prepared import format as record_format
from orthus_jax.data.prepared.shards import Shards
from orthus_jax.data.sequence import Sequence, Tokenizer
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.files import write_text

_SAMPLES = 24
_EDGE = 192  # pixels
_MOST = 600  # characters of a text


class Piece(NamedTuple):
  """A text or a picture of a sample.

  Attributes:
    text: of a text; empty for a picture.
    picture: a picture's data address; empty where it is kept as features.
    learnt: whether it is to be learnt.
  """

  text: str
  picture: str
  learnt: bool


def write(folder: Path, made: dict[str, Any], tokenizer: Tokenizer, config: Config) -> None:
  """Writes samples.html into a folder whose records are complete; `made` is what prepared.json will hold."""
  count = made["documents"]
  numbers = np.sort(np.random.default_rng(0).choice(count, min(count, _SAMPLES), replace=False)).tolist()
  bad = BadRecords(max_share=1.0)
  records = {
      what: Shards([folder / f"{what}-{i:05d}.array_record" for i in range(len(counts))], counts, bad)
      for what, counts in made["shards"].items()
  }
  samples = []
  for number in numbers:
    if (record := records["documents"].read(number)) is None:
      continue
    stored = record_format.from_record(record, 0, patches=config.model.vision_tokenizer.patches)
    pictures = [_address(records["pictures"].read(p), config, made) for p in stored.pictures.tolist()]
    samples.append((stored.name, _pieces(stored.sequence, pictures, tokenizer), len(stored.sequence)))
  loader = jinja2.PackageLoader(__package__, ".")
  environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
  page = environment.get_template("samples.html.j2").render(made=made, samples=samples, folder=folder.name)
  write_text(folder / "samples.html", page)


def _pieces(s: Sequence, pictures: list[str], tokenizer: Tokenizer) -> list[Piece]:
  """A sequence's segments, in order; separators left out."""
  out: list[Piece] = []
  run: list[int] = []
  learnt = False

  def end() -> None:
    if run:
      text = tokenizer.decode(run).strip()  # type: ignore[attr-defined]
      out.append(Piece(text if len(text) <= _MOST else text[:_MOST] + "…", "", learnt))
      run.clear()

  learn_T = s.learn_T
  for t, token in enumerate(s.tokens_T.tolist()):
    if s.image_T[t] >= 0:
      continue
    if token == tokenizer.boi:
      end()
      image = int(s.image_T[t + 1])
      out.append(Piece("", pictures[image], bool(s.learn_I[image])))
    elif token in (tokenizer.bos, tokenizer.eoi, tokenizer.sep):
      end()
    else:
      if run and learn_T[t] != learnt:
        end()
      learnt = bool(learn_T[t])
      run.append(token)
  end()
  return out


def _address(record: bytes | None, config: Config, made: dict[str, Any]) -> str:
  if record is None or made["images"] == "features":
    return ""
  image = PIL.Image.fromarray(record_format.read_picture(record, config, made))
  image.thumbnail((_EDGE, _EDGE))
  buffer = io.BytesIO()
  image.save(buffer, "WEBP", quality=80)
  return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
