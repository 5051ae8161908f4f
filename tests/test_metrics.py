"""Speed, MFU, goodput: closed forms and bookkeeping."""

import dataclasses
import errno
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny

from orthus_jax import files
from orthus_jax.config import ModelConfig
from orthus_jax.errors import BadRequest
from orthus_jax.training import flops
from orthus_jax.training.goodput import Ledger
from orthus_jax.training.metric_writer import MetricWriter, read_metrics
from orthus_jax.training.metrics import Meter, Profiler, memory

PUBLISHED = ModelConfig()


def test_flops_of_the_published_model():
  assert flops.token(PUBLISHED, 4096) == pytest.approx(43.69e9, rel=2e-4)
  assert flops.token(PUBLISHED, 4096, causal=False) - flops.token(PUBLISHED, 4096) == 3 * 32 * 2 * 4096 * 4096
  # 50% of an H100 at this count: 11,325 tokens/s.
  assert 0.5 * flops.peak("NVIDIA H100 80GB HBM3") / flops.token(PUBLISHED, 4096) == pytest.approx(11325, rel=1e-3)
  assert flops.layer_weights(PUBLISHED.transformer) == 202_399_744 - 2 * 4096 - 4 * 32 * 128


def test_frozen_parts_cost_less():
  stage_one = flops.passes(PUBLISHED, {"token_embedding", "vision_embedding/codebook", "image_head/input/kernel"})
  assert stage_one == {"backbone": "passed", "lm_head": "passed"}
  assert flops.passes(PUBLISHED, {"image_head/input/kernel"}) == {"backbone": "frozen", "lm_head": "frozen"}
  assert flops.passes(PUBLISHED, {"transformer/norm/scale", "lm_head"}) == {"backbone": "trained", "lm_head": "trained"}
  silent = dataclasses.replace(PUBLISHED, transformer=dataclasses.replace(PUBLISHED.transformer, text_loss_weight=0.0))
  assert flops.passes(silent, {"token_embedding"}) == {"backbone": "passed", "lm_head": "absent"}
  assert flops.token(silent, 8) - flops.token(silent, 8, lm_head="absent") == 6 * 4096 * 65536
  whole, passed, frozen = (
      flops.token(PUBLISHED, 1028, backbone=b, lm_head=b) for b in ("trained", "passed", "frozen")
  )
  weights = 32 * flops.layer_weights(PUBLISHED.transformer) + 4096 * 65536
  assert whole - passed == pytest.approx(2 * weights, rel=1e-12)
  assert frozen == pytest.approx(whole / 3, rel=1e-12)
  assert flops.patch(PUBLISHED) > flops.patch(PUBLISHED, learnt=False) > 0


@pytest.mark.slow
def test_flops_agree_with_the_compiler():
  # One layer, so that nothing is counted once for many.
  from flax import nnx

  from orthus_jax.models.transformer import Transformer

  config = dataclasses.replace(tiny.config().model.transformer, layers=1, width=64, mlp_width=256, head_dim=16, kv_heads=4)
  model = Transformer(config, rngs=nnx.Rngs(params=0))
  graphdef, state = nnx.split(model)
  x, ids = jnp.ones((1, 64, 64)), jnp.ones((1, 64), jnp.int32)

  def loss(state, x):
    return nnx.merge(graphdef, state)(x, position_BT=ids, segment_ids_BT=ids).sum()

  counted = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(state, x).compile().cost_analysis()["flops"]
  layer = dataclasses.replace(tiny.config().model, transformer=config)
  closed = flops.token(layer, 64, causal=False) - 6 * config.width * config.vocab_size
  assert counted == pytest.approx(64 * closed, rel=0.15)  # the compiler counts norms and activations too


@pytest.mark.parametrize(
    "kind, tflops",
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 NVL", 835), ("NVIDIA H200 NVL", 835),
        ("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU v6 lite", 918), ("cpu", None), ("NVIDIA H1", None),
    ],
)  # fmt: skip
def test_published_peaks(kind, tflops):
  assert flops.peak(kind) == (tflops and tflops * 1e12)


def test_where_the_time_goes():
  now = 100.0
  ledger = Ledger(90.0, clock=lambda: now)
  meter = Meter(devices=4, flops={"causal": 10.0, "full": 12.0}, peak=50.0, ledger=ledger)
  ledger.enter("step")
  with ledger.part("data_wait"):
    now += 1.0
  now += 3.0
  meter.step(400)
  with ledger.part("evaluate"):
    now += 2.0
  values = meter.record()
  # 400 tokens in 4 s, on 4 devices of 50 FLOP/s: 25 tokens/s each. 10 s to start, 1 s of waiting, 2 s of sampling.
  assert values["tokens_per_second"] == 100 and values["tokens_per_second_per_device"] == 25
  assert values["data_wait"] == 0.25
  assert values["mfu_causal"] == 5.0 and values["mfu_full"] == 6.0
  assert values["goodput"] == pytest.approx(3 / 16)
  spent = {n: v for n, v in values.items() if n.startswith("time_")}
  assert spent == pytest.approx({"time_step": 1 / 2, "time_data_wait": 1 / 6, "time_evaluate": 1 / 3, "time_checkpoint": 0.0})
  now += 4.0
  meter.step(100)
  values = meter.record()
  assert values["tokens_per_second"] == 25 and values["data_wait"] == 0 and values["goodput"] == pytest.approx(7 / 20)
  assert "mfu_causal" not in Meter(devices=1, flops={"causal": 1.0}, peak=None, ledger=Ledger()).record()


def test_memory_is_of_the_device_where_it_says(monkeypatch):
  assert set(memory()) == {"memory_bytes"} and memory()["memory_bytes"] > 1e7

  class Device:
    def __init__(self, peak):
      self._peak = peak

    def memory_stats(self):
      return {"peak_bytes_in_use": self._peak}

  monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(5)])
  assert memory()["memory_bytes"] == 5 and memory()["host_memory_bytes"] > 1e7


def test_profiles_are_written_for_the_steps_asked_for(tmp_path):
  f = jax.jit(lambda x: x + 1)
  profiler = Profiler(tmp_path / "profile", (2, 3))
  for step in (1, 2, 3, 4):
    profiler.before(step)
    if step in (1, 4):
      assert bool(list(tmp_path.rglob("*.xplane.pb"))) == (step == 4)
    profiler.after(step, f(jnp.zeros(())))
  names = {p.name for p in tmp_path.rglob("*") if p.is_file()}
  assert any(n.endswith(".xplane.pb") for n in names) and "perfetto_trace.json.gz" in names
  later = Profiler(tmp_path / "later", (2, 3))  # of a run that goes on from step 2
  later.before(3)
  later.after(3, None)
  assert list((tmp_path / "later").rglob("*.xplane.pb"))
  nothing = Profiler(tmp_path / "none", ())
  nothing.before(1)
  nothing.after(1, None)
  nothing.close()
  assert not (tmp_path / "none").exists()
  with pytest.raises(BadRequest, match=r"run.profile_steps=\(3, 2\)"):
    tiny.config(run__profile_steps=[3, 2])


def written(folder, *steps: int, start: int = 0) -> None:
  writer = MetricWriter(folder, start=start)
  for step in steps:
    writer.scalars(step, {"loss": step + start / 100})
  writer.close()


def board(folder) -> dict[int, float]:
  """A curve as TensorBoard draws it: a start purges its step and later ones from files before it."""
  from tensorboardX.proto.event_pb2 import Event, SessionLog  # brings torch where that is installed

  points: dict[int, float] = {}
  for file in sorted((folder / "tensorboard").iterdir()):
    data = file.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
      if event.session_log.status == SessionLog.START:
        points = {s: v for s, v in points.items() if s < event.step}
      for value in event.summary.value:
        assert event.step not in points
        points[event.step] = value.simple_value
  return points


def test_a_run_that_goes_on_has_each_step_once(tmp_path, monkeypatch):
  written(tmp_path, 1, 2, 3, 4, 5)
  with (tmp_path / "metrics.jsonl").open("ab") as f:
    f.write(b'{"step": 6, "lo')  # killed here
  clock = iter(range(2_000_000_000, 2_000_000_009))
  monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: next(clock, 2e9))  # a file a second
  written(tmp_path, 3, 4, 5, 6, start=2)
  wanted = {1: 1.0, 2: 2.0, 3: 3.02, 4: 4.02, 5: 5.02, 6: 6.02}
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(r["step"], r["loss"]) for r in rows] == list(wanted.items())
  assert board(tmp_path) == pytest.approx(wanted)


def test_what_cannot_be_read_of_metrics_is_counted_and_left_out(tmp_path, caplog):
  good = [b'{"step": 1, "loss": 1}', b'{"step": 2, "loss": 2}', b'{"step": 2, "loss": 3}', b'{"step": 9, "loss": 9}']
  bad = [b"", b"{", b"[3]", b"7", b'{"loss": 1}', b'{"step": "1"}', b'{"step": true}', b"\xff\xfe", b'{"step": 1.5}']
  file = tmp_path / "metrics.jsonl"
  file.write_bytes(b"\n".join(good + bad))
  assert [r.get("loss") for r in read_metrics(tmp_path)] == [1, 3, 9]
  logging.getLogger("orthus_jax").propagate = True
  written(tmp_path, start=2)
  assert f"left {len(bad)} unreadable lines out" in caplog.text
  assert file.read_bytes() == b"\n".join(good[::2]) + b"\n"
  before = file.stat()
  written(tmp_path, start=2)
  assert file.stat().st_ino == before.st_ino  # not touched where nothing has to go


def test_metrics_survive_a_kill_while_they_are_cut(tmp_path, monkeypatch):
  written(tmp_path, 1, 2, 3)
  before = (tmp_path / "metrics.jsonl").read_bytes()

  def die(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(Path, "replace", die)
    written(tmp_path, start=1)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


  def full(*_):
    raise OSError(errno.ENOSPC, "full")

  monkeypatch.setattr(files, "write_text", full)
  written(tmp_path, 2, start=1)  # a full disk is no reason to lose the run
  assert [r["loss"] for r in read_metrics(tmp_path)] == [1.0, 2.01, 3.0]


def test_only_the_process_that_writes_writes(tmp_path):
  silent = MetricWriter(tmp_path, enabled=False)
  silent.scalars(1, {"loss": 1.0})
  silent.close()
  assert not list(tmp_path.iterdir())
  writer = MetricWriter(tmp_path)
  writer.scalars(1, {"loss": float("nan")})
  writer.close()
  assert read_metrics(tmp_path) == [{"step": 1, "loss": None}]
  assert json.loads(Path(tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}
