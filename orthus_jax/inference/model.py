"""A model ready to use: Documents in, Documents out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.config import BadRequest, Config, SamplingConfig
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Image, Segment, Text
from orthus_jax.data.sequence import Sequence as Laid
from orthus_jax.data.sequence import layout, unconditional
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.inference import engine
from orthus_jax.interop import huggingface
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import describe
from orthus_jax.models.params import Params
from orthus_jax.parallel import mesh as mesh_lib

Respond = Literal["auto", "image", "text"]
_NO_DECODER = (
    "this checkpoint has no VQGAN decoder, so it can't draw: convert it with --decoder=FILE, or ask for text"
    " (respond=text)"
)
_UNTRAINED = "this checkpoint's image head is untrained and would draw noise: train it first, or ask for text (respond=text)"
_PROMPT_BUCKET = 32  # prompts are padded to multiples of it, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Model:
  """An Orthus with its tokenizer.

  Attributes:
    config: the experiment it was trained with.
    graphdef: its structure.
    params: its parameters, by name.
    tokenizer: its text tokenizer.
    no_pictures: why it can't draw; empty where it can.
  """

  config: Config
  graphdef: Any
  params: Params
  tokenizer: TextTokenizer
  no_pictures: str = ""

  @classmethod
  def create(cls, config: Config, params: Params, tokenizer: TextTokenizer) -> Model:
    """Puts named parameters into the structure that a config describes.

    Raises:
      BadRequest: if names or shapes disagree.
    """
    graphdef, shapes, _ = describe(config.model)
    problems = params_lib.differences({n: tuple(v.shape) for n, v in params.items()}, shapes)
    if problems:
      more = f"; … and {len(problems) - 5} more" if len(problems) > 5 else ""
      raise BadRequest(f"the checkpoint doesn't fit its config: {'; '.join(problems[:5])}{more}")
    no_pictures = "" if config.model.vision_tokenizer.decoder else _NO_DECODER
    return cls(config, graphdef, {n: jnp.asarray(v) for n, v in params.items()}, tokenizer, no_pictures)

  def generate(
      self,
      documents: Sequence[Document],
      *,
      respond: Respond = "auto",
      sampling: SamplingConfig | None = None,
      seeds: Sequence[int] | None = None,
      max_images: int | None = None,
      batch_size: int = 64,
      progress: Callable[[int, int], None] | None = None,
  ) -> list[Document]:
    """Answers each document: its segments followed by the response's, which are marked as learnt.

    Args:
      documents: prompts; all their segments are taken as given, learnt ones as the model's own earlier turns.
      respond: "image" draws one picture, "text" draws none, "auto" leaves it to the model.
      sampling: how; the config's by default.
      seeds: one per document; their places by default. A document's result doesn't depend on its neighbours.
      max_images: at most so many pictures a response, for "auto"; as many as fit by default.
      batch_size: how many are generated at once.
      progress: called with (done, in all).

    Raises:
      BadRequest: if a prompt is empty or too long, or a picture is asked for that the model can't draw.
    """
    sampling = sampling or self.config.sampling
    if self.no_pictures:
      if respond == "image":
        raise BadRequest(self.no_pictures)
      respond = "text"  # "auto" leaves it to the model, and this one has words alone
    seeds = list(range(len(documents))) if seeds is None else list(seeds)
    if len(seeds) != len(documents):
      raise BadRequest(f"{len(seeds)} seeds for {len(documents)} documents: give one each")
    P = self.config.model.vision_tokenizer.patches
    limit = {"image": 1, "text": 0, "auto": 1 << 30}[respond] if max_images is None else max_images
    max_new = min(sampling.max_new_tokens, P + 2) if respond == "image" else sampling.max_new_tokens
    rows = [self._branches(d, respond=respond, sampling=sampling, max_images=limit) for d in documents]
    # Alike in length, alike in program.
    order = sorted(range(len(rows)), key=lambda i: -max(len(s) for s, _ in rows[i]))
    results: dict[int, Document] = {}
    for begin in range(0, len(order), batch_size):
      chosen = order[begin : begin + batch_size]
      responses = self._run(
          [rows[i] for i in chosen], [seeds[i] for i in chosen], respond=respond, sampling=sampling, max_images=limit,
          max_new=max_new, size=min(batch_size, _round_up_power(len(chosen))),
      )  # fmt: skip
      for i, response in zip(chosen, responses):
        d = documents[i]
        results[i] = dataclasses.replace(d, segments=(*d.segments, *response))
      if progress:
        progress(min(begin + batch_size, len(order)), len(order))
    return [results[i] for i in range(len(documents))]

  def _branches(
      self, document: Document, *, respond: Respond, sampling: SamplingConfig, max_images: int
  ) -> list[tuple[Laid, float]]:
    """The document's branches and their weights: itself, and what guidance compares it with."""
    vision = self.config.model.vision_tokenizer
    R, P = vision.resolution, vision.patches
    fitted = dataclasses.replace(
        document,
        segments=tuple(
            Image(images_lib.fit(s.pixels, R, vision.pixels), s.learn) if isinstance(s, Image) else s
            for s in document.segments
        ),
    )
    laid = functools.partial(layout, tokenizer=self.tokenizer, patches=P, respond=True)
    main = laid(fitted)
    longest = self.config.model.transformer.max_positions
    if len(main) + 1 > longest:
      raise BadRequest(f"document {document.id!r} takes {len(main)} positions of at most {longest}: shorten the prompt")
    if max_images == 0:
      return [(main, 1.0)]
    given = dataclasses.replace(fitted, segments=tuple(dataclasses.replace(s, learn=False) for s in fitted.segments))
    nothing = laid(unconditional(dataclasses.replace(given, segments=()), sampling.unconditional_prompt))
    s_text, s_image = sampling.guidance, sampling.image_guidance
    if fitted.images and respond == "image" and (s_text, s_image) != (1.0, 1.0):
      # Editing: v_0 + s_image (v_image - v_0) + s_text (v - v_image).
      picture = laid(unconditional(given, sampling.unconditional_prompt, keep_images=True))
      return [(main, s_text), (picture, s_image - s_text), (nothing, 1.0 - s_image)]
    return [(main, 1.0)] if s_text == 1.0 else [(main, s_text), (nothing, 1.0 - s_text)]

  def _run(
      self,
      rows: list[list[tuple[Laid, float]]],
      seeds: list[int],
      *,
      respond: Respond,
      sampling: SamplingConfig,
      max_images: int,
      max_new: int,
      size: int,
  ) -> list[tuple[Segment, ...]]:
    """One batch, padded with copies of its first row to `size`."""
    tk, vision = self.tokenizer, self.config.model.vision_tokenizer
    longest = max(len(s) for row in rows for s, _ in row) + 1
    T = min(-(-longest // _PROMPT_BUCKET) * _PROMPT_BUCKET, self.config.model.transformer.max_positions)
    max_new = min(max_new, self.config.model.transformer.max_positions - T + _PROMPT_BUCKET)
    R = max(len(row) for row in rows)
    I = max(max((len(s.images) for row in rows for s, _ in row), default=0), 1)
    tokens = np.full((size, R, T), tk.pad, np.int32)
    slots = np.full((size, R, T), -1, np.int32)
    lengths = np.ones((size, R), np.int32)
    weights = np.zeros((size, R), np.float32)
    weights[:, 0] = 1.0
    tokens[:, :, 0] = tk.bos
    pictures: list[np.ndarray] = []
    where: list[tuple[int, int, int]] = []
    for b, row in enumerate(rows):
      for r, (s, weight) in enumerate(row):
        n = len(s)
        tokens[b, r, :n], weights[b, r] = s.tokens_T, weight
        slots[b, r, np.flatnonzero(s.image_T >= 0)] = np.arange((s.image_T >= 0).sum())
        if r == 0 and respond == "image":
          tokens[b, r, n] = tk.boi
          n += 1
        lengths[b, r] = n
        for i, image in enumerate(s.images):
          where.append((b, r, i))
          pictures.append(image.pixels)
    features = np.zeros((size, R, I, vision.patches, vision.latent_dim), np.float32)
    if pictures:
      features[tuple(np.asarray(where).T)] = self.encode(pictures)
    seeds = [*seeds, *[0] * (size - len(rows))]
    # A padding row is done at once: it may draw nothing, and its one position leads to a text token that nobody reads.
    images_left = np.asarray([max_images] * len(rows) + [0] * (size - len(rows)), np.int32)
    program = engine.Program(
        max_new=max_new, steps=sampling.steps, temperature=sampling.temperature, top_k=sampling.top_k,
        top_p=sampling.top_p, sep=tk.sep, boi=tk.boi, eoi=tk.eoi, image=tk.image, eos=tk.eos,
    )  # fmt: skip
    allowed = np.zeros(self.config.model.transformer.vocab_size, bool)
    mask = tk.text_ids_mask()
    allowed[: len(mask)] = mask
    if size > len(rows):
      for b in range(len(rows), size):
        tokens[b], slots[b], lengths[b], weights[b] = tokens[0], slots[0], lengths[0], weights[0]
        features[b], images_left[b] = features[0], images_left[0]
    prompts = engine.Prompts(
        tokens_BRT=tokens, slot_BRT=slots, features_BRJC=features.reshape(size, R, -1, vision.latent_dim),
        length_BR=lengths, weight_BR=weights, seed_B=np.asarray(seeds, np.int32), max_images_B=images_left,
        stop_after_images_B=np.full(size, respond == "image"),
    )  # fmt: skip
    out = engine.generate(
        self.graphdef, self.params, prompts, allowed, config=self.config.model, program=program
    )
    return self._read(jax.tree.map(lambda x: np.asarray(x)[: len(rows)], out), respond=respond)

  def _read(self, out: engine.Output, *, respond: Respond) -> list[tuple[Segment, ...]]:
    """Turns generated positions into segments."""
    tk, P = self.tokenizer, self.config.model.vision_tokenizer.patches
    found: list[list[Segment | int]] = []
    drawn: list[np.ndarray] = []
    for tokens, features, n in zip(out.tokens_BN, out.features_BNC, out.length_B):
      segments: list[Segment | int] = []
      ids: list[int] = []

      def flush():
        text = tk.decode(ids).strip()
        if text:
          segments.append(Text(text, learn=True))
        ids.clear()

      i = 0
      while i < n:
        if tokens[i] == tk.image:
          flush()
          if i + P <= n:  # an image that the length cut off is dropped
            segments.append(len(drawn))
            drawn.append(features[i : i + P])
          i += P
        else:
          ids.append(int(tokens[i]))
          i += 1
      flush()
      found.append(segments)
    pictures = self.decode(drawn) if drawn else []
    return [tuple(Image(pictures[s], learn=True) if isinstance(s, int) else s for s in row) for row in found]

  def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Features [I, P, C] of pictures of the model's resolution."""
    return _in_batches(lambda x: _encode(self.graphdef, self.params, x), np.stack(pictures))

  def decode(self, features: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 pictures [I, R, R, 3] of features [I, P, C]."""
    return _in_batches(lambda x: _decode(self.graphdef, self.params, x), np.stack(features))


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef, params, pixels):
  tokenizer = params_lib.merge(graphdef, params).vision_tokenizer
  return tokenizer.encode(images_lib.to_model(pixels, tokenizer.config.pixels))


@functools.partial(jax.jit, static_argnums=0)
def _decode(graphdef, params, features):
  tokenizer = params_lib.merge(graphdef, params).vision_tokenizer
  return images_lib.from_model(tokenizer.decode(features), tokenizer.config.pixels)


def _round_up_power(n: int) -> int:
  return 1 << (n - 1).bit_length()


def _in_batches(f: Callable, x: np.ndarray, size: int = 64) -> np.ndarray:
  """Maps in blocks of a few fixed sizes, so that few programs are compiled."""
  blocks = []
  for i in range(0, len(x), size):
    block = x[i : i + size]
    short = min(size, _round_up_power(len(block))) - len(block)
    padded = np.concatenate([block, np.repeat(block[:1], short, axis=0)]) if short else block
    blocks.append(np.asarray(f(padded))[: len(block)])
  return np.concatenate(blocks)


def generate(model: Model, document: Document, **options: Any) -> Document:
  """Answers one document; the options are those of `Model.generate`, with `seed` for one request."""
  seed = options.pop("seed", 0)
  return model.generate([document], seeds=[seed], **options)[0]


def load(path: str | os.PathLike, *, mesh: jax.sharding.Mesh | None = None) -> Model:
  """Loads a model from a run's directory, one of its checkpoints, or a Hugging Face directory.

  Args:
    path: of the checkpoint.
    mesh: what its arrays are to lie on, each device reading its part alone; by default, all on the first device.

  Raises:
    BadRequest: if it holds no complete checkpoint, or the checkpoint and its config disagree.
  """
  from orthus_jax.training import checkpoint

  def place(config: Config):
    axes = describe(config.model)[2]
    return None if mesh is None else lambda n, s, _: mesh_lib.sharding(mesh, s, axes[n]) if n in axes else None

  if huggingface.is_checkpoint(path):
    found = huggingface.open_checkpoint(path)
    model = Model.create(found.config, found.load(place(found.config)), found.tokenizer)
  else:
    run, _ = checkpoint.find(path)
    config = checkpoint.load_config(run)
    if config.task != "orthus":
      raise BadRequest(f"{path} holds a {config.task}, not an Orthus: give a run of task \"orthus\"")
    tokenizer = TextTokenizer.load(run / "tokenizer.json")
    model = Model.create(config, checkpoint.load_params(path, place=place(config)), tokenizer)
  # A fresh head's last layer is zero, and one step of training makes it something else.
  if not model.no_pictures and not np.any(model.params["image_head/output/kernel"]):
    return dataclasses.replace(model, no_pictures=_UNTRAINED)
  return model
