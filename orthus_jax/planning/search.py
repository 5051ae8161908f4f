"""Looks for the best mesh, rematerialisation and batch of a config on a topology."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import json
import typing
from typing import Any

from orthus_jax.config import Config, TransformerConfig
from orthus_jax.errors import BadRequest
from orthus_jax.planning.hardware import GIB, Topology
from orthus_jax.planning.report import Plan


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What a search changes.

  Attributes:
    mesh: devices by axis.
    remat: rematerialisation policy.
    rows: of the global batch.
  """

  mesh: tuple[int, int, int, int]
  remat: Any
  rows: int

  def apply(self, config: Config) -> Config:
    """The config with these changes."""
    data, fsdp, tensor, context = self.mesh
    return dataclasses.replace(
      config,
      mesh=dataclasses.replace(config.mesh, data=data, fsdp=fsdp, tensor=tensor, context=context),
      model=dataclasses.replace(
        config.model, transformer=dataclasses.replace(config.model.transformer, remat=self.remat)
      ),
      run=dataclasses.replace(config.run, batch_size=self.rows),
    )

  def overrides(self) -> str:
    """As `orthus train` takes them."""
    mesh = " ".join(f"--config.mesh.{a}={n}" for a, n in zip(("data", "fsdp", "tensor", "context"), self.mesh))
    return f"{mesh} --config.model.transformer.remat={self.remat} --config.run.batch_size={self.rows}"


def policies() -> tuple[str, ...]:
  """Every rematerialisation policy, as the config lists them: those that compute least again come first."""
  return typing.get_args(typing.get_type_hints(TransformerConfig)["remat"])


def meshes(config: Config, topology: Topology) -> Iterator[tuple[int, int, int, int]]:
  """Meshes worth trying: copies between slices, all else split, with a little tensor parallelism."""
  for tensor in (1, 2, 4):
    c = config.model.transformer
    if c.heads % tensor or c.kv_heads % tensor or c.mlp_width % tensor or topology.per_slice % tensor:
      continue
    rest = topology.per_slice // tensor
    yield topology.slices, rest, tensor, 1
    side = topology.shape[0]  # a mesh axis covers whole dimensions of a torus
    if tensor == 1 and 1 < side < rest:
      yield topology.slices * side, rest // side, tensor, 1


def candidates(config: Config, topology: Topology) -> list[Candidate]:
  """Everything that a search may compile, the likeliest first."""
  found = []
  for mesh in meshes(config, topology):
    ways = mesh[0] * mesh[1] * config.optimizer.accumulation
    for per_device in (1, 2, 4, 8):
      for remat in policies():
        found.append((mesh[2], per_device != 2, per_device, Candidate(mesh, remat, ways * per_device)))
  return [c for *_, c in sorted(found, key=lambda f: f[:3])]


def search(
  config: Config, topology: Topology, *, limit: int, make: Callable[[Config], Plan], progress: Callable[[str], None]
) -> list[tuple[Candidate, Plan]]:
  """Has `make` plan up to `limit` candidates.

  Some are passed over: one that is sure not to fit, with as much work on each device as one that didn't fit, and as much
  kept; one that computes more again than one that fits, of the same mesh and rows; one whose mesh was refused.

  Returns:
    (candidate, plan), the best that fits first; those that were refused are left out.

  Raises:
    BadRequest: if a topology is no TPU's, as nothing says what fits elsewhere.
  """
  if topology.chip.platform != "tpu":
    raise BadRequest("--search needs a TPU topology: nothing tells what fits on others without them")
  order = policies()
  tried: list[tuple[Candidate, Plan]] = []
  too_large: list[Candidate] = []
  fit: list[Candidate] = []
  refused: set[tuple[int, int, int, int]] = set()
  for c in candidates(config, topology):
    if len(tried) >= limit:
      break
    if c.mesh in refused or any(_at_least(c, t, order) for t in too_large):
      continue
    if any((c.mesh, c.rows) == (f.mesh, f.rows) and order.index(c.remat) > order.index(f.remat) for f in fit):
      continue
    try:
      plan = make(c.apply(config))
    except BadRequest as e:
      progress(f"{c.overrides()}: {e}")
      refused.add(c.mesh)
      continue
    tried.append((c, plan))
    (fit if plan.fits else too_large).append(c)
    progress(f"{len(tried)}/{limit} {c.overrides()}: {plan.memory['peak'] / GIB:.1f} GiB, "
             f"{'fits' if plan.fits else 'does not fit'}, MFU {plan.mfu['calibrated']:.1%}")  # fmt: skip
  return sorted(tried, key=lambda t: (not t[1].fits, -t[1].mfu["calibrated"]))


def _at_least(c: Candidate, large: Candidate, order: tuple[str, ...]) -> bool:
  """Whether `c` surely needs as much memory as one that didn't fit."""
  same_rows = c.rows // (c.mesh[0] * c.mesh[1]) >= large.rows // (large.mesh[0] * large.mesh[1])
  return c.mesh[1:] == large.mesh[1:] and same_rows and order.index(c.remat) <= order.index(large.remat)


def show(tried: list[tuple[Candidate, Plan]], *, as_json: bool) -> int:
  """Prints what was found; returns the exit status."""
  best = tried[0] if tried and tried[0][1].fits else None
  if as_json:
    rows = [{"overrides": c.overrides(), "plan": p.to_json()} for c, p in tried]
    print(json.dumps({"best": best[0].overrides() if best else None, "tried": rows}, indent=2))
  else:
    print(f"{'MFU':>6} {'tokens/s/chip':>14} {'peak GiB':>9} {'free':>5}  overrides")
    for c, p in tried:
      free = 1 - p.memory["peak"] / p.memory["capacity"]
      print(
        f"{p.mfu['calibrated']:>6.1%} {p.tokens_per_chip['calibrated']:>14,.0f} {p.memory['peak'] / GIB:>9.2f}"
        f" {free:>5.0%}  {c.overrides()}"
      )
    print()
    print(best[0].overrides() if best else "nothing that was tried fits: take a larger slice, or raise --limit")
  return 0 if best else 3
