"""Documents laid out ahead, for data too large to be read whole when training starts.

    DIR/prepared.json                     what it was made with; written last, so that it marks a complete one
    DIR/tokenizer.json
    DIR/index.npz                         sizes and kinds of all documents, and what is learnt: all that planning needs
    DIR/documents-*.array_record          a document's sequences, and the numbers of its pictures
    DIR/pictures-*.array_record           each distinct picture once: bytes of pixels, a JPEG file, or features in bfloat16
    DIR/plans/*.npz                       documents packed into rows, for one length of row; made when first needed
    DIR/shown/                            the first documents as a folder of pictures, for samples on the way

A document has up to three sequences: with its caption, and with it dropped in the ways that guidance needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import io
import json
import logging
from pathlib import Path
import shutil
from typing import Any

from array_record.python import array_record_module
import numpy as np
import PIL.Image

from orthus_jax import lock
from orthus_jax.config import Config
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Image
from orthus_jax.data.learnt import learns
from orthus_jax.data.pipeline import Source, variants
from orthus_jax.data.prepared.format import BF16, MAX_VARIANTS, Images, facts, to_record
from orthus_jax.data.sequence import Tokenizer
from orthus_jax.errors import BadRequest

_log = logging.getLogger(__name__)
_SHARD = 1 << 30  # bytes
_SHOWN = 32
_JPEG_QUALITY = 95
_ENCODED_AT_ONCE = 32


class _Shards:
  """Writes records one after the other into files of about a GiB."""

  def __init__(self, folder: Path, name: str):
    self._folder, self._name = folder, name
    self._writer: Any = None
    self._bytes = 0
    self.counts: list[int] = []  # records of each file

  def write(self, record: bytes) -> None:
    if self._writer is None or self._bytes + len(record) > _SHARD:
      self.close()
      path = self._folder / f"{self._name}-{len(self.counts):05d}.array_record"
      # A group of one and no compression: any record is read alone, as fast as the disk.
      self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
      self._bytes = 0
      self.counts.append(0)
    self._writer.write(record)
    self._bytes += len(record)
    self.counts[-1] += 1

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
      self._writer = None


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[None]:
  """Leaves nothing of what was written where something fails; in the folder itself, as another disk may be mounted there."""
  if folder.exists() and (not folder.is_dir() or any(p.name != lock.NAME for p in folder.iterdir())):
    raise BadRequest(f"{folder} is there already: choose another --out or remove it")
  new = not folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  try:
    yield
  except BaseException:
    for path in folder.iterdir():
      if path.name != lock.NAME:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if new:
      folder.rmdir()
    raise


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    config: Config,
    folder: Path,
    *,
    images: Images,
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
    encoded_by: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
  """Lays out a source's documents and writes them, in little memory.

  Args:
    source: of Documents; bad ones are left out.
    tokenizer: the text tokenizer.
    config: the experiment.
    folder: made if absent.
    images: what is kept of a picture.
    encode: for "features": uint8 [n, R, R, 3] → [n, P, C].
    encoded_by: a digest of the weights that `encode` uses.
    progress: called with (documents done, documents in all).

  Returns:
    What prepared.json holds.

  Raises:
    BadRequest: if the folder holds something already, or no document is good; nothing is left of what was written.
  """
  with _whole(folder):
    return _prepare(source, tokenizer, config, folder, images, encode, encoded_by, progress)


def _prepare(
    source: Source,
    tokenizer: Tokenizer,
    config: Config,
    folder: Path,
    images: Images,
    encode: Callable[[np.ndarray], np.ndarray] | None,
    encoded_by: str,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
  R = config.model.vision_tokenizer.resolution
  documents, pictures = _Shards(folder, "documents"), _Shards(folder, "pictures")
  numbers: dict[bytes, int] = {}
  waiting: list[np.ndarray] = []
  sizes: list[np.ndarray] = []
  learnt: list[int] = []
  kinds: list[int] = []
  kind_names: dict[str, int] = {}
  shown: list[Document] = []
  digest = hashlib.sha256()

  def write_waiting() -> None:
    if waiting:
      assert encode is not None  # pictures wait for nothing else
      padded = np.zeros((_ENCODED_AT_ONCE, R, R, 3), np.uint8)
      padded[: len(waiting)] = waiting
      for feature in np.asarray(encode(padded))[: len(waiting)]:
        pictures.write(feature.astype(BF16).tobytes())
      waiting.clear()

  def number(pixels: np.ndarray) -> int:
    key = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
    if key not in numbers:
      numbers[key] = len(numbers)
      digest.update(key)
      if images == "features":
        waiting.append(pixels)
        if len(waiting) == _ENCODED_AT_ONCE:
          write_waiting()
      else:
        pictures.write(_jpeg(pixels) if images == "jpeg" else pixels.tobytes())
    return numbers[key]

  for i in range(len(source)):
    document = source[i]
    if document is not None:
      laid = variants(document, tokenizer, config, dropped=True)
      size = np.zeros((MAX_VARIANTS, 3), np.int32)
      size[: len(laid)] = [v.size for v in laid]
      sizes.append(size)
      learnt.append(int(laid[0].learn_T.sum()))
      kinds.append(kind_names.setdefault(document.kind, len(kind_names)))
      record = to_record(document.id, laid, [[number(p.pixels) for p in v.images] for v in laid])
      digest.update(record)
      documents.write(record)
      if len(shown) < _SHOWN:
        shown.append(document)
    if progress and ((i + 1) % 64 == 0 or i + 1 == len(source)):
      progress(i + 1, len(source))
  if not sizes:
    raise BadRequest(f"none of the {len(source)} documents is good: there is nothing to prepare")
  if len(sizes) < len(source):
    _log.warning("%d of %d documents are bad, and are left out", len(source) - len(sizes), len(source))
  if idle := np.count_nonzero(~learns(config, np.asarray(learnt), np.stack(sizes)[:, 0, 2])):
    _log.warning("%d of %d documents have nothing to learn", idle, len(sizes))
  write_waiting()
  documents.close()
  pictures.close()
  np.savez(
      folder / "index.npz", sizes_DV3=np.stack(sizes), kind_D=np.asarray(kinds, np.int16),
      learnt_text_D=np.asarray(learnt, np.int32),
  )  # fmt: skip
  _save_shown(shown, folder / "shown")
  tokenizer.save(folder)
  made = facts(config, tokenizer) | {
      "images": images, "encoded_by": encoded_by, "documents": len(sizes), "pictures": len(numbers),
      "kinds": list(kind_names), "shards": {"documents": documents.counts, "pictures": pictures.counts},
      "digest": digest.hexdigest(),
  }  # fmt: skip
  half = folder / ".prepared.json"
  half.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
  half.replace(folder / "prepared.json")
  return made


def _jpeg(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
  return buffer.getvalue()


def _save_shown(documents: list[Document], folder: Path) -> None:
  rows = []
  for d, document in enumerate(documents):
    segments = []
    for s, segment in enumerate(document.segments):
      if isinstance(segment, Image):
        images_lib.save_png(folder / f"{d}-{s}.png", segment.pixels)
        segments.append({"image": f"{d}-{s}.png", "learn": segment.learn})
      else:
        segments.append({"text": segment.text, "learn": segment.learn})
    rows.append(json.dumps({"segments": segments}))
  folder.mkdir(exist_ok=True)
  (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
