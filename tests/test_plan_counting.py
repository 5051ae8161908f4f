"""The planner reads compiled programs: FLOPs, bytes, collectives, loops."""

import textwrap

import numpy as np
import pytest

from orthus_jax.planning import estimate, hardware, hlo, instruction_flops, work
from orthus_jax.planning.work import Op

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


def ops_by_name(text: str) -> dict[str, Op]:
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
  ops = ops_by_name(PROGRAM)
  assert ops["near"].bytes == 8 * 128 * 2  # read, but written to on-chip memory
  assert (
    ops["fusion"].bytes == 128 * 256 * 2 + 8 * 256 * 2 + 4
  )  # one layer's weights, the result and the index; its input is near
  far = ops_by_name(PROGRAM.replace("S(1)", "S(5)"))
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
  ops = ops_by_name(COPIES)
  assert (ops["part"].bytes, ops["part"].beside) == (64 * 8 * 128 * 2, True)  # read, and written to on-chip memory
  assert (ops["sugared"].bytes, ops["sugared"].beside) == (64 * 4 * 128 * 2, True)
  assert (ops["whole"].bytes, ops["whole"].beside) == (2 * 64 * 2 * 128 * 2, False)
  assert (ops["put"].bytes, ops["put"].host_bytes, ops["put"].beside) == (16 * 128 * 4, 16 * 128 * 4, True)
  assert "room" not in ops
  assert ops["wide"].bytes == 2 * 8 * 128 * 2  # of 128 lanes, 64 are filled


def test_what_is_handed_from_slice_to_slice_is_a_collective():
  (collective,) = ops_by_name(COPIES)["sent"].collectives
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
# A TPU7x keeps a stack in tiles of 16 rows and sees the same place in tiles of 8 where a layer is taken out or put in.
RETILED = textwrap.dedent("""\
    HloModule m, is_scheduled=true

    %view (v: bf16[32,256,128]) -> bf16[32,256,128] {
      %v = bf16[32,256,128]{2,1,0:T(16,128)(2,1)} parameter(0)
      ROOT %same = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} copy(%v)
    }

    %take (stack: bf16[32,256,128], i: s32[]) -> bf16[1,256,128] {
      %stack = bf16[32,256,128]{2,1,0:T(16,128)(2,1)} parameter(0)
      %seen = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} fusion(%stack), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%view
      %i = s32[]{:T(128)S(6)} parameter(1)
      %zero = s32[]{:T(128)} constant(0)
      ROOT %layer = bf16[1,256,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%seen, %i, %zero, %zero), dynamic_slice_sizes={1,256,128}
    }

    %put (stack: bf16[32,256,128], layer: bf16[1,256,128], i: s32[]) -> bf16[32,256,128] {
      %stack = bf16[32,256,128]{2,1,0:T(16,128)(2,1)} parameter(0)
      %seen = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} fusion(%stack), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%view
      %layer = bf16[1,256,128]{2,1,0:T(8,128)(2,1)} parameter(1)
      %i = s32[]{:T(128)S(6)} parameter(2)
      %zero = s32[]{:T(128)} constant(0)
      ROOT %whole = bf16[32,256,128]{2,1,0:T(16,128)(2,1)} dynamic-update-slice(%seen, %layer, %i, %zero, %zero)
    }

    ENTRY %main (stack: bf16[32,256,128], i: s32[]) -> bf16[32,256,128] {
      %stack = bf16[32,256,128]{2,1,0:T(16,128)(2,1)} parameter(0)
      %i = s32[]{:T(128)S(6)} parameter(1)
      %taken = bf16[1,256,128]{2,1,0:T(8,128)(2,1)} fusion(%stack, %i), kind=kLoop, calls=%take
      ROOT %kept = bf16[32,256,128]{2,1,0:T(16,128)(2,1)} fusion(%stack, %taken, %i), kind=kLoop, calls=%put
    }
    """)


def test_of_a_stack_seen_in_other_tiles_the_layer_counts():
  ops, layer = ops_by_name(RETILED), 256 * 128 * 2
  assert (ops["taken"].bytes, ops["kept"].bytes) == (2 * layer, 2 * layer)


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
