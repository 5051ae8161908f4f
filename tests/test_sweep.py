"""`orthus sweep`: how a sweep is written, planned, run, resumed and told of."""

import argparse
import csv
import io
import json
import math
import os
from pathlib import Path
import re

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from orthus_jax import errors, sweep
from orthus_jax.commands import sweep as command
from orthus_jax.config import Config, to_dict
from orthus_jax.config.command_line import load_config, read_config
from orthus_jax.data.documents import document
from orthus_jax.errors import BadRequest
from orthus_jax.sweep import Run
from orthus_jax.sweeping import page, pictures, plan as plan_lib, table
from orthus_jax.sweeping.state import State

SHAPES = str(Path(__file__).parent.parent / "configs" / "shapes.py")


# --- how a sweep is written -----------------------------------------------------------------------------------------


def test_lists_are_multiplied_paired_and_added_up():
  seeds = sweep.grid({"run.seed": range(2)})
  both = sweep.product([Run("a", argument="x"), Run("b", evaluate="--quick")], seeds)
  assert [(r.name, r.argument, r.overrides["run.seed"], r.evaluate) for r in both] == [
      ("a", "x", 0, None), ("a", "x", 1, None), ("b", None, 0, "--quick"), ("b", None, 1, "--quick"),
  ]  # fmt: skip
  grid = sweep.grid({"run.steps": [1, 2], "data.kinds": [(("edit", 1.0),)]})
  assert [r.overrides["run.steps"] for r in grid] == [1, 2]
  pairs = sweep.zipit(sweep.grid({"run.steps": [10, 20]}), sweep.grid({"run.batch_size": [4, 2]}))
  assert [r.overrides for r in pairs] == [{"run.steps": 10, "run.batch_size": 4}, {"run.steps": 20, "run.batch_size": 2}]
  assert [r.name for r in sweep.chain(Run("c"), both)] == ["c", "a", "a", "b", "b"]
  assert sweep.product(Run("a"), Run("b"))[0].name == "a-b"


def test_draws_stay_as_a_sweep_grows():
  rate = {"optimizer.learning_rate": sweep.loguniform(1e-4, 1e-1)}
  more = rate | {"run.steps": sweep.integer(1, 3), "optimizer.name": sweep.choice("adamw", "muon"),
                 "optimizer.b2": sweep.uniform(0.9, 0.99)}  # fmt: skip
  few, many = sweep.draws(0, 5, rate), sweep.draws(0, 200, more)
  assert [r.overrides["optimizer.learning_rate"] for r in many][:5] == [r.overrides["optimizer.learning_rate"] for r in few]
  assert few != sweep.draws(1, 5, rate)
  assert {r.overrides["run.steps"] for r in many} == {1, 2, 3}
  assert {r.overrides["optimizer.name"] for r in many} == {"adamw", "muon"}
  rates = [r.overrides["optimizer.learning_rate"] for r in many]
  assert all(1e-4 <= v <= 1e-1 and len(f"{v:.10g}".strip("0.").replace(".", "").split("e")[0]) <= 4 for v in rates)
  assert 60 < sum(v < 10**-2.5 for v in rates) < 140


def test_what_is_drawn_again_is_no_other_run():
  runs = [r.overrides["run.steps"] for n in (3, 40) for r in sweep.draws(0, n, {"run.steps": sweep.integer(1, 4)})]
  assert runs[-4:][: len(runs) - 4] == runs[:-4] and sorted(runs[-4:]) == [1, 2, 3, 4]


@pytest.mark.parametrize("make, said", [
    (lambda: sweep.grid({}), "an empty grid: give it fields"),
    (lambda: sweep.grid({"run.seed": []}), "an empty grid: run.seed has no values"),
    (lambda: sweep.grid({"run.seed": 3}), "run.seed=3 must be a list of values"),
    (lambda: sweep.grid({"optimizer.name": "muon"}), "optimizer.name='muon' must be a list"),
    (lambda: sweep.zipit(sweep.grid({"a": [1, 2]}), Run()), "equally many runs of each part, not 2, 1"),
    (lambda: sweep.product(sweep.grid({"a": [1]}), sweep.grid({"a": [2]})), "two parts of a sweep say what a is"),
    (lambda: sweep.product(Run(argument="x"), Run(argument="y")), r"say what argument is \('x', 'y'\)"),
    (lambda: sweep.chain([{"run.seed": 1}]), "a sweep is of runs.* not of {'run.seed': 1}"),
    (lambda: sweep.chain(None), "not of None"),
    (lambda: sweep.draws(0, 0, {"a": sweep.choice(1)}), "0 draws of 1 fields"),
    (lambda: sweep.draws(0, 2, {"a": 0.5}), "a=0.5 is no distribution"),
    (lambda: sweep.loguniform(0, 1), r"loguniform\(0, 1\) must be above 0"),
    (lambda: sweep.uniform(2, 1), "must be the first below the second"),
    (lambda: sweep.integer(0.5, 3), "must be whole numbers"),
    (lambda: sweep.choice(), "no values to choose from"),
])  # fmt: skip
def test_a_sweep_that_makes_no_sense_is_refused(make, said):
  with pytest.raises(BadRequest, match=said):
    make()


# --- planning -------------------------------------------------------------------------------------------------------


def study(folder: Path, body: str) -> str:
  """A config file of the quickstart's with a sweep of its own."""
  file = folder / "study.py"
  file.write_text(f"""
import importlib.util
from orthus_jax import sweep
from orthus_jax.sweep import Run

def get_config(arg=""):
  spec = importlib.util.spec_from_file_location("shapes", {SHAPES!r})
  shapes = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(shapes)
  config = shapes.get_config("runlocal")
  if arg == "wide":
    config.model.diffusion.width = 256
  return config

def get_sweep(arg=""):
  return {body}
""")
  return str(file)


def test_runs_are_named_by_what_they_say(tmp_path):
  spec = study(tmp_path, """sweep.product(
      [Run("slow", overrides={"optimizer.learning_rate": 1e-3, "optimizer.b2": 0.9}), Run(argument="wide")],
      sweep.grid({"run.seed": [0, 1]}), sweep.grid({"model.transformer.width": [96]}))""")  # fmt: skip
  runs = plan_lib.plan(spec, common=["--config.run.steps=3"])
  assert [r.id for r in runs] == [
      "slow,transformer.width=96,seed=0", "slow,transformer.width=96,seed=1",
      "wide,transformer.width=96,seed=0", "wide,transformer.width=96,seed=1",
  ]  # fmt: skip
  assert [r.group for r in runs[1:3]] == [runs[1].id.removesuffix(",seed=1"), "wide,transformer.width=96"]
  assert runs[2].spec == f"{spec}:wide" and runs[2].config.model.diffusion.width == 256
  assert {r.config.run.steps for r in runs} == {3} and runs[0].config.optimizer.learning_rate == 1e-3
  for r in runs:  # what `orthus train` makes of the flags is what was checked
    assert read_config([*r.flags])[0] == r.config


def test_a_name_is_the_same_however_a_value_is_written():
  ids = [plan_lib.plan(SHAPES, more=sweep.grid({"optimizer.learning_rate": [v]}))[0].id for v in (0.003, "3e-3", "0.0030")]
  assert set(ids) == {"optimizer.learning_rate=0.003"}
  kinds = [(("edit", 1.0), ("story", float(n))) for n in (1, 2)]
  long = [r.id for r in plan_lib.plan(SHAPES, more=sweep.grid({"data.kinds": kinds}))]
  assert len(set(long)) == 2 and all(re.fullmatch(r"data.kinds=edit-[-\w,.]*-[0-9a-f]{6}", i) for i in long), long


@given(st.text(), st.text(), st.booleans())
def test_any_name_is_one_of_a_directory(name, value, other):
  fields = {"data.path": value} | ({"run.seed": 1} if other else {})
  found = plan_lib._name(name, fields)
  assert re.fullmatch(r"[A-Za-z0-9_+=,][A-Za-z0-9._+=,-]{0,119}", found), found
  assert found != plan_lib._name(name, fields | {"data.path": value + "x"})


def test_shortened_fields_stay_apart():
  def fields(node, where=""):
    return [f for k, v in node.items() for f in (fields(v, f"{where}{k}.") if isinstance(v, dict) else [f"{where}{k}"])]

  names = fields(to_dict(Config()))
  assert len({plan_lib.short(n) for n in names}) == len(names) > 100


@pytest.mark.parametrize("body, said", [
    ("[]", "get_sweep of .* returns no runs"),
    ("None", "not of None"),
    ("1 / 0", "fails: ZeroDivisionError"),
    ("sweep.grid({'run.seed': []})", "an empty grid: run.seed has no values"),
    ("sweep.grid({'optimizer.lerning_rate': [1]})", "unknown field --config.optimizer.lerning_rate; the nearest is"
     " --config.optimizer.learning_rate"),
    ("sweep.grid({'run.steps': [1, 0]})", "the run run.steps=0: run.steps=0 must be at least 1"),
    ("sweep.grid({'run.steps': ['many']})", "bad options"),
    ("sweep.grid({'run': [{'steps': 1}]})", "run is a section: a sweep overrides its fields, such as run.steps"),
    ("sweep.grid({'run': [1]})", "run is a section: override its fields"),
    ("sweep.grid({'data.sequence_length': [160, 1000]})", "data.sequence_length=1000 is beyond"),
    ("sweep.grid({'run.seed': [1, 1]})", "two runs are the same, both seed=1: leave one out"),
    ("[Run('a'), Run('b')]", "two runs are the same, a and b"),
    ("[Run('a', overrides={'run.steps': n}) for n in (1, 2)]", "two runs that differ would both be called a"),
    ("sweep.zipit([Run('a'), Run('a', argument='wide')], sweep.grid({'run.seed': [1, 2]}))",
     "a,seed=1 and a,seed=2 differ in more than their seed .model.diffusion.width 192 -> 256.: give them names"),
    ("[Run('a'), Run('A', argument='wide')]", "two runs that differ would both be called A"),
])  # fmt: skip
def test_bad_sweeps_are_refused_before_anything_starts(tmp_path, body, said):
  with pytest.raises(BadRequest, match=said) as e:
    plan_lib.plan(study(tmp_path, body))
  assert "\n" not in str(e.value)


def test_a_file_without_a_sweep_is_refused():
  with pytest.raises(BadRequest, match="has no get_sweep: write one .* --grid run.seed=0,1,2"):
    plan_lib.plan(SHAPES)


EXAMPLES = int(os.environ.get("ORTHUS_EXAMPLES", 50))
FIELDS = ("run.seed", "optimizer.learning_rate", "data.path", "data.kinds", "run", "optimizer.name", "run.nothing", "a b", "")
VALUES = st.lists(st.sampled_from(["1", "0", "-1", "1e-3", "nan", "muon", "''", "()", "(('edit',1.0),)", "[", "{1}", "é"]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from(FIELDS), VALUES | st.text(), st.sampled_from(["grid", "draw"]))
def test_whatever_is_asked_for_makes_runs_or_one_line(field, values, how):
  text = f"{field}={values if isinstance(values, str) else ','.join(values)}"
  if how == "draw":
    text = f"{field}=choice({text.partition('=')[2]})"
  options = argparse.Namespace(grid=[], draw=[], draws=None, draws_seed=None)
  options.__dict__ |= {"grid": [text]} if how == "grid" else {"draw": [text], "draws": 2}
  try:
    runs = plan_lib.plan(SHAPES, more=command._more(options))
  except BadRequest as e:
    assert "\n" not in errors.one_line(str(e)) and str(e)
    return
  for run in runs:
    assert read_config(run.flags)[0] == run.config


def test_why_a_group_cant_draw_is_told_in_the_requests_own_words(tmp_path):
  drawing = pictures.Drawing(run=None, out=tmp_path)
  assert pictures.failure(drawing) == ""
  pictures.keep_failure(drawing, '{"requests": 1, "failed": 1}')
  assert pictures.failure(drawing) == '{"requests": 1, "failed": 1}'
  (tmp_path / "results.jsonl").write_text('cut off\n{"id": "0", "error": "the image head is untrained"}\n')
  assert pictures.failure(drawing) == "the image head is untrained"


def test_whatever_stands_in_a_prompt_it_is_one_request(tmp_path, monkeypatch):
  """JSON's lines end at line feeds; Python has other ends of a line, which JSON leaves in a text as they are."""
  text = "a red\u2028\u2029\x85barn"
  file = tmp_path / "prompts.jsonl"
  rows = [{"prompt": text, "images": ["~/a.png", "b.png", "/c.png"]}, {"prompt": "blue"}]
  file.write_text("\ufeff" + "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
  monkeypatch.setenv("HOME", "/home/me")
  first, second = map(json.loads, pictures.read_requests(file).split("\n")[:2])
  assert first == {"id": "line-1", "prompt": text, "images": ["/home/me/a.png", f"{tmp_path}/b.png", "/c.png"]}
  assert second["id"] == "line-2"
  documents = [document(text, np.zeros((8, 8, 3), np.uint8), learn=[1])]
  monkeypatch.setattr(pictures.sources, "open_source", lambda config, split: documents)
  requests = pictures.write_requests(tmp_path, load_config(SHAPES), count=1)
  assert requests is not None and pictures.asked(requests) == [("000", text)]
  drawing = pictures.Drawing(run=None, out=tmp_path)
  (tmp_path / "000.png").touch()
  answer = {"id": "000", "response": [{"text": text}, {"image": "000.png"}]}
  (tmp_path / "results.jsonl").write_text(json.dumps(answer, ensure_ascii=False) + "\n", encoding="utf-8")
  assert pictures.drawn(drawing) == {"000": tmp_path / "000.png"}
  pictures.keep_failure(drawing, "it failed")
  (tmp_path / "results.jsonl").write_text(json.dumps({"id": "000", "error": text}, ensure_ascii=False), encoding="utf-8")
  assert pictures.failure(drawing) == text
  file.write_text('{"prompt": "red", "images": ["~nobody-here/a.png"]}')
  with pytest.raises(BadRequest, match="there is no home directory ~nobody-here"):
    pictures.read_requests(file)


def test_what_is_no_finite_number_is_null(tmp_path):
  runs = plan_lib.plan(SHAPES, more=sweep.grid({"run.seed": [0, 1, 2]}))
  for run in runs:
    seed, workdir = run.config.run.seed, tmp_path / "runs" / run.id
    workdir.mkdir(parents=True)
    loss = [1.0, math.nan, 3.0][seed]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": loss}) + "\n" for s in (1, 2)))
    scores = {"psnr": [math.inf, 20.5, 20.5][seed], "fid": math.nan}
    report = {"params_digest": "0", "scores": scores, "intervals": {"psnr": [1.0, math.nan]}}
    (workdir / "report.json").write_text(json.dumps(report))
  rows = table.rows(tmp_path, runs, {r.id: State("finished", 2) for r in runs})
  told = {"runs": rows, "groups": table.groups(rows)}
  json.dumps(told, allow_nan=False)
  assert [r["losses"] for r in rows] == [{"loss": 1.0}, {"loss": None}, {"loss": 3.0}]
  assert rows[0]["scores"] == {"psnr": None, "fid": None} and rows[0]["intervals"] == {"psnr": [1.0, None]}
  (group,) = told["groups"]
  assert (group["losses"]["loss"]["mean"], group["losses"]["loss"]["n"]) == (2.0, 2) and set(group["scores"]) == {"psnr"}
  assert [row["loss"] for row in csv.DictReader(io.StringIO(table.as_csv(rows)))] == ["1.0", "", "3.0"]
  page.write(tmp_path, title="t", runs=rows, groups=told["groups"], drawings={}, requests=None)
  assert "nan" not in re.sub(r"<style.*?</style>", "", (tmp_path / "index.html").read_text(), flags=re.DOTALL).lower()


def test_tables_of_pictures_are_no_grid():
  css = (Path(page.__file__).parents[1] / "evaluation" / "templates" / "page.css").read_text()
  assert "table.beside {" in css and not re.search(r"(^|[\s,}])\.beside\b", css)
