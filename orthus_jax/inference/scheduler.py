"""Which request is in which row of the running batch: requests join as others leave.

A guide's prompt stays in its lane when the request that it guided has ended. The next request with that prompt, which is
mostly the unconditional one, takes the lane as it is: such a prompt is read once, not once a request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
import numpy as np

from orthus_jax.config import ModelConfig, SamplingConfig
from orthus_jax.inference import engine, engine_state, prompt_reader
from orthus_jax.inference.capacity import MOST_GUIDES, Capacity, Size
from orthus_jax.inference.network import Network
from orthus_jax.inference.requests import Lane, Prepared
from orthus_jax.models import systems
from orthus_jax.models.params import Params
from orthus_jax.models.samplers import TokenSampling
from orthus_jax.parallel import compiler

_SHORT = 512  # slots that are looked at always
_LANES_AT_ONCE = 24  # at most, on a CPU, whose work grows with the lanes; others had better read the weights once for all
_FEW = 8  # lanes


class Progress(NamedTuple):
  """What has been added to a response.

  Attributes:
    ticket: the request's number.
    tokens_N, features_NC: the new positions; the image placeholder stands where `features_NC` holds a patch.
    done: whether that was all.
  """

  ticket: int
  tokens_N: np.ndarray
  features_NC: np.ndarray
  done: bool


class Scheduler:
  """Has requests take turns in the batch's places.

  Args:
    network: the model.
    capacity: of the batch; a request must fit into it.
    programs: what it shares with others of the same network and capacity, which other threads run.
  """

  def __init__(self, network: Network, capacity: Capacity, *, programs: compiler.Programs | None = None):
    self._net, self._size, self._solvers = network, (size := capacity.size), capacity.solvers
    self._programs = programs or compiler.Programs()
    self._few = size.rows + size.guides < _FEW
    share = _share(size.rows) if network.on_one_cpu and not self._few else 0
    self._program = engine_state.Program(
        positions=size.positions, window=size.slots, solvers=capacity.solvers, ids=network.ids, sampled=capacity.sampled,
        repeats=capacity.repeats, kernel=size.kernel, lanes_at_once=share, guides_a_row=min(MOST_GUIDES, size.guides),
    )  # fmt: skip
    vision = network.config.vision_tokenizer
    self._block = vision.patches if systems.image_head(network.config).whole_pictures else 0
    self._mesh = _mesh(network.params)
    with self._on_mesh():
      self._state = _maker(network.config, size, self._mesh)()
    self._rows: dict[int, tuple[int, Prepared]] = {}  # row → its ticket and request
    self._length = np.zeros(size.rows, int)  # slots that each row has come to
    self._held: list[bytes | None] = [None] * size.guides  # the prompt in each guide's lane
    self._guides: dict[int, list[int]] = {}  # row → its guides
    self._joined: list[tuple[int, Prepared, list[int]]] = []  # rows that begin with the next step

  def _on_mesh(self) -> contextlib.AbstractContextManager:
    return jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext()

  @property
  def busy(self) -> int:
    """Requests that have a row."""
    return len(self._rows)

  @property
  def guides_in_use(self) -> int:
    return sum(map(len, self._guides.values()))

  def guides_of(self) -> dict[int, int]:
    """How many guides each request has."""
    return {ticket: len(self._guides[row]) for row, (ticket, _) in self._rows.items()}

  def join(self, ticket: int, request: Prepared) -> bool:
    """Gives a request its place, at which it begins with the next step; False where there is no room for it yet."""
    if (place := self._place(request)) is None:
      return False
    row, guides = place
    self._rows[row], self._guides[row] = (ticket, request), guides
    self._joined.append((row, request, guides))
    return True

  def step(self, *, others: bool = False) -> list[Progress]:
    """Moves all ahead by some positions.

    Args:
      others: whether more requests wait for a place; then it ends early, as soon as some rows have.
    """
    with self._on_mesh():
      if self._joined:
        joined, self._joined = self._joined, []
        self._begin(joined)
      return self._advance(others=others) if self._rows else []

  def compile(self, told: Callable[[int, int], None] | None = None) -> None:
    """Compiles all that requests may need, so that none waits for it; the batch must be empty.

    Args:
      told: called with (programs done, in all).
    """
    assert not self._rows
    size, net = self._size, self._net
    X = size.rows + size.guides
    shapes = [(A, T, p) for A, T in prompt_reader.sizes(net.config, lanes=X) for p in (False, True)]
    windows = sorted({self._window(n) for n in range(1, size.slots + 1)})
    with self._on_mesh():
      for n, (A, T, pictures) in enumerate(shapes):
        chunk = prompt_reader.empty(net.config, A, T, lanes=X, sep=net.ids.sep, pictures=pictures)
        for window in windows:
          cache = engine.read(net.graphdef, net.params, self._state.cache, chunk, window=window)
          self._state = self._state._replace(cache=cache)
        if told:
          told(n + 1, len(shapes) + len(windows))
      for n, window in enumerate(windows):
        self._move(np.int32(1), window)
        if told:
          told(len(shapes) + n + 1, len(shapes) + len(windows))
      solver, steps = self._solvers[0]
      lane = Lane(np.full(1, net.ids.sep, np.int32), np.full(1, -1, np.int32), (), 1.0)
      how = SamplingConfig(solver=solver, steps=steps)  # type: ignore[arg-type]
      self._admit([], Prepared(lane, (), 1, 0, False, how, 0, net.config.vision_tokenizer.patches, True))
      self._state = engine.release(self._state, np.zeros(size.rows, bool))

  def leave(self, tickets: Collection[int]) -> None:
    """Frees the places of requests that are given up, for the next step's."""
    rows = [row for row, (ticket, _) in self._rows.items() if ticket in tickets]
    self._joined = [j for j in self._joined if j[0] not in rows]
    for row in rows:
      del self._rows[row], self._guides[row]
    if rows:
      with self._on_mesh():
        self._state = engine.release(self._state, np.isin(np.arange(self._size.rows), rows))

  def _place(self, request: Prepared) -> tuple[int, list[int]] | None:
    """A free row, and free guides for it, those first that hold their prompts already."""
    row = next((r for r in range(self._size.rows) if r not in self._rows), None)
    taken = {g for guides in self._guides.values() for g in guides}
    free = [g for g in range(self._size.guides) if g not in taken]
    if row is None or len(free) < len(request.guides):
      return None
    guides = []
    for lane in request.guides:
      # Of the others, one that holds nothing is taken before one that holds what may be wanted again.
      best = min(free, key=lambda g: (lane.key is None or self._held[g] != lane.key, self._held[g] is not None))
      free.remove(best)
      guides.append(best)
    return row, guides

  def _begin(self, chosen: list[tuple[int, Prepared, list[int]]]) -> None:
    B = self._size.rows
    to_read: list[tuple[int, Lane]] = []
    for row, request, guides in chosen:
      to_read.append((row, request.main))
      self._length[row] = len(request.main) - 1
      for g, lane in zip(guides, request.guides):
        if lane.key is None or self._held[g] != lane.key:
          to_read.append((B + g, lane))
        self._held[g] = lane.key
    pictures = [image.pixels for _, lane in to_read for image in lane.pictures]
    with self._programs.run("encode", len(pictures)):
      encoded = iter(self._net.encode(pictures)) if pictures else iter(())
    prompts = [(n, lane, [next(encoded) for _ in lane.pictures]) for n, lane in to_read]
    X = self._size.rows + self._size.guides
    for chunk, end in prompt_reader.chunks(prompts, self._net.config, lanes=X, sep=self._net.ids.sep):
      window = self._window(end)
      with self._programs.run("read", window, *(x if x is None else x.shape for x in chunk)):
        cache = engine.read(self._net.graphdef, self._net.params, self._state.cache, chunk, window=window)
      self._state = self._state._replace(cache=cache)
    with self._programs.run("admit"):
      self._admit(chosen, chosen[0][1])

  def _admit(self, chosen: Sequence[tuple[int, Prepared, list[int]]], filler: Prepared) -> None:
    """Has rows begin whose prompts are read; the filler's order stands where there are no more."""
    B = self._size.rows
    owned = [(g, row, lane) for row, request, guides in chosen for g, lane in zip(guides, request.guides)]
    A, A2 = self._size.rows, self._size.guides  # padded to all there may be, so that one program is compiled

    def column(values: list, size: int, fill: Any, dtype: Any) -> np.ndarray:
      return np.asarray([*values, *[fill] * (size - len(values))], dtype)

    filled = [*(r for _, r, _ in chosen), *[filler] * (A - len(chosen))]
    columns = (
        column([g for g, _, _ in owned], A2, self._size.guides, np.int32), column([r for _, r, _ in owned], A2, B, np.int32),
        column([len(lane) for _, _, lane in owned], A2, 0, np.int32), column([x.weight for *_, x in owned], A2, 0, np.float32),
    )  # fmt: skip
    self._state = engine.admit(
        self._state,
        engine.Admission(
            row=column([row for row, *_ in chosen], A, B, np.int32),
            length=np.asarray([len(r.main) - 1 for r in filled], np.int32),
            token=np.asarray([r.main.tokens_T[-1] for r in filled], np.int32), order=self._order(filled),
            guide=columns[0], owner=columns[1], origin=columns[2], weight=columns[3],
        ),
    )  # fmt: skip

  def _order(self, requests: list[Prepared]) -> engine_state.Order:
    def of(get: Callable[[Prepared], Any], dtype: Any) -> np.ndarray:
      return np.asarray([get(r) for r in requests], dtype)

    times = self._net.config.diffusion.timesteps
    return engine_state.Order(
        seed=of(lambda r: r.seed, np.int32), max_new=of(lambda r: r.max_new, np.int32),
        max_images=of(lambda r: r.max_images, np.int32), stop_after_images=of(lambda r: r.stop_after_images, bool),
        weight=of(lambda r: r.main.weight, np.float32),
        interval=of(lambda r: [times * x for x in r.sampling.guidance_interval], np.float32),
        solvers=of(lambda r: [self._solvers.index(s) for s in r.solvers], np.int32),
        late=of(lambda r: round(r.sampling.late_from * r.patches), np.int32),
        passes=of(lambda r: r.sampling.steps, np.int32),
        image_temperature=of(lambda r: r.sampling.image_temperature, np.float32),
        image_top_k=of(lambda r: r.sampling.image_top_k, np.int32),
        text=TokenSampling(
            temperature=of(lambda r: r.sampling.temperature, np.float32), top_k=of(lambda r: r.sampling.top_k, np.int32),
            top_p=of(lambda r: r.sampling.top_p, np.float32),
            repetition_penalty=of(lambda r: r.sampling.repetition_penalty, np.float32),
        ),
    )  # fmt: skip

  def _advance(self, *, others: bool) -> list[Progress]:
    size = self._size
    ahead = max(self._length[r] for r in self._rows) + size.positions + self._block
    for row in self._guides:
      ahead = max(ahead, *(len(lane) + self._rows[row][1].patches + 1 for lane in self._rows[row][1].guides), 0)
    stop_at = np.int32(max(1, size.rows // 8) if others else size.rows + 1)
    made = jax.tree.map(np.asarray, self._move(stop_at, self._window(int(ahead))))
    told = []
    for row in sorted(self._rows):
      ticket, n, done = self._rows[row][0], int(made.count_B[row]), not made.active_B[row]
      tokens_N, features_NC = made.tokens_BN[row, :n], made.features_BNC[row, :n]
      if made.pictures_B[row]:
        features_PC = self._net.codebook_KC[made.code_BP[row]]
        tokens_N = np.insert(tokens_N, n - 1, [self._net.ids.image] * len(features_PC))
        features_NC = np.concatenate([features_NC[:-1], features_PC, features_NC[-1:]])
      self._length[row] += len(tokens_N)
      if done:
        del self._rows[row], self._guides[row]
      told.append(Progress(ticket, tokens_N, features_NC, done))
    return told

  def _move(self, stop_at: np.int32, window: int) -> engine_state.Made:
    advance = engine.advance.few_rows if self._few else engine.advance
    with self._programs.run("advance", window):
      self._state, made = advance(
          self._net.graphdef, self._net.params, self._state, self._net.text_V, stop_at, config=self._net.config,
          program=dataclasses.replace(self._program, window=window),
      )  # fmt: skip
    return made

  def _window(self, ahead: int) -> int:
    """Slots to look at: all of a short cache; of a long one as few of some sizes as hold what there is."""
    window = self._size.slots
    while window // 2 >= max(ahead, _SHORT) and window % 4 == 0:
      window //= 2
    return window


@functools.lru_cache(maxsize=32)  # a function is compiled once, if it is the same one
def _maker(config: ModelConfig, size: Size, mesh: jax.sharding.Mesh | None) -> Callable[[], engine_state.State]:
  """What makes an empty state where it belongs."""

  def create() -> engine_state.State:
    return engine_state.empty(config, rows=size.rows, guides=size.guides, slots=size.slots, int8=size.int8)

  if mesh is None:
    return jax.jit(create)
  return jax.jit(create, out_shardings=engine_state.shardings(mesh, jax.eval_shape(create)))


def _share(rows: int) -> int:
  """How many lanes are worked on at once: all rows', or an equal share of them; guides' are idle while rows are in text."""
  return max(-(-rows // -(-rows // _LANES_AT_ONCE)), 1 + MOST_GUIDES) if _LANES_AT_ONCE else 0


def _mesh(params: Params) -> jax.sharding.Mesh | None:
  """What parameters lie on, if on several devices."""
  for value in jax.tree.leaves(params):
    if isinstance(value.sharding, NamedSharding) and value.sharding.mesh.size > 1:
      return value.sharding.mesh
  return None
