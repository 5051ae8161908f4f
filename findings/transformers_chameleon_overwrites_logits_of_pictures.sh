#!/usr/bin/env bash
# transformers' ChameleonForConditionalGeneration overwrites the logits of image tokens, ahead of its loss and of generate.
#
# One would guess: `forward` returns what the LM head says, as for other models; that image tokens aren't drawn is left to
#   generate, which can be told otherwise (prefix_allowed_tokens_fn, suppress_tokens); and labels that are image tokens are
#   learnt, or refused.
# What happens: `forward` sets the logits of all image tokens to the dtype's least number. Labels that are image tokens give a
#   loss of 1e38 or inf, with finite gradients, of which the LM head's image rows get none: training goes on and learns
#   nothing of pictures. Where generate is allowed image tokens alone, all of them are equally likely: it draws the first one
#   over and over, or sampled, noise, whatever the model. Neither says a word.
# Why it matters here: Anole's image rows are trained, and its checkpoint says that it is of this class. Our tests take its
#   logits from the states, `lm_head(model.model(...).last_hidden_state)`; who checks an exported Chameleon must, too.
# Versions: transformers 5.24.0, torch 2.13.0, numpy 2.4.6, Python 3.11 or newer. Seen on 2026-11-27.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" &&
  "$folder/venv/bin/pip" install --quiet transformers==5.24.0 torch==2.13.0 numpy==2.4.6; } || exit 2
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import torch
import transformers

EXPECTED = dict(huge_loss=True, finite_gradients=True, image_rows_learn=False, first_code_alone=True, states_say_another=True)

torch.manual_seed(0)
names = ["<s>", "<pad>", "</s>", "<unk>", *(f"IMGIMG{c}Z" for c in "ABCDEFGH"), "<eoss>", "<racm3:break>", "<image>"]
codes, boi = range(4, 12), 13
config = transformers.ChameleonConfig(
    vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    pad_token_id=1, vocabulary_map={name: i for i, name in enumerate(names)},
    vq_config=dict(
        embed_dim=8, latent_channels=8, num_embeddings=8, resolution=8, base_channels=32, channel_multiplier=[1],
        num_res_blocks=1,
    ),
)
model = transformers.ChameleonForConditionalGeneration(config)
print("transformers", transformers.__version__, "torch", torch.__version__)

text_and_codes = torch.tensor([[20, boi, 4, 5, 21]])
out = model(input_ids=text_and_codes, labels=text_and_codes)
out.loss.backward()
gradient = model.lm_head.weight.grad
print(f"loss {out.loss.item():.3g}, largest gradient of an image row {gradient[codes].abs().max():.3g}, of all {gradient.abs().max():.3g}")

prompt = torch.tensor([[0, 20, boi]])
drawn = model.generate(
    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False,
    prefix_allowed_tokens_fn=lambda *_: list(codes),
)[0, prompt.shape[1] :].tolist()
likeliest = codes[0] + int(model.lm_head(model.model(input_ids=prompt).last_hidden_state[:, -1])[0, codes].argmax())
print(f"drawn {drawn}; the LM head's likeliest is {likeliest}")
found = dict(
    huge_loss=not math.isfinite(out.loss.item()) or out.loss.item() > 1e30, finite_gradients=bool(gradient.isfinite().all()),
    image_rows_learn=bool(gradient[codes].any()), first_code_alone=set(drawn) == {codes[0]},
    states_say_another=likeliest != codes[0],
)
print(found)
sys.exit(0 if found == EXPECTED else 1)
PYTHON
