"""Looking at what lies at a place: which layout it is, what is in it, what would be skipped; nothing is written."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from sources import folder_source
from test_tar import archive, pairs, picture, write

from orthus_jax.data import look as look_module
from orthus_jax.data.look import describe, look
from orthus_jax.data.sources.jsonl import Jsonl
from orthus_jax.data.sources.layout import Options
from orthus_jax.errors import BadRequest


def rows_of(folder, rows) -> None:
  (folder / "metadata.jsonl").write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))


@pytest.fixture
def folder(tmp_path):
  """Forty rows, of which seven are bad."""
  (tmp_path / "a.png").write_bytes(picture(1))
  (tmp_path / "b.png").write_bytes(b"no picture")
  good = [{"image": "a.png", "text": f"caption [bold]{i} {'long ' * 100}"} for i in range(30)]
  good += [{"segments": [{"text": "see"}, {"image": "a.png"}, *[{"text": f"t{i}"} for i in range(9)]]}] * 3
  bad = ["{", '{"image": "a.png"}', *({"image": f"{n}.png", "text": "t"} for n in ("gone1", "gone2", "gone3", "gone4", "b"))]
  rows_of(tmp_path, good + bad)
  return tmp_path


def test_a_folder_is_looked_at(folder):
  before = sorted(p.name for p in folder.iterdir())
  found = look(folder)
  assert (found.layout, found.rows, found.looked_at, found.bad, found.others) == ("jsonl", 40, 40, 7, {})
  assert found.reason.startswith("metadata.jsonl has rows") and found.decoded == 34
  assert found.documents == {"caption_to_image": 30, "image_to_caption": 30, "interleaved": 3}
  assert [s.kind for s in found.samples] == ["caption_to_image", "image_to_caption", "interleaved"]
  (what, text, learnt), image = found.samples[0].segments
  assert (what, learnt, image) == ("text", False, ("image", "8x8", True)) and len(text) == 200 and text.endswith("…")
  reasons = {line.partition(":")[0]: line for line in found.skipped}
  assert len(reasons) == 4 and reasons["the picture '…' doesn't exist; check its path"].endswith(
      "4 (metadata.jsonl line 36, metadata.jsonl line 37, metadata.jsonl line 38, …)"
  )
  assert found.command == f"orthus prepare --source=jsonl {folder} --out=DIR --tokenizer=FILE"
  assert sorted(p.name for p in folder.iterdir()) == before


def test_bad_rows_at_the_head_hide_no_layout(folder):
  (folder / "metadata.jsonl").write_text("{bad\n[1]\n" + (folder / "metadata.jsonl").read_text())
  found = look(folder)
  assert (found.layout, found.rows, found.bad) == ("jsonl", 42, 9)
  (folder / "metadata.jsonl").write_text("{bad\n" * 30)
  with pytest.raises(BadRequest, match="metadata.jsonl, line 1: it isn't JSON: Expecting property name .*, at character 2"):
    look(folder)


def test_a_page_tells_of_it(folder):
  page = describe(look(folder))
  for part in (
      "layout       jsonl (", "rows         40; all looked at, 34 pictures decoded", "30 caption_to_image", "learnt image: 8x8",
      "caption [bold]0 long", "7 of the 40 rows looked at, more than the share of 0.01 put up with", "… and 8 more",
      "exist; check its path: 4 (metadata.jsonl line 36,", "\n\northus prepare --source=jsonl ",
  ):  # fmt: skip
    assert part in page, (part, page)
  assert len(page.splitlines()) < 60 and all(len(line) <= 112 for line in page.splitlines()[:-1])


def test_few_bad_rows_are_put_up_with_as_when_it_is_prepared(folder):
  (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("gone", "a"))  # a1.png to a4.png
  for n in range(1, 5):
    shutil.copy(folder / "a.png", folder / f"a{n}.png")
  found = look(folder)
  assert found.bad == 3 and "3 of the 40 rows looked at\n" in describe(found)


def test_what_waits_for_a_writer_is_no_picture(folder):
  os.mkfifo(folder / "gone1.png")
  (folder / "gone2.png").mkdir()
  reasons = {line.rpartition(":")[0].partition("' ")[2]: line for line in look(folder).skipped}
  assert reasons["is no file; check its path"].endswith("2 (metadata.jsonl line 36, metadata.jsonl line 37)")
  source = folder_source(folder, resolution=8, max_bad_share=1.0)
  assert [d is None for d in source.row(35)] == [True] * 2  # line 36's; it isn't waited for


def test_what_file_managers_leave_is_in_no_classs_way(tmp_path):
  for name in ("cat", "dog"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "0.png").write_bytes(picture(1))
  for clutter in ("cat/Thumbs.db", "desktop.ini"):
    (tmp_path / clutter).write_bytes(b"x")
  found = look(tmp_path)
  assert (found.layout, found.rows) == ("imagefolder", 2)


def test_tar_files_are_looked_at(tmp_path):
  edit = [("x.input.png", picture(1)), ("x.output.png", picture(2)), ("x.txt", b"make it dark"), ("r.png", picture(1))]
  file = write(tmp_path, archive(pairs("a b", "c") + edit) + b"garbage " * 64, "BLIP3o-x/0.tar")
  found = look(file, options=Options(pairs="to_image"))
  assert (found.layout, found.documents, list(found.others)) == ("blip3o", {"caption_to_image": 2, "edit": 1}, ["webdataset"])
  assert found.fields["png"] and found.skipped[0].endswith("1 (0.tar r)") and "no tar header" in found.broken[0]
  assert found.command == f"orthus prepare --source=blip3o {file} --pairs=to_image --out=DIR --tokenizer=FILE"
  page = describe(found)
  assert "could be     webdataset (0.tar holds pictures beside .txt)" in page
  assert "unreadable   no tar header stands there: 1 (0.tar, from byte" in page
  named = look(file, "tar", Options(text=("txt",)))
  assert named.layout == "webdataset" and list(named.others) == ["blip3o"] and "--text=txt" in named.command


def test_reasons_are_one_whatever_they_name(tmp_path):
  twice = [(f"{n}.png", picture(1)) for n in ("a", "b", "c.d") for _ in range(2)]
  write(tmp_path, archive(pairs("x") + twice))
  assert look(tmp_path).skipped == ("more than one .png is called …: 3 (a.tar a, a.tar b, a.tar c.d)",)


def test_of_many_rows_some_are_looked_at(tmp_path):
  (tmp_path / "a.png").write_bytes(picture(1))
  rows_of(tmp_path, [{"image": "a.png" if i % 2 else "b.png", "text": f"{i}"} for i in range(5000)])
  found = look(tmp_path, rows=99, pictures=10)
  assert (found.rows, found.looked_at, found.decoded) == (5000, 99, 10) and 30 < found.bad < 70
  assert "5,000; 99 spread over them looked at, 10 pictures decoded" in describe(found)
  texts = [int(s.segments[0][1]) for s in found.samples if s.kind == "caption_to_image"]
  assert max(texts) - min(texts) > 500  # from all over the data


def test_the_longest_page_is_of_less_than_sixty_lines(tmp_path):
  long = " ".join(["word"] * 300)
  sample = look_module.Sample((long, long), long, ((("text", long, True),) * 30))
  many = tuple(f"{i} {long}" for i in range(50))
  found = look_module.Look(tmp_path, long, long, dict.fromkeys(many, long), 10**9, 2000, 64, dict.fromkeys(many, 5),
                           dict.fromkeys(many, long), (sample,) * 3, many, 2000, many, many, "orthus")  # fmt: skip
  assert 50 < len(describe(found).splitlines()) < 60


def test_what_nothing_recognises_is_told_of(tmp_path):
  for name in ("a.csv", "b.csv", "x/c.parquet", ".hidden", "d"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
  with pytest.raises(BadRequest, match=r"no layout is recognised at .* 2 of \.csv, .*1 of \.parquet.*nearest layouts: ") as e:
    look(tmp_path)
  assert "\n" not in str(e.value) and "--source=NAME" in str(e.value)
  with pytest.raises(BadRequest, match="Files there: 1 of .csv"):
    look(tmp_path / "a.csv")
  (tmp_path / "bare").mkdir()
  (tmp_path / "bare" / "a.JPG").write_bytes(picture(1))
  with pytest.raises(BadRequest, match=r"no text lies beside the pictures .*1 of \.jpg.*: write a metadata\.jsonl there"):
    look(tmp_path / "bare")


def test_of_what_is_nearly_a_layout_the_layouts_own_reason_is_told(tmp_path):
  def told(folder, **files):
    (tmp_path / folder).mkdir()
    for name, text in files.items():
      (tmp_path / folder / f"metadata.{name}").write_bytes(text.encode("utf-16" if folder == "wide" else "utf-8"))
    with pytest.raises(BadRequest) as e:
      look(tmp_path / folder)
    return str(e.value)

  assert "nearest is imagefolder" in (said := told("semicolons", csv="file_name;text\na.png;red\n")) and "';' between" in said
  assert "keep one" in told("both", csv="file_name,text\na.png,red\n", jsonl='{"file_name": "a.png", "text": "red"}\n')
  assert "isn't UTF-8" in told("wide", csv="file_name,text\na.png,red\n")
  assert "nearest is jsonl" in (said := told("array", jsonl='[{"image": "a.png", "text": "red"}]')) and "got list" in said
  assert told("empty").endswith("give the folder that holds the data")


def test_a_long_text_without_spaces_is_cut_not_left_out(tmp_path):
  (tmp_path / "a.png").write_bytes(picture(1))
  rows_of(tmp_path, [{"image": "a.png", "text": "雪中红色的谷仓" * 50}])
  assert "雪中红色的谷仓雪中" in describe(look(tmp_path))


@pytest.mark.parametrize("name, wrong", [("", "there is nothing at"), ("jsno", "there is no source 'jsno'; there are jsonl")])
def test_what_is_not_there_is_refused(tmp_path, name, wrong):
  with pytest.raises(BadRequest, match=wrong):
    look(tmp_path / "absent", name)


def test_a_layout_that_fails_to_recognise_stops_no_other(tmp_path, monkeypatch):
  write(tmp_path, archive(pairs("a")))
  monkeypatch.setattr(Jsonl, "recognise", classmethod(lambda cls, path: 1 / 0))
  assert look(tmp_path).layout == "webdataset"


def test_a_refusal_names_what_else_it_could_be(folder):
  write(folder, archive(pairs("a")))
  shutil.rmtree(folder / "none", ignore_errors=True)
  with pytest.raises(BadRequest, match="as jsonl: there is no .*; it could be webdataset too: name it by --source="):
    look(folder, options=Options(annotations="absent.jsonl"))
  with pytest.raises(BadRequest, match="^webdataset has no use for the option annotations"):
    look(folder, "webdataset", Options(annotations="absent.jsonl"))


def test_it_looks_without_jax_or_tensorflow():
  code = "import sys; import orthus_jax.data.look; assert not {'jax', 'tensorflow', 'pyarrow'} & set(sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)
