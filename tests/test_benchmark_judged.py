"""Benchmarks' answers judged: by their scorers from a run's own files, on a page, between two runs, while training."""

import dataclasses
import json
from pathlib import Path
import re

from benchmark_data import save, write_pope
import numpy as np
import pytest
import tiny

from orthus_jax import cli
from orthus_jax.data.documents import document
from orthus_jax.data.shapes import records
from orthus_jax.data.shapes.language import TAGS
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import shapes_geneval, while_training
from orthus_jax.evaluation.benchmarks import dpg_bench, geneval
from orthus_jax.evaluation.benchmarks.published import PUBLISHED
from orthus_jax.evaluation.runs import execute, page, prompts, registry, scoring
from orthus_jax.evaluation.runs.task import JOURNAL
from orthus_jax.training.metric_writer import MetricWriter

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden/benchmarks"
BARE = prompts.TEMPLATES["bare"]


@pytest.fixture(scope="module")
def lively():
  return tiny.lively_model()


@pytest.fixture
def pope(tmp_path):
  write_pope(tmp_path)
  return tmp_path


def test_scores_of_training_are_metrics_by_step(lively, pope, tmp_path, caplog):
  save(pope / "val2014" / "COCO_val2014_000000000002.jpg")  # all pictures are there
  (tmp_path / "run").mkdir()
  caplog.set_level("INFO")
  config = dataclasses.replace(lively.config, run=dataclasses.replace(lively.config.run, evaluate=((f"pope:{pope}", 2),)))
  while_training.check(config)
  writer = MetricWriter(tmp_path / "run")
  hook = while_training.hook(f"pope:{pope}", config, lively.tokenizer, tmp_path / "run")
  for step in (2, 4):
    hook(step, lively.graphdef, lively.params, writer)
  writer.close()
  rows = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
  assert [r["step"] for r in rows] == [2, 4] and 0 <= rows[0]["evaluate/pope/mean/accuracy"] <= 1
  assert (tmp_path / "run/evaluations/pope-000004/score.json").is_file() and "step 4: pope mean/f1" in caplog.text
  journal = tmp_path / "run/evaluations/pope-000004" / JOURNAL
  answers = journal.read_bytes()
  journal.write_bytes(answers.replace(b'"answer": "', b'"answer": "stale '))
  writer = MetricWriter(tmp_path / "run", start=3)  # a run that goes on from step 3, with other weights perhaps
  assert (tmp_path / "run/evaluations.jsonl").read_text().count("step") == 1
  (pope / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
  hook(4, lively.graphdef, lively.params, writer)
  writer.close()
  assert set(journal.read_bytes().splitlines()) < set(answers.splitlines())
  assert "step 4: pope isn't scored: 1 questions have no answer" in caplog.text  # lines would be paired with others' labels
  for path in pope.glob("*.json"):
    path.unlink()
  hook(6, lively.graphdef, lively.params, writer)  # goes on
  assert "step 6: pope isn't scored" in caplog.text


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (("shapes", "geneval", "shapes"), "run.evaluate has 'shapes' twice"),
        (("mme",), "'mme' must be shapes or geneval (the built-in world's), or NAME:DIR"),
        (("dpg_bench:.",), "'dpg_bench' isn't scored here without a judge: mme, pope"),
        (("pope:gone",), "run.evaluate, 'pope:gone': gone doesn't exist"),
    ],
)
def test_what_training_cannot_evaluate_is_told_first(lively, named, message):
  config = dataclasses.replace(lively.config, run=dataclasses.replace(lively.config.run, evaluate=tuple((n, 2) for n in named)))
  with pytest.raises(BadRequest, match=re.escape(message)):
    while_training.check(config)


def test_dpg_benchs_scorer_cuts_the_squares_into_the_pictures_that_were_drawn(tmp_path):
  """Its reader is held to the original's own figures; what it is given here comes of a run's own layout."""
  (tmp_path / "prompts").mkdir()
  for name in ("drum", "two_kites"):
    (tmp_path / "prompts" / f"{name}.txt").write_text("a thing")
  task, out = registry.task("dpg_bench", tmp_path, BARE), tmp_path / "out"
  drawn = {item.id: np.random.default_rng(n).integers(0, 256, (8, 8, 3), np.uint8) for n, item in enumerate(task.items)}
  for item in task.items:
    task.keep(out, item, document("a thing", drawn[item.id], learn=[1]))
  seen = []

  def judge(pixels, question):
    seen.append((pixels.tobytes(), question))
    return "yes"

  score = dpg_bench.score(task.finish(out), csv=GOLDEN / "dpg_bench" / "dpg_bench.csv", judge=judge)
  assert score.scores["score"] == 100 and score.counts["score"] == 2
  quarters = [p for p, question in seen if question == "Is there a drum?"]
  assert quarters == [drawn[f"drum/{n}"].tobytes() for n in range(4)]


def test_the_built_in_worlds_captions_are_prompts_of_genevals(tmp_path):
  documents = [records.make_document("caption_to_image", "test", n, seed=0, resolution=32) for n in range(40)]
  file = shapes_geneval.export([None, *documents], tmp_path)
  task = registry.task("geneval", file, BARE, samples=1)
  by_prompt = {d.texts[0].text: d for d in documents}
  for item in task.items:
    shown = by_prompt[item.prompt().texts[0].text].images[-1]
    task.keep(tmp_path, item, document("a", shown.pixels, learn=[1]))
  score = geneval.score(task.finish(tmp_path), judge=shapes_geneval.JUDGE)
  assert len(score.rows) == len(documents) and all(r["correct"] for r in score.rows), [r["reason"] for r in score.rows]
  assert list(dict.fromkeys(r["tag"] for r in score.rows)) == [t for t in TAGS if t in score.scores]  # tag by tag
  blank = registry.task("geneval", file, BARE, samples=1)
  for item in blank.items:
    blank.keep(tmp_path / "blank", item, document("a", np.full((32, 32, 3), 250, np.uint8), learn=[1]))
  assert geneval.score(blank.finish(tmp_path / "blank"), judge=shapes_geneval.JUDGE).scores["Overall"] == 0


def test_the_page_of_benchmarks_has_all_published_figures():
  rows = [line for line in (ROOT / "docs/benchmarks.md").read_text().splitlines() if "arXiv" in line and line.startswith("| ")]
  for _, _, figures in PUBLISHED.values():
    for p in figures:
      assert any(f"| {p.system} |" in row and f"| {p.value:g} |" in row and f"| {p.source} |" in row for row in rows), p


def test_two_runs_are_compared_item_by_item(lively, pope, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save(pope / "val2014" / "COCO_val2014_000000000002.jpg")
  for name, answers in (("a", ["yes", "no", "no", "no"]), ("b", ["yes", "yes", "no", "yes"])):
    task, out = registry.task("pope", pope, BARE, images=Path("val2014")), tmp_path / name
    out.mkdir()
    lines = [json.dumps({"id": i.id, "answer": a}) for i, a in zip(task.items, answers)]
    (out / JOURNAL).write_text("\n".join(lines) + "\n")
    (out / execute.PROTOCOL).write_text(json.dumps({"benchmark": "pope", "model": name}))
    score, found = scoring.score("pope", task, out, task.finish(out))
    assert page.write(out, title="pope", score=score, found=found, protocol={}).read_text().count("<img") == 4
  assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
  told = json.loads(capsys.readouterr().out)
  rows = {d["tag"]: d for d in told["differences"]}  # all labels are yes
  assert (rows["popular"]["a"], rows["popular"]["b"], rows["random"]["a"], rows["random"]["b"]) == (0.5, 1.0, 0.0, 0.5)
  assert (rows["all"]["count"], rows["all"]["better"], rows["all"]["worse"]) == (4, 2, 0)
  assert told["notes"] == ["model: a and b"]
  (tmp_path / "b" / execute.PROTOCOL).write_text(json.dumps({"benchmark": "gqa"}))
  assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
  assert "is a run of pope, and" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("protocol", "judged", "message"),
    [
        ("[]", "", "protocol.json holds a list where an object is expected"),
        ("{", "", "protocol.json:1: broken JSON"),
        ("{}", '{"id": [], "unit": "a", "tag": "b", "points": 1}', "judged.jsonl:1: 'id' is [] where a text is expected"),
        ("{}", '{"id": "a", "unit": "a", "tag": "b", "points": "c"}', "'points' is 'c' where a whole number or a number"),
        ("{}", '{"id": "a", "unit": "a", "tag": "b", "points": NaN}', "row 1: its points are nan, and must be a number"),
        ("{}", '{"id": "a", "unit": "a", "tag": "b", "points": 1}\n' * 2, "row 2: 'a' stands there twice"),
        ("{}", None, "a has no judged.jsonl, as it wasn't scored by `orthus evaluate`: score it there first"),
        (None, None, "a isn't a benchmark's run: it has no protocol.json"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_line(protocol, judged, message, tmp_path, capsys):
  for name, text in (("protocol.json", protocol), ("judged.jsonl", judged)):
    if text is not None:
      (tmp_path / "a").mkdir(exist_ok=True)
      (tmp_path / "a" / name).write_text(text)
  assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
