"""A small sample of each layout: recognised as itself and nothing else, looked at, prepared by the command, read back."""

import io
import json
import os
from pathlib import Path
import tarfile

import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
import tiny

from orthus_jax import cli
from orthus_jax.config import data as data_config, to_dict
from orthus_jax.data import look
from orthus_jax.data.prepared.pipeline import PreparedPipeline
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.registry import LAYOUTS

TK = tiny.tokenizer()
ROOT = Path(__file__).parent.parent


def png(color: int = 0) -> bytes:
  buffer = io.BytesIO()
  PIL.Image.new("RGB", (8, 8), (color, 0, 90)).save(buffer, "PNG")
  return buffer.getvalue()


def put(file: Path, data) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode())


def put_lines(file: Path, rows) -> None:
  put(file, "\n".join(map(json.dumps, rows)))


def put_table(file: Path, rows) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)


def put_tar(file: Path, **members: bytes) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(file, "w") as t:
    for name, data in members.items():
      info = tarfile.TarInfo(name.replace("__", "."))
      info.size = len(data)
      t.addfile(info, io.BytesIO(data))


def jsonl(p):
  put(p / "a.png", png())
  put_lines(p / "metadata.jsonl", [{"image": "a.png", "text": "red box"}])


def imagefolder(p):
  put(p / "a.png", png())
  put(p / "metadata.csv", "file_name,text\na.png,red box\n")


def webdataset(p):
  put_tar(p / "0.tar", a__png=png(), a__txt=b"red box")


def blip3o(p):
  put_tar(p / "journeyDB.tar", a__jpg=png(), a__txt=b"red box")


def img2dataset(p):
  put_table(p / "00000.parquet", [{"key": "000000000", "status": "success", "caption": "red box", "jpg": png()}])


def llava(p):
  put(p / "images" / "a.png", png())
  turns = [{"from": "human", "value": "<image>\nwhat is this"}, {"from": "gpt", "value": "red box"}]
  put(p / "llava.json", [{"id": "1", "image": "a.png", "conversations": turns}])


def parquet(p):
  put_table(p / "a.parquet", [{"image": {"bytes": png(), "path": "a.png"}, "text": "red box"}])


def obelics(p):
  put(p / "pictures" / "a.png", png())
  row = {"images": ["https://x.org/a.png", None], "metadata": "[]", "texts": [None, "red box"], "general_metadata": "{}"}
  put_table(p / "a.parquet", [row, {**row, "images": [None, "https://x.org/a.png"], "texts": ["blue", None]}])


def mmc4(p):
  put(p / "pictures" / "a.png", png())
  shown = {"image_name": "a.png", "raw_url": "https://x.org/a.png", "matched_text_index": 0, "matched_sim": 0.3}
  put_lines(p / "docs.jsonl", [{"text_list": ["red box", "blue"], "image_info": [shown], "similarity_matrix": [[0.3, 0.1]]}])


def instructpix2pix(p):
  put(p / "seeds.json", [["0000001", ["12"]]])
  put(p / "0000001" / "prompt.json", {"edit": "draw a red box", "input": "blue", "output": "red box"})
  for n in (0, 1):
    put(p / "0000001" / f"12_{n}.jpg", png(n))


def storystream(p):
  for n in range(3):
    put(p / "images" / f"{n}.jpg", png(n))
  names = [f"images/{n}.jpg" for n in range(3)]
  put_lines(p / "val.jsonl", [{"id": 1, "images": names, "captions": ["blue", "red box", "one"], "orders": [0, 1, 2]}])


def journeydb(p):
  put(p / "imgs" / "000" / "a.png", png())
  put_lines(p / "train.jsonl", [{"img_path": "./000/a.png", "prompt": "blue", "Task2": {"Caption": "red box"}}])


def coco(p):
  put(p / "train2017" / "1.jpg", png())
  pictures, captions = [{"id": 1, "file_name": "1.jpg"}], [{"id": 2, "image_id": 1, "caption": "red box"}]
  put(p / "annotations" / "captions_train2017.json", {"images": pictures, "annotations": captions})


# What a sample needs besides its place.
OPTIONS = {"obelics": ["--pictures={p}/pictures"], "mmc4": ["--pictures={p}/pictures"]}
WRITERS = {f.__name__: f for f in (
    jsonl, imagefolder, webdataset, blip3o, img2dataset, llava, parquet, obelics, mmc4, instructpix2pix, storystream,
    journeydb, coco,
)}  # fmt: skip
ELSEWHERE = {"tfds", "comm"}  # their samples are in tests of their own


def test_every_layout_is_tested_and_can_be_named_in_a_config():
  assert set(LAYOUTS) == set(data_config.LAYOUTS) == set(WRITERS) | ELSEWHERE


@pytest.mark.parametrize("name", LAYOUTS)
def test_help_shows_how_the_files_lie(name, capsys):
  assert cli.main(["prepare", f"--source={name}", "--help"]) == 0
  out = capsys.readouterr().out
  assert cli.main(["prepare", "--source", name, "--help"]) == 0 and capsys.readouterr().out == out
  assert LAYOUTS[name].usage.splitlines()[0] in out
  assert len(LAYOUTS[name].usage.splitlines()[0]) < 130 and max(map(len, out.splitlines())) < 130


def test_looking_goes_by_what_options_and_the_config_say(tmp_path, capsys):
  place = tmp_path / "data"
  tiny.write_folder(place, n=9)
  with (place / "metadata.jsonl").open("a") as f:
    f.write('{"image": "gone.png", "text": "a box"}\n' * 6)
  config = tmp_path / "config.py"
  tree = to_dict(tiny.config(data__source="jsonl", data__path=str(place), data__pairs="to_image"))
  config.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({tree!r})\n")

  def look(*argv):
    assert cli.main(["prepare", "--look", *argv]) == 0
    return capsys.readouterr().out

  shown = look(str(place), "--max-bad-share=0.5", "--learn=everything")
  assert "put up with" not in shown and "given" not in shown and "image_to_caption" in shown
  assert shown.endswith(f" {place} --learn=everything --max-bad-share=0.5 --out=DIR --tokenizer=FILE\n")
  assert "more than the share of 0.1 put up with" in look(str(place), "--config.data.max_bad_share=0.1")
  shown = look(f"--config={config}", "--config.data.learn=text", "--config.data.images_per_document=3")  # which names the place
  assert "image_to_caption" not in shown and "learnt text" in shown and "learnt image" not in shown
  more = f"--pairs=to_image --learn=text --out=DIR --config={config} --config.data.images_per_document=3"
  assert shown.endswith(f"--source=jsonl {place} {more}\n")
  assert "--out=DIR --tokenizer=T\n" in look(str(place), "--tokenizer=T")
  for argv, said in ((), "--look takes one path"), ((str(place), "--config.data.pears=1"), "unknown field"):
    assert cli.main(["prepare", "--look", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", WRITERS)
def test_a_sample_is_recognised_looked_at_prepared_and_read(name, tmp_path, capsys):
  place, out = tmp_path / ("BLIP3o-60k" if name == "blip3o" else "data"), tmp_path / "out"
  WRITERS[name](place)
  options = [o.format(p=place) for o in OPTIONS.get(name, [])]
  assert list(look.recognised(place))[:1] == [name] and len(look.recognised(place)) <= 1 + (name == "blip3o")
  assert cli.main(["prepare", "--look", str(place), *options]) == 0
  shown = capsys.readouterr().out
  assert f"--source={name}" in shown and ("red box" in shown or name == "storystream") and "skipped" not in shown, shown
  TK.save(tmp_path)
  (tmp_path / "config.py").write_text(
      f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({to_dict(tiny.config())!r})\n"
  )
  command = ["prepare", f"--source={name}", str(place), f"--out={out}", f"--config={tmp_path / 'config.py'}"]
  assert cli.main([*command, f"--tokenizer={tmp_path}", *options, "--processes=1"]) == 0
  if name != "jsonl" and place.is_dir():  # what is prepared within the data would be read as data later
    assert cli.main([c if c != f"--out={out}" else f"--out={place / 'out'}" for c in command]) == 2
    assert not (place / "out").exists()
    assert "choose a place beside it" in capsys.readouterr().err
  made = json.loads((out / "prepared.json").read_text())
  assert made["documents"] and made["rejected"]["records"] == 0 and made["pictures"] in (1, 2, 3)
  p = PreparedPipeline(TK, tiny.config(
      data__source="prepared", data__path=str(out), data__sequence_length=128, data__images_per_row=4,
      data__learnt_images_per_row=4,
  ))  # fmt: skip
  batch = p.batch(0)
  assert batch.images.any() and not p.too_long and (batch.text_weight_BT.any() or (batch.learnt_image_BG >= 0).any())


@pytest.mark.parametrize("name", ["jsonl", "llava", "instructpix2pix", "storystream", "mmc4", "journeydb", "coco"])
def test_what_lies_beside_the_rows_is_no_other_data(name, tmp_path):
  WRITERS[name](tmp_path / "data")
  options = Options(pictures=tmp_path / "data" / "pictures") if name == "mmc4" else Options()
  layout = LAYOUTS[name](tmp_path / "data", options)
  before = layout.fingerprint()
  (tmp_path / "data" / "log.txt").write_text("of something else")
  assert LAYOUTS[name](tmp_path / "data", options).fingerprint() == before
  (rows,) = layout.row_files()
  os.utime(rows, (0, 0))
  assert LAYOUTS[name](tmp_path / "data", options).fingerprint() != before


def test_a_place_without_its_layout_is_not_taken_for_the_built_in_worlds(tmp_path, capsys):
  (tmp_path / "data").mkdir()
  assert cli.main(["prepare", str(tmp_path / "data"), f"--config={ROOT / 'configs' / 'shapes.py'}"]) == 2
  assert "say its layout by --source=NAME" in capsys.readouterr().err
  assert not list((tmp_path / "data").iterdir())
