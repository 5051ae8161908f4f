"""What is read, and how it is laid into batches."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Literal

from orthus_jax.config import ranges
from orthus_jax.config.ranges import Range, Share, Weight, Whole
from orthus_jax.config.typed import UserPath, require

_Weights = tuple[tuple[str, Weight], ...]
_Images = Annotated[int, Range(1, 2**16)]

# What `data.source` can be; `data.sources.registry` has a layout for each but the first two, and for the earlier names.
LAYOUTS = (
    "jsonl", "imagefolder", "webdataset", "img2dataset", "blip3o", "llava", "parquet", "obelics", "mmc4", "comm",
    "instructpix2pix", "storystream", "journeydb", "coco", "tfds",
)  # fmt: skip
EARLIER_NAMES = {"folder": "jsonl", "tar": "webdataset"}
SOURCES = ("shapes", "prepared", *LAYOUTS, *EARLIER_NAMES)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read, and how it is laid into batches.

  Attributes:
    source: "shapes" (the built-in world), "prepared" (what `orthus prepare --out` made, for data that doesn't fit into
      memory), or the layout of what lies at `path`: `orthus prepare --help` lists them. "folder" and "tar" are earlier
      names of "jsonl" and "webdataset".
    path: the data set's place; empty: under the user's cache directory (shapes).
    mixture: for "prepared", (path, weight) pairs in the place of `path`: weights are shares of the rows.
    mixture_caption_dropout: `caption_dropout` of each of the mixture's folders, in its order; empty: the same for all.
    annotations: the file that holds the rows, within the layout's folder; empty: the layout's own.
    text: columns, fields or parts that hold the text, in order of preference; empty: the layout's own.
    pictures: the folder that paths of pictures start from; empty: the one beside the rows.
    pairs: which documents a picture and its caption become.
    learn: what of a document is to be learnt: "layout", as its layout has it (answers, captions, pictures asked for); its
      text or its images alone; or everything.
    images_per_document: longer stories and interleaved documents are cut into consecutive ones of at most so many pictures;
      0: they aren't, and one that no row has room for is left out.
    split: what training reads.
    documents: (kind, number) pairs, for "shapes": how many documents of a kind its training split has, in the place of the
      quickstart's few. A run of more steps needs more of them, or it learns them by heart.
    kinds: (kind, weight) pairs: how often a document of this kind is drawn, against one of weight 1; empty: all alike. Of
      prepared data, a weight below a sixteenth of the largest leaves some out for good, which are counted at the start.
    later_kinds: (step, weights) pairs, in order of the step: from that step on, these weights take the place of `kinds`.
    sequence_length: T, positions per row.
    images_per_row: M, pictures that one row can hold.
    learnt_images_per_row: G, how many of them can be learnt rather than given. The image head works on as many in every
      row: where fewer are learnt, each is drawn (`diffusion.draws`) that many times oftener.
    caption_dropout: share of the documents that ask for a picture whose prompt is replaced by the unconditional one.
    text_length_power: a learnt token of a segment of n positions (an image's patches counted too) weighs n ** -power in
      the text loss: 0, all tokens alike; 1, all segments alike, so that one-word answers aren't drowned by
      descriptions; 0.5, between the two (the "square averaging" of InternVL 2.5, arXiv 2412.05271).
    tokenizer: a tokenizer.json or its directory; empty: the one shipped for shapes.
    turns: what an answer about a picture sees where a document asks several questions of one: "sequence": all that came
      before, as in a conversation; "separate": the picture and its own question alone, from the position where that would
      stand, so that what is learnt is what a single question meets. Separate turns need attention by a mask (xla, cudnn).
    cache_features: encode each picture once, ahead of training, instead of at every step.
    max_bad_share: more bad records than this share stop the run.
  """

  source: str = "shapes"
  path: UserPath = ""
  mixture: tuple[tuple[UserPath, Annotated[float, Range(1e-6, 1e6)]], ...] = ()
  mixture_caption_dropout: tuple[Annotated[float, Range(0, 1, below=True)], ...] = ()
  annotations: str = ""
  text: tuple[str, ...] = ()
  pictures: UserPath = ""
  pairs: Literal["both", "to_image", "to_text"] = "both"
  learn: Literal["layout", "text", "images", "everything"] = "layout"
  images_per_document: Annotated[int, Range(0, 2**16)] = 0
  split: str = "train"
  documents: tuple[tuple[str, Whole], ...] = ()
  kinds: _Weights = ()
  later_kinds: tuple[tuple[Whole, _Weights], ...] = ()
  sequence_length: Annotated[int, Range(1, 2**24)] = 4096
  images_per_row: _Images = 4
  learnt_images_per_row: _Images = 4
  caption_dropout: Annotated[float, Range(0, 1, below=True)] = 0.1
  text_length_power: Share = 0.0
  tokenizer: UserPath = ""
  turns: Literal["sequence", "separate"] = "sequence"
  cache_features: bool = False
  max_bad_share: Share = 0.01

  def __post_init__(self):
    ranges.check(self, "data")
    # As runs of before have it: they are the same data.
    object.__setattr__(self, "source", EARLIER_NAMES.get(self.source, self.source))
    if self.source == "jsonl" and self.annotations == "metadata.jsonl":
      object.__setattr__(self, "annotations", "")
    kind = self.source.partition(":")[0]
    near = difflib.get_close_matches(kind, SOURCES, n=1, cutoff=0.0)[0]
    require(kind in SOURCES, f"data.source={self.source}: there is no such source; the nearest is {near}")
    require(kind == "tfds" or ":" not in self.source, f"data.source={self.source}: only tfds takes a name after a colon")
    require(
        self.learnt_images_per_row <= self.images_per_row,
        f"data.learnt_images_per_row={self.learnt_images_per_row} must lie in 1..images_per_row={self.images_per_row}",
    )
    steps = [0, *(step for step, _ in self.later_kinds)]
    require(
        all(a < b for a, b in zip(steps, steps[1:])), "data.later_kinds: steps must be above 0 and rise from pair to pair"
    )
    mixes = (self.kinds, *(kinds for _, kinds in self.later_kinds))
    for field, pairs in (("documents", self.documents), *(("kinds or later_kinds", m) for m in mixes)):
      names = [name for name, _ in pairs]
      twice = next((name for i, name in enumerate(names) if name in names[:i]), "")
      require(not twice, f"data.{field} has {twice!r} twice: leave one of them out")
    require(all(not k or any(w for _, w in k) for k in mixes), "data.kinds or later_kinds gives no document a weight above 0")
    require(
        not self.mixture or (self.source == "prepared" and not self.path),
        "data.mixture is for data.source=prepared, in the place of data.path",
    )
    require(
        len(self.mixture_caption_dropout) in (0, len(self.mixture)),
        f"data.mixture_caption_dropout has {len(self.mixture_caption_dropout)} shares for {len(self.mixture)} folders of"
        " data.mixture: give one for each, or none",
    )
    require(not self.documents or self.source == "shapes", "data.documents is for data.source=shapes: leave it empty")
    if self.source == "prepared":
      require(bool(self.path or self.mixture), "data.path is empty: set it to the prepared folder, or set data.mixture")
      require(not self.cache_features, "data.cache_features: with data.source=prepared, use `prepare --images=features`")
      require(not self.later_kinds, "data.later_kinds isn't for data.source=prepared: leave it empty")
      for field in ("annotations", "text", "pictures", "pairs", "learn", "images_per_document", "split"):
        default = type(self).__dataclass_fields__[field].default
        require(getattr(self, field) == default, f"data.{field} is settled when data is prepared: leave it at {default!r}")
