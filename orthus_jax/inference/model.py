"""A model ready to use: Documents in, Documents out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.config import Config, SamplingConfig
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.errors import BadRequest
from orthus_jax.inference import capacity as capacity_lib, engine_state, stream as stream_lib
from orthus_jax.inference.capacity import Capacity
from orthus_jax.inference.network import Network
from orthus_jax.inference.requests import Prepared, Request, Respond, prepare
from orthus_jax.inference.responses import Event, Finished
from orthus_jax.interop import huggingface
from orthus_jax.models import params as params_lib, quantized, systems
from orthus_jax.models.heads.base import untrained
from orthus_jax.models.orthus import compute_dtype, describe
from orthus_jax.models.params import Params
from orthus_jax.parallel import compiler, mesh as mesh_lib
from orthus_jax.paths import user_path
from orthus_jax.storage import bring

_NO_DECODER = (
    "this checkpoint has no VQGAN decoder, so it can't draw: convert it with --decoder=FILE, or ask for text"
    " (respond=text)"
)
_UNTRAINED = (
    "this checkpoint's image head is untrained and would draw noise: train it first, or ask for text (respond=text); a"
    " Chameleon or Anole draws as it is once it is converted with --image-head=codes"
)
_POSITIONS = 64
_BLOCKS = (1, 4, 16, 64)  # pictures that are encoded or decoded at once


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
    return cls(config, graphdef, jax.device_put(_as_used(config, params)), tokenizer, no_pictures)

  @functools.cached_property
  def _int8_params(self) -> Params:
    return {n: _quantized(n, v) for n, v in self.params.items()}

  @property
  def is_int8(self) -> bool:
    """Whether its weights are there in 8 bits alone."""
    return any(isinstance(v, quantized.Int8) for v in self.params.values())

  def in_int8(self) -> Model:
    """The model with weights in 8 bits alone, for `sampling.weights=int8`; this one gives them up, and can't be used any more.

    One after the other is replaced, so that memory holds little more than the model as it was, and half of it in the end.
    """
    params = dict(self.params)
    for name, stored in self.params.items():
      if isinstance(made := _quantized(name, stored), quantized.Int8):
        jax.block_until_ready(made)
        stored.delete()
      params[name] = made
    return dataclasses.replace(self, params=params)

  def generate(
      self,
      documents: Sequence[Document],
      *,
      respond: Respond = "auto",
      sampling: SamplingConfig | None = None,
      seeds: Sequence[int] | None = None,
      max_images: int | None = None,
      batch_size: int = 64,
      holds: Capacity | None = None,
      progress: Callable[[int, int], None] | None = None,
  ) -> list[Document]:
    """Answers each document: its segments followed by the response's, which are marked as learnt.

    Args:
      documents: prompts; all their segments are taken as given, learnt ones as the model's own earlier turns.
      respond: "image" draws one picture, "text" draws none, "auto" leaves it to the model.
      sampling: how; the config's by default.
      seeds: one per document; their places by default. A document's result doesn't depend on its neighbours.
      max_images: at most so many pictures a response, for "auto"; see `Request`.
      batch_size: how many are generated at once.
      holds: what the batch is to hold at least; calls for different documents that give the same share compiled programs.
      progress: called with (done, in all).

    Raises:
      BadRequest: if a prompt is empty or too long, or a picture is asked for that the model can't draw.
    """
    seeds = list(range(len(documents))) if seeds is None else list(seeds)
    if len(seeds) != len(documents):
      raise BadRequest(f"{len(seeds)} seeds for {len(documents)} documents: give one each")
    requests = [
        Request(d, respond=respond, seed=seed, sampling=sampling, max_images=max_images) for d, seed in zip(documents, seeds)
    ]
    found: dict[int, Document] = {}
    for event in self.stream(requests, batch_size=batch_size, holds=holds, strict=True):
      if isinstance(event, Finished):
        found[event.index] = event.document
        if progress:
          progress(len(found), len(documents))
    return [found[i] for i in range(len(documents))]

  def stream(
      self,
      requests: Iterable[Request],
      *,
      batch_size: int = 64,
      preview_rows: int = 0,
      holds: Capacity | None = None,
      strict: bool = False,
  ) -> Iterator[Event]:
    """Answers requests of all sorts in one running batch, which they join as others leave it.

    Args:
      requests: to be answered; read as the batch comes to them, some hundreds ahead of it.
      batch_size: how many are answered at once.
      preview_rows: show unfinished pictures every so many rows of patches; 0 shows none.
      holds: as for `generate`.
      strict: read all of them first, and raise the first failure before any work is done, in the place of an event.

    Yields:
      Text and pictures as they come, previews, and each request's end: `Finished` or, where it can't be served, `Failed`. An
      event's `index` is the request's place.
    """
    _check_batch(batch_size)
    if preview_rows < 0:
      raise BadRequest(f"preview_rows={preview_rows} must not be negative")
    return stream_lib.stream(
        requests, prepare=self.prepare, network=self.network, batch_size=batch_size, positions=self._positions(preview_rows),
        preview_rows=preview_rows, holds=holds, strict=strict,
    )  # fmt: skip

  def _positions(self, preview_rows: int) -> int:
    """That rows move ahead in one call."""
    side = round(self.config.model.vision_tokenizer.patches**0.5)  # of which more rows would show nothing more
    return min(preview_rows, side) * side or _POSITIONS

  def capacity(self, requests: Sequence[Request], *, batch_size: int) -> Capacity:
    """Of a batch that holds any of some requests, and so many at once.

    Raises:
      BadRequest: if one can't be served.
    """
    _check_batch(batch_size)
    if not requests:
      raise BadRequest("there is no request whose capacity could be told")
    return capacity_lib.for_requests(
        [self.prepare(r) for r in requests], batch_size=batch_size, positions=self._positions(0)
    )  # fmt: skip

  def prepare(self, request: Request) -> Prepared:
    """Lays a request out.

    Raises:
      BadRequest: if it can't be served.
    """
    if self.no_pictures:
      if request.respond == "image":
        raise BadRequest(self.no_pictures)
      request = dataclasses.replace(request, respond="text")  # "auto" leaves it to the model, and this one has words alone
    if self.is_int8 and (request.sampling or self.config.sampling).weights != "int8":
      raise BadRequest("this model's weights are there in int8 alone: leave `weights` out, or set it to int8")
    return prepare(request, config=self.config.model, tokenizer=self.tokenizer, sampling=self.config.sampling)

  def network(self, weights: str) -> Network:
    """What a running batch needs, its weights "stored" as they are or in "int8"."""
    tk = self.tokenizer
    text_V = np.zeros(self.config.model.transformer.vocab_size, bool)
    mask = tk.text_ids_mask()
    text_V[: len(mask)] = mask
    params = self.params if weights == "stored" or self.is_int8 else self._int8_params
    return Network(
        graphdef=self.graphdef, params=params, config=self.config.model,
        text_V=text_V, tokenizer=tk, encode=self.encode, decode=self.decode,
        codebook_KC=np.asarray(self.params["vision_tokenizer/codebook"], np.float32),
        ids=engine_state.Ids(sep=tk.sep, boi=tk.boi, eoi=tk.eoi, image=tk.image, eos=tk.eos),
    )  # fmt: skip

  def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Features [I, P, C] of pictures of the model's resolution."""
    return _in_blocks(lambda x: _encode(self.graphdef, self.params, x), np.stack(pictures))

  def decode(self, features: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 pictures [I, R, R, 3] of features [I, P, C]."""
    return _in_blocks(lambda x: _decode(self.graphdef, self.params, x), np.stack(features))

  def compile_pictures(self, most: int) -> None:
    """Compiles ahead what encodes and, where the model draws, decodes up to so many pictures at once."""
    vision = self.config.model.vision_tokenizer
    for n in (n for n in _BLOCKS if 3 * n <= 4 * most):
      self.encode(np.zeros((n, vision.resolution, vision.resolution, 3), np.uint8))
      if not self.no_pictures:
        self.decode(np.zeros((n, vision.patches, vision.latent_dim), np.float32))


@functools.partial(compiler.jit, static_argnums=0)
def _encode(graphdef, params, pixels):
  tokenizer = params_lib.merge(graphdef, params).vision_tokenizer
  return tokenizer.encode(images_lib.to_model(pixels, tokenizer.config.pixels))


@functools.partial(compiler.jit, static_argnums=0)
def _decode(graphdef, params, features):
  tokenizer = params_lib.merge(graphdef, params).vision_tokenizer
  return images_lib.from_model(tokenizer.decode(features), tokenizer.config.pixels)


def _as_used(config: Config, params: Params) -> Params:
  """Parameters in no wider dtype than what they are cast to wherever they are used: float32 ones of training, say."""

  def one(name: str, value: Any) -> Any:
    dtype = compute_dtype(config.model, name)
    return value.astype(jnp.dtype(dtype)) if dtype and jnp.dtype(dtype).itemsize < value.dtype.itemsize else value

  return {n: one(n, v) for n, v in params.items()}


def _quantized(name: str, value: jax.Array) -> jax.Array | quantized.Int8:
  return jax.jit(functools.partial(quantized.quantize, name))(value)


def _check_batch(batch_size: int) -> None:
  if batch_size < 1:
    raise BadRequest(f"batch_size={batch_size} must be at least 1")


def _in_blocks(f: Callable, x: np.ndarray) -> np.ndarray:
  """Maps in blocks of a few fixed sizes, so that few programs are compiled; at most a quarter of a block is padding."""
  done = []
  while len(x):
    size = max(n for n in _BLOCKS if 3 * n <= 4 * len(x))
    block, x = x[:size], x[size:]
    padded = np.concatenate([block, np.repeat(block[:1], size - len(block), axis=0)])
    done.append(np.asarray(f(padded))[: len(block)])
  return np.concatenate(done)


def generate(model: Model, document: Document, **options: Any) -> Document:
  """Answers one document; the options are those of `Model.generate`, with `seed` for one request."""
  seed = options.pop("seed", 0)
  return model.generate([document], seeds=[seed], **options)[0]


def load(path: str | os.PathLike, *, mesh: jax.sharding.Mesh | None = None, image_head: str = "") -> Model:
  """Loads a model from a run's directory, one of its checkpoints, or a Hugging Face directory.

  Args:
    path: of the checkpoint; gs://… and s3://… are brought to this machine first.
    mesh: what its arrays are to lie on, each device reading its part alone; by default, all on the first device.
    image_head: how a Hugging Face directory of Chameleon or Anole is to draw: "codes", as it is, or "diffusion", as an Orthus
      to be trained; by default what its config.json says that we exported, else the latter.

  Raises:
    BadRequest: if it holds no complete checkpoint, or the checkpoint and its config disagree.
  """
  from orthus_jax.training.checkpoints import workdir as checkpoint

  path = bring.local(user_path(os.fspath(path)))

  def place(config: Config):
    axes = describe(config.model)[2]
    return None if mesh is None else lambda n, s, _: mesh_lib.sharding(mesh, s, axes[n]) if n in axes else None

  if huggingface.is_checkpoint(path):
    found = huggingface.open_checkpoint(path, image_head=image_head)
    model = Model.create(found.config, found.load(place(found.config)), found.tokenizer)
  else:
    run, step = checkpoint.find(path)
    config = checkpoint.load_config(run)
    if config.task != "orthus":
      raise BadRequest(f"{path} holds a {config.task}, not an Orthus: give a run of task \"orthus\"")
    if image_head not in ("", config.model.image_head.kind):
      own = config.model.image_head.kind
      raise BadRequest(f"{path} was trained with image_head.kind={own}: it can't be read with image_head={image_head}")
    tokenizer = checkpoint.load_tokenizer(run, step)
    model = Model.create(config, checkpoint.load_params(path, place=place(config)), tokenizer)
  if not model.no_pictures and untrained(systems.image_head(model.config.model), model.params):
    return dataclasses.replace(model, no_pictures=_UNTRAINED)
  return model
