"""What every group is asked to draw, from the same prompts and seeds, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import contextlib
import dataclasses
import json
import logging
from pathlib import Path

from orthus_jax import files
from orthus_jax.config import Config
from orthus_jax.data.documents import Image, Text
from orthus_jax.data.sequence import is_planned
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest
from orthus_jax.paths import user_path
from orthus_jax.sweeping import state
from orthus_jax.sweeping.plan import Planned
from orthus_jax.sweeping.running import Task
from orthus_jax.sweeping.state import State

_log = logging.getLogger("orthus_jax.sweep")
_READ = 2000  # documents at most among which prompts are looked for


@dataclasses.dataclass(frozen=True)
class Drawing:
  """What draws for a group.

  Attributes:
    run: the first that is trained.
    out: the directory that gets its pictures; other requests, or the run trained anew, have another.
  """

  run: Planned
  out: Path


def write_requests(folder: Path, config: Config, *, count: int, given: str = "") -> Path | None:
  """Settles what is drawn, in FOLDER/requests.jsonl: captions of held-out documents, a kind after the other.

  Args:
    folder: the sweep's.
    config: of one of its runs.
    count: how many; 0 for none.
    given: requests to take in their place, from `read_requests`.

  Returns:
    The file; None where nothing can be drawn.
  """
  file = folder / "requests.jsonl"
  if given:
    text = given
  elif not count or config.task != "orthus" or not config.model.vision_tokenizer.decoder:
    return None
  else:
    try:
      source = sources.open_source(config, "test" if config.data.source == "shapes" else config.data.split)
      captions = _captions(source, count)
    except BadRequest as e:
      _log.warning("no pictures are drawn: %s", e)
      return None
    text = "".join(
        json.dumps({"id": f"{i:03d}", "prompt": c, "respond": "image", "seed": i}, ensure_ascii=False) + "\n"
        for i, c in enumerate(captions)
    )
  if not text.strip():
    return None
  if not file.is_file() or file.read_text(encoding="utf-8") != text:
    files.write_text(file, text)
  return file


def read_requests(file: Path) -> str:
  """A file of requests as `orthus generate --requests` reads it, with its pictures' places whole, so that it can lie elsewhere.

  Raises:
    BadRequest: if it can't be read, or holds none.
  """
  lines = []
  try:
    for at, line in enumerate(_lines(file), 1):
      if not line.strip():
        continue
      record = json.loads(line)
      if not isinstance(record, dict):
        raise ValueError(f"line {at} isn't a JSON object")
      if isinstance(images := record.get("images"), list):
        record["images"] = [str(file.absolute().parent / user_path(i)) if isinstance(i, str) else i for i in images]
      lines.append(json.dumps({"id": f"line-{at}"} | record) + "\n")
  except (OSError, ValueError) as e:
    raise BadRequest(f"--prompts={file} can't be read: {files.first_line(e)}") from e
  if not lines:
    raise BadRequest(f"--prompts={file} holds no request: give a JSON object a line")
  return "".join(lines)


def _captions(source, count: int) -> list[str]:
  """Texts that ask for a picture and nothing else, of each tag in turn."""
  by_tag: dict[str, list[str]] = {}
  for i in range(min(len(source), _READ)):
    d = source[i]
    if d is None or [type(s) for s in d.prompt().segments] != [Text]:
      continue
    response = d.response()
    if [type(s) for s in response.segments] == [Image] or is_planned(response):
      by_tag.setdefault(str(d.meta.get("tag", "")), []).append(d.segments[0].text)
  most = max(map(len, by_tag.values()), default=0)
  in_turn = [texts[i] for i in range(most) for texts in by_tag.values() if i < len(texts)]
  return list(dict.fromkeys(in_turn))[:count]


def drawings(folder: Path, runs: Iterable[Planned], states: Mapping[str, State], requests: Path | None) -> dict[str, Drawing]:
  """By group, of those groups that have a trained run."""
  found: dict[str, Drawing] = {}
  text = requests.read_text(encoding="utf-8") if requests is not None else ""
  for run in runs:
    if text and run.group not in found and states[run.id].what in ("finished", "trained") and run.config.task == "orthus":
      which = state.digest(text + state.report(folder / "runs" / run.id)["params_digest"])
      found[run.group] = Drawing(run, folder / "pictures" / f"{run.group}-{which}")
  return found


def task(folder: Path, drawing: Drawing, requests: Path) -> Task | None:
  """What draws them; None where that is done, or was tried in vain."""
  if (drawing.out / "results.jsonl").is_file() and len(_results(drawing.out)) >= len(asked(requests)):
    return None
  if (drawing.out / "failed.txt").is_file():
    return None
  argv = ("generate", str(folder / "runs" / drawing.run.id), f"--requests={requests}", f"--out={drawing.out}", "--json")
  return Task(f"{drawing.run.group},pictures", (("draw", argv),))


def keep_failure(drawing: Drawing, error: str) -> None:
  """Has a group that can't draw not be asked again."""
  drawing.out.mkdir(parents=True, exist_ok=True)
  files.write_text(drawing.out / "failed.txt", error + "\n")


def asked(requests: Path) -> list[tuple[str, str]]:
  """(id, prompt) of each request."""
  records = map(json.loads, filter(str.strip, _lines(requests)))
  return [(str(r["id"]), str(r.get("prompt", ""))) for r in records]


def drawn(drawing: Drawing) -> dict[str, Path]:
  """Request's id → its picture."""
  return {i: drawing.out / name for i, name in _results(drawing.out).items() if name and (drawing.out / name).is_file()}


def failure(drawing: Drawing) -> str:
  """Why there are no pictures; empty where there are."""
  file = drawing.out / "failed.txt"
  if not file.is_file():
    return ""
  answers = drawing.out / "results.jsonl"  # the reason where requests were refused; the command itself only counts them
  for line in _lines(answers) if answers.is_file() else ():
    with contextlib.suppress(ValueError, LookupError, TypeError):
      return str(json.loads(line)["error"])
  return file.read_text(encoding="utf-8").strip()


def _results(out: Path) -> dict[str, str]:
  """Request's id → the file of its first picture, empty where it has none."""
  found: dict[str, str] = {}
  file = out / "results.jsonl"
  for line in _lines(file) if file.is_file() else ():
    try:
      record = json.loads(line)
      found[record["id"]] = next((s["image"] for s in record.get("response", ()) if "image" in s), "")
    except (ValueError, LookupError, TypeError):
      continue
  return found


def _lines(file: Path) -> list[str]:
  """Parted at line feeds alone: Python's other ends of a line, such as U+2028, may stand within JSON's texts."""
  return file.read_text(encoding="utf-8-sig").split("\n")
