"""One step's numbers: on any mesh, in any number of microbatches, after any restart."""

import json
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from orthus_jax.config import MeshConfig
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.errors import BadRequest
from orthus_jax.models import params as params_lib, products
from orthus_jax.parallel import compiler, mesh as mesh_lib
from orthus_jax.training import loop, losses
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.goodput import Ledger
from orthus_jax.training.metric_writer import read_metrics
from orthus_jax.training.optimizer import make_optimizer, schedule, trainable_names
from orthus_jax.training.state import digest, plan_state
from orthus_jax.training.step import batch_shardings, jit_step, train_step
from orthus_jax.training.tasks import OrthusTask

TK = tiny.tokenizer()


def steps(n=3, *, devices=None, **changes):
  """Metrics and final parameters after n steps."""
  config = tiny.config(**changes)
  task = OrthusTask(config, Pipeline(tiny.TinySource(), TK, config))
  mesh = mesh_lib.make_mesh(config.mesh, devices=jax.devices()[: devices or 1])
  optimizer = make_optimizer(config.optimizer, config.run)
  with jax.set_mesh(mesh):
    layout, create = plan_state(
        task.init, select=lambda s: trainable_names(config.optimizer, s), optimizer=optimizer, mesh=mesh,
        ema=config.optimizer.ema_decay > 0,
    )  # fmt: skip
    state = create()
    batch = task.batch(0)
    f = jit_step(train_step(task, optimizer, config, layout), layout, mesh, batch, config)
    metrics = []
    for i in range(n):
      state, m = f(state, jax.device_put(task.batch(i), batch_shardings(mesh, batch)))
      metrics.append({k: float(v) for k, v in m.items()})
    return metrics, {k: np.asarray(v) for k, v in state.params.items()}, state


def same(a, b, rtol):
  for x, y in zip(a[0], b[0], strict=True):
    for k in x:
      assert y[k] == pytest.approx(x[k], rel=rtol), k
  for k in a[1]:
    np.testing.assert_allclose(a[1][k], b[1][k], rtol=rtol, atol=rtol, err_msg=k)


@pytest.fixture(scope="module")
def one_device():
  return steps(n=4, optimizer__ema_decay=0.5)


@pytest.mark.slow
def test_accumulation_agrees_with_one_batch(one_device):
  same(one_device, steps(n=4, optimizer__accumulation=4), 1e-4)


@pytest.mark.slow
def test_products_of_bfloat16_are_near_float32s_and_the_same_on_a_mesh(one_device, monkeypatch):
  rounded = dict(model__transformer__matmul_precision="bfloat16")
  (alone,), _, _ = steps(1, **rounded)
  (on_a_mesh,), mesh_params, _ = steps(1, devices=2, mesh__fsdp=2, **rounded)
  monkeypatch.setattr(products, "kind", lambda *_: "anywhere")  # a CPU by itself rounds attention's factors, too
  (as_anywhere,), params, _ = steps(1, **rounded)
  assert on_a_mesh == pytest.approx(as_anywhere, rel=1e-4)
  for name, value in params.items():  # a gradient of nearly nothing may go either way
    assert np.abs(value - mesh_params[name]).mean() < 1e-4, name
  for found in (alone, as_anywhere):
    for k in ("loss", "grad_norm"):
      assert found[k] != one_device[0][0][k] and found[k] == pytest.approx(one_device[0][0][k], rel=0.02), k


@pytest.mark.slow
@pytest.mark.parametrize("power", (0.0, 1.0))
def test_text_loss_is_a_weighted_mean(power):
  config = tiny.config(data__text_length_power=power)
  task = OrthusTask(config, Pipeline(tiny.TinySource(), TK, config))
  model, batch = task.init(), task.batch(0)
  rows = jnp.arange(len(batch.tokens_BT))

  @jax.jit
  def loss(model, batch):
    return task.loss(model, batch, jax.random.key(0), total=task.counts(batch), row_B=rows)[1]

  @jax.jit
  def log_probabilities(model, batch):
    features = losses.features(model, batch.images)
    hidden = model(
        batch.tokens_BT, features_BJC=features.reshape(len(rows), -1, features.shape[-1]), slot_BT=batch.slot_BT,
        position_BT=batch.position_BT, segment_ids_BT=batch.segment_ids_BT,
    )  # fmt: skip
    return jax.nn.log_softmax(model.logits(hidden))

  metrics, logp = loss(model, batch), np.asarray(log_probabilities(model, batch))
  total, weights, right = 0.0, [], []
  for b, t in zip(*np.nonzero(batch.text_weight_BT)):
    total -= batch.text_weight_BT[b, t] * logp[b, t, batch.targets_BT[b, t]]
    weights.append(batch.text_weight_BT[b, t])
    right.append(logp[b, t].argmax() == batch.targets_BT[b, t])
  assert (len(set(weights)) > 1) == (power > 0)
  assert float(metrics["text_loss"]) == pytest.approx(total / sum(weights), rel=1e-5)
  assert float(metrics["text_accuracy"]) == pytest.approx(np.mean(right), rel=1e-5)


@pytest.mark.slow
def test_an_image_counts_once_however_often_it_is_drawn():
  config = tiny.config()
  task = OrthusTask(config, Pipeline(tiny.TinySource(), TK, config))
  model, batch = task.init(), task.batch(0)
  params = {n: v + 0.1 if n.startswith("image_head") else v for n, v in params_lib.split(model)[1].items()}
  model = params_lib.merge(params_lib.split(model)[0], params)  # a fresh head errs alike everywhere
  loss = jax.jit(
      lambda batch: task.loss(model, batch, jax.random.key(0), total=task.counts(batch), row_B=jnp.arange(8))[1]["image_loss"]
  )
  learnt_BG = batch.learnt_image_BG
  total = images = 0
  for b, g in zip(*np.nonzero(learnt_BG >= 0)):
    alone = np.full_like(learnt_BG, -1)
    alone[b, g] = learnt_BG[b, g]
    times = (learnt_BG[b] == learnt_BG[b, g]).sum()
    total, images = total + float(loss(batch._replace(learnt_image_BG=alone))) / times, images + 1 / times
  assert images < (learnt_BG >= 0).sum() and images == pytest.approx(round(images))  # some take turns, some don't
  assert float(loss(batch)) == pytest.approx(total / images, rel=1e-5)


@pytest.mark.slow
def test_rows_draw_noise_of_their_own():
  config = tiny.config()
  task = OrthusTask(config, Pipeline(tiny.TinySource(), TK, config))
  batch = task.batch(0)
  # A row's noise follows from its place in the global batch, so another place gives another loss.
  loss = jax.jit(
      lambda model, row_B: task.loss(model, batch, jax.random.key(0), total=task.counts(batch), row_B=row_B)[1]
  )
  model = task.init()
  first, second = loss(model, np.arange(8)), loss(model, np.arange(8, 16))
  assert float(first["image_loss"]) != float(second["image_loss"])
  assert float(first["text_loss"]) == float(second["text_loss"])


@pytest.mark.slow
def test_losses_fall_and_parts_stay_frozen(one_device):
  _, before, _ = steps(n=0)
  metrics, after, state = one_device
  assert metrics[-1]["text_loss"] < metrics[0]["text_loss"]
  for name in before:
    changed = not np.array_equal(before[name], after[name])
    assert changed == (not name.startswith("vision_tokenizer/")), name
  assert not any("vision_tokenizer" in k for k in state.trained)
  # Frozen parts hold no moments.
  moments = sum(x.size for x in jax.tree.leaves(state.moments))
  trained = sum(x.size for x in state.trained.values())
  assert 2 * trained <= moments <= 2 * trained + 10
  assert not np.array_equal(state.ema["lm_head"], state.trained["lm_head"])


def test_only_named_parts_are_trained():
  names = trainable_names(tiny.config(optimizer__trainable=["image_head/.*"]).optimizer, {"image_head/a": 0, "b": 0})
  assert names == {"image_head/a"}
  with pytest.raises(BadRequest, match="matches no parameter"):
    trainable_names(tiny.config(optimizer__trainable=["nothing"]).optimizer, {"a": 0})
  with pytest.raises(BadRequest, match="no regular expression"):
    trainable_names(tiny.config(optimizer__trainable=["("]).optimizer, {"a": 0})


def test_learning_rate_warms_up_and_decays():
  c = tiny.config(optimizer__warmup_steps=10, optimizer__schedule="linear", optimizer__learning_rate=1.0).optimizer
  rate = schedule(c, 110)
  assert float(rate(0)) == pytest.approx(0.1) and float(rate(9)) == pytest.approx(1.0)
  assert float(rate(60)) == pytest.approx(0.5) and float(rate(110)) == pytest.approx(0.0)


def test_a_mesh_that_does_not_fit_is_refused():
  with pytest.raises(BadRequest, match="doesn't fit 8 devices"):
    mesh_lib.make_mesh(tiny.config(mesh__fsdp=3).mesh, devices=jax.devices()[:8])
  mesh = mesh_lib.make_mesh(tiny.config(mesh__fsdp=8).mesh, devices=jax.devices()[:8])
  with pytest.raises(BadRequest, match="make it a multiple of 16"):
    mesh_lib.check_batch(mesh, 8, accumulation=2)


def _train(workdir, hooks=(), **changes):
  # The loop builds its mesh over all devices.
  config = tiny.config(mesh__fsdp=8, run__log_every=1, **changes)
  checkpoint.open_workdir(workdir, config)
  pipeline = Pipeline(tiny.TinySource(), TK, config)
  return loop.train(config, workdir, OrthusTask(config, pipeline), hooks=hooks)


@pytest.mark.slow
def test_a_run_repeats_itself_and_goes_on_where_it_stopped(tmp_path):
  seen = []  # by what is called every two steps, with the averaged weights
  whole = _train(tmp_path / "a", [(2, lambda step, _, params, writer: seen.append((step, digest(params))))], run__steps=4)
  assert [step for step, _ in seen] == [2, 4] and seen[0][1] != seen[1][1] == whole.params_digest
  assert whole.params_digest == _train(tmp_path / "b", run__steps=4, run__seed=0).params_digest
  assert whole.params_digest != _train(tmp_path / "c", run__steps=4, run__seed=1).params_digest
  assert digest(whole.params) == digest(checkpoint.load_params(tmp_path / "a"))

  # Stopped after two steps of four, then started again.
  config = tiny.config(mesh__fsdp=8, run__steps=4, run__checkpoint_every=2, run__log_every=3)
  checkpoint.open_workdir(tmp_path / "d", config)
  pipeline = Pipeline(tiny.TinySource(), TK, config)

  class Stops(OrthusTask):
    def after_step(self, step, state, graphdef, batch):
      if step == 4:
        raise KeyboardInterrupt
      return state

  began, first = time.monotonic(), Ledger()
  first.keep(tmp_path / "d")
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, tmp_path / "d", Stops(config, pipeline), ledger=first)
  first.close("stopped")
  time.sleep(0.3)
  second = Ledger()
  second.keep(tmp_path / "d")
  resumed = loop.train(config, tmp_path / "d", OrthusTask(config, pipeline), ledger=second)
  spent, wall = second.totals(), time.monotonic() - began
  losses = [row["loss"] for row in read_metrics(tmp_path / "b")]  # each checkpoint is rated by those since the one before
  for step in (2, 4):
    rated = json.loads((tmp_path / "d" / "checkpoints" / str(step) / "metrics" / "metrics").read_text())
    assert rated["loss"] == pytest.approx(np.mean(losses[step - 2 : step]))
  assert sum(spent.seconds.values()) == pytest.approx(spent.wall) == pytest.approx(wall, rel=0.01)
  assert spent.starts == 2 and 0.299 <= spent.seconds["gap"] < 3  # times are kept in rounded seconds
  for part in ("startup", "compile", "step", "data_wait", "checkpoint"):
    assert spent.seconds[part] > 0, part
  # The first start compiled and did four steps, the last two of which are done again.
  assert 0 < spent.seconds["lost"] < first.seconds()["step"] + first.seconds()["data_wait"] + first.seconds()["other"]
  assert spent.seconds["compile"] == pytest.approx(first.seconds()["compile"] + second.seconds()["compile"], abs=0.01)
  assert resumed.params_digest == whole.params_digest
  rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
  assert [r["step"] for r in rows] == [1, 2, 3, 4] and all(np.isfinite(r["loss"]) for r in rows)


def test_a_workdir_of_another_config_is_refused(tmp_path):
  checkpoint.open_workdir(tmp_path, tiny.config())
  checkpoint.open_workdir(tmp_path, tiny.config())
  before = sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir())
  with pytest.raises(BadRequest, match="another config \\(run.seed differs\\)"):
    checkpoint.open_workdir(tmp_path, tiny.config(run__seed=3))
  assert before == sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir())


@pytest.mark.parametrize("option", [("xla_no_such_thing", "true"), ("xla_cpu_enable_fast_math", "banana")])
def test_a_compiler_option_that_is_none_is_named(option):
  mesh = mesh_lib.make_mesh(MeshConfig(), devices=jax.devices()[:1])
  with pytest.raises(BadRequest, match=f"run.compiler_options: .*{option[0]}"), compiler.refusals():
    jax.jit(lambda x: x + 1, compiler_options=compiler.options(mesh, [option])).lower(1.0).compile()


def test_a_program_that_runs_once_is_compiled_quickly_unless_a_level_is_asked_for(monkeypatch):
  cpu, level = mesh_lib.make_mesh(MeshConfig(), devices=jax.devices()[:1]), "xla_backend_optimization_level"
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
  assert compiler.options_of_one_call(cpu) == {level: 1}
  monkeypatch.setenv("XLA_FLAGS", f"--{level}=0")
  assert compiler.options_of_one_call(cpu) is None


def test_compiler_options_go_above_those_of_the_platform():
  cpu, ynn = mesh_lib.make_mesh(MeshConfig(), devices=jax.devices()[:2]), "xla_cpu_experimental_ynn_fusion_type"
  assert compiler.options(cpu) == {ynn: ""} and compiler.options(cpu, [(ynn, "all")]) == {ynn: "all"}
  gpu = types.SimpleNamespace(devices=np.asarray([types.SimpleNamespace(platform="gpu", device_kind="H100")]), size=1)
  assert compiler.options(gpu) is None

  def tpu(kind):
    device = types.SimpleNamespace(platform="tpu", device_kind=kind)
    return types.SimpleNamespace(devices=np.asarray([device] * 2), size=2)

  ours = compiler.options(tpu("TPU v5 lite"))
  assert ours["xla_enable_async_all_reduce"] is True
  asked = [("xla_enable_async_all_reduce", "false"), ("xla_tpu_scoped_vmem_limit_kib", "65536")]
  assert compiler.options(tpu("TPU v5 lite"), asked) == ours | {
      "xla_enable_async_all_reduce": False, "xla_tpu_scoped_vmem_limit_kib": "65536"
  }  # fmt: skip
  # Fused into other work, collectives are safe on v5e alone.
  assert any("async_collective_fusion" in name for name in ours)
  for kind in ("TPU v4", "TPU v5", "TPU v5p", "TPU v6 lite"):
    assert not [n for n in compiler.options(tpu(kind)) if "async_collective_fusion" in n or "async_all_gather" in n]


def test_programs_take_the_platforms_options_and_what_is_traced_for_another_does_not(monkeypatch):
  monkeypatch.setattr(compiler, "_cpu", lambda: {"xla_no_such_thing": "true"})
  f = compiler.jit(lambda x, n: x + n, static_argnames="n")
  for run in (lambda: f(1.0, n=2), lambda: f.lower(1.0, n=2).compile()):
    with pytest.raises(Exception, match="xla_no_such_thing"):
      run()
  assert f.trace(1.0, n=2).lower().compile()(1.0) == 3.0


def test_what_a_compiler_refuses_on_these_devices_is_one_line():
  said = (
      "FAILED_PRECONDITION: Continuation fusion for AllReduce is enabled on platform viperfish (variant: ), but it is not"
      " supported/recommended on platforms other than TPU v5e, and this might lead to many errors. Please disable it with"
      " xla_tpu_enable_async_collective_fusion=false"
  )
  with pytest.raises(BadRequest, match="refuses 'xla_tpu_enable_async_collective_fusion' on these devices"):
    with compiler.refusals():
      raise RuntimeError(said)
