"""Which files are read where the index and the files differ, in what dtype, and how files with a byte order mark are."""

import json
import logging

from chameleon import reference
from converting import convert, in_memory, refused
import numpy as np
import published_weights as weights
import pytest

import orthus_jax as oj
from orthus_jax.interop import huggingface, safetensors
from orthus_jax.training.checkpoints import workdir as checkpoint

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
FIRST, SECOND, THIRD = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
UP = "model.layers.1.mlp.up_proj.weight"


def change_index(folder, edit) -> None:
  index = json.loads((folder / INDEX).read_text())
  edit(index["weight_map"])
  (folder / INDEX).write_text(json.dumps(index))


def read(folder, model, values) -> str:
  """What is noted of a directory whose arrays are these."""
  found = huggingface.open_checkpoint(folder)
  assert weights.same(found.load(), in_memory(model, values))
  return "; ".join(n for n in found.notes if "a_field_of_later" not in n)


@pytest.mark.parametrize("gone", [True, False])
def test_a_whole_file_goes_before_an_index_of_others(gone, copied, model, values, tmp_path, capsys):
  weights.write_safetensors(copied / WHOLE, values)
  for file in (FIRST, SECOND, THIRD):
    if gone:
      (copied / file).unlink()
    else:  # those of another model
      weights.write_safetensors(copied / file, {file: np.zeros(1, np.float32)})
  convert(f"--from={copied}", f"--to={tmp_path / 'native'}")
  assert f"note: {WHOLE} is read; passed over: {INDEX}" in capsys.readouterr().out
  assert weights.same(checkpoint.load_params(tmp_path / "native"), in_memory(model, values))
  (copied / INDEX).write_text("{")
  assert f"{WHOLE} is read; passed over: {INDEX}" in read(copied, model, values)
  (copied / INDEX).unlink()
  assert read(copied, model, values) == ("" if gone else f"{WHOLE} is read; passed over: {FIRST}, {SECOND}, {THIRD}")


def test_all_shards_without_an_index(copied, model, values, tmp_path, capsys):
  (copied / INDEX).unlink()
  assert read(copied, model, values) == f"there is no {INDEX}: {FIRST}, {SECOND}, {THIRD} are read, which are all"
  capsys.readouterr()  # the note
  (copied / SECOND).unlink()
  error = refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")
  assert f"there is neither {INDEX} nor {WHOLE}, and {FIRST}, {THIRD} are not all of a checkpoint's files" in error
  (copied / FIRST).rename(copied / "weights.safetensors")
  (copied / THIRD).unlink()
  assert "and weights.safetensors is not all of" in refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")


def test_an_index_of_files_that_have_other_names(copied, tmp_path, capsys):
  (copied / FIRST).rename(copied / "model-00001-of-00002.safetensors")
  error = refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")
  assert f"{FIRST} is missing ({INDEX} puts" in error
  assert "arrays there; model-00001-of-00002.safetensors is there, which it doesn't name)" in error


def test_an_index_that_differs_about_arrays(copied, model, values):
  keys = [k for k in values if k in safetensors.read_header(copied / FIRST)]
  change_index(copied, lambda m: m.pop(keys[0]))
  assert read(copied, model, values) == f"{keys[0]} is in no place of {INDEX}, but in its files: read"
  change_index(copied, lambda m: m.update({keys[0]: THIRD, keys[1]: SECOND}))
  assert read(copied, model, values) == f"{keys[1]}, {keys[0]} are in another file than {INDEX} says: read there"
  computed = "model.layers.0.self_attn.rotary_emb.inv_freq"  # what isn't wanted may be lacking
  change_index(copied, lambda m: m.update({keys[0]: FIRST, keys[1]: FIRST, computed: FIRST}))
  assert read(copied, model, values) == ""


def test_an_array_in_two_files(copied, model, values, tmp_path, capsys):
  key = next(k for k in safetensors.read_header(copied / FIRST))
  second = {k: e.read() for k, e in safetensors.read_header(copied / SECOND).items()}
  weights.write_safetensors(copied / SECOND, second | {key: values[key] + 1})
  assert read(copied, model, values) == f"{key} is in two files: that of {INDEX} is read"
  change_index(copied, lambda m: m.update({key: SECOND}))
  assert read(copied, model, values | {key: values[key] + 1}) == f"{key} is in two files: that of {INDEX} is read"
  change_index(copied, lambda m: m.pop(key))
  capsys.readouterr()  # notes
  assert f"{key} is in {SECOND} and in {FIRST}" in refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": {}}', '{"weight_map": null}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b"}}']
)
def test_an_index_without_names(index, copied, tmp_path, capsys):
  (copied / INDEX).write_text(index)
  assert f"{INDEX} has no usable weight_map" in refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")


def test_an_index_that_names_an_array_twice(copied, model, values, tmp_path, capsys):
  text, key = (copied / INDEX).read_text(), next(iter(values))
  (copied / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{"{key}": "{FIRST}", '))
  assert read(copied, model, values) == ""
  capsys.readouterr()  # a note
  (copied / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{"{key}": "{THIRD}", '))
  assert f"it gives {key} two values" in refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")


@pytest.mark.slow
def test_transformers_reads_the_same_files(copied, values):
  # A whole file before an index, arrays that the index doesn't name, and those that it puts elsewhere.
  transformers = reference("transformers")
  keys = [k for k in safetensors.read_header(copied / FIRST) if k.startswith("model.layers")][:2]
  change_index(copied, lambda m: (m.pop(keys[0]), m.update({keys[1]: THIRD})))
  for sign in (1, -1):
    theirs = transformers.ChameleonForConditionalGeneration.from_pretrained(copied, dtype="float32").state_dict()
    for key in keys:
      np.testing.assert_array_equal(theirs[key].numpy(), sign * values[key].astype(np.float32))
    weights.write_safetensors(copied / WHOLE, values | {k: -values[k] for k in keys})


@pytest.mark.parametrize("other, shared", [("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_layers_of_several_dtypes(other, shared, model, values, tmp_path, capsys, caplog):
  mixed = values | {UP: values[UP].astype(other)}
  folder = weights.write(tmp_path / "mixed", mixed, model)
  convert(f"--from={folder}", f"--to={tmp_path / 'native'}")
  note = f"layers of transformer/layers/mlp/up differ in dtype: they are stacked as {shared}"
  assert note in capsys.readouterr().out
  expected = in_memory(model, mixed | {k: v.astype(shared) for k, v in mixed.items() if ".mlp.up_proj." in k})
  assert weights.same(checkpoint.load_params(tmp_path / "native"), expected)
  logging.getLogger("orthus_jax").propagate = True  # the command keeps it to itself
  with caplog.at_level("INFO", "orthus_jax"):
    assert weights.same(checkpoint.load_params(folder), expected)  # as run.init_from does
  assert note in caplog.text


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8"])
def test_other_dtypes_are_refused(dtype, copied, values, tmp_path, capsys):
  kept = {k: v for k, v in values.items() if k != UP}
  for file in (FIRST, SECOND, THIRD):
    (copied / file).unlink()
  (copied / INDEX).unlink()
  weights.write_safetensors(copied / WHOLE, kept | {"x": values[UP].view(np.uint16)[:, ::2].view(weights.BF16)})
  data = (copied / WHOLE).read_bytes()
  old = b'"x":{"dtype":"BF16","shape":[48,16]'
  new = f'"{UP}":{{"dtype":"{dtype}","shape":[48,32]'.encode()
  length = int.from_bytes(data[:8], "little") + len(new) - len(old)
  (copied / WHOLE).write_bytes(length.to_bytes(8, "little") + data[8:].replace(old, new, 1))
  error = refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")
  assert f"{UP} is of dtype {dtype}: only F64, F32, F16 and BF16 are read" in error and "problems" not in error


def test_files_with_a_byte_order_mark(copied, native, values, tmp_path):
  said = json.loads((copied / "config.json").read_text())
  del said["vq_config"]["resolution"]  # which the image processor's file says then
  (copied / "config.json").write_text(json.dumps(said))
  for file in copied.glob("*.json"):
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
  convert(f"--from={copied}", f"--to={tmp_path / 'native'}")
  assert weights.same(checkpoint.load_params(tmp_path / "native"), checkpoint.load_params(native))
  assert checkpoint.load_config(tmp_path / "native") == checkpoint.load_config(native)
  assert oj.load(copied).tokenizer.digest() == oj.load(native).tokenizer.digest()
  # What goes out has no mark, as other readers refuse it.
  convert(f"--from={tmp_path / 'native'}", f"--to={tmp_path / 'out'}")
  assert weights.same(weights.read(tmp_path / "out"), values)
  assert not [f.name for f in (tmp_path / "out").iterdir() if f.read_bytes().startswith(b"\xef\xbb\xbf")]
