"""The small files of a Hugging Face directory: kept through a round trip, or written where there were none."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any

import PIL.Image

from orthus_jax.config import Config, DiffusionConfig, ModelConfig, TransformerConfig
from orthus_jax.data.text_tokenizer import TextTokenizer, TokenNames
from orthus_jax.errors import BadRequest
from orthus_jax.interop import huggingface, json_files, names, needed_arrays, processor
from orthus_jax.interop.published_config import hard_wired, read_config, write_config
from orthus_jax.models.orthus import describe

_KEPT = (".json", ".txt", ".model", ".jinja", ".md", ".py")
_LARGEST = 1 << 26  # bytes of a file that is kept
_TOKENIZER = "tokenizer.json"


def keep(source: Path, folder: Path) -> None:
  """Copies what isn't weights, for `write` to put back, without a byte order mark, which transformers refuses."""
  folder.mkdir()
  for file in sorted(source.iterdir()):
    text = file.suffix in _KEPT or file.name.upper().startswith(("LICENSE", "NOTICE"))
    weights = file.name.endswith(".index.json")
    if file.is_file() and text and not weights and file.stat().st_size <= _LARGEST:
      (folder / file.name).write_bytes(json_files.without_mark(file))


def write(folder: Path, config: Config, *, run: Path, originals: Path, dtype: str, changed: bool) -> list[str]:
  """Writes config.json, the tokenizer's files and the image processor's.

  What a published checkpoint brought along is put back byte for byte, unless the model is another by now.

  Args:
    folder: the new directory.
    config: the experiment's.
    run: its directory, with the tokenizer.
    originals: what `keep` kept; may be absent.
    dtype: of the language model's arrays as they are written.
    changed: whether that was asked for; config.json is told of it also where it says otherwise.

  Returns:
    What a user of the released code should know, a line each.
  """
  if originals.is_dir():
    for file in originals.iterdir():
      shutil.copyfile(file, folder / file.name)
  tokenizer = TextTokenizer.load(run / _TOKENIZER)
  shutil.copyfile(run / _TOKENIZER, folder / _TOKENIZER)
  if not (folder / processor.TOKENIZER_FILE).is_file():
    _put(folder / processor.TOKENIZER_FILE, _tokenizer_config(tokenizer.names))
  _write_config(folder / huggingface.CONFIG_FILE, config, tokenizer, dtype=dtype, changed=changed)
  _write_pixels(folder, config.model, tokenizer)

  notes = hard_wired(config.model)
  if notes:
    notes = [f"the released code will run this model otherwise: {'; '.join(notes)}"]
  if not config.model.vision_tokenizer.decoder:
    notes.append("there is no VQGAN decoder: the released code can't draw with this model")
  return notes


def _write_config(file: Path, config: Config, tokenizer: TextTokenizer, *, dtype: str, changed: bool) -> None:
  said = json_files.load(file) if file.is_file() else {}
  ours = write_config(config.model, config.sampling, dtype=dtype)
  keys = {k: p.shape for k, p in names.table(needed_arrays.published(config.model, describe(config.model)[1])).items()}
  if said:
    # transformers casts to what it says: of arrays that were imported in another dtype that would be wrong without a word.
    changed |= any(said[k] not in (None, dtype) for k in {"dtype", "torch_dtype"} & set(said))
    problems: list[str] = []
    model, sampling = read_config(said, keys, problems)
    # Without a vocabulary_map no version of the published code starts.
    its = ours["architectures"][0].removesuffix("ForConditionalGeneration")
    usable = its in str(said.get("architectures", its)) and bool(said.get("vocabulary_map"))
    if not problems and usable and sampling == config.sampling and _essence(model) == _essence(config.model):
      if not changed:
        return
      ours = {}
    if not changed:
      ours.pop("torch_dtype", None)
    else:
      ours |= dict.fromkeys({"dtype", "torch_dtype"} & set(said) or {"torch_dtype"}, dtype)
    if "rope_parameters" in said and ours:
      ours["rope_parameters"] = {"rope_type": "default", "rope_theta": ours["rope_theta"]}
      for older in {"rope_theta", "rope_scaling"} - set(said):
        ours.pop(older)
    ours = {**said, **ours}
  tokens = {
      "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad,
      "image_token_id": tokenizer.image, "boi_token_id": tokenizer.boi, "eoi_token_id": tokenizer.eoi,
      "vocabulary_map": _vocabulary(file.with_name(_TOKENIZER), tokenizer),
  }  # fmt: skip
  _put(file, {**tokens, **{k: v for k, v in ours.items() if v is not None or k not in tokens}})


def _essence(model: ModelConfig) -> ModelConfig:
  """A model's config without what says how it is run or was begun, and what other files say."""
  t, default = model.transformer, TransformerConfig()
  how = (
      "embedding_std", "dtype", "param_dtype", "matmul_precision", "quantization", "remat", "scan_unroll", "merge_positions",
      "attention", "attention_block", "attention_backward", "text_loss_weight", "loss_chunk",
  )  # fmt: skip
  v = dataclasses.replace(model.vision_tokenizer, pixels=ModelConfig().vision_tokenizer.pixels, dtype="float32")
  return dataclasses.replace(
      model, transformer=dataclasses.replace(t, **{f: getattr(default, f) for f in how}), vision_tokenizer=v,
      diffusion=dataclasses.replace(model.diffusion, loss_chunk=DiffusionConfig().loss_chunk), image_token_start=0,
  )  # fmt: skip


def _vocabulary(file: Path, tokenizer: TextTokenizer) -> dict[str, int]:
  """Every token's id; the released code looks for Chameleon's names of the special ones."""
  spec = json_files.load(file)
  vocabulary = {**spec["model"]["vocab"], **{t["content"]: t["id"] for t in spec["added_tokens"]}}
  for field, name in TokenNames().required().items():
    vocabulary.setdefault(name, vocabulary[tokenizer.names.required()[field]])
  return vocabulary


def _tokenizer_config(called: TokenNames) -> dict[str, Any]:
  return {
      "tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", "clean_up_tokenization_spaces": False,
      "bos_token": called.bos, "eos_token": called.eos, "pad_token": called.pad, "sep_token": called.sep,
      "image_token": called.image, "boi_token": called.begin_of_image, "eoi_token": called.end_of_image,
  }  # fmt: skip


def _write_pixels(folder: Path, model: ModelConfig, tokenizer: TextTokenizer) -> None:
  """The image processor's files, unless those that are there say the same."""
  vision = model.vision_tokenizer
  try:
    if processor.read_pixels(folder, resolution=vision.resolution) == vision.pixels:
      return
  except BadRequest:
    pass  # none is there, or one of another model
  pixels, R = vision.pixels, vision.resolution
  _put(folder / processor.IMAGE_FILE, {
      "image_processor_type": "ChameleonImageProcessor", "do_convert_rgb": True, "do_resize": True,
      "size": {"shortest_edge": R}, "resample": int(PIL.Image.Resampling[pixels.resample.upper()]),
      "do_center_crop": True, "crop_size": {"height": R, "width": R}, "do_rescale": True,
      "rescale_factor": pixels.scale, "do_normalize": True, "image_mean": list(pixels.mean),
      "image_std": list(pixels.std),
  })  # fmt: skip
  _put(folder / processor.PROCESSOR_FILE, {
      "processor_class": "ChameleonProcessor", "image_seq_length": vision.patches, "image_token": tokenizer.names.image,
  })  # fmt: skip


def _put(file: Path, values: Mapping[str, Any]) -> None:
  file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
