"""Headers of safetensors files: what the library of that name accepts is read, to the bit, and nothing else is."""

import json
import math
import os

from chameleon import reference
from converting import refused
from hypothesis import HealthCheck, given, settings, strategies as st
import numpy as np
import published_weights as weights
import pytest

from orthus_jax.interop import safetensors

EXAMPLES = int(os.environ.get("ORTHUS_EXAMPLES", "200"))
UP, GATE = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"


def stored(file, text: str | bytes, data: bytes = b"", *, length: int | None = None):
  """A file of a header and what follows it."""
  text = text.encode() if isinstance(text, str) else text
  file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
  return file


def damage(file) -> str:
  """Why a file isn't read: one line."""
  with pytest.raises(safetensors.Damaged) as e:
    safetensors.read_header(file)
  assert "\n" not in str(e.value) and str(e.value).startswith(file.name)
  return str(e.value)


ONE = '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
WRONG = {
    "negative": (ONE.replace("[0, 8]", "[-8, 0]"), "whole numbers, not negative, are expected"),
    "minus zero": (ONE.replace("[0, 8]", "[-0, 8]"), "whole numbers"),
    "fractions": (ONE.replace("[0, 8]", "[0.0, 8.0]"), "whole numbers"),
    "truths": (ONE.replace("[2]", "[true, 2]"), "whole numbers"),
    "three places": (ONE.replace("[0, 8]", "[0, 8, 8]"), "whole numbers"),
    "no list": (ONE.replace("[2]", '"2"'), "whole numbers"),
    "beyond 64 bits": (ONE.replace("[2]", f"[0, {1 << 64}]"), "whole numbers"),
    "thousands of digits": (ONE.replace("[0, 8]", f"[0, {'9' * 5000}]"), "is no number"),
    "a huge product": (ONE.replace("[2]", f"[{1 << 60}, {1 << 60}, 0]"), "which is too large"),
    "far away": (ONE.replace("[0, 8]", "[0, 80]"), "80 bytes, which F32 of shape [2] contradicts"),
    "backwards": (ONE.replace("[0, 8]", "[8, 0]"), "-8 bytes"),
    "a hole": (ONE.replace("[0, 8]", "[4, 12]"), "a begins at byte 4 of the arrays, where 0 is next"),
    "shared": (ONE[:-1] + ', "b"' + ONE[4:], "b begins at byte 0 of the arrays, where 8 is next"),
    "overlapping": (ONE[:-1] + ', "b"' + ONE[4:].replace("[0, 8]", "[4, 12]"), "b begins at byte 4"),
    "half a byte": (ONE.replace("F32", "F4").replace("[2]", "[15]").replace("8]", "7]"), "contradicts"),
    "a name twice": (ONE[:-1] + ", " + ONE[1:], "a is there twice"),
    "a field twice": (ONE.replace('"shape"', '"shape": [2], "shape"'), "shape is there twice"),
    "no dtype of that name": (ONE.replace("F32", "f32"), "dtype 'f32', which doesn't exist"),
    "no dtype at all": (ONE.replace('"dtype": "F32", ', ""), "dtype None"),
    "a list of fields": ('{"a": ["F32", [2], [0, 8]]}', "a must hold fields"),
    "metadata of numbers": (ONE[:-1] + ', "__metadata__": {"step": 1}}', "__metadata__ must hold texts"),
    "metadata of none": (ONE[:-1] + ', "__metadata__": []}', "__metadata__ must hold texts"),
    "no fields": ("[" + ONE + "]", "it must hold fields"),
    "no JSON": ("{not js}", "has a damaged header"),
    "a number that isn't": (ONE.replace('"shape"', '"x": NaN, "shape"'), "is no number"),
    "a byte order mark": ("\ufeff" + ONE, "has a damaged header"),
    "another encoding": (ONE.encode("utf-16"), "has a damaged header"),
    "no text": (b'{"\xff": 1}', "has a damaged header"),
    "half a surrogate pair": (ONE.replace('"a"', '"\\ud800"'), "has a damaged header"),
    "brackets without end": ("[" * 200_000, "has a damaged header"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_damaged_headers(kind, tmp_path):
  text, reason = WRONG[kind]
  assert reason in damage(stored(tmp_path / "x.safetensors", text, bytes(8)))


def test_lengths(tmp_path):
  file = tmp_path / "x.safetensors"
  assert "is cut off: it holds 76 of 77 bytes" in damage(stored(file, ONE, bytes(7)))
  assert "1 bytes follow the last array" in damage(stored(file, ONE, bytes(9)))
  for length in (0, 1, 70, 1 << 40, (1 << 64) - 1):
    assert "header is cut off or too long" in damage(stored(file, ONE, bytes(8), length=length))
  file.write_bytes(bytes(7))
  assert "is no safetensors file" in damage(file)
  with stored(file, "").open("r+b") as f:  # a header longer than the library allows, of nothing on the disk
    f.write((100_000_001).to_bytes(8, "little"))
    f.truncate(100_000_009)
  assert "or too long" in damage(file)


def test_what_is_unusual_and_sound(tmp_path):
  text = (
      ' {"__metadata__": null, "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [4, 4]}, "é\\n":'
      ' {"shape": [], "data_offsets": [0, 4], "dtype": "F32", "later": {"x": 1e3}},'
      ' "bits": {"dtype": "F4", "shape": [3, 2], "data_offsets": [4, 7]}}\n '
  )
  found = safetensors.read_header(stored(tmp_path / "x.safetensors", text, np.float32(5).tobytes() + bytes(3)))
  assert list(found) == ["none", "é\n", "bits"]
  assert found["é\n"].read() == found["é\n"].view() == 5
  assert found["none"].read().shape == found["none"].view().shape == (0, 3)
  assert found["bits"].numpy_dtype is None
  assert safetensors.read_header(stored(tmp_path / "none.safetensors", "{}")) == {}


@pytest.mark.parametrize("kind", ["negative", "shared", "twice", "floats"])
def test_conversions_refuse_them(kind, model, values, tmp_path, capsys):
  folder = weights.write(tmp_path / "bad", values, model, shards=1)
  data = (folder / "model.safetensors").read_bytes()
  end = 8 + int.from_bytes(data[:8], "little")
  header = json.loads(data[8:end])
  begin, stop = header[UP]["data_offsets"]
  if kind == "negative":
    header[UP]["data_offsets"] = [begin - stop, 0]
  elif kind == "shared":
    header["lm_head.weight"]["data_offsets"] = header["model.embed_tokens.weight"]["data_offsets"]
  elif kind == "floats":
    header[UP]["data_offsets"] = [float(begin), float(stop)]
  text = json.dumps(header)
  if kind == "twice":
    text = f'{text[:-1]}, "{UP}": {json.dumps(header[GATE])}}}'
  stored(folder / "model.safetensors", text, data[end:])
  error = refused(capsys, f"--from={folder}", f"--to={tmp_path / 'x'}")
  assert "model.safetensors has a damaged header" in error and "(" not in error  # one problem: arrays aren't called missing


BITS = safetensors._BITS
JUNK = st.one_of(
    st.integers(-3, 70), st.sampled_from([1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**30]), st.floats(),
    st.booleans(), st.none(), st.text(max_size=3), st.lists(st.integers(-1, 20), max_size=3), st.just({}),
    st.sampled_from([*BITS, "f32", "F128", ""]),
)  # fmt: skip


def written(value) -> str:
  """JSON in which an object is a tuple of pairs, so that a name may be there twice."""
  if isinstance(value, tuple):
    return "{" + ", ".join(f"{json.dumps(k)}: {written(v)}" for k, v in value) + "}"
  return "[" + ", ".join(map(written, value)) + "]" if isinstance(value, list) else json.dumps(value)


@st.composite
def files_with_flaws(draw) -> bytes:
  """A file of a few arrays, sound or with a flaw or two in its header's values, its text or its length."""
  at, arrays = 0, []
  for name in draw(st.lists(st.sampled_from(["a", "b", "c", "é", "", "__metadata__", "a\n"]), max_size=4)):
    dtype, shape = draw(st.sampled_from([*BITS])), draw(st.lists(st.integers(0, 4), max_size=3))
    size = math.prod(shape) * BITS[dtype] // 8
    arrays.append([name, [["dtype", dtype], ["shape", shape], ["data_offsets", [at, at + size]]]])
    at += size
  arrays = draw(st.permutations(arrays))
  data = bytes(i % 251 for i in range(at))
  for _ in range(draw(st.integers(0, 2)) if arrays else 0):
    name, fields = draw(st.sampled_from(arrays))
    flaw = draw(st.sampled_from(["value", "number", "drop", "more", "swap", "again", "metadata", "data", "list"]))
    field = draw(st.sampled_from(fields)) if fields else ["x", None]
    if flaw == "value":
      field[1] = draw(JUNK)
    elif flaw == "number" and isinstance(field[1], list) and field[1]:
      i = draw(st.integers(0, len(field[1]) - 1))
      field[1] = [draw(JUNK) if j == i else v for j, v in enumerate(field[1])]
    elif flaw == "drop" and field in fields:
      fields.remove(field)
    elif flaw == "more":
      fields.append([draw(st.sampled_from(["dtype", "later"])), draw(JUNK)])
    elif flaw == "swap":
      other = draw(st.sampled_from(arrays))[1]
      if fields and other:
        fields[-1][1], other[-1][1] = other[-1][1], fields[-1][1]
    elif flaw == "again":
      arrays = [*arrays, [name, fields]]
    elif flaw == "metadata":
      value = draw(st.one_of(JUNK, st.just((("format", "pt"),)), st.just((("step", 1),))))
      arrays = [*arrays, ["__metadata__", value]]
      break
    elif flaw == "data":
      data = data[: draw(st.integers(0, len(data)))] + bytes(draw(st.integers(0, 3)))
  pairs = [(n, tuple(map(tuple, f)) if f and isinstance(f, list) and isinstance(f[0], list) else f) for n, f in arrays]
  text = written(tuple(pairs)).encode()
  for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
    i = draw(st.integers(0, len(text)))
    put = draw(st.one_of(st.sampled_from([b" ", b"\n", b"-", b"0", b".", b"e1", b"\\", b"\\ud800", b'"', b",", b"\xc3"]),
                         st.binary(max_size=2)))
    text = text[:i] + put + text[i + draw(st.integers(0, 2)) :]
  length = len(text) + draw(st.sampled_from([0] * 12 + [-1, 1, 8]))
  return max(0, length).to_bytes(8, "little") + text + data


@given(files_with_flaws())
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 200, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
def test_what_the_library_accepts_is_read(tmp_path, content):
  library = reference("safetensors")
  (tmp_path / "x.safetensors").write_bytes(content)
  try:
    theirs = {k: (v["dtype"], tuple(v["shape"]), bytes(v["data"])) for k, v in library.deserialize(content)}
  except library.SafetensorError:
    damage(tmp_path / "x.safetensors")
    return
  try:
    ours = safetensors.read_header(tmp_path / "x.safetensors")
  except safetensors.Damaged as e:
    assert "is there twice" in str(e) or "must hold fields" in str(e) or "dtype {" in str(e), e  # on purpose
    return
  assert {k: (e.dtype, e.shape) for k, e in ours.items()} == {k: v[:2] for k, v in theirs.items()}
  for key, entry in ours.items():
    if entry.numpy_dtype is not None:
      assert entry.read().tobytes() == entry.view().tobytes() == theirs[key][2]


def test_files_are_those_of_the_safetensors_library(orthus, values, tmp_path):
  library = pytest.importorskip("safetensors")
  for file in orthus.glob("*.safetensors"):
    for key, read in library.deserialize(file.read_bytes()):
      assert tuple(read["shape"]) == values[key].shape and bytes(read["data"]) == values[key].tobytes()
      assert read["dtype"] == ("BF16" if values[key].dtype == weights.BF16 else "F32")
  some = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3, np.float16)}
  pytest.importorskip("safetensors.numpy").save_file(some, tmp_path / "theirs.safetensors")
  assert weights.same({k: e.read() for k, e in safetensors.read_header(tmp_path / "theirs.safetensors").items()}, some)
