"""Measures how fast pictures are drawn: beside what the released code does (not on TPUs), and beside the memory's limit.

    python benchmarks/generate.py                              # CPU: the quickstart's model, and the ratio to PyTorch
    python benchmarks/generate.py --seven-b --batches=1,64     # an accelerator: the 7B model, and the share of the limit
    python benchmarks/generate.py --mixed RUN                  # requests of all kinds in one batch: see mixed.py

On a GPU that PyTorch uses too, leave it room: XLA_CLIENT_MEM_FRACTION=0.7. In float32 there, both compare alike only with
JAX_DEFAULT_MATMUL_PRECISION=highest; in bfloat16 the difference is printed and nothing is asked of it.

Weights are random; nothing needs training. `Model.generate` draws with guidance (two rows a request), each batch size a
request many, in turns with the plain loop of `torch_generate.py`, which draws one picture at a time; both first have to
draw the same features from the same noises. A figure is the fastest of a few rounds, as other work on the machine only ever
slows one down. Left out on both sides: decoding the features by the VQGAN. Compiling is told apart. A position is one turn
of the loop, in which all rows of the batch move ahead: begin-of-image and each patch. Options such as
--config.model.transformer.layers=2 override the config. The limit is the time in which the memory brings what must be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import importlib.util
from pathlib import Path
import re
import sys
import time
from typing import Any

from flax import nnx
import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import mixed
import numpy as np
from train_step import Numbers

from orthus_jax.commands import common
from orthus_jax.config import Config, SamplingConfig
from orthus_jax.config.command_line import read_config
from orthus_jax.data.documents import Document, document
from orthus_jax.inference.model import Model
from orthus_jax.models import params as params_lib, quantized
from orthus_jax.models.orthus import Orthus, compute_dtype
from orthus_jax.parallel import compiler

_CONFIGS = Path(__file__).resolve().parent.parent / "configs"
_WORDS = 12  # of a prompt; the unconditional one has 4
_AIMS = {1: 10.0, 32: 20.0}  # times the PyTorch loop's patches/s, by batch
_AGREEMENT = 1e-4  # of the largest feature

# Bytes/s of one device's memory as jax names its kind, by the makers' data sheets.
_BANDWIDTHS: dict[str, float] = {
    "TPU v4": 1.228e12, "TPU v5 lite": 0.819e12, "TPU v5e": 0.819e12, "TPU v5": 2.765e12, "TPU v5p": 2.765e12,
    "TPU v6 lite": 1.638e12, "TPU v6e": 1.638e12, "TPU7x": 3.69e12, "NVIDIA A100-SXM4-40GB": 1.555e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA H100 PCIe": 2.0e12, "NVIDIA H100": 3.35e12, "NVIDIA H200": 4.8e12, "NVIDIA B200": 8.0e12, "NVIDIA GB200": 8.0e12,
}  # fmt: skip


class Tokens(Numbers):
  """A tokenizer whose texts are ids written out, with what generation needs of one."""

  eos = 2

  def text_ids_mask(self) -> np.ndarray:
    return np.arange(self.vocab) >= self.first

  def decode(self, ids) -> str:
    return " ".join(map(str, ids))


class FeatureModel(Model):
  """Keeps the features that it draws in `drawn`, in the place of decoding them."""

  @functools.cached_property
  def drawn(self) -> list[np.ndarray]:
    return []

  def decode(self, features: Sequence[np.ndarray]) -> np.ndarray:
    """A pixel each, whose colour is its place in `drawn`: requests end in any order."""
    place_I = len(self.drawn) + np.arange(len(features))
    self.drawn.extend(features)
    return (place_I[:, None, None, None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)


def random_params(config: Config) -> dict[str, jax.Array]:
  """Fresh parameters, in the dtype that each is computed in, with noise where a fresh value is zero.

  A fresh head's modulations and output are zero: it would draw the same features whatever the state, and no mistake would
  show.
  """
  zero = re.compile(r"bias$|modulation/kernel$|^image_head/output/kernel$")

  # Made on the device, without a copy in float32 of what is kept in bfloat16.
  def make() -> dict[str, jax.Array]:
    _, params = params_lib.split(Orthus(config.model, rngs=nnx.Rngs(params=0)))
    made = {}
    for i, (name, value) in enumerate(sorted(params.items())):
      if zero.search(name):
        std = 0.1 if name.endswith("bias") else 0.5 * value.shape[0] ** -0.5
        value = std * jax.random.normal(jax.random.fold_in(jax.random.key(1), i), value.shape)
      made[name] = value.astype(compute_dtype(config.model, name) or value.dtype)
    return made

  here = jax.make_mesh((1,), ("all",), devices=jax.devices()[:1])
  return jax.jit(make, compiler_options=compiler.options_of_one_call(here))()


def noises(seed: int, shape: tuple[int, int]) -> np.ndarray:
  """What a request of this seed starts its patches from at an image temperature of 1, [P, C]."""
  keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(jnp.arange(shape[0]))
  return np.asarray(jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(keys))


class Ours:
  """`Model.generate` on a number of requests; request i has seed i, whatever the batch."""

  def __init__(self, model: FeatureModel, batch: int, sampling: SamplingConfig | None = None):
    self.model, self.batch, self.patches = model, batch, model.config.model.vision_tokenizer.patches
    self.sampling = sampling or model.config.sampling
    self.documents = [request(model, i) for i in range(batch)]

  def draw(self) -> np.ndarray:
    """The first request's features, [P, C]."""
    self.model.drawn.clear()
    made = self.model.generate(self.documents, respond="image", batch_size=self.batch, sampling=self.sampling)
    assert [len(f) for f in self.model.drawn] == [self.patches] * self.batch, "not every request drew a picture"
    return np.asarray(self.model.drawn[int(made[0].images[0].pixels.ravel() @ [1, 1 << 8, 1 << 16])])


class Theirs:
  """The plain loop on the first request."""

  batch = 1

  def __init__(self, model: FeatureModel, patches: int):
    import torch_generate

    sampling, tokens, vision = model.config.sampling, model.tokenizer, model.config.model.vision_tokenizer
    texts = request(model, 0).texts[0].text, sampling.unconditional_prompt
    self.prompts = [[tokens.bos, *tokens.encode(t), tokens.sep, tokens.boi] for t in texts]
    self.patches = min(patches, vision.patches)
    self.noise = sampling.image_temperature * noises(0, (vision.patches, vision.latent_dim))[: self.patches]
    self.options = dict(steps=sampling.steps, guidance=sampling.guidance)
    self.loop = torch_generate.Loop(model.config, model.params)
    self.threads = torch_generate.choose_threads(lambda: self.loop.draw(self.prompts, self.noise[:2], **self.options))

  def draw(self) -> np.ndarray:
    return self.loop.draw(self.prompts, self.noise, **self.options)


def request(model: Model, i: int) -> Document:
  """The i-th prompt."""
  tokens = model.tokenizer
  ids = np.random.default_rng(i).integers(tokens.first, tokens.vocab, _WORDS)
  return document(" ".join(map(str, ids)))


def timed(system: Ours | Theirs) -> float:
  begin = time.perf_counter()
  system.draw()
  return time.perf_counter() - begin


def limit(model: Model, batch: int, bandwidth: float, sampling: SamplingConfig) -> float:
  """Seconds in which the memory can bring what a batch of pictures must be computed from, each weight once a turn.

  A turn reads the backbone, the soft VQ and both rows' caches; a patch besides reads the head's modulations once and
  the rest of the head, which is all that depends on x_t, at every solver step, or with sampling.solver_loop=kernel once.
  """
  c, s = model.config.model, sampling
  size = {n: _bytes(v, n if s.weights == "int8" else "") for n, v in model.params.items()}
  backbone = sum(b for n, b in size.items() if n.startswith("transformer/"))
  rows = c.vision_tokenizer.codes * c.transformer.width * model.params["token_embedding"].dtype.itemsize
  soft_vq = size["vision_embedding/codebook"] + rows
  head = {n: b for n, b in size.items() if n.startswith("image_head/")}
  each_step = sum(b for n, b in head.items() if re.search(r"/(up|down|norm_scale|norm_bias|input|output)(/|$)", n))
  once = sum(head.values()) - each_step
  t, P = c.transformer, c.vision_tokenizer.patches
  of_head = t.head_dim + 4 if s.cache == "int8" else jnp.dtype(t.dtype).itemsize * t.head_dim
  prompts = [_WORDS + 3, len(model.tokenizer.encode(s.unconditional_prompt)) + 3]
  cache = batch * 2 * t.layers * t.kv_heads * of_head * sum(length + P / 2 for length in prompts)
  late = P - round(s.late_from * P) if s.late_steps else 0
  solver_steps = P if s.solver_loop == "kernel" else (P - late) * s.steps + late * s.late_steps
  return ((P + 1) * (backbone + soft_vq + cache) + P * once + solver_steps * each_step) / bandwidth


def _bytes(value: jax.Array, quantized_as: str = "") -> int:
  """What a parameter takes: as it is, or in 8 bits where the one of that name can be."""
  kept = jax.eval_shape(functools.partial(quantized.quantize, quantized_as), value) if quantized_as else value
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


def bandwidth_of(device_kind: str) -> float | None:
  """Bytes/s; None where it isn't known, as for CPUs."""
  names = [n for n in _BANDWIDTHS if re.match(rf"{re.escape(n)}($|[ -])", device_kind)]
  return _BANDWIDTHS[max(names, key=len)] if names else None


def show(rows: list[list[str]], *, markdown: bool) -> None:
  """A table; its first row is the heading."""
  if markdown:
    lines = [f"| {' | '.join(r)} |" for r in rows]
    lines.insert(1, f"|---{'|---:' * (len(rows[0]) - 1)}|")
  else:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(f"{v:<{w}}" if not i else f"{v:>{w}}" for i, (v, w) in enumerate(zip(r, widths))) for r in rows]
  print("\n".join(lines))


def build(options: argparse.Namespace, overrides: list[str]) -> FeatureModel:
  """The model of the config, with the sampling that is measured."""
  config, _ = read_config([f"--config={options.config}", *overrides])
  tokens = Tokens(config)
  sampling = dataclasses.replace(
      config.sampling, plan=False, steps=options.steps, max_new_tokens=config.model.vision_tokenizer.patches + 2,
      unconditional_prompt=" ".join(str(tokens.first + i) for i in range(4)),
  )  # fmt: skip
  if sampling.guidance == 1.0:
    raise SystemExit("sampling.guidance=1 turns guidance off, and its two rows are what is measured: set another scale")
  config = dataclasses.replace(config, sampling=sampling)
  return FeatureModel.create(config, random_params(config), tokens)


def in_bfloat16(model: FeatureModel) -> FeatureModel:
  """The same parameters, computed in bfloat16."""
  transformer = dataclasses.replace(model.config.model.transformer, dtype="bfloat16")
  config = dataclasses.replace(model.config, model=dataclasses.replace(model.config.model, transformer=transformer))
  return FeatureModel.create(config, model.params, model.tokenizer)


def warm_up(systems: dict[str, Any]) -> dict[str, float]:
  """Draws once with each, which compiles, and checks that all draw the same; returns the seconds that each took."""
  first: dict[str, float] = {}
  expected: np.ndarray | None = None
  for name, system in systems.items():
    begin = time.perf_counter()
    features = system.draw()
    first[name] = time.perf_counter() - begin
    print(f"{name}: {first[name]:.1f} s for the first draw, compiling included", flush=True)
    assert np.isfinite(features).all(), f"{name} drew features that aren't finite"
    if isinstance(system, Theirs):
      expected = features if expected is None else expected
    elif expected is not None:
      error = np.abs(features[: len(expected)] - expected).max() / np.abs(expected).max()
      print(f"{name} draws PyTorch's features to {error:.2g} of the largest")
      rounded = system.model.config.model.transformer.dtype != "float32"
      assert rounded or error < _AGREEMENT, f"{name} draws other features than PyTorch"
  return first


def table(systems: dict[str, Any], best: dict[str, float], bandwidth: float | None) -> list[list[str]]:
  """The heading and a row for each system, given its seconds."""
  rate = {name: s.batch * s.patches / best[name] for name, s in systems.items()}
  theirs = max((rate[name] for name, s in systems.items() if isinstance(s, Theirs)), default=0.0)
  rows = [["system", "batch", "patches/s", "ratio to PyTorch", "ms per position"]]
  for name, s in systems.items():
    ratio = f"{rate[name] / theirs:.2f}" if theirs else "-"
    position = f"{1e3 * best[name] / (s.patches + 1):.2f}"
    rows.append([name.partition(",")[0], str(s.batch), f"{rate[name]:,.1f}", ratio, position])
  if bandwidth:
    rows[0] += ["seconds a picture", "limit", "share of the limit"]
    for row, (name, s) in zip(rows[1:], systems.items()):
      if isinstance(s, Theirs):
        row += ["-"] * 3
      else:
        least = limit(s.model, s.batch, bandwidth, s.sampling)
        row += [f"{best[name] / s.batch:.3f}", f"{least / s.batch:.3f}", f"{least / best[name]:.0%}"]
  return rows


def not_compared(model: Model, options: argparse.Namespace) -> str:
  """Why the PyTorch loop is left out; empty where it isn't."""
  if options.no_torch:
    return "--no-torch"
  if jax.default_backend() == "tpu":
    return "it is for CPUs and GPUs"
  if jax.default_backend() == "cpu" and model.config.model.transformer.dtype != "float32":
    return "on a CPU it is for float32"
  s = model.config.sampling
  if s != dataclasses.replace(
      s, solver="ddim", late_steps=0, guidance_interval=(0.0, 1.0), weights="stored", cache="compute"
  ):
    return "it draws by DDIM with guidance at every step, from weights as they are stored"
  if model.config.model.transformer.norm_placement != "pre":
    return "it has pre-norm layers alone"
  return "" if importlib.util.find_spec("torch") else "PyTorch isn't there (pip install -e '.[parity]')"


def main() -> None:
  """Runs the benchmark and prints its table."""
  if sys.argv[1:2] == ["--mixed"]:
    return mixed.main(sys.argv[2:])
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("--config", help="FILE[:ARGUMENT]; default: the quickstart's")
  add("--seven-b", action="store_true", help="the config of the published size, in bfloat16")
  add("--batches", default="1,8,32", help="requests at once")
  add("--patches", type=int, default=16, help="after how many patches of a picture the PyTorch loop may stop")
  add("--steps", type=int, default=100, help="of the solver, a patch")
  add("--rounds", type=int, default=3)
  add("--bandwidth", type=float, help="of the device's memory, bytes/s; known for some")
  add("--no-torch", action="store_true", help="don't compare, even on a CPU")
  add("--torch-bfloat16", action="store_true", help="measure the PyTorch loop in bfloat16 too; ratios are to the faster one")
  add("--markdown", action="store_true")
  options, overrides = parser.parse_known_args()
  options.config = options.config or str(_CONFIGS / ("orthus_7b.py:post-h200-1" if options.seven_b else "shapes.py"))
  common.initialize()
  model = build(options, overrides)
  # From here on: a program kept from the last run would hide what compiling takes.
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  P, steps = model.config.model.vision_tokenizer.patches, options.steps
  device = jax.devices()[0]
  print(f"{device.device_kind}: {sum(v.size for v in model.params.values()) / 1e6:,.1f}M parameters, {P} patches a picture,"
        f" {steps} solver steps a patch, two guidance rows")  # fmt: skip

  systems: dict[str, Any] = {}
  if why := not_compared(model, options):
    print(f"PyTorch's loop is left out: {why}")
  else:
    systems["PyTorch"] = Theirs(model, options.patches)
    if options.torch_bfloat16:
      systems["PyTorch in bfloat16"] = Theirs(in_bfloat16(model), options.patches)
  ours = {b: Ours(model, b) for b in map(int, options.batches.split(","))}
  systems |= {f"orthus_jax, batch {b}": o for b, o in ours.items()}

  first = warm_up(systems)
  for name, s in systems.items():
    if isinstance(s, Theirs):
      print(f"{name} runs {s.threads} thread(s) and draws {s.patches} of {P} patches")
  seconds = {name: [] for name in systems}
  for _ in range(options.rounds):
    for name, system in systems.items():  # in turns
      seconds[name].append(timed(system))
  best = {name: min(s) for name, s in seconds.items()}

  bandwidth = options.bandwidth or bandwidth_of(device.device_kind)
  show(table(systems, best, bandwidth), markdown=options.markdown)
  theirs = {name: best[name] / s.patches for name, s in systems.items() if isinstance(s, Theirs)}
  if theirs:
    fastest = min(theirs, key=theirs.__getitem__)
    per_patch, patches = theirs[fastest], systems[fastest].patches
    if patches < P:
      print(f"PyTorch stopped after {patches} patches ({per_patch * P:.1f} s a picture at that rate); later ones"
            " take longer, as the history grows")  # fmt: skip
    times = {b: per_patch * b * P / best[f"orthus_jax, batch {b}"] for b in ours}
    told = (f"{times[b]:.2f} at batch {b} (aim: {aim:g})" for b, aim in _AIMS.items() if b in ours)
    print(f"times {fastest}'s patches/s: {', '.join(told) or 'no batch that there is an aim for'}")
  compiling = (f"{first[f'orthus_jax, batch {b}'] - best[f'orthus_jax, batch {b}']:.1f} s at batch {b}" for b in ours)
  print(f"compiling, not counted above: {', '.join(compiling)}")


if __name__ == "__main__":
  main()
