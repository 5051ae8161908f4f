"""Fields of a published config.json that this model meets with some values alone, and the rest, which it doesn't read.

A field that changes what is computed is honoured (`published_config.py`), has one of the values with which it changes
nothing, or is refused; one that only concerns training or other software is let be. What no table here knows is refused
if its name is of positions or attention, and named in a note otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import math
import re
from typing import Any

# The values of a field with which it changes nothing, None apart, which never does; the first is asked for.
_MET: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "hidden_activation": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,),
    "use_qk_norm": (True,), "qk_norm": (True,), "qk_layernorm": (True,), "is_causal": (True,), "sliding_window": (False,),
    "partial_rotary_factor": (1,), "rotary_pct": (1,), "position_embedding_type": ("rope", "rotary"), "logits_scaling": (1,),
    "logit_scale": (1,), "residual_multiplier": (1,), "embedding_multiplier": (1,), "attn_logit_softcapping": (False,),
    "final_logit_softcapping": (False,), "quantization_config": ({},), "text_config": ({},),
}  # fmt: skip
_MET_VISION: dict[str, tuple[Any, ...]] = {
    "double_latent": (False,), "in_channels": (3,), "out_channels": (3,), "attn_type": ("vanilla",), "attn_resolutions": ([],),
    "tanh_out": (False,), "give_pre_end": (False,), "use_linear_attn": (False,), "resamp_with_conv": (True,),
}  # fmt: skip
_NOTHING = (None, False, "", [], {})  # of a field that no table knows; 0 is False
# Of training, of other software, of generation (which has a config of its own), or told by another file.
_LET_BE = frozenset(
    "architectures model_type transformers_version torch_dtype dtype auto_map use_cache pretraining_tp model_parallel_size"
    " vocabulary_map image_seq_length tokenizer_class processor_class return_dict torchscript use_bfloat16 tf_legacy_loss"
    " max_window_layers use_sliding_window chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention"
    " tie_encoder_decoder max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty"
    " temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size"
    " encoder_no_repeat_ngram_size num_return_sequences return_dict_in_generate remove_invalid_values id2label label2id"
    " problem_type task_specific_params finetuning_task prefix _name_or_path _commit_hash"
    " router_aux_loss_coef gradient_checkpointing".split()
)
_LET_BE_KINDS = re.compile(r".*(dropout|pdrop|_implementation|flash_attn).*|(initializer|init|output)_.*|.*_token_ids?|.*_std")
_ABOUT_ATTENTION = re.compile(
    r"rope|rotary|position|attn|attention|window|head|(^|_)qk|softcap|scal(e|ing)|multiplier|alibi|causal|bias"
)


def check(
    said: Mapping[str, Any], read: Mapping[str, Any], vision_read: Mapping[str, Any], problems: list[str], notes: list[str]
) -> None:
  """Looks at every field but those that are read.

  Args:
    said: the file's fields; those of `vq_config` are looked at too.
    read: what is read of it, by the fields' names there.
    vision_read: the same of `vq_config`.
    problems: gets a line for each field that can't be met.
    notes: gets a line with all that are passed over.
  """
  heads, window = read["num_attention_heads"], read["max_position_embeddings"]
  head_dim = read["hidden_size"] // heads if heads else 0
  met = _MET | {
      "head_dim": (head_dim,), "rotary_dim": (head_dim,), "query_pre_attn_scalar": (head_dim,),
      "attention_multiplier": (head_dim**-0.5 if 0 < head_dim < 1 << 31 else 0,), "original_max_position_embeddings": (window,),
  }  # fmt: skip
  said = {k: v for k, v in said.items() if k not in read}
  layers = said.pop("layer_types", None)
  if isinstance(layers, list) and set(map(str, layers)) <= {"full_attention"}:
    said.pop("sliding_window", None)  # no layer has it
  elif layers is not None:
    problems.append(f"config.json: layer_types={layers!r} isn't supported; each must be 'full_attention'")
  length = said.get("sliding_window")
  if said.get("use_sliding_window") is False or isinstance(length, int) and not isinstance(length, bool) and length >= window:
    said.pop("sliding_window", None)
  vq = said.pop("vq_config", None)
  vq = {k: v for k, v in vq.items() if k not in vision_read} if isinstance(vq, Mapping) else {}
  passed = [*_look(said, met, "", problems), *_look(vq, _MET_VISION, "vq_config.", problems)]
  if passed:
    notes.append(f"config.json: passed over, as nothing here reads it: {', '.join(passed)}")


def _look(fields: Mapping[str, Any], met: Mapping[str, tuple[Any, ...]], where: str, problems: list[str]) -> Iterator[str]:
  """Yields the fields that no table knows and that say something."""
  for key, value in fields.items():
    if value is None or key in _LET_BE or _LET_BE_KINDS.fullmatch(key) or key not in met and value in _NOTHING:
      continue
    if key in met:
      if not any(_same(value, v) for v in met[key]):
        problems.append(f"config.json: {where}{key}={value!r} isn't supported; it must be {met[key][0]!r}")
    elif not _ABOUT_ATTENTION.search(key):
      yield f"{where}{key}"
    elif value != 1 or value is True:  # a factor of one
      problems.append(f"config.json: {where}{key}={value!r} isn't supported: it isn't known what it does to attention")


def _same(value: Any, wanted: Any) -> bool:
  if isinstance(value, float) and isinstance(wanted, float):
    return math.isclose(value, wanted, rel_tol=1e-6)
  return value == wanted
