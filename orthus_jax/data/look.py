"""What lies at a place, before anything is made of it: its layout, what is in it, and what would be skipped."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import io
import itertools
import logging
import os
from pathlib import Path
import re
import shlex

import numpy as np
import rich.console
import rich.table
import rich.text

from orthus_jax.config.data import EARLIER_NAMES, DataConfig
from orthus_jax.data.documents import Text
from orthus_jax.data.images import load_image
from orthus_jax.data.sources.bad_records import AT_LEAST
from orthus_jax.data.sources.layout import Draft, Layout, Options
from orthus_jax.data.sources.registry import LAYOUTS
from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.data.sources.source import Learn, is_learnt
from orthus_jax.data.sources.tar_samples import PICTURES
from orthus_jax.errors import BadRequest
from orthus_jax.storage import bring

_log = logging.getLogger(__name__)
_ROWS = 2000  # that are looked at
_PICTURES = 64  # that are decoded
_SAMPLES = 3
_CUT = 200  # characters of a sample's text
_SEGMENTS = 4  # of a sample that are shown
_WIDTH = 112  # columns of a page
_LINE = 2 * _WIDTH - 40  # characters of a line of it, before it is wrapped
_LISTED = 20_000  # files of a place in which nothing is recognised


@dataclasses.dataclass(frozen=True)
class Sample:
  """A document as it would be read.

  Attributes:
    place: (file, record) of its row.
    kind: what it asks for.
    segments: for each one what it is, "text" or "image", its text cut short or its size, and whether it is learnt.
  """

  place: tuple[str, str]
  kind: str
  segments: tuple[tuple[str, str, bool], ...]


@dataclasses.dataclass(frozen=True)
class Look:
  """What lies at a place.

  Attributes:
    path: the place.
    layout: the name of its layout.
    reason: why it looks like it; empty where it doesn't, and was named.
    others: other layouts that it could be, each with the reason.
    rows: how many it has.
    looked_at: how many of them all else was found by.
    decoded: how many pictures of these were decoded.
    documents: how many the looked-at rows make, by kind.
    fields: what a row holds, each with a word on it.
    samples: a few documents, of each kind one first.
    skipped: what would be skipped of the looked-at rows, by reason, the first rows named.
    bad: how many looked-at rows that is.
    broken: what of its files can't be read, by reason.
    remarks: what is passed over by the layout's rules, a line a kind.
    command: what prepares it.
    max_bad_share: the share of bad rows that is put up with.
  """

  path: Path
  layout: str
  reason: str
  others: Mapping[str, str]
  rows: int
  looked_at: int
  decoded: int
  documents: Mapping[str, int]
  fields: Mapping[str, str]
  samples: tuple[Sample, ...]
  skipped: tuple[str, ...]
  bad: int
  broken: tuple[str, ...]
  remarks: tuple[str, ...]
  command: str
  max_bad_share: float = DataConfig().max_bad_share


def recognised(path: Path) -> dict[str, str]:
  """The layouts that a place looks like, the likeliest first, each with the reason."""
  found = {}
  for name, layout in LAYOUTS.items():
    try:
      found[name] = layout.recognise(path)
    except Exception as e:  # whatever lies there, the other layouts are still asked
      _log.debug("%s can't tell whether %s is its own: %s: %s", name, path, type(e).__name__, e)
  return {name: reason for name, reason in found.items() if reason}


def look(
    path: Path, name: str = "", options: Options = Options(), *, learn: Learn = "layout",
    max_bad_share: float = DataConfig().max_bad_share, model: Sequence[str] = ("--tokenizer=FILE",), rows: int = _ROWS,
    pictures: int = _PICTURES,
) -> Look:  # fmt: skip
  """Looks at what lies at a place.

  Args:
    path: the place.
    name: of its layout; empty: the first that recognises it.
    options: what the user says of the layout.
    learn, max_bad_share: as of `LayoutSource`.
    model: the options of `orthus prepare` that say which model it is for.
    rows: at most how many are looked at, spread evenly.
    pictures: at most how many are decoded, likewise.

  Raises:
    BadRequest: there is nothing, no layout recognises it, or the layout can't open it.
  """
  name = name.partition(":")[0]
  name = EARLIER_NAMES.get(name, name)
  if name and name not in LAYOUTS:
    raise BadRequest(f"there is no source {name!r}; there are {', '.join(LAYOUTS)}")
  if not (path.exists() or options.argument):
    raise BadRequest(f"there is nothing at {str(path)!r}")
  candidates = recognised(path)
  chosen = name or next(iter(candidates), "")
  if not chosen:
    raise BadRequest(_unknown(path))
  others = {n: reason for n, reason in candidates.items() if n != chosen}
  try:
    layout = LAYOUTS[chosen](path, options)
  except BadRequest as e:
    if others and not name:
      raise BadRequest(f"as {chosen}: {e}; it could be {', '.join(others)} too: name it by --source=") from e
    raise
  found = _Found(layout, pictures, learn)
  total = len(layout)
  at = np.unique(np.linspace(0, total - 1, min(total, rows)).astype(np.int64)) if total else []
  for nth, row in enumerate(at):
    found.add(int(row), nth * pictures // len(at))
  broken = Remarks()
  for file, where, reason in layout.broken:
    broken.add(_alike(reason), f"{os.path.basename(file)}, {where}")
  return Look(
      path, chosen, candidates.get(chosen, ""), others, total, len(at), found.decoded, dict(found.documents.most_common()),
      dict(layout.fields()), found.samples(), tuple(found.skipped.lines()), found.bad, tuple(broken.lines()),
      tuple(layout.remarks.lines()),
      _command(path, chosen, options, learn, max_bad_share, model), max_bad_share,
  )  # fmt: skip


class _Found:
  """What rows make, counted."""

  def __init__(self, layout: Layout, pictures: int, learn: Learn):
    self.documents: collections.Counter[str] = collections.Counter()
    self.skipped = Remarks()
    self.decoded = self.bad = 0
    self._layout, self._pictures, self._learn = layout, pictures, learn
    self._firsts: dict[str, Sample] = {}  # by kind
    self._more: list[Sample] = []

  def add(self, row: int, due: int) -> None:
    """Looks at a row; its pictures are decoded where no more than `due` have been."""
    place = self._layout.place(row)
    sizes: dict[Path | bytes, str] = {}
    decode = self.decoded <= due
    try:
      drafts = self._layout.drafts(row)
      for picture in (s.file for d in drafts for s in d.segments if not isinstance(s, Text)):
        if isinstance(picture, Path) and not picture.is_file():
          wrong = "is no file" if picture.exists() else "doesn't exist"
          raise BadRequest(f"the picture {str(picture)!r} {wrong}; check its path")
        if decode and picture not in sizes and self.decoded < self._pictures:
          self.decoded += 1
          height, width, _ = load_image(picture).shape
          sizes[picture] = f"{width}x{height}"
    except (BadRequest, OSError) as e:
      why = str(e) if isinstance(e, BadRequest) else f"it can't be read: {e.strerror or e}"
      self.skipped.add(_alike(why, place[1]), " ".join((os.path.basename(place[0]), place[1])))
      self.bad += 1
      return
    self.documents.update(d.kind for d in drafts)
    for draft in drafts:
      if draft.kind not in self._firsts:
        self._firsts[draft.kind] = _sample(place, draft, sizes, self._learn)
      elif sizes:
        self._more.append(_sample(place, draft, sizes, self._learn))

  def samples(self) -> tuple[Sample, ...]:
    """Some, of each kind one first."""
    more = self._more[:: max(1, len(self._more) // _SAMPLES)]
    return tuple([*self._firsts.values(), *more][:_SAMPLES])


def _sample(place: tuple[str, str], draft: Draft, sizes: Mapping[Path | bytes, str], learn: Learn) -> Sample:
  segments = []
  for s in draft.segments:
    learnt = is_learnt(s, learn)
    if isinstance(s, Text):
      text = " ".join(s.text.split())
      segments.append(("text", text if len(text) <= _CUT else f"{text[: _CUT - 1]}…", learnt))
    else:
      segments.append(("image", sizes.get(s.file, ""), learnt))
  return Sample(place, draft.kind, tuple(segments))


def _alike(reason: str, record: str = "") -> str:
  """What is wrong, without the names and numbers that differ from row to row."""
  if name := record.partition("#")[0]:
    reason = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", reason)
  return re.sub(r"\b\d+([.,x]\d+)*", "…", re.sub(r"'[^']*'", "'…'", reason))


def _command(
    path: Path, name: str, options: Options, learn: Learn, max_bad_share: float, model: Sequence[str]
) -> str:  # fmt: skip
  said = {"text": ",".join(options.text), "pictures": options.pictures, "annotations": options.annotations}
  said |= {k: getattr(options, k) for k in ("split", "pairs") if getattr(options, k) != getattr(Options(), k)}
  said |= {"learn": learn if learn != "layout" else ""}
  said |= {"max-bad-share": f"{max_bad_share:g}" if max_bad_share != DataConfig().max_bad_share else ""}
  source, place = f"{name}:{options.argument}" if options.argument else name, bring.origin(path) or str(path)
  parts = [f"--source={source}", place, *(f"--{k}={v}" for k, v in said.items() if v), "--out=DIR", *model]
  return " ".join(["orthus", "prepare", *map(shlex.quote, parts)])


def _files(path: Path) -> Iterator[str]:
  if path.is_file():
    yield path.name
  for _, folders, names in os.walk(path):
    folders[:] = [f for f in folders if not f.startswith(".")]
    yield from (n for n in names if not n.startswith("."))


def _unknown(path: Path) -> str:
  """What to say of a place that no layout recognises."""
  names = list(itertools.islice(_files(path), _LISTED))
  kinds = collections.Counter(Path(n).suffix.lower() or "no extension" for n in names)
  if not kinds:
    return f"there are no files at {str(path)!r}: give the folder that holds the data"
  found = ", ".join(f"{n:,} of {kind}" for kind, n in kinds.most_common(6))
  tables = {re.escape(os.path.basename(n)) for n in names if Path(n).suffix and Path(n).suffix[1:].lower() not in PICTURES}
  own = re.compile(rf"(?<![\w.-])({'|'.join(sorted(tables)) or '(?!)'})(?!\w)")  # files' names, where a layout has them
  named = {name: len(own.findall(layout.usage)) for name, layout in LAYOUTS.items()}
  score = {name: (named[name], sum(kind in layout.usage.lower() for kind in kinds)) for name, layout in LAYOUTS.items()}
  near = sorted(LAYOUTS, key=score.__getitem__, reverse=True)[:3]
  if named[near[0]] and (why := _refusal(near[0], path)):
    return f"no layout is recognised at {str(path)!r}; the nearest is {near[0]}, which says: {why}"
  lines = "; ".join(f"{name}: {LAYOUTS[name].usage.splitlines()[0].rstrip('.')}" for name in near)
  if kinds and all(kind[1:] in PICTURES for kind in kinds):
    return (
        f"no text lies beside the pictures at {str(path)!r} ({found}): write a metadata.jsonl there, a row a line such as"
        ' {"image": "a.jpg", "text": "a red barn"}, or put them into folders named by what they show'
    )
  return (
      f"no layout is recognised at {str(path)!r}. Files there: {found}{' at least' if len(names) == _LISTED else ''}."
      f" The nearest layouts: {lines}. Name one by --source=NAME; orthus prepare --source=NAME --help shows its files"
  )


def _refusal(name: str, path: Path) -> str:
  """What a layout has against a place, or its first row; empty for nothing."""
  try:
    layout = LAYOUTS[name](path, Options())
  except (BadRequest, OSError) as e:
    return str(e)
  try:
    if len(layout):
      layout.drafts(0)
  except (BadRequest, OSError) as e:
    return f"{', '.join(layout.place(0))}: {e}"
  return ""


def describe(found: Look) -> str:
  """What was found, as a page of text of at most 60 lines."""
  rows = rich.table.Table.grid(padding=(0, 2))
  rows.add_column(no_wrap=True, width=len("passed over"))
  rows.add_column()

  def add(label: str, lines: Sequence[str], most: int = 1) -> None:
    shown = lines if len(lines) <= most else [*lines[: most - 1], f"… and {len(lines) - most + 1} more"]
    for nth, line in enumerate(shown):
      line = " ".join(line.split())
      line = line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"  # anywhere: not all scripts have spaces
      rows.add_row(label if not nth else "", rich.text.Text(line))

  add("layout", [f"{found.layout} ({found.reason or 'named by you; it looks otherwise'})"])
  add("could be", [f"{name} ({reason})" for name, reason in found.others.items()], 2)
  all_of_them = "all" if found.looked_at == found.rows else f"{found.looked_at:,} spread over them"
  add("rows", [f"{found.rows:,}; {all_of_them} looked at, {found.decoded} pictures decoded"])
  add("documents", [", ".join(f"{n:,} {kind}" for kind, n in found.documents.items()) or "none"])
  add("fields", [", ".join(f"{name} ({what})" if what else name for name, what in found.fields.items())] * bool(found.fields))
  for sample in found.samples:
    segments = [f"{'learnt' if learnt else 'given'} {what}: {shown}" for what, shown, learnt in sample.segments]
    if len(segments) > _SEGMENTS:
      segments[_SEGMENTS - 1 :] = [f"… and {len(segments) - _SEGMENTS + 1} more segments"]
    add("sample", [f"{os.path.basename(sample.place[0])}, {sample.place[1]}: {sample.kind}", *segments], 1 + _SEGMENTS)
  if found.bad:
    too_many = found.bad >= min(AT_LEAST, found.rows) and found.bad > found.max_bad_share * found.looked_at
    stops = f", more than the share of {found.max_bad_share:g} put up with" if too_many else ""
    add("skipped", [f"{found.bad:,} of the {found.looked_at:,} rows looked at{stops}", *found.skipped], 5)
  add("unreadable", found.broken, 2)
  add("passed over", found.remarks, 3)
  page = io.StringIO()
  rich.console.Console(file=page, width=_WIDTH, no_color=True, highlight=False).print(rows)
  return "\n".join([*(line.rstrip() for line in page.getvalue().splitlines()), "", f"{found.command}"])
