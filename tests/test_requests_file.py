"""A file of requests: every line gets its record, whatever the others are, and nothing is answered twice."""

import json

import numpy as np
import pytest
import tiny

from orthus_jax import cli, lock
from orthus_jax.data import images
from orthus_jax.data.documents import Image, Text
from orthus_jax.errors import BadRequest
from orthus_jax.inference import requests_file, stream


@pytest.fixture(scope="module")
def model():
  return tiny.lively_model()


def serve(model, file, out, **options):
  options = dict(base=model.config.sampling, respond="auto", seed=0, batch_size=4, preview_rows=0, quiet=True) | options
  return requests_file.serve(model, str(file), out, **options)


def results(out) -> dict[str, dict]:
  return {r["id"]: r for r in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def test_every_line_gets_its_record(model, tmp_path):
  images.save_png(tmp_path / "a.png", np.full((9, 7, 3), 50, np.uint8))
  rows = [
      (b'{"id": "draw/it", "prompt": "draw a red box", "respond": "image"}', ""),
      (b"\xff\xfe", "line 2 isn't UTF-8"),
      (b"{'id': 1}", "line 3 isn't JSON"),
      (b"[1]", "line 4 isn't a JSON object"),
      (b'{"id": 5, "prompt": "what is this", "images": ["a.png"], "respond": "text", "max_new_tokens": 3}', ""),
      (b'{"id": "x", "prompt": "red", "images": ["absent.png"]}', "absent.png"),
      (b'{"id": "x2", "prompt": "<image> red"}', "has 1 of '<image>' for 0 pictures"),
      (b'{"id": "draw/it", "prompt": "red"}', "another request has the id 'draw/it'"),
      (b'{"id": "x3", "prompt": "red", "solver": "euler"}', "choose one of ddim, dpm, ddpm"),
      (b'{"id": "x4", "prompt": "red", "steps": 0}', "must be at least 1"),
      (b'{"id": "x5", "prompt": "red", "steps": 5000}', "at most 1000"),
      (b'{"id": "x6", "prompt": "red", "guidance": -1}', "guidance=-1.0 must be at least 0"),
      (b'{"id": "x7", "prompt": "red", "gidance": 1}', "the nearest is 'guidance'"),
      (b'{"id": "x8", "prompt": "red", "max_images": 40}', "don't fit"),
      (b'{"id": "x9", "prompt": " "}', "nothing to go by"),
      (b'{"id": "xa", "prompt": 3}', "prompt=3 must be"),
      (b'{"id": "xb", "prompt": "red", "respond": "sing"}', "respond='sing'"),
      (b'{"id": "xc", "prompt": "red \\ud800"}', "lone surrogate"),
      (b'{"id": "xd", "prompt": "red", "seed": 99999999999}', "must have 32 bits"),
      (b'{"id": "xe", "prompt": "' + b"red " * 300 + b'"}', "shorten the prompt"),
      (b'{"id": "xf", "prompt": "red", "images": [3]}', "must be a list of files"),
      (b'{"id": true, "prompt": "red"}', "id=True must be"),
      (b'{"id": "half \\udc41", "prompt": "red"}', "line 23: 'id' isn't a text"),
      (b'{"id": "xg", "prompt": "red", "images": ["\\ud800.png"]}', "'images' isn't a text"),
      (b'{"id": "xh", "prompt": "red", "unconditional_prompt": "\\ud800"}', "'unconditional_prompt' isn't a text"),
      (b'{"id": "xi", "prompt": "red", "\\ud800": 1}', "isn't a text"),
      (b'{"id": "xj", "prompt": "red", "temperature": 1e999}', "is not a finite number"),
      (b'{"id": "xk", "prompt": "red", "steps": 99999999999999999999}', "sampling.steps=99999999999999999999 must be"),
      (b'{"id": "xl", "prompt": "red", "max_images": 99999999999999999999}', "don't fit"),
      (b'{"prompt": "blue", "respond": "image"}', ""),
  ]  # fmt: skip
  file = tmp_path / "requests.jsonl"
  file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(row for row, _ in rows) + b"\n\n")  # a mark, as Windows' editors write
  counts = serve(model, file, tmp_path / "out")
  assert counts["requests"] == len(rows) and counts["finished"] == 3 and counts["failed"] == len(rows) - 3
  found = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
  by_line = {json.loads(line)["id"]: json.loads(line) for line in found}
  assert len(found) == len(by_line) == len(rows)
  for at, (row, reason) in enumerate(rows, 1):
    identity = f"line-{at}"
    if identity not in by_line:
      identity = str(json.loads(row)["id"])
    record = by_line[identity]
    assert reason in record.get("error", "") and bool(reason) == ("error" in record), record
  picture = by_line["draw/it"]["response"][0]["image"]
  assert images.load_image(tmp_path / "out" / picture).shape == (8, 8, 3)


def test_a_long_file_is_read_as_it_is_answered(model, tmp_path, monkeypatch):
  monkeypatch.setattr(stream, "_AHEAD", 2)
  images.save_png(tmp_path / "a.png", np.full((90, 70, 3), 50, np.uint8))
  file, out = tmp_path / "requests.jsonl", tmp_path / "out"
  ask = {"prompt": "red", "images": ["a.png"], "respond": "text", "max_new_tokens": 2}
  lines = [json.dumps(ask | {"id": n, **({"steps": 0} if n % 3 == 1 else {})}) for n in range(9)]
  file.write_text("\n".join(lines))
  out.mkdir()
  (out / "results.jsonl").write_text('{"id": "3", "response": []}\n')
  held, load = 0, requests_file.images_lib.load_image

  def opened(path):
    nonlocal held
    held += 1
    answered = sum("response" in r for i, r in results(out).items() if i != "3")
    assert held - answered <= 2 + 1 + 1  # ahead, in the row, and the one that had its answer before
    return load(path)

  monkeypatch.setattr(requests_file.images_lib, "load_image", opened)
  counts = serve(model, file, out, batch_size=1)
  assert (counts["requests"], counts["before"], counts["finished"], counts["failed"]) == (9, 1, 5, 3)
  found = results(out)
  assert len(found) == 9 and {i for i, r in found.items() if "error" in r} == {"1", "4", "7"}
  assert [found[str(n)].get("seed") for n in (0, 2, 8)] == [0, 2, 8]
  asked = requests_file.read(iter(file.read_bytes().splitlines()), folder=tmp_path, vision=model.config.model.vision_tokenizer,
      base=model.config.sampling, respond="auto", seed=0)  # fmt: skip
  assert next(asked).request.document.images[0].pixels.shape == (8, 8, 3)  # and no larger, while it waits


@pytest.mark.slow
def test_it_goes_on_where_it_was_cut_off(model, tmp_path):
  file, out = tmp_path / "requests.jsonl", tmp_path / "out"
  asked = [{"id": w, "prompt": f"draw a {w} box", "respond": "image"} for w in ("red", "green", "blue")]
  file.write_text("\n".join(map(json.dumps, asked)) + '\n{"id": "bad", "prompt": "red", "steps": 0}\n')
  assert serve(model, file, out)["finished"] == 3
  whole = results(out)
  pixels = {w: images.load_image(out / whole[w]["response"][0]["image"]) for w in ("red", "green", "blue")}
  lines = (out / "results.jsonl").read_text().splitlines()
  kept = [line for line in lines if '"red"' in line or '"bad"' in line]
  (out / "results.jsonl").write_text("\n".join(kept) + "\n" + lines[-1][:20])  # killed while it wrote
  (out / whole["red"]["response"][0]["image"]).unlink()
  counts = serve(model, file, out)
  assert (counts["before"], counts["finished"], counts["failed"]) == (1, 2, 1)
  assert not (out / whole["red"]["response"][0]["image"]).exists()  # it wasn't drawn again
  assert results(out).keys() == whole.keys() and len((out / "results.jsonl").read_text().splitlines()) == 4
  for w in ("green", "blue"):
    np.testing.assert_array_equal(images.load_image(out / results(out)[w]["response"][0]["image"]), pixels[w])
  # An answer to something else isn't the answer, and stays.
  file.write_text("\n".join(json.dumps(a | {"prompt": "draw two"} if a["id"] == "red" else a) for a in asked))
  counts = serve(model, file, out)
  assert (counts["before"], counts["finished"], counts["failed"]) == (2, 0, 1)
  last = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()][-1]
  assert last["id"] == "red" and "another request of this id" in last["error"]
  file.write_text("\n".join(map(json.dumps, asked)))
  assert serve(model, file, out)["before"] == 3


def test_two_commands_dont_answer_into_one_folder(tmp_path, capsys, monkeypatch):
  (tmp_path / "asked.jsonl").write_text('{"id": "a", "prompt": "red"}\n')
  monkeypatch.setattr("orthus_jax.inference.model.load", lambda path: tiny.lively_model())
  with lock.hold(tmp_path / "out"):
    assert cli.main(["generate", "RUN", f"--requests={tmp_path / 'asked.jsonl'}", f"--out={tmp_path / 'out'}"]) == 2
  assert "out is in use: another command works there" in capsys.readouterr().err


def test_an_answer_is_kept_whatever_stands_in_it(tmp_path):
  for n, text in enumerate(("one\u2028two", "one\u2029two", "one\x85two", "one\x0c\x1c\rtwo")):
    results = requests_file.Results(tmp_path)
    results.finished(str(n), (Text(text),))
    results.close()
  results = requests_file.Results(tmp_path)
  results.close()
  assert results.done.keys() == {"0", "1", "2", "3"} and (tmp_path / "results.jsonl").read_text().count("\n") == 4


@pytest.mark.parametrize("identity", ["案" * 90, "a" * 300, "é/" * 80, "." * 200], ids="wide long slashes dots".split())
def test_any_id_names_files(tmp_path, identity):
  results = requests_file.Results(tmp_path)
  results.finished(identity, (Image(np.zeros((8, 8, 3), np.uint8)),))
  results.close()
  assert len(list(tmp_path.glob("*-0.png"))) == 1


def test_pictures_are_shown_on_their_way(model, tmp_path, monkeypatch):
  shown = []
  monkeypatch.setattr(requests_file.Results, "preview", lambda self, i, pixels: shown.append((i, pixels is None)))
  file = tmp_path / "requests.jsonl"
  file.write_text('{"id": "a", "prompt": "red", "respond": "image"}')
  serve(model, file, tmp_path / "out", preview_rows=2)
  assert shown == [("a", False), ("a", True)]


def test_a_file_without_requests_is_refused(model, tmp_path):
  (tmp_path / "empty.jsonl").write_text("\n \n")
  with pytest.raises(BadRequest, match="holds no request"):
    serve(model, tmp_path / "empty.jsonl", tmp_path / "out")
  with pytest.raises(BadRequest, match="can't be read"):
    serve(model, tmp_path / "absent.jsonl", tmp_path / "out")
  assert not (tmp_path / "out").exists()
