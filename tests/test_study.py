"""The study: equal in all but what is compared, and judged by intervals."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import command
import pytest

from orthus_jax.config.command_line import read_config
from orthus_jax.errors import BadRequest
from orthus_jax.sweeping import plan as plan_lib

ROOT = Path(__file__).parent.parent
STUDY = f"{ROOT}/configs/study.py"


def tables():
  spec = importlib.util.spec_from_file_location("study_tables", ROOT / "benchmarks/study_tables.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_runs_differ_in_what_is_compared_alone():
  runs = {run.id: run.config for run in plan_lib.plan(STUDY)}
  assert len(runs) == 30
  orthus = runs["orthus,seed=1"]
  # What the figures were made with that stand in the documentation.
  assert orthus.model.diffusion.loss_weight == 5.0 and orthus.model.vision_embedding.temperature == 0.3
  assert (orthus.sampling.guidance, orthus.sampling.image_temperature) == (3.0, 1.0)
  for system in ("chameleon", "showo", "regression", "argmin", "linear"):
    other = runs[f"{system},seed=1"]
    assert (other.data, other.optimizer, other.run) == (orthus.data, orthus.optimizer, orthus.run)
    assert dataclasses.replace(other.model.transformer, image_attention="causal") == orthus.model.transformer
    assert other.model.vision_tokenizer == orthus.model.vision_tokenizer
  assert {c.run.seed for c in runs.values()} == {0, 1, 2}


def test_one_task_alone_sees_as_many_documents_of_its_kinds():
  runs = {run.id: run.config for run in plan_lib.plan(STUDY)}

  def seen(config, kinds):
    """Documents by kind, in steps' worth of rows."""
    begins = [0, *(step for step, _ in config.data.later_kinds), config.run.steps]
    mixes = [config.data.kinds, *(k for _, k in config.data.later_kinds)]
    return {
        kind: sum((b - a) * dict(mix).get(kind, 0.0) / sum(w for _, w in mix) for a, b, mix in zip(begins, begins[1:], mixes))
        for kind in kinds
    }

  both = runs["orthus,seed=0"]
  for name, kinds in (
      ("understanding_soft", ("image_to_caption", "brief_question", "question")),
      ("generation", ("caption_to_image", "edit", "story")),
  ):  # fmt: skip
    alone = runs[f"{name},seed=0"]
    assert {k for k, _ in (*alone.data.kinds, *alone.data.later_kinds[0][1])} == set(kinds)
    assert seen(alone, kinds) == pytest.approx(seen(both, kinds), rel=0.01)


def test_what_a_picture_takes_of_each_system(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  systems = importlib.import_module("systems")
  configs = {name: read_config([f"--config={STUDY}:{argument}"])[0] for name, argument in systems.SYSTEMS.items()}
  assert [systems.told(c) for c in configs.values()] == [
      "16 turns of 25 solver steps, guidance 3", "16 turns, guidance 3", "16 turns, guidance 3", "8 passes, guidance 3"
  ]  # fmt: skip


def test_every_ablation_is_a_config():
  ablations = plan_lib.plan(f"{STUDY}:ablations")
  assert len(ablations) == 33 and len({run.id for run in ablations}) == 33


def test_each_seed_is_converted_from_the_discrete_model_of_its_own():
  runs = plan_lib.plan(f"{STUDY}:converted=there")
  assert len(runs) == 9 and {run.group for run in runs} == {"converted_soft", "converted_argmin", "converted_linear"}
  for run in runs:
    begins = dict(run.config.run.init_from)
    assert set(begins.values()) == {f"there/runs/understanding_argmin,seed={run.config.run.seed}"}
    assert not any("vision_embedding/codebook".startswith(prefix) for prefix in begins)


@pytest.mark.parametrize(
    "chameleon, said",
    [((0.5, 0.52, 0.51), "reproduced"), ((0.9, 0.92, 0.91), "not reproduced"), ((0.5, 0.9, 0.7), "undecided"),
     ((0.5, 0.51), "undecided"), ((0.5,), "undecided"), ((), "not run")],
)  # fmt: skip
def test_an_order_is_judged_by_runs_of_the_same_seed(chameleon, said):
  def run(group, seed, score):
    return {"group": group, "seed": seed, "scores": {"single_object": score, "frechet": 1 - score}}

  runs = [run("orthus", s, x) for s, x in enumerate((0.7, 0.71, 0.72))] + [
      run("chameleon", s, x) for s, x in enumerate(chameleon)
  ]
  for score in ("single_object", "frechet"):  # more is better, and less
    assert tables().verdict(runs, "orthus", "chameleon", score)[1] == said


def test_sweeps_of_several_machines_make_one_table(tmp_path):
  def run(name, seed, state="finished", score=0.5, **fields):
    scores = {"single_object": score}
    return {"id": f"{name},seed={seed}", "group": name, "seed": seed, "state": state, "config": "/there/study.py:",
            "fields": {"run.seed": seed} | fields, "losses": {}, "scores": scores, "costs": {},
            "params_digest": "ab" * 32}  # fmt: skip

  first, second = tmp_path / "first", tmp_path / "kept.json"
  first.mkdir()
  (first / "table.json").write_text(json.dumps({"runs": [run("orthus", 0), run("orthus", 1, "half", 0.1)]}))
  second.write_text(json.dumps({"runs": [run("orthus", 0, score=0.9), run("orthus", 1, score=0.7), run("chameleon", 0)]}))
  table = tables().together([first, second])
  assert [(r["id"], r["scores"]["single_object"]) for r in table["runs"]] == [
      ("orthus,seed=0", 0.5), ("orthus,seed=1", 0.7), ("chameleon,seed=0", 0.5)
  ]  # fmt: skip
  assert table["groups"][0]["scores"]["single_object"]["mean"] == 0.6 and "| orthus |" in tables().tables(table)
  second.write_text(json.dumps({"runs": [run("orthus", 0, **{"model.width": 3})]}))
  with pytest.raises(BadRequest, match="kept.json: orthus,seed=0 has other fields"):
    tables().together([first, second])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("sys.argv", ["study_tables.py", str(first), f"--keep={tmp_path / 'figures.json'}"])
    assert tables().main() == 0
  assert json.loads((tmp_path / "figures.json").read_text())["runs"][0]["config"] == "study.py:"
  second.write_text("[]")
  with pytest.raises(BadRequest, match="kept.json can't be read as a sweep's table"):
    tables().together([first, second])
  (first / "table.json").unlink()
  with pytest.raises(BadRequest, match="table.json isn't there; a sweep that isn't done yet writes it by .*--collect"):
    tables().together([first])


@pytest.mark.slow
def test_the_study_in_small_gives_its_tables(tmp_path):
  command.orthus("sweep", f"--config={STUDY}:smoke", f"--workdir={tmp_path}/smoke", "--pictures=2")
  table = json.loads((tmp_path / "smoke" / "table.json").read_text())
  names = ("orthus", "chameleon", "showo", "regression")
  assert {r["id"]: r["state"] for r in table["runs"]} == dict.fromkeys(names, "finished")
  assert {len(p) for p in table["pictures"].values()} == {2}
  shown = tables().tables(table)
  assert "| chameleon |" in shown and all(r["params_digest"][:16] in shown for r in table["runs"])
