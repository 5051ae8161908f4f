"""A small checkpoint directory laid out as the published ones: tokenizer and processor files, without weights."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from orthus_jax.config import ModelConfig, TransformerConfig, VisionTokenizerConfig
from orthus_jax.data.text_tokenizer import image_code_name

CODES, RESOLUTION = 24, 32
TEXTS = ["What is in this picture?", "Compare the first picture with the second one.", "a red house by the sea"] * 8


def model_config(**vision: Any) -> ModelConfig:
  """A model that the files fit."""
  vision = dict(resolution=RESOLUTION, base_channels=32, channel_multipliers=(1,) * 5, codes=CODES) | vision
  return ModelConfig(
      transformer=TransformerConfig(vocab_size=512, width=32, mlp_width=32, layers=1, heads=2, kv_heads=2, head_dim=16),
      vision_tokenizer=VisionTokenizerConfig(**vision),
  )


def tokenizer() -> Tokenizer:
  """Chameleon's structure: special tokens, image codes from 4, EOI, BOI, reserved ones, then text."""
  names = ["<s>", "<pad>", "</s>", "<unk>", *map(image_code_name, range(CODES)), "<eoss>", "<racm3:break>"]
  names += ["<reserved08705>", "<reserved08706>", "<image>"]
  result = Tokenizer(models.BPE())
  result.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
  ])  # fmt: skip
  result.decoder = decoders.ByteLevel()
  special = [AddedToken(n, special=True, normalized=False) for n in names]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=440, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
  result.train_from_iterator(TEXTS, trainer)
  result.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
  return result


IMAGE_PROCESSOR = {
    "crop_size": {"height": RESOLUTION, "width": RESOLUTION}, "do_center_crop": True, "do_convert_rgb": True,
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [1.0, 1.0, 1.0],
    "image_processor_type": "ChameleonImageProcessor", "image_std": [1.0, 1.0, 1.0], "resample": 1,
    "rescale_factor": 0.0078, "size": {"shortest_edge": RESOLUTION},
}  # fmt: skip
TOKENIZER_CONFIG = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": False, "rstrip": False, "normalized": False},
    "sep_token": "<reserved08706>", "image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>",
    "padding_side": "left", "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
}  # fmt: skip
PROCESSOR = {"image_seq_length": 4, "image_token": "<image>", "processor_class": "ChameleonProcessor"}


def write(directory: Path, *, image=None, tokens=None, processor=None) -> Path:
  """Writes the files, with fields replaced, or left out where the replacement is None; returns the directory."""

  def put(name: str, values: dict, changes: dict | None) -> None:
    merged = {k: v for k, v in {**values, **(changes or {})}.items() if v is not None}
    (directory / name).write_text(json.dumps(merged))

  directory.mkdir(parents=True, exist_ok=True)
  tokenizer().save(str(directory / "tokenizer.json"))
  put("preprocessor_config.json", IMAGE_PROCESSOR, image)
  put("tokenizer_config.json", TOKENIZER_CONFIG, tokens)
  put("processor_config.json", PROCESSOR, processor)
  return directory
