"""What `orthus plan` advises, which of a search's failures end it, and which reports it compares with."""

import dataclasses
import json

import pytest
from test_plan import SEVEN_B, _plan, here  # noqa: F401
import tiny

from orthus_jax import cli
from orthus_jax.config.command_line import load_config
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.planning import hardware, report, search

pytestmark = pytest.mark.planner

POST = f"--config={SEVEN_B}:post-v5e-256"
V5E = hardware.parse("v5e:16x16")


def looked_for(make, limit=6, said=None):
  return search.search(
    load_config(f"{SEVEN_B}:post-v5e-256"), V5E, limit=limit, make=make, progress=(said if said is not None else []).append
  )


def test_a_search_in_which_nothing_can_be_planned_says_why():
  for error in (BadRequest("no plan for this"), Stopped("can't be read")):
    asked = []

    def make(config, error=error, asked=asked):
      asked.append(config)
      raise error

    with pytest.raises(type(error), match=str(error)):
      looked_for(make)
    assert isinstance(error, BadRequest) or len(asked) == 6  # what stops counts, as it takes time


def test_one_that_stops_does_not_take_the_others_along():
  asked, said = [], []

  def make(config):
    asked.append(config.mesh)
    if len(asked) == 2:
      raise Stopped("the process that compiled ended with status -9")
    return _plan(20.0, 0.4)

  assert len(looked_for(make, said=said)) == 5 and asked[0] == asked[1]
  assert sum("status -9" in line for line in said) == 1


@pytest.mark.parametrize("fits, tried", [(("full", "offload"), 8), (("qkv", "attention", "full", "offload"), 5)])
def test_what_keeps_on_the_host_is_tried_unless_what_computes_as_much_again_fits(fits, tried):
  asked = []

  def make(config):
    remat = config.model.transformer.remat
    asked.append((config.mesh.fsdp, config.run.batch_size, remat))
    return _plan(10.0 if remat in fits else 20.0, 0.4)

  looked_for(make, limit=9)
  assert [remat for fsdp, rows, remat in asked if (fsdp, rows) == (256, 512)] == list(search.policies()[:tried])


@pytest.mark.parametrize(
  "changes, plan, tips",
  [
    ({}, dict(rows=512, remat="dots"), ["--config.run.batch_size=256", "--config.model.transformer.remat=full"]),
    ({"accumulation": 2}, dict(rows=512, remat="full"), ["a larger slice"]),
    ({"accumulation": 2}, dict(rows=1024, remat="offload"), ["--config.run.batch_size=512"]),
    ({}, dict(mesh=dict(data=16, fsdp=16, tensor=1, context=1)), ["--config.mesh.data=1 --config.mesh.fsdp=256"]),
    (
      {},
      dict(mesh=dict(data=4, fsdp=256, tensor=1, context=1), topology="2 x v5p:8x8x8", rows=1024),
      ["--config.mesh.data=2 --config.mesh.fsdp=512"],
    ),
    ({}, dict(mesh=dict(data=2, fsdp=256, tensor=1, context=1), topology="2 x v5e:16x16", rows=512), ["a larger slice"]),
    # 4,096 columns can't be split in 192.
    ({}, dict(mesh=dict(data=12, fsdp=16, tensor=1, context=1), topology="v5e:12x16", rows=192), ["a larger slice"]),
  ],
)
def test_advice_is_not_refused(changes, plan, tips):
  config = load_config(f"{SEVEN_B}:post-v5e-256")
  plan = _plan(20.0, 0.4, **plan)
  optimizer, run = dataclasses.replace(config.optimizer, **changes), dataclasses.replace(config.run, batch_size=plan.rows)
  config = dataclasses.replace(config, optimizer=optimizer, run=run)
  plan.memory["state_trained"] = 15 << 30
  assert report.advice(config, plan) == f"too large by 5.0 GiB a device; try {', or '.join(tips)}, or let --search look"


def _broken(field, value):
  said = json.loads(json.dumps(_plan(10.0, 0.4).to_json()))
  node, *path = [said, *field.split(".")]
  *path, last = path
  for part in path:
    node = node[int(part)] if part.isdigit() else node[part]
  node[last] = value
  return said


@pytest.mark.parametrize(
  "field, value",
  [
    ("memory", 3), ("memory.peak", "much"), ("memory", {}), ("flops.total", None), ("bytes.memory", "1"), ("traffic", {}),
    ("traffic", [3]), ("traffic.0.bytes", "1"), ("times.bound", None), ("times", {"bound": 1.0}), ("tokens_per_chip", {}),
    ("mfu.calibrated", [1]), ("title", 7), ("notes", "none"), ("fits", "yes"), ("rows", True),
  ],
)  # fmt: skip
def test_a_report_of_other_types_is_refused_ahead_of_compiling(field, value, tmp_path, monkeypatch, capsys, here):  # noqa: F811
  monkeypatch.setattr(report, "make", lambda *_, **__: pytest.fail("compiled"))
  (tmp_path / "other.json").write_text(json.dumps(_broken(field, value)))
  assert cli.main(["plan", POST, "--topology=v5e:16x16", f"--against={tmp_path / 'other.json'}"]) == 2
  said = capsys.readouterr().err
  assert f"no report of `orthus plan --json`: {field.partition('.')[0]} isn't" in said and said.count("\n") == 1


def test_a_report_without_times_is_one():
  plan = dataclasses.replace(_plan(10.0, 0.4), times={}, tokens_per_chip={}, mfu={}, fits=None)
  said = json.loads(json.dumps(plan.to_json()))
  assert json.loads(json.dumps(report.read(said).to_json())) == said


def test_the_title_is_of_the_config_that_is_planned(monkeypatch, capsys, here):  # noqa: F811
  titles = []
  monkeypatch.setattr(report, "make", lambda *_, title, **__: titles.append(title) or _plan(10.0, 0.4))
  assert cli.main(["plan", f"--config={SEVEN_B}:post-v5p-128", POST, "--topology=v5e:16x16"]) == 0
  assert titles == [f"{SEVEN_B}:post-v5e-256"]


@pytest.mark.parametrize("source, said", [("prepared", 1), ("folder", 0)])
def test_a_plan_says_that_prepared_data_is_taken_to_hold_features(source, said):
  config = tiny.config(data__source=source, data__path="x")
  notes = report.assumptions(config, images=True)
  assert sum("encoding them takes time and memory besides" in n for n in notes) == said
  assert not report.assumptions(config, images=False)
