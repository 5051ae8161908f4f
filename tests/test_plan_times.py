"""From what a program does to how long it takes: what computes hides what is sent, and rates are those published."""

import textwrap

import numpy as np
import pytest
from test_plan_counting import ops_by_name

from orthus_jax.config import Config
from orthus_jax.planning import closed_form, estimate, hardware
from orthus_jax.planning.work import Collective, Op, Work
from orthus_jax.training import flops


def test_collectives_are_told_by_axis_and_timed():
  v5e = hardware.parse("v5e:16x16")
  places = np.stack([np.zeros(256, int), *np.unravel_index(np.arange(256), (16, 16))], axis=1)
  size = 1 << 30
  ops = (
    Op("a", "", 2, collectives=(Collective("all-gather", size, np.arange(256).reshape(16, 16)),)),
    Op("b", "", 1, collectives=(Collective("all-reduce", size, None),)),
  )
  rows = estimate.traffic(Work(ops), {"data": 1, "fsdp": 16, "tensor": 16, "context": 1}, v5e, places)
  by_kind = {t.kind: t for t in rows}
  assert by_kind["all-gather"].axes == ("tensor",) and by_kind["all-gather"].count == 2
  assert by_kind["all-reduce"].axes == ("fsdp", "tensor")
  # One of the torus' two dimensions is used, so half of the links; the whole array but what was there arrives, twice.
  assert by_kind["all-gather"].link_seconds == pytest.approx(2 * 15 / 16 * size / 100e9)
  assert by_kind["all-reduce"].link_seconds == pytest.approx(2 * 255 / 256 * size / 200e9)
  # A part of a dimension doesn't close into a ring.
  half = Op("c", "", 1, collectives=(Collective("all-gather", size, np.arange(256).reshape(32, 8)),))
  (row,) = estimate.traffic(Work((half,)), {"data": 1, "fsdp": 32, "tensor": 8, "context": 1}, v5e, places)
  assert row.link_seconds == pytest.approx(7 / 8 * size / 50e9)


def test_an_array_crosses_the_links_of_a_chip_of_two_devices_once():
  cube = hardware.parse("tpu7x:4x4x4")
  places = np.asarray([(0, x, y, z, c) for x in range(4) for y in range(4) for z in range(4) for c in range(2)])
  size = 1 << 30

  def seconds(kind, groups, **mesh):
    op = Op("a", "", 1, collectives=(Collective(kind, size, groups),))
    (row,) = estimate.traffic(Work((op,)), {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | mesh, cube, places)
    return row.link_seconds

  everyone, cores = np.arange(128)[None], np.arange(128).reshape(64, 2)
  # 64 chips with 600 GB/s of links; two groups of one core each share them; the cores of one chip have as much between them.
  assert seconds("all-gather", everyone, fsdp=128) == pytest.approx(63 / 64 * size / 600e9)
  assert seconds("all-gather", cores.T, fsdp=64, tensor=2) == pytest.approx(63 / 64 * size / 300e9)
  assert seconds("all-reduce", cores, fsdp=64, tensor=2) == pytest.approx(2 * 1 / 2 * size / 600e9)
  # What each device sends to each is its own.
  assert seconds("all-to-all", everyone, fsdp=128) == pytest.approx(127 / 128 * size / 300e9)


@pytest.mark.parametrize("name, all_reduce, chips", [("v4", 1.1e15, 4096), ("v5e", 51.2e12, 256), ("v6e", 102.4e12, 256)])
def test_links_are_those_that_a_pod_reduces_over(name, all_reduce, chips):
  """By the bandwidth of all-reduces that Google's pages give for a pod: one way, over all links."""
  assert hardware.CHIPS[name].link == pytest.approx(all_reduce / chips, rel=0.12)


def test_a_chip_of_two_devices_is_theirs_together():
  """By the maker's figures of a chip."""
  chip, gib = hardware.CHIPS["tpu7x"], hardware.GIB
  assert 2 * chip.flops == 2307e12 and 2 * chip.bandwidth == 7380e9 and 2 * chip.link == 1200e9 / 2
  assert 0.98 * 192 * gib < 2 * chip.memory < 192 * gib and 2 * chip.network == 100e9 / 8


# A gather that a TPU's compiler has spread over a start, a fusion that multiplies, and an end: it is written in each.
CHAIN = textwrap.dedent("""\
    HloModule jit_step, is_scheduled=true

    %first (p: bf16[4,128]) -> bf16[16,128] {
      %p = bf16[4,128]{1,0} parameter(0)
      ROOT %g1 = bf16[16,128]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="3"}
    }

    %second (p: bf16[4,128], x: bf16[8,64], w: bf16[64,256]) -> bf16[8,256] {
      %p = bf16[4,128]{1,0} parameter(0)
      %x = bf16[8,64]{1,0} parameter(1)
      %w = bf16[64,256]{1,0} parameter(2)
      %g2 = bf16[16,128]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="3"}
      ROOT %product = bf16[8,256]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
    }

    ENTRY %main (p: bf16[4,128], x: bf16[8,64], w: bf16[64,256]) -> bf16[8,256] {
      %p = bf16[4,128]{1,0} parameter(0)
      %x = bf16[8,64]{1,0} parameter(1)
      %w = bf16[64,256]{1,0} parameter(2)
      %start = bf16[16,128]{1,0} fusion(%p), kind=kCustom, calls=%first
      ROOT %middle = bf16[8,256]{1,0} fusion(%p, %x, %w), kind=kOutput, calls=%second
    }
    """)


def test_a_collective_spread_over_fusions_counts_once_and_hides_as_far_as_they_take():
  ops = ops_by_name(CHAIN)
  assert [len(ops[n].collectives) for n in ("start", "middle")] == [1, 0]
  assert ops["start"].carries == ops["middle"].carries and len(ops["middle"].carries) == 1
  (gather,) = ops["start"].collectives
  assert (gather.kind, gather.bytes, gather.chain) == ("all-gather", 16 * 128 * 2, ops["start"].carries[0])

  four, mesh = hardware.parse("v5e:2x2"), {"data": 1, "fsdp": 4, "tensor": 1, "context": 1}
  places = np.asarray([(0, x, y) for x in range(2) for y in range(2)])
  chip, c = hardware.CHIPS["v5e"], estimate.Calibration(products=0.5, attention=0.5, bandwidth=0.5, links=0.5, network=0.5)
  groups = np.arange(4)[None]
  for products, others, share in ((1e15, (), 1.0), (1e-9, (), 0.0), (None, (), 0.25), (None, ("another",), 0.125)):
    # 100 GB gathered at half of each link's rate; a product that takes a quarter of that, or its share of one.
    link = 0.75 * 1e11 / (200e9 * 0.5)
    products = products or 0.25 * (link / c.links) * chip.flops * c.products
    gather = Collective("all-gather", 10**11, groups, chain="k")
    done = Work((Op("a", "", 1, products=products, collectives=(gather,), carries=("k", *others)),))
    (row,) = estimate.traffic(done, mesh, four, places, c)
    assert row.link_seconds == pytest.approx(link) and row.hidden_seconds == pytest.approx(share * link, abs=1e-12)
    whole = products / (chip.flops * c.products) + (1 - share) * link / c.links
    assert estimate.estimate(done, [row], chip, c).calibrated == pytest.approx(whole)


# A gather that a sparse core does: it is started without operands, which an update hands to it, and a loop of three rounds and
# a product run until it is done; a product ahead of the update and one behind its end don't run beside it.
BESIDE = textwrap.dedent("""\
    HloModule jit_step, is_scheduled=true

    %called (p: bf16[4,128]) -> bf16[16,128] {
      %p = bf16[4,128]{1,0} parameter(0)
      ROOT %gather = bf16[16,128]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
    }

    %async (p: bf16[4,128]) -> bf16[16,128] {
      %p = bf16[4,128]{1,0} parameter(0)
      ROOT %call = bf16[16,128]{1,0} call(%p), to_apply=%called
    }, execution_thread="sparsecore"

    %body (t: (s32[], bf16[8,64], bf16[64,256])) -> (s32[], bf16[8,64], bf16[64,256]) {
      %t = (s32[], bf16[8,64]{1,0}, bf16[64,256]{1,0}) parameter(0)
      %i = s32[] get-tuple-element(%t), index=0
      %x = bf16[8,64]{1,0} get-tuple-element(%t), index=1
      %w = bf16[64,256]{1,0} get-tuple-element(%t), index=2
      %looped = bf16[8,256]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
      %one = s32[] constant(1)
      %next = s32[] add(%i, %one)
      ROOT %again = (s32[], bf16[8,64]{1,0}, bf16[64,256]{1,0}) tuple(%next, %x, %w)
    }

    %less (t: (s32[], bf16[8,64], bf16[64,256])) -> pred[] {
      %t = (s32[], bf16[8,64]{1,0}, bf16[64,256]{1,0}) parameter(0)
      %i = s32[] get-tuple-element(%t), index=0
      %three = s32[] constant(3)
      ROOT %more = pred[] compare(%i, %three), direction=LT
    }

    ENTRY %main (p: bf16[4,128], x: bf16[8,64], w: bf16[64,256]) -> bf16[16,128] {
      %p = bf16[4,128]{1,0} parameter(0)
      %x = bf16[8,64]{1,0} parameter(1)
      %w = bf16[64,256]{1,0} parameter(2)
      %zero = s32[] constant(0)
      %g-start = ((), (), (s32[1]{0})) async-start(), async_execution_thread="sparsecore", calls=%async
      %ahead = bf16[8,256]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
      %g-update = ((bf16[4,128]{1,0}), bf16[16,128]{1,0}) async-update(%g-start, %p)
      %meanwhile = bf16[8,256]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
      %t = (s32[], bf16[8,64]{1,0}, bf16[64,256]{1,0}) tuple(%zero, %x, %w)
      %loop = (s32[], bf16[8,64]{1,0}, bf16[64,256]{1,0}) while(%t), condition=%less, body=%body
      ROOT %g-done = bf16[16,128]{1,0} async-done(%g-update)
      %behind = bf16[8,256]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
    }
    """)


def test_a_collective_under_way_hides_behind_what_runs_between_its_start_and_its_end():
  ops = ops_by_name(BESIDE)
  (gather,) = ops["gather"].collectives
  assert gather.chain and ops["gather"].beside and not ops["gather"].carries
  carried = {name: op.carries for name, op in ops.items() if op.products}
  assert carried == {"ahead": (), "meanwhile": (gather.chain,), "looped": (gather.chain,), "behind": ()}
  assert ops["looped"].times == 3

  four, mesh = hardware.parse("v6e:2x2"), {"data": 1, "fsdp": 4, "tensor": 1, "context": 1}
  places = np.asarray([(0, x, y) for x in range(2) for y in range(2)])
  c = estimate.Calibration(products=1.0, attention=1.0, bandwidth=1.0, links=1.0, network=1.0)
  group = (Collective("all-gather", 10**12, np.arange(4)[None], chain="k"),)
  beside = (Op("g", "", 2, collectives=group), Op("a", "", 6, products=1e11, carries=("k",)))
  (row,) = estimate.traffic(Work(beside), mesh, four, places, c)
  assert row.hidden_seconds == pytest.approx(6 * 1e11 / hardware.CHIPS["v6e"].flops)  # three of the six to each of two runs


def test_between_slices_each_chip_carries_its_share():
  two = hardware.parse("v5p:2x2x1", 2)
  places = np.asarray([(s, x, y, 0) for s in range(2) for x in range(2) for y in range(2)])
  op = Op("a", "", 1, collectives=(Collective("all-reduce", 8000, np.arange(8)[None]),))
  (row,) = estimate.traffic(Work((op,)), {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}, two, places)
  assert row.network_seconds == pytest.approx(2 * 1 / 2 * 8000 / 4 / 6.25e9) and row.axes == ("data", "fsdp")


def test_an_instruction_takes_the_longer_of_its_flops_and_bytes():
  chip, c = (
    hardware.CHIPS["v6e"],
    estimate.Calibration(products=0.5, attention=0.5, bandwidth=0.5, links=0.5, network=0.5),
  )
  assert estimate.op_seconds(Op("a", "", 1, products=918e12, bytes=1), chip, c) == pytest.approx(2.0)
  assert estimate.op_seconds(Op("a", "", 1, products=1.0, bytes=1638 * 10**9), chip, c) == pytest.approx(2.0)
  assert estimate.op_seconds(Op("a", "", 1, attention=918e12), chip, c) == pytest.approx(2.0)
  found = estimate.estimate(Work((Op("a", "", 3, products=918e12),)), [], chip, c)
  assert (found.bound, found.limit, found.calibrated) == (3.0, "compute", 6.0)
  # A copy runs beside the others, as far as the memory's bandwidth goes.
  copy = Op("b", "", 1, bytes=1638 * 10**9, beside=True)
  assert estimate.estimate(Work((Op("a", "", 3, products=918e12), copy)), [], chip, c).calibrated == 6.0
  assert estimate.estimate(Work((Op("a", "", 1, products=459e12), copy)), [], chip, c).calibrated == 2.0
  gather = estimate.Traffic("all-gather", ("fsdp",), 1, 1, link_seconds=1.0, network_seconds=0.5)
  assert estimate.estimate(Work(()), [gather], chip, c).calibrated == 3.0


def test_what_mfu_counts_is_the_published_figure():
  config = Config()
  tokens = config.run.batch_size * config.data.sequence_length
  names = {"token_embedding", "transformer/layers/mlp/up", "lm_head"}
  found = closed_form.closed(config, names)
  assert found.model / tokens == pytest.approx(43.69e9, rel=1e-4)
  # Full rematerialisation repeats a forward pass but for each layer's last product; a frozen backbone has no gradients.
  assert 1.2 < found.program["layers"] / tokens / (6.0 * 32 * flops.layer_weights(config.model.transformer)) < 1.34
  assert closed_form.closed(config, {"lm_head"}).model / tokens == pytest.approx(
    32 * (2.0 * flops.layer_weights(config.model.transformer) + 2.0 * 4096 * 4096) + 6.0 * 4096 * 65536
  )


def test_chips_and_metrics_agree_on_peaks():
  names = {
    "v4": "TPU v4",
    "v5e": "TPU v5e",
    "v5p": "TPU v5p",
    "v6e": "TPU v6e",
    "tpu7x": "TPU7x",
    "a100": "NVIDIA A100",
    "h100": "NVIDIA H100",
    "h200": "NVIDIA H200",
    "b200": "NVIDIA B200",
    "gb200": "NVIDIA GB200",
  }
  assert {n: hardware.CHIPS[n].flops for n in names} == {n: flops.PEAKS[k] for n, k in names.items()}
