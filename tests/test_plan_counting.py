"""The planner reads compiled programs: FLOPs, bytes, collectives, loops."""

import textwrap

import numpy as np
import pytest

from orthus_jax.config import Config
from orthus_jax.planning import closed_form, estimate, hardware, hlo, instruction_flops, work
from orthus_jax.planning.work import Collective, Op, Work
from orthus_jax.training import flops

# A loop of three rounds in the notation of TPU compilers: a matrix product as a convolution within a fusion that slices
# its stacked weights, an all-gather, a reduce-scatter written as an all-reduce, and a copy to on-chip memory.
PROGRAM = textwrap.dedent("""\
    HloModule jit_step, is_scheduled=true

    %add (a: f32[], b: f32[]) -> f32[] {
      %a = f32[] parameter(0)
      %b = f32[] parameter(1)
      ROOT %sum = f32[] add(%a, %b)
    }

    %fused_computation (p0: bf16[8,128], p1: bf16[3,128,256], p2: s32[]) -> bf16[8,256] {
      %p0 = bf16[8,128]{1,0} parameter(0)
      %p1 = bf16[3,128,256]{2,1,0} parameter(1)
      %p2 = s32[] parameter(2)
      %zero = s32[] constant(0)
      %slice = bf16[1,128,256]{2,1,0} dynamic-slice(%p1, %p2, %zero, %zero), dynamic_slice_sizes={1,128,256}
      %weights = bf16[128,256]{1,0} bitcast(%slice)
      ROOT %product = bf16[8,256]{1,0} convolution(%p0, %weights), dim_labels=bf_io->bf
    }

    %all-reduce-scatter.1 (input: bf16[8,256]) -> bf16[4,256] {
      %input = bf16[8,256]{1,0} parameter(0)
      %all-reduce.1 = bf16[8,256]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
      %where = u32[] partition-id()
      ROOT %part = bf16[4,256]{1,0} dynamic-slice(%all-reduce.1, %where), dynamic_slice_sizes={4,256}
    }

    %condition (state: (s32[], bf16[8,128], bf16[3,128,256])) -> pred[] {
      %limit = s32[] constant(3)
      %state = (s32[], bf16[8,128]{1,0}, bf16[3,128,256]{2,1,0}) parameter(0)
      %i = s32[] get-tuple-element(%state), index=0
      ROOT %more = pred[] compare(%i, %limit), direction=LT
    }

    %body (state: (s32[], bf16[8,128], bf16[3,128,256])) -> (s32[], bf16[8,128], bf16[3,128,256]) {
      %one = s32[] constant(1)
      %state = (s32[], bf16[8,128]{1,0}, bf16[3,128,256]{2,1,0}) parameter(0)
      %i = s32[] get-tuple-element(%state), index=0
      %x = bf16[8,128]{1,0} get-tuple-element(%state), index=1
      %w = bf16[3,128,256]{2,1,0} get-tuple-element(%state), index=2
      %near = (bf16[8,128]{1,0:S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x), frontend_attributes={note="two
    lines"}
      %x_near = bf16[8,128]{1,0:S(1)} copy-done(%near)
      %fusion = bf16[8,256]{1,0} fusion(%x_near, %w, %i), kind=kOutput, calls=%fused_computation, metadata={op_name="jit(step)/dot"}
      %gathered = bf16[16,256]{1,0} all-gather(%fusion), channel_id=2, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
      %scattered = bf16[4,256]{1,0} fusion(%fusion), kind=kCustom, calls=%all-reduce-scatter.1
      %next = s32[] add(%i, %one)
      ROOT %out = (s32[], bf16[8,128]{1,0}, bf16[3,128,256]{2,1,0}) tuple(%next, %x, %w)
    }

    ENTRY %main (x: bf16[8,128], w: bf16[3,128,256]) -> bf16[8,128] {
      %x = bf16[8,128]{1,0} parameter(0)
      %w = bf16[3,128,256]{2,1,0} parameter(1)
      %start = s32[] constant(0)
      %state = (s32[], bf16[8,128]{1,0}, bf16[3,128,256]{2,1,0}) tuple(%start, %x, %w)
      %loop = (s32[], bf16[8,128]{1,0}, bf16[3,128,256]{2,1,0}) while(%state), condition=%condition, body=%body
      ROOT %y = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
    }
    """)


def _ops(text: str) -> dict[str, Op]:
  return {o.name: o for o in work.count(hlo.parse(text)).ops}


def test_a_loop_counts_as_often_as_it_runs():
  counted = work.count(hlo.parse(PROGRAM))
  assert counted.flops == 3 * 2 * 8 * 128 * 256 and not counted.unknown_loops
  assert {o.times for o in counted.ops} >= {3}
  # Where the limit isn't a constant, the loop counts once, and the plan says so.
  strange = work.count(hlo.parse(PROGRAM.replace("%limit = s32[] constant(3)", "%limit = s32[] custom-call()")))
  assert strange.flops == 2 * 8 * 128 * 256 and strange.unknown_loops == ("loop",)
  known = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
  assert work.count(hlo.parse(known)).flops == 7 * 2 * 8 * 128 * 256
  later = PROGRAM.replace("%start = s32[] constant(0)", "%start = s32[] constant(1)")
  assert work.count(hlo.parse(later)).flops == 2 * 2 * 8 * 128 * 256
  unrolled = PROGRAM.replace("%one = s32[] constant(1)", "%one = s32[] constant(2)")  # rounds at 0 and 2
  assert work.count(hlo.parse(unrolled)).flops == 2 * 2 * 8 * 128 * 256


def test_bytes_are_those_of_main_memory_and_of_slices():
  ops = _ops(PROGRAM)
  assert ops["near"].bytes == 8 * 128 * 2  # read, but written to on-chip memory
  assert (
    ops["fusion"].bytes == 128 * 256 * 2 + 8 * 256 * 2 + 4
  )  # one layer's weights, the result and the index; its input is near
  far = _ops(PROGRAM.replace("S(1)", "S(5)"))
  assert far["near"].host_bytes == 8 * 128 * 2


# What a TPU's compiler writes in the notation of its own dumps: copies of parts that run beside instructions, to on-chip memory
# (S(1)) or the host's (S(5)), a buffer that is only set aside, and a sum over four slices handed to their runtime.
COPIES = textwrap.dedent("""\
    HloModule jit_step, is_scheduled=true

    %near (p: bf16[64,32,128]) -> bf16[64,8,128] {
      %p = bf16[64,32,128]{2,1,0} parameter(0)
      ROOT %part = bf16[64,8,128]{2,1,0:S(1)} slice(%p), slice={[0:64], [0:8], [0:128]}
    }

    %away (kept: f32[3,16,128], x: f32[1,16,128], i: s32[]) -> f32[3,16,128] {
      %kept = f32[3,16,128]{2,1,0:S(5)} parameter(0)
      %x = f32[1,16,128]{2,1,0} parameter(1)
      %i = s32[] parameter(2)
      ROOT %put = f32[3,16,128]{2,1,0:S(5)} dynamic-update-slice(%kept, %x, %i, %i, %i)
    }

    ENTRY %main (w: bf16[64,32,128], kept: f32[3,16,128], x: f32[1,16,128], i: s32[]) -> f32[3,16,128] {
      %w = bf16[64,32,128]{2,1,0} parameter(0)
      %kept = f32[3,16,128]{2,1,0:S(5)} parameter(1)
      %x = f32[1,16,128]{2,1,0} parameter(2)
      %i = s32[] parameter(3)
      %room = f32[64,32,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
      %begun = ((bf16[64,32,128]{2,1,0}), bf16[64,8,128]{2,1,0:S(1)}, s32[]{:S(2)}) async-start(%w), calls=%near
      %done = bf16[64,8,128]{2,1,0:S(1)} async-done(%begun)
      %sugared = (bf16[64,32,128]{2,1,0}, bf16[64,4,128]{2,1,0:S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:64], [0:4], [0:128]}
      %whole = bf16[64,2,128]{2,1,0} slice(%w), slice={[0:64], [0:2], [0:128]}
      %leaving = ((f32[3,16,128]{2,1,0:S(5)}, f32[1,16,128]{2,1,0}, s32[]), f32[3,16,128]{2,1,0:S(5)}, s32[]) async-start(%kept, %x, %i), calls=%away
      %token = token[] after-all()
      %sent = (f32[1,16,128]{2,1,0}, u32[]{:S(2)}, token[]) send(%x, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3,4}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
      %wide = bf16[8,64]{1,0:T(8,128)(2,1)} slice(%w), slice={[0:8], [0:1], [0:64]}
      ROOT %left = f32[3,16,128]{2,1,0:S(5)} async-done(%leaving)
    }
    """)


def test_a_copy_of_a_part_counts_as_the_part_and_runs_beside():
  ops = _ops(COPIES)
  assert (ops["part"].bytes, ops["part"].beside) == (64 * 8 * 128 * 2, True)  # read, and written to on-chip memory
  assert (ops["sugared"].bytes, ops["sugared"].beside) == (64 * 4 * 128 * 2, True)
  assert (ops["whole"].bytes, ops["whole"].beside) == (2 * 64 * 2 * 128 * 2, False)
  assert (ops["put"].bytes, ops["put"].host_bytes, ops["put"].beside) == (16 * 128 * 4, 16 * 128 * 4, True)
  assert "room" not in ops
  assert ops["wide"].bytes == 2 * 8 * 128 * 2  # of 128 lanes, 64 are filled


def test_what_is_handed_from_slice_to_slice_is_a_collective():
  (collective,) = _ops(COPIES)["sent"].collectives
  assert (collective.kind, collective.bytes, collective.slices) == ("all-reduce", 16 * 128 * 4, 4)
  four = hardware.parse("v5p:2x2x1", 4)
  mesh = {"data": 4, "fsdp": 4, "tensor": 1, "context": 1}
  places = np.asarray([(s, x, y, 0) for s in range(4) for x in range(2) for y in range(2)])
  (row,) = estimate.traffic(work.count(hlo.parse(COPIES)), mesh, four, places)
  assert (row.axes, row.link_seconds) == (("data",), 0.0)
  assert row.network_seconds == pytest.approx(2 * 3 / 4 * 16 * 128 * 4 / 6.25e9)


@pytest.mark.parametrize(
  "text, elements",
  [
    ("bf16[2,4096,32,64]{3,1,2,0:T(8,128)(2,1)}", 2 * 4096 * 32 * 128),
    ("f32[3,10,130]{2,1,0:T(8,128)}", 3 * 16 * 256),
    ("f32[16,3]{0,1:T(8,128)S(1)}", 8 * 128),  # the first axis is the minor one
    ("f32[1000]{0:T(1024)}", 1024),
    ("f32[3,10]{1,0}", 30),
    ("f32[3,10]", 30),
    ("s32[]{:T(128)}", 1),
  ],
)
def test_tiles_are_filled_up(text, elements):
  (array,) = hlo.arrays(text)
  assert array.stored == elements * (2 if text.startswith("bf16") else 4)


def test_collectives_and_their_groups():
  found = {c.kind: (c, n) for c, n in work.count(hlo.parse(PROGRAM)).collectives()}
  assert set(found) == {"all-gather", "reduce-scatter"}
  gather, times = found["all-gather"]
  assert times == 3 and gather.bytes == 16 * 256 * 2 and gather.groups.tolist() == [[0, 2], [1, 3]]
  assert found["reduce-scatter"][0].bytes == 8 * 256 * 2
  assert found["reduce-scatter"][0].groups.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
  "text, groups",
  [
    ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}, x", [[0, 1, 2, 3]]),
    (
      "replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=3], device_ids=([3,2]T(1,0)) {'axis_0'}",
      [[0, 1], [2, 3], [4, 5]],
    ),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
  ],
)
def test_notations_of_groups(text, groups):
  assert hlo.replica_groups(f", channel_id=1, {text}, dimensions={{0}}").tolist() == groups


@pytest.mark.parametrize(
  "out, lhs, rhs, attributes, flops",
  [
    ((6, 7), (6, 5), (5, 7), "dim_labels=bf_io->bf", 2 * 6 * 7 * 5),
    ((6, 7), (5, 6), (5, 7), "dim_labels=fb_io->bf", 2 * 6 * 7 * 5),
    # A batch of products, as a TPU writes it: one window place holds a value, the others are padding.
    (
      (9, 4, 7),
      (5, 9),
      (5, 4, 7),
      "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=fb0_i0o->b0f",
      2 * 9 * 4 * 7 * 5,
    ),
    (
      (1, 8, 8, 2),
      (1, 8, 8, 3),
      (3, 3, 3, 2),
      "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
      2 * 22 * 22 * 6,
    ),
    (
      (1, 4, 4, 2),
      (1, 8, 8, 3),
      (2, 2, 3, 2),
      "window={size=2x2 stride=2x2}, dim_labels=b01f_01io->b01f",
      2 * 16 * 4 * 6,
    ),
  ],
)
def test_flops_of_convolutions(out, lhs, rhs, attributes, flops):
  if "fb0" in attributes:
    lhs = (*lhs, 1)
  assert instruction_flops.convolution(out, lhs, rhs, attributes) == flops


def test_flops_of_attention_kernels():
  shapes = [((1, 4, 4), "s8"), ((2, 4, 1024, 64), "bf16"), ((2, 4, 1024, 64), "bf16")]
  whole = 2.0 * 2 * 4 * 1024 * 1024 * 64
  settings = '"block_q": 256, "block_kv": 256, "block_q_dkv": 256, "block_kv_dkv": 256'
  gradients, parts = [(256, 64)] + [(2, 4, 1024, 64)] * 2, [(4, 2, 4, 1024, 64)]
  share = 10 / 16  # of four by four blocks, those on and under the diagonal
  assert instruction_flops.splash_flops("splash_mha_fwd_segmented.3", shapes, gradients[1:2], settings) == 2 * whole * share
  assert instruction_flops.splash_flops("splash_mha_dkv_segmented", shapes, parts + gradients, settings) == 5 * whole * share
  assert instruction_flops.splash_flops("splash_mha_dkv", shapes, gradients, settings) == 4 * whole * share
  assert instruction_flops.splash_flops("another_kernel", shapes, gradients, settings) == 0
  assert instruction_flops.causal_share(512, 512, 512) == 1.0 and instruction_flops.causal_share(1024, 512, 256) == 6 / 8


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no HLO"):
    hlo.parse("module @jit_step {}")


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
  ops = _ops(CHAIN)
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
  ops = _ops(BESIDE)
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
    "a100": "NVIDIA A100",
    "h100": "NVIDIA H100",
    "h200": "NVIDIA H200",
  }
  assert {n: hardware.CHIPS[n].flops for n in names} == {n: flops.PEAKS[k] for n, k in names.items()}


SCATTER = textwrap.dedent("""\
    HloModule jit_put, is_scheduled=true

    %keep (old: bf16[], new: bf16[]) -> bf16[] {
      %old = bf16[] parameter(0)
      ROOT %new = bf16[] parameter(1)
    }

    %fused_put (p0: bf16[1000,64], p1: s32[4,1], p2: bf16[4,64]) -> bf16[1000,64] {
      %p0 = bf16[1000,64]{1,0} parameter(0)
      %p1 = s32[4,1]{1,0} parameter(1)
      %p2 = bf16[4,64]{1,0} parameter(2)
      ROOT %put = bf16[1000,64]{1,0} scatter(%p0, %p1, %p2), update_window_dims={1}, to_apply=%keep
    }

    ENTRY %main (cache: bf16[1000,64], at: s32[4,1], new: bf16[4,64]) -> bf16[1000,64] {
      %cache = bf16[1000,64]{1,0} parameter(0)
      %at = s32[4,1]{1,0} parameter(1)
      %new = bf16[4,64]{1,0} parameter(2)
      WHAT
    }
    """)


@pytest.mark.parametrize("what", [
    "ROOT %put.1 = bf16[1000,64]{1,0} fusion(%cache, %at, %new), kind=kCustom, calls=%fused_put",
    "ROOT %put.1 = bf16[1000,64]{1,0} scatter(%cache, %at, %new), update_window_dims={1}, to_apply=%keep",
])  # fmt: skip
def test_what_is_put_into_a_cache_counts_not_the_cache(what):
  counted = work.count(hlo.parse(SCATTER.replace("WHAT", what)))
  assert counted.bytes == 4 * 4 + 2 * 4 * 64 * 2  # indices, and the new rows read and written


# As libtpu 0.0.50 writes a program: an element of a tuple by its number, and a computation of another execution thread.
NUMBERED = """\
HloModule step, is_scheduled=true

%offloaded (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %moved = bf16[8,128]{1,0} copy(%p)
}, execution_thread="sparsecore"

%body (state: (s32[], bf16[8,128], (bf16[8,128], f32[4]))) -> (s32[], bf16[8,128], (bf16[8,128], f32[4])) {
  %state = (s32[], bf16[8,128]{1,0}, (bf16[8,128]{1,0}, f32[4]{0})) parameter(0)
  %one = s32[] constant(1)
  %next = s32[] add(%state#0, %one)
  %sent = ((bf16[8,128]{1,0}), bf16[8,128]{1,0}, u32[]) async-start(%state#1), calls=%offloaded
  %done = bf16[8,128]{1,0} async-done(%sent)
  %same = f32[4]{0} copy(%state#2#1)
  %pair = (bf16[8,128]{1,0}, f32[4]{0}) tuple(%done, %same)
  ROOT %out = (s32[], bf16[8,128]{1,0}, (bf16[8,128]{1,0}, f32[4]{0})) tuple(%next, %done, %pair)
}

%condition (state.1: (s32[], bf16[8,128], (bf16[8,128], f32[4]))) -> pred[] {
  %state.1 = (s32[], bf16[8,128]{1,0}, (bf16[8,128]{1,0}, f32[4]{0})) parameter(0)
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%state.1#0, %three), direction=LT
}

ENTRY %main (a: bf16[8,128], b: f32[4]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %zero = s32[] constant(0)
  %rest = (bf16[8,128]{1,0}, f32[4]{0}) tuple(%a, %b)
  %begin = (s32[], bf16[8,128]{1,0}, (bf16[8,128]{1,0}, f32[4]{0})) tuple(%zero, %a, %rest)
  %loop = (s32[], bf16[8,128]{1,0}, (bf16[8,128]{1,0}, f32[4]{0})) while(%begin), condition=%condition, body=%body
  ROOT %result = bf16[8,128]{1,0} copy(%loop#1)
}
"""


def test_elements_of_tuples_may_be_written_by_number():
  module = hlo.parse(NUMBERED)
  body, entry = module.computations["body"], module.computations["main"]
  assert body.root == "out" and entry.root == "result"
  assert body.instructions["state#1"].arrays[0].dims == (8, 128) and len(body.instructions["state#2"].arrays) == 2
  assert body.instructions["state#2#1"].arrays[0].dims == (4,)
  counted = work.count(module)
  assert counted.unknown_loops == ()
  bytes_of = {o.name: (o.times, o.bytes) for o in counted.ops}
  assert bytes_of["moved"] == (3, 2 * 2 * 8 * 128)  # an element, not the whole tuple
  assert bytes_of["same"] == (3, 2 * 4 * 4) and bytes_of["result"] == (1, 2 * 2 * 8 * 128)


def test_an_element_of_what_is_no_tuple_is_refused():
  with pytest.raises(ValueError, match="is no tuple"):
    hlo.parse(NUMBERED.replace("copy(%loop#1)", "copy(%a#1)"))
