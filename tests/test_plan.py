"""`orthus plan`: topologies, the report, searches, bad requests; and every shipped TPU variant compiles and fits."""

import dataclasses
import importlib.util
import json
import math
import os
from pathlib import Path
import types

import numpy as np
import pytest
import tiny

from orthus_jax import cli
from orthus_jax.commands.plan import _make
from orthus_jax.config import Config, LoraConfig
from orthus_jax.config.command_line import load_config
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.models.orthus import describe
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.planning import (
  calibration,
  child_process,
  closed_form,
  hardware,
  hlo,
  program,
  published,
  report,
  report_text,
  search,
  traced,
  work,
)  # fmt: skip
from orthus_jax.training import flops
from orthus_jax.training.optimizer import make_optimizer, trainable_names
from orthus_jax.training.state import plan_run
from orthus_jax.training.tasks import OrthusTask

pytestmark = pytest.mark.planner

ROOT = Path(__file__).parent.parent
SEVEN_B = f"{ROOT}/configs/orthus_7b.py"
# What each machine of configs/orthus_7b.py is, for `orthus plan`.
TPUS = {
  "v5e-256": ("v5e:16x16", 1),
  "v5p-128": ("v5p:4x4x4", 1),
  "v6e-256": ("v6e:16x16", 1),
  "2xv5p-128": ("v5p:4x4x4", 2),
  "v7x-128": ("tpu7x:4x4x4", 1),
}
GPUS = {"h100-8": "h100:8", "h200-1": "h200:1", "h200-8": "h200:8", "b200-8": "b200:8", "gb200-64": "gb200:64"}
# Machine code takes minutes for each variant: what goes wrong only there is looked for on request.
STOP_AT = "code" if os.environ.get("ORTHUS_PLAN_WHOLE") else "schedule"


def needs_libtpu():
  return pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e .[tpu]"
  )


@pytest.fixture(scope="module")
def small():
  """A compiled step for eight CPU devices and its plan."""
  config = tiny.config(model__transformer__layers=3, mesh__data=2, mesh__fsdp=4)
  topology = hardware.parse("cpu:8")
  compiled = program.compile_step(config, hardware.devices(topology))
  return config, compiled, report.from_program(config, topology, compiled, title="tiny", images=True)


@pytest.mark.parametrize(
  "text, slices, message",
  [
    ("v7:4x4", 1, "unknown topology 'v7:4x4'"),
    ("v7x:4x4x4", 1, "the nearest is tpu7x"),
    ("tpu7x-128", 1, "write the shape in chips"),
    ("tpu7x:4x4", 1, "tpu7x has 3 dimensions: write tpu7x:4x4x4"),
    ("gb200:128", 1, "the largest node of gb200 has 72 chips"),
    ("v5p-128", 1, "write the shape in chips, such as v5p:4x4x4"),
    ("v5p:8x8", 1, "v5p has 3 dimensions: write v5p:4x4x4"),
    ("v5e", 1, "give its shape in chips, such as v5e:16x16"),
    ("v5e:32x32", 1, "the largest slice of v5e has 256 chips; use --slices"),
    ("h100:16", 1, "the largest node of h100 has 8 chips"),
  ],
)
def test_unknown_topologies_are_refused(text, slices, message):
  with pytest.raises(BadRequest, match="topology") as e:
    hardware.parse(text, slices)
  assert message in str(e.value)


def test_a_program_that_cannot_be_read_gives_no_figures():
  compiled = types.SimpleNamespace(text="HloModule of another kind", mesh=types.SimpleNamespace(shape={"fsdp": 4}))
  with pytest.raises(Stopped, match="can't be read .*nothing is planned") as e:
    report.from_program(Config(), hardware.parse("v5e:2x2"), compiled, title="", images=True)
  assert e.value.status == 1


def test_topologies_are_told_in_chips():
  two = hardware.parse("v5p:4x4x4", 2)
  assert (two.chips, two.devices, two.per_slice, str(two)) == (128, 128, 64, "2 x v5p:4x4x4")
  two = hardware.parse("tpu7x:4x4x4", 2)  # two devices a chip
  assert (two.chips, two.devices, two.per_slice) == (128, 256, 128)


@needs_libtpu()
def test_a_tpu7x_is_two_devices_and_other_tpus_one():
  for name, devices in (("tpu7x:2x2x1", 8), ("v5p:2x2x1", 4), ("v4:2x2x1", 4), ("v5e:1x1", 1), ("v6e:1x1", 1)):
    topology = hardware.parse(name)
    found = hardware.devices(topology)
    places = hardware.places(topology, found)
    assert len(found) == topology.devices == len(np.unique(places, axis=0)) == devices
    assert topology.devices // topology.chips == 1 + places[:, -1].max()


@pytest.mark.slow
def test_flops_of_the_compiled_step_agree_with_the_closed_form_and_the_trace(small):
  config, compiled, plan = small
  counted = work.count(hlo.parse(compiled.text))
  assert not counted.unknown_loops and not counted.unknown_kernels
  assert counted.flops * 8 == pytest.approx(traced.flops(compiled.jaxpr), rel=0.03)
  assert plan.flops["total"] == pytest.approx(plan.flops["closed_form"], rel=0.03)
  kinds = {(t["kind"], t["axes"]) for t in plan.traffic}
  assert any("fsdp" in axes for _, axes in kinds) and any("data" in axes for _, axes in kinds)


@pytest.mark.slow
def test_a_plan_reads_well_and_comes_back_from_json(small, tmp_path):
  config, _, plan = small
  again = report.read(json.loads(json.dumps(plan.to_json())))
  shown = report_text.text(plan, config=config, against=again)
  assert "mesh data 2 x fsdp 4" in shown and "against tiny on cpu:8" in shown
  assert all(len(line) <= 120 and "\x1b" not in line for line in shown.splitlines())
  with pytest.raises(BadRequest, match="no report"):
    report.read({"title": "else"})


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "kv_mlp", "mlp", "qkv", "attention", "full"])
def test_closed_form_agrees_with_the_traced_program(remat):
  check_closed_form(tiny.config(model__transformer__remat=remat, run__batch_size=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regression", "chameleon", "showo", "projection"])
def test_closed_form_knows_every_system(name):
  systems = tiny.SYSTEMS | {"projection": {"model__vision_embedding__projection": True}}
  config = tiny.config(run__batch_size=2, **systems[name])
  check_closed_form(config, rel=0.03 if config.model.image_head.kind in ("codes", "masked") else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("remat, targets", [
    ("none", (".*",)), ("kv_mlp", (".*",)), ("qkv", (".*",)), ("full", (".*",)), ("mlp", ("attention/(q|out)", "mlp/down")),
    ("dots", ("attention/k", "mlp/up")),
])  # fmt: skip
def test_closed_form_knows_adapters(remat, targets):
  # Of a rank at which they are a good part of a layer's products. A frozen LM head's gradient is traced, and dropped only
  # by the compiler.
  config = tiny.config(
      model__transformer__remat=remat, model__lora__rank=32, model__lora__targets=targets, run__batch_size=2,
      model__diffusion__loss_weight=0.0, optimizer__trainable=["lm_head"],
  )  # fmt: skip
  check_closed_form(config, rel=1e-6)


def check_closed_form(config, *, rel=0.03):
  device = hardware.devices(hardware.parse("cpu:1"))
  compiled = program.compile_step(config, device, stop_at="trace")
  closed = closed_form.closed(config, compiled.layout.names, kernel=False)
  assert traced.flops(compiled.jaxpr) == pytest.approx(sum(closed.program.values()), rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["stage1-v5e-256", "post-v5e-256", "post-lora-h100-1"])
def test_closed_form_of_7b_agrees_with_the_traced_program(variant):
  config = load_config(f"{SEVEN_B}:{variant}")
  config = dataclasses.replace(
    config, mesh=dataclasses.replace(config.mesh, data=1, fsdp=1), run=dataclasses.replace(config.run, batch_size=1)
  )
  compiled = program.compile_step(config, hardware.devices(hardware.parse("cpu:1")), stop_at="trace")
  closed = closed_form.closed(config, compiled.layout.names, kernel=False)
  assert traced.flops(compiled.jaxpr) == pytest.approx(sum(closed.program.values()), rel=0.03)


def _plan(peak: float, mfu: float, **changes) -> report.Plan:
  """A made-up plan on v5e:16x16."""
  plan = report.Plan(
      title="made up", topology="v5e:16x16", chips=256, mesh=dict(data=1, fsdp=256, tensor=1, context=1), rows=256,
      length=4096, remat="full",
      memory={"state_trained": 1 << 30, "arguments": 2 << 30, "outputs": 0, "temporaries": int(peak * hardware.GIB), "code": 0,
              "host": 0, "peak": int(peak * hardware.GIB), "capacity": hardware.CHIPS["v5e"].memory},
      fits=peak <= 0.95 * 15.75,
      flops=dict(products=1e12, attention=1e11, total=1.1e12, closed_form=1.1e12, model=1e12, model_full=1.2e12),
      bytes=dict(memory=10**9, host=0),
      traffic=(
          dict(
              kind="all-gather", axes=("fsdp",), count=3, bytes=10**9, link_seconds=0.01, network_seconds=0.0,
              hidden_seconds=0.0,
          ),
      ),
      times=dict(compute=0.1, memory=0.05, network=0.01, host=0.0, bound=0.1, limit="compute", calibrated=0.2),
      tokens_per_chip=dict(calibrated=2e4, bound=4e4),
      mfu=dict(calibrated=mfu, calibrated_full=mfu, bound=2 * mfu, bound_full=2 * mfu),
      seconds=dict(trace=1.0, compile=2.0), notes=(),
  )  # fmt: skip
  return dataclasses.replace(plan, **changes)


@pytest.fixture
def here(monkeypatch):
  """Plans are made in this process."""
  monkeypatch.setattr(child_process, "run", lambda function, *args, **kwargs: function(*args, **kwargs))


def test_a_plan_that_does_not_fit_says_by_how_much_and_what_to_change(capsys, monkeypatch, here):
  monkeypatch.setattr(report, "make", lambda *_, **__: _plan(20.0, 0.5, remat="none"))
  argv = ["plan", f"--config={SEVEN_B}:post-v5e-256", "--topology=v5e:16x16"]
  assert cli.main(argv) == 3
  shown = capsys.readouterr().out
  assert "DOES NOT FIT" in shown and "too large by 5.0 GiB a device" in shown
  assert "--config.model.transformer.remat=full" in shown
  monkeypatch.setattr(report, "make", lambda *_, **__: _plan(10.0, 0.5))
  assert cli.main([*argv, "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["fits"] is True


def test_search_finds_the_best_that_fits_and_leaves_out_what_can_not(monkeypatch, capsys, here):
  asked = []
  need = {"none": 8, "dots": 6, "kv_mlp": 5.5, "mlp": 5, "qkv": 4, "attention": 3, "full": 2, "offload": 2}

  def make(config, topology, **_):
    m, remat = config.mesh, config.model.transformer.remat
    asked.append((m, remat, config.run.batch_size / (m.data * m.fsdp)))
    size = need[remat] * asked[-1][2]
    return _plan(size, 0.3 + 0.02 * size - 0.1 * (m.tensor > 1))

  monkeypatch.setattr(report, "make", make)
  argv = ["plan", f"--config={SEVEN_B}:post-v5e-256", "--topology=v5e:16x16", "--search", "--limit=12", "--json"]
  assert cli.main(argv) == 0
  found = json.loads(capsys.readouterr().out)
  assert len(found["tried"]) == 12 and found["tried"][0]["plan"]["fits"]
  assert "--config.run.batch_size=" in found["best"] and "--config.mesh.tensor=1" in found["best"]
  mfus = [t["plan"]["mfu"]["calibrated"] for t in found["tried"] if t["plan"]["fits"]]
  assert mfus == sorted(mfus, reverse=True) and len(mfus) >= 2
  order = search.policies()  # "offload" is the last, and computes as much again as "qkv"
  again = {r: order.index(r) for r in order} | {"offload": order.index("qkv")}
  for k, (mesh, remat, n) in enumerate(asked):
    # What keeps as much of as many rows as something that didn't fit isn't compiled; nor what keeps less than what fitted.
    later = [(r, p) for m, r, p in asked[k + 1 :] if m == mesh]
    if need[remat] * n > 0.95 * 15.75:
      assert not any(order.index(r) <= order.index(remat) and p >= n for r, p in later)
    else:
      assert not any(again[r] > again[remat] and p == n for r, p in later)
  assert {(m.data, m.fsdp) for m, *_ in asked} >= {(1, 256), (16, 16)}
  assert any(remat == "offload" for _, remat, _ in asked)


def test_search_asks_once_of_a_mesh_that_is_refused(monkeypatch, capsys, here):
  asked = []

  def make(config, topology, **_):
    asked.append((config.mesh.data, config.mesh.fsdp))
    if config.mesh.data > 1:
      raise BadRequest("can't be laid")
    return _plan(10.0, 0.4)

  monkeypatch.setattr(report, "make", make)
  assert cli.main(["plan", f"--config={SEVEN_B}:post-v5e-256", "--topology=v5e:16x16", "--search", "--limit=4"]) == 0
  assert asked.count((16, 16)) == 1 and "can't be laid" in capsys.readouterr().err


@pytest.mark.parametrize(
  "options, message",
  [
    ([], "no --topology"),
    (["--topology=v5e:5000x1"], "the largest slice"),
    (["--topology=cpu:8", "--config.mesh.fsdp=3", "--config.mesh.data=1"], "doesn't fit 8 devices"),
    (["--topology=cpu:8", "--config.mesh.fsdp=8", "--config.run.batch_size=12"], "make it a multiple of 8"),
    (["--topology=cpu:8", "--config.model.transformer.remat=most"], "choose one of none, dots"),
    (["--topology=v5e:16x16", "--slices=0"], "--slices=0 must be"),
    (["--topology=v5e:16x16", "--against=nowhere.json"], "can't be read"),
    (["--topology=v5e:16x16", "--workdir=x"], "leave out --workdir"),
    (["--topology=h100:8", "--search"], "--search needs a TPU topology"),
    (["--topology=cpu:8", "--generate=8", "--config.task=vision_tokenizer"], "no plan for task=vision_tokenizer"),
    (["--topology"], "--topology lacks a value"),
    (["--calibration=3"], "--calibration takes no value"),
    (["--calibration", "--topology=v5e:16x16"], "--calibration has no use for --topology"),
    (["--topology=v5e:16x16", "--search", "--generate=1", "--limit=abc"], "--search has no use for --generate"),
    (["--topology=v5e:16x16", "--search", "--against=x.json"], "--search has no use for --against"),
    (["--topology=v5e:16x16", "--generate=1", "--against=x.json"], "--generate has no use for --against"),
    (["--topology=v5e:16x16", "--limit=3"], "--limit is of --search"),
    (["--topology=v5e:16x16", "--against=x.json", "--json"], "whose place --json takes: leave one of them out"),
  ],
)
def test_bad_requests_end_in_one_line(options, message, capsys):
  assert cli.main(["plan", f"--config={SEVEN_B}:post-v5e-256", *options]) == 2
  said = capsys.readouterr().err
  assert message in said and said.startswith("orthus: ") and said.count("\n") == 1


@pytest.mark.parametrize("stage", ["stage1", "post", "edit", "story", "pretrain"])
@pytest.mark.parametrize("machine", [*TPUS, *GPUS])
def test_shipped_variants_are_valid(stage, machine):
  config = load_config(f"{SEVEN_B}:{stage}-{machine}")
  m = config.mesh
  assert config.run.batch_size % (m.data * m.fsdp) == 0
  topology = hardware.parse(*TPUS[machine]) if machine in TPUS else hardware.parse(GPUS[machine])
  assert m.data * m.fsdp * m.tensor * m.context == topology.devices


@pytest.mark.parametrize("machine", [*TPUS, *GPUS])
def test_pretraining_is_post_trainings_program(machine):
  """So that one that compiles and fits stands for the other: what differs are numbers of the optimiser."""
  pretrain, post = (load_config(f"{SEVEN_B}:{stage}-{machine}") for stage in ("pretrain", "post"))
  for part in ("model", "data", "mesh"):
    assert getattr(pretrain, part) == getattr(post, part)
  assert pretrain.run.batch_size == post.run.batch_size
  schedule = ("learning_rate", "warmup_steps", "schedule", "final_fraction", "weight_decay")
  assert dataclasses.replace(pretrain.optimizer, **{n: getattr(post.optimizer, n) for n in schedule}) == post.optimizer


@pytest.mark.parametrize("stage", ["stage1", "post", "edit", "story", "pretrain"])
def test_each_stage_trains_what_the_paper_says(stage):
  """Stage 1: diffusion head, codebook and token embedding; then all but the VQGAN."""
  trained = 49_980_160 + 2_097_152 + 268_435_456 if stage == "stage1" else 7_134_462_595 - 68_718_467
  config = load_config(f"{SEVEN_B}:{stage}-h100-8")
  shapes = describe(config.model)[1]
  assert sum(math.prod(shapes[n]) for n in trainable_names(config.optimizer, shapes)) == trained


def test_a_row_of_each_stage_holds_its_documents():
  """Of the lengths that the pictures' 1,026 positions and as long a text as there is room for make."""
  for stage, pictures, documents in (("stage1", 1, 1), ("post", 1, 3), ("edit", 2, 1), ("story", 3, 1)):
    data = load_config(f"{SEVEN_B}:{stage}-h100-8").data
    room = data.sequence_length - documents * (1 + pictures * 1026 + (1 if stage == "stage1" else 2))
    assert room >= {"stage1": 0, "post": 3 * 256, "edit": 200, "story": 900}[stage], (stage, room)
    assert data.images_per_row >= pictures * documents


@pytest.mark.slow
def test_a_gpus_plan_says_whose_bytes_it_counts(small):
  config, compiled, _ = small
  notes = report.from_program(config, hardware.parse("h100:8"), compiled, title="tiny", images=True).notes
  assert any("a GPU is faster than both times" in n for n in notes)


@pytest.mark.slow
def test_a_plan_says_at_which_rate_it_counts_products_in_8_bits(small):
  config, compiled, _ = small
  for quantization, said in (("none", 0), ("int8", 1)):
    transformer = dataclasses.replace(config.model.transformer, quantization=quantization)
    asked = dataclasses.replace(config, model=dataclasses.replace(config.model, transformer=transformer))
    notes = report.from_program(asked, hardware.parse("cpu:8"), compiled, title="tiny", images=True).notes
    assert sum("int8 are counted at the rate of bf16" in n for n in notes) == said


@pytest.mark.parametrize("machine", ["h100-1", "h200-1"])
def test_7b_beside_adapters_fits_one_gpu(machine):
  config = load_config(f"{SEVEN_B}:post-lora-{machine}")
  mesh = mesh_lib.make_mesh(config.mesh, devices=hardware.devices(hardware.parse("cpu:1")))
  optimizer = make_optimizer(config.optimizer, config.run)
  layout, _ = plan_run(config, OrthusTask(config, None).init, optimizer=optimizer, mesh=mesh)
  trained = sum(math.prod(v.shape) for v in layout.shapes.trained.values())
  rank, layers = config.model.lora.rank, config.model.transformer.layers
  assert trained == layers * rank * (4 * (4096 + 4096) + 3 * (4096 + 11008)) == 159_907_840
  assert trained == layers * sum(a + b for a, b in flops.adapters(config.model).values())
  parts = program._state_bytes(layout)
  assert parts["trained"] == 4 * trained and parts["moments"] == pytest.approx(8 * trained, abs=100)
  assert 2 * 7_134_462_595 <= parts["frozen"] < 2.03 * 7_134_462_595  # but for the VQGAN, in bfloat16
  assert 16e9 < sum(parts.values()) < 17e9


def test_mfu_counts_adapters_and_no_gradients_of_the_weights_beside_them():
  config = load_config(f"{SEVEN_B}:post-lora-h100-1")
  found = flops.passes(config.model, {"transformer/layers/mlp/up_lora_a", "transformer/layers/mlp/up_lora_b"})
  assert found == {"backbone": "passed", "lm_head": "passed"}
  bare = dataclasses.replace(config.model, lora=LoraConfig())
  assert flops.token(config.model, 4096, **found) - flops.token(bare, 4096, **found) == 6 * 159_907_840


def test_an_unknown_variant_is_refused(capsys):
  assert cli.main(["plan", f"--config={SEVEN_B}:post-v9", "--topology=v5e:16x16"]) == 2
  assert "unknown variant 'post-v9': STAGE-MACHINE of post and v5e-256" in capsys.readouterr().err
  assert cli.main(["plan", f"--config={SEVEN_B}:post-h100-1", "--topology=h100:1"]) == 2
  assert "unknown variant 'post-h100-1'" in capsys.readouterr().err


def test_calibration_errors_are_relative_to_what_was_published():
  run = published.RUNS[2]
  plan = _plan(10.0, 0.4, times=dict(_plan(1, 1).times, calibrated=run.seconds * 1.1))
  (row,) = calibration.errors([(run, plan)])
  assert row["error"] == pytest.approx(0.1) and row["published"] == 2.21


@needs_libtpu()
@pytest.mark.slow
def test_the_calibrated_time_is_near_what_was_published(capsys):
  assert cli.main(["plan", "--calibration", "--json"]) == 0
  runs = json.loads(capsys.readouterr().out)["runs"]
  assert len(runs) == len(published.RUNS) == 4
  for r in runs:
    assert abs(r["error"]) < 0.05, (r["run"], r["error"])


@needs_libtpu()
@pytest.mark.slow
@pytest.mark.parametrize(
  "machine, stage",  # a TPU7x's compiler takes several times as long: of its two, the larger
  [(m, s) for m in TPUS for s in ("stage1", "post") if (m, s) != ("v7x-128", "stage1") or STOP_AT == "code"],
)
def test_every_shipped_tpu_variant_compiles_and_fits(machine, stage):
  config = load_config(f"{SEVEN_B}:{stage}-{machine}")
  plan = child_process.run(_make, "report", config, hardware.parse(*TPUS[machine]), title=f"{stage}-{machine}", stop_at=STOP_AT)
  assert plan.fits, f"{plan.memory['peak'] / hardware.GIB:.2f} GiB of {plan.memory['capacity'] / hardware.GIB:.2f}"
  assert plan.flops["total"] == pytest.approx(plan.flops["closed_form"], rel=0.03), plan.flops
  assert [n.partition(" is taken")[0] for n in plan.notes] == ["prepared data"]
  assert (plan.memory["code"] > 0) == (STOP_AT == "code")
  # Fused into other work, or done by sparse cores, much of what devices send each other goes on beside products.
  sent, hidden = (sum(t[k] for t in plan.traffic) for k in ("link_seconds", "hidden_seconds"))
  assert hidden > 0.4 * sent, (hidden, sent)
  # What goes between slices is seen: it isn't a collective of the program, but handed to a runtime.
  assert (sum(t["network_seconds"] for t in plan.traffic) > 0) == (machine == "2xv5p-128")
