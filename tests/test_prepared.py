"""Prepared data: what comes out is what went in, in an order that is a function of the step alone."""

import collections
import dataclasses
import json
from pathlib import Path
import shutil
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest
import tiny

from orthus_jax import cli
from orthus_jax.config import to_dict
from orthus_jax.data.prepared import format as record_format, rounds, shards, writer as prepared
from orthus_jax.data.prepared.pipeline import PreparedPipeline
from orthus_jax.data.sources import registry as sources
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.data.sources.jsonl import Jsonl
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.errors import BadRequest
from orthus_jax.training import hosts

TK = tiny.tokenizer()
P = 16


class Some:
  """Some of the tiny documents."""

  def __init__(self, numbers):
    self._numbers = list(numbers)

  def __len__(self):
    return len(self._numbers)

  def __getitem__(self, i):
    return tiny.TinySource(80)[self._numbers[i]]


def config(*paths, **changes):
  where = {"data__path": str(paths[0])} if len(paths) == 1 else {"data__path": "", "data__mixture": list(paths)}
  return tiny.config(data__source="prepared", **where, **changes)


def fake_encode(pixels):
  """Features that tell which picture they are of: means of 2 x 2 blocks."""
  blocks = pixels.reshape(len(pixels), 4, 2, 4, 2, 3).mean(axis=(2, 4)).reshape(len(pixels), P, 3) / 64
  return np.concatenate([blocks, blocks[..., :1]], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("prepared")
  made = {}
  for name, numbers, images in (
      ("a", range(40), "pixels"), ("b", range(40, 80), "pixels"), ("jpeg", range(40), "jpeg"),
      ("features", range(40), "features"),
  ):  # fmt: skip
    made[name] = root / name
    prepared.prepare(
        Some(numbers), TK, tiny.config(), root / name, images=images, encode=fake_encode, encoded_by="fake"
    )
  return made


def test_rows_hold_the_documents_that_were_prepared(folders):
  p = PreparedPipeline(TK, config(folders["a"], data__caption_dropout=0.0))
  tiny.check_rows(p.batch(0), p.document_ids(0), TK, patches=P)


def test_an_epoch_holds_every_row_once_in_a_fresh_order(folders):
  p = PreparedPipeline(TK, config(folders["a"], data__caption_dropout=0.0, run__batch_size=1))
  n = len(p._folders[0])
  epochs = [[i for step in range(e * n, (e + 1) * n) for i in p.document_ids(step)] for e in (0, 1)]
  assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"tiny-{i}" for i in range(40))
  assert epochs[0] != epochs[1]


def test_batches_are_a_function_of_the_step_and_rows_of_their_place(folders):
  c = config((str(folders["a"]), 1.0), (str(folders["b"]), 1.0), data__caption_dropout=0.3)
  p, q = PreparedPipeline(TK, c), PreparedPipeline(TK, c)
  q.batch(9)
  for step in (0, 9, 4):
    whole = p.batch(step)
    for hosts_of in (1, 2, 4):  # each host makes its own rows
      parts = [q.batch(step, rows) for rows in np.split(np.arange(8), hosts_of)]
      jax.tree.map(lambda x, *own: np.testing.assert_array_equal(x, np.concatenate(own)), whole, *parts)
    assert p.tokens(step) == (whole.segment_ids_BT > 0).sum()
  background = dict(p.iterate(3, 6))
  assert list(background) == [3, 4, 5]
  np.testing.assert_array_equal(background[4].tokens_BT, p.batch(4).tokens_BT)


def test_mixtures_keep_their_shares(folders):
  c = config((str(folders["a"]), 3.0), (str(folders["b"]), 1.0), run__batch_size=4)
  p = PreparedPipeline(TK, c)
  drawn = collections.Counter(p._row(step, b)[0].path.name for step in range(50) for b in range(4))
  assert drawn == {"a": 150, "b": 50}


def test_each_source_of_a_mixture_drops_captions_at_its_own_rate_and_says_what_it_gave(folders):
  both = ((str(folders["a"]), 1.0), (str(folders["b"]), 1.0))
  p = PreparedPipeline(TK, config(*both, data__mixture_caption_dropout=[0.9, 0.0]))
  shown = [(f.path.name, kind, v) for step in range(20) for b in range(8) for f, d, vs in [p._row(step, b)]
           for kind, v in zip(d % 4, vs)]  # fmt: skip
  assert np.mean([v > 0 for name, kind, v in shown if name == "a" and kind in (1, 2)]) > 0.75
  assert not any(v for name, _, v in shown if name == "b")
  batch, shares = p.batch(3), p.shares(3)
  given = {"a": 0, "b": 0}
  for b in range(8):
    given[p._row(3, b)[0].path.name] += int((batch.segment_ids_BT[b] > 0).sum())
  assert shares == {name: n / sum(given.values()) for name, n in given.items()}
  assert PreparedPipeline(TK, config(folders["a"])).shares(0) == {}
  assert set(PreparedPipeline(TK, config(both[0], both[0])).shares(0)) == {"a#1", "a#2"}
  with pytest.raises(BadRequest, match="has 1 shares for 2 folders"):
    config(*both, data__mixture_caption_dropout=[0.5])


def test_captions_are_dropped_at_their_rate(folders):
  p = PreparedPipeline(TK, config(folders["a"], data__caption_dropout=0.5))
  shown = [
      (kind, v) for step in range(40) for b in range(8) for f, d, vs in [p._row(step, b)] for kind, v in zip(d % 4, vs)
  ]
  # TinySource's kinds in turn: ask, draw, edit, story; a question or a story keeps its prompt.
  assert all(v == 0 for kind, v in shown if kind in (0, 3))
  dropped = [v > 0 for kind, v in shown if kind in (1, 2)]
  assert 0.4 < np.mean(dropped) < 0.6
  prompt = TK.encode("generate an image")
  tokens = p.batch(0).tokens_BT.ravel().tolist()
  assert any(tokens[i : i + len(prompt)] == prompt for i in range(len(tokens)))


def test_kinds_are_weighted(folders, monkeypatch):
  """In each round those of weight 1 and a share of the others, which all have their turn."""
  p = PreparedPipeline(TK, config(folders["a"], data__kinds=[["draw", 1.0], ["ask", 0.4]], run__batch_size=1))
  (folder,) = p._folders
  asks, steps = [], iter(range(len(folder)))
  for rows in np.diff(folder.rounds).tolist():
    documents = np.concatenate([p._row(next(steps), 0)[1] for _ in range(rows)])
    assert len(set(documents)) == len(documents) and (documents % 4 == 1).sum() == 10 and set(documents % 4) <= {0, 1}
    asks.append(documents[documents % 4 == 0])
  assert len(asks) == 3 and all(0 < len(a) < 10 for a in asks)  # 1 / 0.4 rounds, and the rest of one
  assert set(np.concatenate(asks)) == set(range(0, 40, 4)) and p.undrawn == 0
  assert p._row(len(folder), 0)[1].tolist() in [p._row(n, 0)[1].tolist() for n in range(folder.rounds[1])]  # anew
  again = PreparedPipeline(TK, config(folders["a"], data__kinds=[["draw", 1.0], ["ask", 0.4]], run__batch_size=1))
  assert all((p._row(n, 0)[1] == again._row(n, 0)[1]).all() for n in range(2 * len(folder)))  # from the plan that was kept
  monkeypatch.setattr(rounds, "_MOST_DRAWN", 40)
  few = PreparedPipeline(TK, config(folders["a"], data__kinds=[["draw", 1.0], ["ask", 0.4]]), keep_plans=False)
  assert 0 < few.undrawn < 10 and len(few._folders[0].rounds) == 2
  assert PreparedPipeline(TK, config(folders["a"])).undrawn == 0
  with pytest.raises(BadRequest, match="'drawing'; .* has ask, draw, edit, story"):
    PreparedPipeline(TK, config(folders["a"], data__kinds=[["drawing", 1.0]]))


def test_features_and_jpegs(folders):
  p = PreparedPipeline(TK, config(folders["features"], data__caption_dropout=0.0))
  pixels = PreparedPipeline(TK, config(folders["a"], data__caption_dropout=0.0)).batch(0)
  batch = p.batch(0)
  np.testing.assert_array_equal(batch.tokens_BT, pixels.tokens_BT)
  assert batch.images.dtype == record_format.BF16 and p.encoded_by == {"fake"}
  used = pixels.images.any(axis=(2, 3, 4))
  np.testing.assert_array_equal(batch.images[used], fake_encode(pixels.images[used]).astype(record_format.BF16))
  jpeg = PreparedPipeline(TK, config(folders["jpeg"], data__caption_dropout=0.0)).batch(0)
  assert jpeg.images.dtype == np.uint8
  assert 0 < np.abs(jpeg.images.astype(int) - pixels.images).mean() < 20


def test_each_picture_is_kept_once_and_plans_are_kept(folders):
  p = PreparedPipeline(TK, config(folders["a"]))
  source = tiny.TinySource()
  assert p._folders[0].facts["pictures"] == len({i.pixels.tobytes() for n in range(40) for i in source[n].images})
  plans = sorted((folders["a"] / "plans").iterdir())
  again = PreparedPipeline(TK, config(folders["a"]))
  assert sorted((folders["a"] / "plans").iterdir()) == plans
  np.testing.assert_array_equal(again._folders[0]._documents, p._folders[0]._documents)
  for damaged in (plans[0].read_bytes()[:100], b""):
    for plan in plans:
      plan.write_bytes(damaged)
    mended = PreparedPipeline(TK, config(folders["a"]))
    np.testing.assert_array_equal(mended._folders[0]._documents, p._folders[0]._documents)
    assert sorted((folders["a"] / "plans").iterdir()) == plans
  short = PreparedPipeline(TK, config(folders["a"], data__sequence_length=30))  # another plan of the same data
  assert short.too_long and len(list((folders["a"] / "plans").iterdir())) == len(plans) + 1
  shown = sources.open_source(config(folders["a"]), "train")
  assert shown[1].segments == tiny.TinySource()[1].segments


def test_a_folder_prepared_over_another_one_has_a_plan_of_its_own(folders, tmp_path):
  def order():
    p = PreparedPipeline(TK, config(tmp_path / "out", data__caption_dropout=0.0, run__batch_size=2))
    return [i for step in range(len(p._folders[0]) // 2) for i in p.document_ids(step)]

  prepared.prepare(Some(range(3)), TK, tiny.config(), tmp_path / "few", images="pixels")
  for name in ("a", "few", "a"):
    shutil.copytree(folders[name] if name in folders else tmp_path / name, tmp_path / "out", dirs_exist_ok=True)
    drawn = order()
    assert {*drawn} <= {f"tiny-{i}" for i in range(40 if name == "a" else 3)} and drawn == order()
  # An order is a promise to runs that go on: this is what every version has drawn.
  assert drawn[:6] == [f"tiny-{i}" for i in (15, 35, 5, 7, 38, 36)]


def test_a_jpeg_file_that_is_kept_is_kept_of_the_documents_shown_too(tmp_path):
  rows = []
  for i in range(4):
    pixels = np.kron(np.random.default_rng(i).integers(0, 255, (2, 2, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    rows.append({"image": f"{i}.jpg", "text": f"a red box {i}"})
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
  made_with = dict(model__vision_tokenizer__resolution=32, model__vision_tokenizer__channel_multipliers=[1] * 4)
  source = LayoutSource(Jsonl(tmp_path, Options(pairs="to_image")), resolution=32)
  prepared.prepare(source, TK, tiny.config(**made_with), tmp_path / "out", images="jpeg")
  assert {p.suffix for p in (tmp_path / "out" / "shown").iterdir()} == {".jpg", ".jsonl"}
  shown = sources.open_source(config(tmp_path / "out", **made_with), "train")
  assert [d.segments for d in (shown[i] for i in range(4))] == [source[i].segments for i in range(4)]


def test_what_does_not_fit_is_refused(folders, tmp_path):
  with pytest.raises(BadRequest, match="holds no complete prepared data"):
    PreparedPipeline(TK, config(tmp_path))
  with pytest.raises(BadRequest, match="prepared with another unconditional_prompt"):
    PreparedPipeline(TK, config(folders["a"], sampling__unconditional_prompt="draw"))
  with pytest.raises(BadRequest, match="features with folders of pixels"):
    PreparedPipeline(TK, config((str(folders["a"]), 1.0), (str(folders["features"]), 1.0)))
  with pytest.raises(BadRequest, match="is there already"):
    prepared.prepare(Some(range(3)), TK, tiny.config(), folders["a"], images="pixels")
  with pytest.raises(BadRequest, match="data.pairs is settled when data is prepared"):
    config(folders["a"], data__pairs="to_text")
  with pytest.raises(BadRequest, match="nothing to prepare"):
    prepared.prepare([None], TK, tiny.config(), tmp_path / "none", images="pixels")


def test_the_command_lays_out_a_folder(tmp_path, capsys):
  data = tiny.write_folder(tmp_path / "pictures", n=4)
  tiny.tokenizer().save(tmp_path)
  tree = to_dict(tiny.config(data__path=str(data), data__tokenizer=str(tmp_path)))
  file = tmp_path / "config.py"
  file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({tree!r})\n")
  assert cli.main(["prepare", f"--config={file}", f"--out={tmp_path / 'out'}"]) == 0
  assert "8 documents, 4 pictures as pixels" in capsys.readouterr().out
  p = PreparedPipeline(TK, config(tmp_path / "out"))
  assert len(p) == 8 and p.batch(0).images.any()
  assert cli.main(["prepare", f"--config={file}", f"--out={tmp_path / 'f'}", "--images=features"]) == 2
  assert "needs a trained vision tokenizer" in capsys.readouterr().err
  assert cli.main(["prepare", f"--config={file}", f"--out={tmp_path / 'f'}", "--images=gif"]) == 2


def test_prompts_found_are_counted_by_document(tmp_path, capsys, monkeypatch):
  data = tiny.write_folder(tmp_path / "pictures", n=2)
  row = json.loads((data / "metadata.jsonl").read_text().splitlines()[0])
  (data / "metadata.jsonl").write_text(json.dumps({**row, "text": "a red cat and a blue dog"}) + "\n")
  tiny.tokenizer().save(tmp_path)
  tree = to_dict(tiny.config(data__path=str(data), data__tokenizer=str(tmp_path)))
  file = tmp_path / "config.py"
  file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({tree!r})\n")
  (tmp_path / "p.txt").write_text("a red cat and a\nand a blue dog\n")
  monkeypatch.chdir(data)
  (data / "notes.txt").write_text("a red cat and a blue dog\n")  # which a piece without a name isn't
  prepare = ["prepare", f"--config={file}", f"--out={tmp_path / 'out'}"]
  assert cli.main([*prepare, f"--contamination={tmp_path / 'p.txt'}, "]) == 0
  told = capsys.readouterr().out
  assert "2 prompts of benchmarks are in its documents: p.txt:1 (in 2), p.txt:2 (in 2)" in told
  assert cli.main([*prepare, "--contamination=,"]) == 2
  assert "--contamination names no file of prompts" in capsys.readouterr().err


def test_rows_of_one_process_are_those_of_the_mesh():
  import jax

  from orthus_jax.parallel import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(tiny.config(mesh__fsdp=4, mesh__tensor=2).mesh)
  places = [mesh_lib.sharding(mesh, (8, 5), ("batch", None))]
  np.testing.assert_array_equal(hosts.own_rows(zip(places, [(8, 5)])), np.arange(8))
  x = np.arange(40).reshape(8, 5)
  np.testing.assert_array_equal(np.asarray(hosts.place_batch(x, places[0], np.arange(8), 8)), x)
  assert jax.process_count() == 1


def test_what_was_prepared_is_told_apart_wherever_it_lies(folders, tmp_path):
  def contents(*paths):
    return PreparedPipeline(TK, config(*paths), keep_plans=False).contents()

  def anew(name, source):
    prepared.prepare(source, TK, tiny.config(), tmp_path / name, images="pixels", encoded_by="fake")
    return contents(tmp_path / name)

  class Brighter(Some):
    def __getitem__(self, i):
      d = super().__getitem__(i)
      segments = (dataclasses.replace(s, pixels=s.pixels + 1) if hasattr(s, "pixels") else s for s in d.segments)
      return dataclasses.replace(d, segments=tuple(segments))

  there = contents(folders["a"])
  assert there["documents"] == 40 and there == anew("again", Some(range(40)))
  assert there["digest"] not in (
      anew("brighter", Brighter(range(40)))["digest"], anew("other", Some(range(1, 41)))["digest"],
      contents(folders["jpeg"])["digest"], contents(folders["features"])["digest"],
  )  # fmt: skip
  both = contents((str(folders["a"]), 1.0), (str(folders["b"]), 2.0))
  assert both == contents((str(tmp_path / "again"), 1.0), (str(folders["b"]), 2.0)) and both["documents"] == 80
  file = tmp_path / "again" / "prepared.json"  # as an earlier version left it
  file.write_text(json.dumps({n: v for n, v in json.loads(file.read_text()).items() if n != "digest"}))
  assert contents(tmp_path / "again") == contents(tmp_path / "again") != there


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
  made = prepared.prepare(Some(range(40)), TK, tiny.config(), tmp_path / "out", images="pixels", part_bytes=1)
  files = sorted((tmp_path / "out").glob("pictures-*"))
  monkeypatch.setattr(shards, "_most_open", lambda: 2)
  kept = shards.Shards(files, made["shards"]["pictures"], BadRecords())
  order = np.random.default_rng(0).permutation(made["pictures"])
  some = {int(i): kept.read(int(i)) for i in order}
  assert len(files) > 2 and len(kept._readers) == 2
  monkeypatch.setattr(shards, "_most_open", lambda: 99)
  every = shards.Shards(files, made["shards"]["pictures"], BadRecords())
  assert all(every.read(i) == r for i, r in some.items()) and len(every._readers) == len(files)


@pytest.mark.slow
def test_the_benchmark_of_reading_prints_its_table():
  program = Path(__file__).parent.parent / "benchmarks/input_pipeline.py"
  options = ["--documents=3", "--sources", "1", "--images", "features", "--steps=1"]
  done = subprocess.run([sys.executable, program, *options], capture_output=True, text=True)
  assert done.returncode == 0 and "| features | 1 | " in done.stdout, done.stderr
