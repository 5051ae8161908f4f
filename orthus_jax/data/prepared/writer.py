"""Documents laid out ahead, for data too large to be read whole when training starts.

    DIR/prepared.json                     what it was made with; written last, so that it marks a complete one
    DIR/tokenizer.json
    DIR/index.npz                         sizes and kinds of all documents, and what is learnt: all that planning needs
    DIR/documents-*.array_record          a document's sequences, and the numbers of its pictures
    DIR/pictures-*.array_record           each distinct picture once: bytes of pixels, a JPEG file, or features in bfloat16
    DIR/rejected.jsonl                    bad records, each with its reason; prepared.json counts them by reason
    DIR/samples.html                      some documents drawn at random, to look at
    DIR/plans/*.npz                       documents packed into rows, for one length of row; made when first needed
    DIR/shown/                            the first documents as a folder of pictures, for samples on the way

A document has up to three sequences: with its caption, and with it dropped in the ways that guidance needs.
"""

from __future__ import annotations

from collections.abc import Callable
import itertools
import json
import logging
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from orthus_jax import lock
from orthus_jax.config import Config
from orthus_jax.data import images as images_lib
from orthus_jax.data.contamination import Prompts
from orthus_jax.data.documents import Document, Image, Source
from orthus_jax.data.learnt import learns
from orthus_jax.data.prepared import laying, parts as parts_lib, samples_page
from orthus_jax.data.prepared.format import Images, facts
from orthus_jax.data.prepared.unfinished import UNFINISHED, Sizes, is_half, sync, writing
from orthus_jax.data.sequence import Tokenizer
from orthus_jax.data.sources.bad_records import BadRecords, reasons
from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.errors import BadRequest
from orthus_jax.files import write_text
from orthus_jax.storage import bring

_log = logging.getLogger(__name__)
_SHOWN = 32


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    config: Config,
    folder: Path,
    *,
    images: Images,
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
    encoded_by: str = "",
    processes: int = 1,
    prompts: Prompts | None = None,
    part_bytes: int = parts_lib.PART_BYTES,
    called: str = "",
    completed: Callable[[], None] = lambda: None,
    sizes: Sizes | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> dict[str, Any]:
  """Lays out a source's documents and writes them, in little memory; goes on where the same call was stopped.

  Args:
    source: of Documents; bad ones are left out.
    tokenizer: the text tokenizer.
    config: the experiment.
    folder: made if absent.
    images: what is kept of a picture.
    encode: for "features": uint8 [n, R, R, 3] → [n, P, C].
    encoded_by: a digest of the weights that `encode` uses.
    processes: how many read and encode pictures beside this one; 1: this one alone.
    prompts: benchmarks' prompts that are looked for in the texts.
    part_bytes: bytes after which a part is complete: what a stopped command does again, at most.
    called: what messages call the folder; its path by default.
    completed: called once a part's files are complete; may take the shards of those before it away, if `bring.file` has them.
    sizes: of the files that complete parts have, where those before the last are taken away.
    progress: called with (rows done, rows in all, pictures done).

  Returns:
    What prepared.json holds.

  Raises:
    BadRequest: if the folder holds something else, too much is bad, a process was killed, or no document is good. As after
      whatever else ends it, complete parts stay, to go on behind; where there is none, nothing is left.
  """
  if folder.exists() and not folder.is_dir():
    raise BadRequest(f"{folder} is there already: choose another --out or remove it")
  new = not folder.exists()
  there = {p.name for p in folder.iterdir() if not is_half(p)} - {lock.NAME} if not new else set()
  if there and (UNFINISHED not in there or "prepared.json" in there):
    raise BadRequest(f"{folder} is there already: choose another --out or remove it")
  folder.mkdir(parents=True, exist_ok=True)
  request = facts(config, tokenizer) | {
      "images": images, "encoded_by": encoded_by, "source": _name(source), "prompts": prompts.digest() if prompts else "",
      "images_per_document": config.data.images_per_document,
  }  # fmt: skip
  opened = Remarks.sum([getattr(source, "remarks", Remarks())])  # as they are before rows are read
  work = laying.Work(source, tokenizer, config, images, prompts)
  parts: parts_lib.Parts | None = None
  try:
    parts = parts_lib.Parts(
        folder, request, encode=encode if images == "features" else None,
        resolution=config.model.vision_tokenizer.resolution, part_bytes=part_bytes,
        called=called, completed=completed, sizes=sizes,
    )  # fmt: skip
    try:
      _write(work, parts, processes, progress)
    except BaseException:
      parts.abandon()
      raise
    return _finish(work, parts, request, opened)
  except BaseException:
    if not (there if parts is None else sum(parts.totals.documents)):
      _clear(folder, itself=new)
    raise


def _write(work: laying.Work, parts: parts_lib.Parts, processes: int, progress: Callable[[int, int, int], None] | None) -> None:
  max_share = getattr(getattr(work.source, "bad", None), "max_share", 1.0)
  bad = BadRecords(max_share=max_share, total=getattr(getattr(work.source, "bad", None), "total", None))
  totals = parts.totals
  if totals.rows:
    _log.info("going on behind row %d of %d, which were prepared before", totals.rows, work.rows)
  bad.told_before(getattr(work.source, "broken", []))  # as where the source is trained on as it is
  bad.saw(totals.read)
  for where in parts.rejected():
    bad.report(*where)
  pictures = sum(totals.pictures)
  for chunk in laying.chunks(work, totals.rows, processes):
    bad.saw(chunk.read)
    for where in chunk.rejected:
      bad.report(*where)
    bad.check()
    parts.add(chunk)
    pictures += len(chunk.pictures)
    if progress:
      progress(chunk.rows[1], work.rows, pictures)


def _finish(work: laying.Work, parts: parts_lib.Parts, request: dict[str, Any], opened: Remarks) -> dict[str, Any]:
  folder, totals = parts.folder, parts.totals
  broken = [(bring.by_url(file), where, bring.by_url(reason)) for file, where, reason in getattr(work.source, "broken", [])]
  kinds = parts.finish(broken)
  with np.load(folder / "index.npz") as index:
    sizes_DV3, learnt_D = index["sizes_DV3"], index["learnt_text_D"]
  documents = len(learnt_D)
  if totals.rejected:
    _log.warning("bad records left out: %d", totals.rejected.total())
  for line in totals.passed.lines():
    _log.warning("%s", line)
  if idle := np.count_nonzero(~learns(work.config, learnt_D, sizes_DV3[:, 0, 2])):
    _log.warning("%d of %d documents have nothing to learn", idle, documents)
  first = _first(work.source)
  made = request | {
      "documents": documents, "pictures": sum(totals.pictures), "kinds": kinds,
      "shards": {"documents": totals.documents, "pictures": totals.pictures},
      "digest": parts_lib.digest(totals), "files": totals.files,
      "rejected": {"records": totals.rejected.total(), "reasons": dict(totals.rejected.most_common())},
      "unreadable": {"stretches": len(broken), "reasons": dict(reasons(broken).most_common())},
      "passed_over": dict(Remarks.sum([opened, totals.passed]).counts), "contamination": dict(totals.held.most_common()),
  }  # fmt: skip
  with writing(folder):
    _save_shown(first, folder / "shown")
    work.tokenizer.save(folder)
    samples_page.write(folder, made, work.tokenizer, work.config)
    write_text(folder / "prepared.json", json.dumps(made, indent=2) + "\n")
    sync(folder)  # ahead of what goes
    parts.tidy()
  return made


def _name(source: Source) -> str:
  """What a source is, the same in each process."""
  return source.identity if hasattr(source, "identity") else f"{type(source).__name__} of {len(source)} documents"


def _first(source: Any) -> list[Document]:
  """The first good documents; however many bad ones are ahead of them, as these were counted before."""
  counted = getattr(source, "bad", None)
  if counted is not None:
    source.bad = BadRecords(max_share=1.0, log_first=0)
  try:
    return list(itertools.islice((d for i in range(len(source)) if (d := source[i]) is not None), _SHOWN))
  finally:
    if counted is not None:
      source.bad = counted


def _clear(folder: Path, *, itself: bool) -> None:
  """Leaves nothing of what was written but the lock; in the folder itself, as another disk may be mounted there."""
  for path in folder.iterdir():
    if path.name != lock.NAME:
      shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
  if itself:
    folder.rmdir()


def _save_shown(documents: list[Document], folder: Path) -> None:
  folder.mkdir(exist_ok=True)
  rows = []
  for d, document in enumerate(documents):
    segments = []
    for s, segment in enumerate(document.segments):
      if isinstance(segment, Image):
        name = f"{d}-{s}.{'jpg' if segment.jpeg else 'png'}"
        if segment.jpeg:
          (folder / name).write_bytes(segment.jpeg)  # nothing to encode
        else:
          images_lib.save_png(folder / name, segment.pixels, level=1)
        segments.append({"image": name, "learn": segment.learn})
      else:
        segments.append({"text": segment.text, "learn": segment.learn})
    rows.append(json.dumps({"segments": segments}))
  write_text(folder / "metadata.jsonl", "\n".join(rows) + "\n")
