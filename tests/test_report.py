import base64
import dataclasses
from html.parser import HTMLParser
import json
import math
from pathlib import Path
import re

from hypothesis import given, strategies as st
import numpy as np
import pytest
from test_evaluation_shapes import Oracle

from orthus_jax import cli
from orthus_jax.config import command_line
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Image, Text, document
from orthus_jax.data.shapes import records
from orthus_jax.data.shapes.language import TAGS
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import curves, opening, report, shapes, shapes_table
from orthus_jax.evaluation.results import Turn

ROOT = Path(__file__).resolve().parent.parent
COUNTS = {"caption_to_image": 12, "image_to_caption": 2, "question": 2, "edit": 2, "story": 1}
VOID = {"img", "meta", "br", "line", "polyline", "u", "wbr"}


@pytest.fixture(scope="module")
def config():
  return command_line.load_config(str(ROOT / "configs" / "shapes.py"))


@pytest.fixture(scope="module")
def documents():
  return [records.make_document(kind, "test", i) for kind, n in COUNTS.items() for i in range(n)]


def slip(d, response):
  """A model that answers every other caption with a grey picture, all questions with markup, and is right else."""
  if d.kind == "caption_to_image" and int(d.id[-1]) % 2:
    return (Image(np.full((32, 32, 3), 200, np.uint8), True),)
  return (Text("<b>yes & no</b>", True),) if d.kind == "question" else response


@pytest.fixture(scope="module")
def result(documents):
  return shapes.evaluate(Oracle(documents, slip), documents, limits=shapes.Limits(samples=1))


class Page(HTMLParser):
  """Checks that tags are closed in order, and keeps words and picture sources."""

  def __init__(self, text):
    super().__init__()
    self.open, self.words, self.sources = [], "", []
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    if tag not in VOID - {"u"}:
      self.open.append(tag)
    self.sources += [v for k, v in attrs if k in ("src", "href", "srcset")]

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("style", "script"):
      self.words += " " + " ".join(data.split())


def write(tmp_path, config, result=None, **more):
  with (tmp_path / "metrics.jsonl").open("w") as f:
    for step in range(10, 210, 10):
      f.write(json.dumps({"step": step, "text_loss": 3 / step, "image_loss": None if step == 50 else 1.0,
                          "grad_norm": 0.5, "learning_rate": 1e-3}) + "\n")
  figures = {"seconds": {"setup": 3.0, "train": 200.0, "total": 210.0}, "peak_memory_bytes": 3 * 2**30,
             "params_digest": "abc123", "parameters": 5_800_000}
  path = report.write_report(tmp_path, config=config, result=result, figures=figures, **more)
  assert path == tmp_path / "report.html"
  return path.read_text(encoding="utf-8")


def test_the_report_stands_alone_and_tells_everything(tmp_path, config, result):
  text = write(tmp_path, config, result)
  page = Page(text)
  assert page.sources and all(s.startswith("data:image/png;base64,") for s in page.sources)
  assert not re.search(r"https?://|<script|@import|url\(", text)
  for word in ("<b>yes & no</b>", "5.8 million parameters", "3 min 30 s", "3.00 GiB", "abc123", "jax ", "Text loss",
               "Learning rate", "50%", *(d for d in shapes_table.SECTIONS)):
    assert word in page.words, word
  for name in result.scores:
    assert f"<code>{name.replace('_', '_<wbr>')}</code>" in text, name
  for case in result.cases:
    if case.kind != "image_to_caption":
      assert case.prompt in page.words
  assert len(text) < 400_000


def test_pictures_in_the_report_are_the_cases_own(tmp_path, config, result):
  sources = Page(write(tmp_path, config, result)).sources
  drawn = [c.picture for c in result.cases if c.kind in ("caption_to_image", "edit")]
  assert drawn and all(report._data_url(pixels) in sources for pixels in drawn)
  first = images_lib.load_image(base64.b64decode(sources[0].partition(",")[2]))
  assert np.array_equal(first, result.cases[0].picture)


def test_a_report_opens_with_the_first_right_ones_and_a_wrong_one(tmp_path, config, result):
  chosen = opening.choose(result)
  drawn = [c for c in result.cases if c.kind == "caption_to_image"]
  assert chosen.wrong is next(c for c in drawn if not c.right)
  assert [c.tag for c in chosen.pictures] == [t for t in TAGS if any(c.right for c in drawn if c.tag == t)]
  assert all(c is next(d for d in drawn if d.tag == c.tag and d.right) for c in chosen.pictures)
  assert chosen.edit.right and chosen.story.right and chosen.missing == ("answer",)
  assert not chosen.answer.right and chosen.answer.expected not in ("yes", "no")
  words = Page(write(tmp_path, config, result)).words
  assert "No answer was right: where one is shown, it is the nearest." in words
  assert words.index("What it does") < words.index(chosen.wrong.prompt) < words.index("Drawn from captions")


def test_a_report_opens_with_what_there_is(tmp_path, config, result):
  half = dataclasses.replace(result.cases[0], kind="story", turns=(Turn("a", None, True), Turn("b", None, False)), right=False)
  none = dataclasses.replace(half, turns=(Turn("c", None, False),))
  chosen = opening.choose(dataclasses.replace(result, cases=(none, half)))
  assert chosen.story is half and chosen.missing == ("story",) and chosen.pictures == () and chosen.edit is None
  few = dataclasses.replace(result, cases=(none, half))
  assert "No story was right" in Page(write(tmp_path, config, few)).words


def test_a_report_without_scores_shows_samples_and_curves(tmp_path, config):
  sample = document("a <cat>", np.full((8, 8, 3), 7, np.uint8), learn=[1])
  text = write(tmp_path, config, samples=[sample], title="Cats & dogs")
  page = Page(text)
  assert "a <cat>" in page.words and "Cats & dogs" in page.words and "Samples" in page.words
  assert len(page.sources) == 1 and "All scores" not in text and "Questions" not in text


def test_a_report_of_a_run_without_metrics_is_written(tmp_path, config):
  path = report.write_report(tmp_path, config=config, figures={})
  Page(path.read_text(encoding="utf-8"))


def test_worst_cases_come_wrong_ones_first_and_cut(tmp_path, result):
  path = report.write_worst(tmp_path / "worst.html", result=result, title="Worst", most=4)
  page = Page(path.read_text(encoding="utf-8"))
  pictures = [c for c in result.cases if c.kind == "caption_to_image"]
  assert "6 of 12 wrong; 4 shown" in page.words and "saw nothing" in page.words
  assert all(f'<h2 id="{kind}">' in path.read_text(encoding="utf-8") for kind in COUNTS)
  for case in pictures:
    assert case.right or case.prompt in page.words or pictures.index(case) > 7
  grey = report._data_url(np.full((32, 32, 3), 200, np.uint8))
  assert page.sources.count(grey) == 4


# --- curves ---------------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_inside(low, width):
  high = low + width
  found = curves.ticks(low, high)
  if high - low < 1e-6 * max(abs(low), 1e-6):
    return
  assert len(found) <= 6 and all(low - 1e-6 * width <= t <= high + 1e-6 * width for t in found)
  for a, b in zip(found, found[1:]):
    step = b - a
    power = 10.0 ** math.floor(math.log10(step * 1.0001))
    assert min(abs(step / power - m) for m in (1, 2, 5, 10)) < 1e-2


@pytest.mark.parametrize("value, text", [(0, "0"), (1200, "1.2k"), (2.5e6, "2.5M"), (0.002, "0.002"), (2e-5, "2e-5"),
                                         (-3, "-3"), (0.1 + 0.2, "0.3")])
def test_numbers_are_short(value, text):
  assert curves.number(value) == text


def test_smoothing_keeps_constants_lines_and_the_mean_of_noise():
  assert np.allclose(curves.smooth([2.0] * 50, 4), 2.0)
  line = np.arange(100.0)
  assert np.allclose(curves.smooth(line, 3)[15:-15], line[15:-15])
  noise = np.random.default_rng(0).normal(size=400)
  assert curves.smooth(noise, 8).std() < 0.3


def test_a_curve_stays_within_its_frame_whatever_the_values():
  ys = [float("nan"), None, 1e9, *[1.0 + 0.1 * (i % 7) for i in range(60)], float("inf")]
  svg = curves.line_chart(range(len(ys)), ys, label="x")
  points = [tuple(map(float, p.split(","))) for line in re.findall(r'points="([^"]+)"', svg) for p in line.split()]
  assert len(points) == 2 * 61
  assert all(46 <= u <= 350 and 10 <= v <= 164 for u, v in points)
  usual = [v for _, v in points[5:61]]
  assert max(usual) - min(usual) > 30  # one wild value doesn't flatten the rest
  assert "too few" in curves.line_chart([1], [1.0], label="x")


@pytest.mark.parametrize("value, labels", [(1e-4, ["1e-4", "1.05e-4", "1.1e-4"]), (0.0, ["0", "0.05", "0.1"]), (2e-14, None),
                                           (5e-324, None)])
def test_a_constants_axis_is_of_its_own_size(value, labels):
  svg = curves.line_chart([1, 2, 3], [value] * 3, label="x")
  found = re.findall(r'end">([^<]+)<', svg)[:-1]  # but the last of the other axis
  assert found == labels if labels else len(found) > 1


# --- orthus evaluate ------------------------------------------------------------------------------------------------


@pytest.fixture
def run_model(config, documents):
  oracle = Oracle(documents, slip)
  oracle.config = config
  return oracle


@pytest.fixture
def run(tmp_path, monkeypatch, run_model, documents):
  """A run's directory whose model is an oracle that slips."""
  from orthus_jax.data.sources import registry as sources
  from orthus_jax.inference import model as model_lib

  folder = tmp_path / "run"
  (folder / "checkpoints" / "600" / "params").mkdir(parents=True)
  monkeypatch.setattr(model_lib, "load", lambda path: run_model)
  monkeypatch.setattr(sources, "open_source", lambda config, split: documents)
  return folder


def test_evaluate_writes_json_and_page_and_prints_a_table(run, run_model, capsys):
  assert cli.main(["evaluate", str(run), "--samples=1", "--guidance=2", "--stories=0"]) == 0
  out = run / "evaluations" / "shapes-test"
  record = json.loads((out / "evaluation.json").read_text())
  assert record["scores"]["geneval_overall"] == 0.5 and record["scores"]["edits"] == 1.0
  assert {sampling.guidance for *_, sampling in run_model.calls} == {2.0}
  assert record["sampling"]["guidance"] == 2.0 and record["step"] == 600 and "story_turns" not in record["scores"]
  assert record["counts"]["geneval_overall"] == 12 and record["limits"]["samples"] == 1
  assert set(record) >= {"scores", "intervals", "counts", "baselines", "sampling", "versions", "seed", "split"}
  Page((out / "worst.html").read_text(encoding="utf-8"))
  printed = capsys.readouterr().out
  assert "geneval_overall" in printed and "evaluation.json" in printed


def test_evaluate_prints_json_and_obeys_limits(run, tmp_path, capsys):
  assert cli.main(["evaluate", str(run / "checkpoints" / "600"), "--quick", "--captions-per-tag=1", "--json"]) == 0
  record = json.loads(capsys.readouterr().out)
  assert record["counts"]["geneval_images"] == 6 and record["limits"] == dataclasses.asdict(
      dataclasses.replace(shapes.Limits.quick(), caption_images=1))
  assert (run / "evaluations" / "shapes-test-600" / "evaluation.json").is_file()


@pytest.mark.parametrize("arguments, said", [
    (["--samples=0"], "--samples: 0 must be"), (["--split=tset"], "tset"), (["--steps=0"], "--steps: 0 must be"),
    (["--benchmark=mme"], "mme"), (["--out={file}"], "--out"), (["--unknown"], "--unknown")])
def test_evaluate_refuses_bad_requests_in_one_line(run, tmp_path, capsys, arguments, said):
  (tmp_path / "file").write_text("x")
  arguments = [a.format(file=tmp_path / "file") for a in arguments]
  assert cli.main(["evaluate", str(run), *arguments]) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1 and not list(run.glob("evaluations/*/*"))


def test_evaluate_needs_a_run(tmp_path, capsys):
  assert cli.main(["evaluate", str(tmp_path)]) == 2
  assert "holds no checkpoint" in capsys.readouterr().err
  with pytest.raises(BadRequest):
    cli.main(["evaluate", "--debug"])
