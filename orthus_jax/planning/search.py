"""Looks for the best mesh, rematerialisation and batch of a config on a topology."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import json
import typing
from typing import Any

from orthus_jax.config import Config, TransformerConfig
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.planning import closed_form
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
  """Every rematerialisation policy, as the config lists them: those that keep most on the device come first."""
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
  kept; one that computes more again than one that fits, of the same mesh and rows; one whose mesh was refused. One that can't
  be planned for another reason counts among the `limit`, and the search goes on.

  Returns:
    (candidate, plan), the best that fits first; those that were refused or couldn't be planned are left out.

  Raises:
    BadRequest: if a topology is no TPU's, as nothing says what fits elsewhere; or the last refusal, if there is no plan at all.
    Stopped: likewise.
  """
  if topology.chip.platform != "tpu":
    raise BadRequest("--search needs a TPU topology: nothing tells what fits on others without them")
  again = {remat: _again(config, remat) for remat in policies()}
  tried: list[tuple[Candidate, Plan]] = []
  too_large: list[Candidate] = []
  fit: list[Candidate] = []
  refused: set[tuple[int, int, int, int]] = set()
  stopped, last = 0, None
  for c in candidates(config, topology):
    if len(tried) + stopped >= limit:
      break
    if c.mesh in refused or any(_at_least(c, t) for t in too_large):
      continue
    if any((c.mesh, c.rows) == (f.mesh, f.rows) and again[c.remat] > again[f.remat] for f in fit):
      continue
    try:
      plan = make(c.apply(config))
    except (BadRequest, Stopped) as e:
      progress(f"{c.overrides()}: {e}")
      last = e
      if isinstance(e, Stopped):
        stopped += 1
      else:
        refused.add(c.mesh)
      continue
    tried.append((c, plan))
    (fit if plan.fits else too_large).append(c)
    progress(f"{len(tried)}/{limit} {c.overrides()}: {plan.memory['peak'] / GIB:.1f} GiB, "
             f"{'fits' if plan.fits else 'does not fit'}, MFU {plan.mfu['calibrated']:.1%}")  # fmt: skip
  if last and not tried:
    raise last
  return sorted(tried, key=lambda t: (not t[1].fits, -t[1].mfu["calibrated"]))


def _again(config: Config, remat: Any) -> tuple[int, int, int]:
  """How much the backward pass computes again, to compare policies by; of two that do as much, the later one moves more."""
  transformer = dataclasses.replace(config.model.transformer, remat=remat)
  model = dataclasses.replace(config.model, transformer=transformer)
  return *closed_form.recomputed(model, kernel=True), policies().index(remat)


def _at_least(c: Candidate, large: Candidate) -> bool:
  """Whether `c` surely needs as much memory as one that didn't fit."""
  same_rows = c.rows // (c.mesh[0] * c.mesh[1]) >= large.rows // (large.mesh[0] * large.mesh[1])
  return c.mesh[1:] == large.mesh[1:] and same_rows and _keeps_as_much(c.remat, large.remat)


def _keeps_as_much(remat: str, other: str) -> bool:
  """Whether a policy surely keeps as much on the device as another: "offload" has what "qkv" keeps in the host's memory."""
  order = policies()
  if "offload" in (remat, other):
    return remat == other or (other == "offload" and order.index(remat) <= order.index("qkv"))
  return order.index(remat) <= order.index(other)


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
