"""Orthus 7B, the paper's recipe stage by stage, each on each machine that we plan for.

    orthus convert --from=ANOLE --to=runs/anole                        # a discrete model to start from, with its tokenizer
    C=configs/orthus_7b.py  T=--config.data.tokenizer=runs/anole/tokenizer.json

    # Stage 1, Orthus-base: from pictures alone. Prepared once as features, as the VQGAN is frozen.
    orthus prepare --source=img2dataset LAION --pairs=to_image --images=features --out=data/laion --config=$C:stage1-h100-8 $T \
        "--config.run.init_from=(('','runs/anole'),)"
    orthus train --config=$C:stage1-h100-8 --workdir=runs/stage1 --config.data.path=data/laion $T \
        "--config.run.init_from=(('','runs/anole'),)"
    # Post-training on a mix; then editing, or stories, from Orthus-base.
    orthus prepare --source=llava llava_v1_5_mix665k.json --pictures=IMAGES --images=features --out=data/llava …
    orthus prepare --source=journeydb JOURNEYDB --images=features --out=data/journeydb …
    orthus train --config=$C:post-h100-8 --workdir=runs/post $T "--config.run.init_from=(('','runs/stage1'),)" \
        --config.data.path= "--config.data.mixture=(('data/llava',1.0),('data/journeydb',1.0),('data/laion',1.0))"
    orthus prepare --source=instructpix2pix IP2P --images=features --out=data/edits …
    orthus train --config=$C:edit-h100-8 --workdir=runs/edit --config.data.path=data/edits $T \
        "--config.run.init_from=(('','runs/stage1'),)"
    orthus prepare --source=storystream STORIES --images-per-document=3 --images=features --out=data/stories …
    orthus train --config=$C:story-h100-8 --workdir=runs/story --config.data.path=data/stories $T \
        "--config.run.init_from=(('','runs/stage1'),)"
    orthus plan --config=$C:post-v5e-256 --topology=v5e:16x16          # what a variant takes, without the machine

The argument is STAGE-MACHINE:

    stage1    codebook_in, token embedding and diffusion head learn from pictures alone; all else is frozen
    post      everything but the VQGAN learns, from text and pictures
    post-lora as `post`, by adapters of rank 64 beside the layers' weights, which stay frozen (model.lora)
    edit      as `post`, from a picture, an instruction and the edited picture
    story     as `post`, from captions and frames, three frames a document
    decoder   the VQGAN's decoder alone, from pictures
    pretrain  as `post`, from nothing but a VQGAN, or going on from a converted checkpoint

    v5e-256   --topology=v5e:16x16        v5p-128     --topology=v5p:4x4x4 (64 chips)
    v6e-256   --topology=v6e:16x16        2xv5p-128   --topology=v5p:4x4x4 --slices=2
    v7x-128   --topology=tpu7x:4x4x4 (64 chips, 128 devices)
    h100-8    --topology=h100:8           h200-1      --topology=h200:1
    h200-8    --topology=h200:8           b200-8      --topology=b200:8
    gb200-64  --topology=gb200:64 (of an NVL72's 72, which divide neither the model's width nor the batches)
    h100-1    --topology=h100:1 (80 GB)

Every stage on every machine, but that `post-lora` is for h200-1 and h100-1, and h100-1 for `post-lora`.

From the paper (arXiv 2412.00127): AdamW with betas 0.9 and 0.99; learning rate and batch x steps of stage 1, 1e-4 and 32 x
15,000, and of post-training, 1e-5 and 16 x 35,000; the parts trained; the data sets, for edits 400k of InstructPix2Pix. On few
devices they are as published. A slice's hundreds of chips need more rows: there a step takes more of them and there are fewer
steps, so that as many documents are seen, and the learning rate grows with the square root of the batch.

The decoder's learning rate, batch and steps are the paper's too, 1e-5 and 256 x 15,000, and so is the frozen encoder. Its loss
isn't told, and ours: squared and absolute error by halves, LPIPS of weight 0.5, no discriminator.

The adapters are ours, with ten times post-training's learning rate. Beside them, a run's state takes 17 GB; a step on an H100
was measured at 33.4 GiB (docs/lora.md).

Not told there, and ours: schedule, warm-up, weight decay, clipping, precision, caption dropping, the mix, all of edits' and
stories' numbers (post-training's rate and batch, two passes over 400k edits, 160k windows of stories), and packing: a row of
4,096 positions holds three documents with a picture each. Memory and speed of stage1 and post on TPUs: docs/planning.md.
"""

import dataclasses
import math

from ml_collections import ConfigDict

_DOCUMENTS_PER_ROW = 3


@dataclasses.dataclass(frozen=True)
class _Machine:
  """Where a variant runs: its mesh, and for each stage that fits the rows of a step and what the backward pass keeps."""

  mesh: dict
  stage1: tuple[int, str] = (0, "")
  post: tuple[int, str] = (0, "")
  lora: tuple[int, str] = (0, "")
  tpu: bool = True
  small: bool = False


_MACHINES = {
  "v5e-256": _Machine(dict(data=1, fsdp=256), stage1=(768, "dots"), post=(256, "dots")),
  "v5p-128": _Machine(dict(data=4, fsdp=16), stage1=(512, "none"), post=(256, "dots")),
  "v6e-256": _Machine(dict(data=1, fsdp=256), stage1=(1536, "dots"), post=(512, "dots")),
  "2xv5p-128": _Machine(dict(data=8, fsdp=16), stage1=(1024, "none"), post=(512, "dots")),
  "v7x-128": _Machine(dict(data=1, fsdp=128), stage1=(1024, "none"), post=(512, "dots")),
  # As on eight GPUs of 80 GB, and nothing computed twice: 87 GiB a device, compiled for eight TPUs v5p (docs/planning.md).
  "h200-8": _Machine(dict(data=1, fsdp=8), stage1=(32, "none"), post=(16, "none"), tpu=False),
  "b200-8": _Machine(dict(data=1, fsdp=8), stage1=(32, "none"), post=(16, "none"), tpu=False),
  "gb200-64": _Machine(dict(data=8, fsdp=8), stage1=(256, "none"), post=(128, "none"), tpu=False),
  "h100-8": _Machine(dict(data=1, fsdp=8), stage1=(32, "none"), post=(16, "qkv"), tpu=False),
  "h200-1": _Machine(dict(data=1, fsdp=1), stage1=(32, "qkv"), post=(6, "full"), lora=(6, "qkv"), tpu=False, small=True),
  "h100-1": _Machine(dict(data=1, fsdp=1), lora=(6, "attention"), tpu=False),
}
_STAGES = ("stage1", "post-lora", "post", "edit", "story", "pretrain", "decoder")
_STAGE1 = (r"token_embedding", r"vision_embedding/.*", r"image_head/.*")
_DECODER = (r"decoder/.*", r"post_quant_conv/.*", r"discriminator/.*")
_ALL_BUT_VQGAN = (r"^(?!vision_tokenizer/).*",)


def get_config(arg: str = "post-v5e-256") -> ConfigDict:
  """The config of a variant, STAGE-MACHINE; see above."""
  stage = next((s for s in _STAGES if arg.startswith(f"{s}-")), "")
  able = {n: m for n, m in _MACHINES.items() if not stage or (m.lora if stage == "post-lora" else m.post)[0]}
  machine = able.get(arg.removeprefix(f"{stage}-"))
  if not stage or machine is None:
    raise ValueError(f"unknown variant {arg!r}: STAGE-MACHINE of {stage or ', '.join(_STAGES)} and {', '.join(able)}")
  config = ConfigDict()
  if stage == "stage1":
    _stage1(config, machine)
  elif stage == "decoder":
    _decoder(config, machine)
  else:
    _post(config, machine, published=stage != "pretrain", lora=stage == "post-lora")
  if stage in ("edit", "story"):
    _of_base(config, machine, stage)
  config.mesh = machine.mesh
  config.run.update(log_every=10, checkpoint_every=1000, keep_checkpoints=3)
  return config


def _stage1(config: ConfigDict, machine: _Machine) -> None:
  """A picture a row, 1,024 patches between <s>, BOI, EOI and a separator; the diffusion loss alone."""
  rows, remat = machine.stage1
  steps, rate = _published(documents=rows, batch=32, steps=15_000, learning_rate=1e-4)
  config.model = dict(transformer=dict(remat=remat, text_loss_weight=0.0))
  config.data = dict(
      # A TPU's attention kernel wants rows of whole tiles of 128 positions.
      source="prepared", path="prepared", sequence_length=1152 if machine.tpu else 1028, images_per_row=1,
      learnt_images_per_row=1, caption_dropout=0.0,
  )  # fmt: skip
  config.optimizer = dict(
      learning_rate=rate, warmup_steps=min(100, steps // 5), schedule="constant", b1=0.9, b2=0.99, trainable=_STAGE1,
      frozen_dtype="compute",
  )  # fmt: skip
  config.run = dict(steps=steps, batch_size=rows)


def _post(config: ConfigDict, machine: _Machine, *, published: bool, lora: bool) -> None:
  """Text and pictures, three documents a row."""
  rows, remat = machine.lora if lora else machine.post
  steps, rate = _published(
      documents=_DOCUMENTS_PER_ROW * rows, batch=16, steps=35_000 if published else 1_000_000,
      learning_rate=1e-5 if published else 2e-5,
  )  # fmt: skip
  # A TPU adds up the LM head's gradient in its main memory, once for every chunk.
  config.model = dict(transformer=dict(remat=remat, loss_chunk=1024 if machine.tpu else 512))
  config.data = dict(
      source="prepared", path="prepared", sequence_length=4096, images_per_row=_DOCUMENTS_PER_ROW,
      learnt_images_per_row=_DOCUMENTS_PER_ROW, caption_dropout=0.1,
  )  # fmt: skip
  config.optimizer = dict(
      learning_rate=rate, warmup_steps=min(500, steps // 10), schedule="constant" if published else "cosine",
      final_fraction=0.0 if published else 0.1, b1=0.9, b2=0.99, clip_norm=1.0, weight_decay=0.0 if published else 0.1,
      trainable=_ALL_BUT_VQGAN,
  )  # fmt: skip
  if lora:  # the adapters stay in float32
    config.model.lora = dict(rank=64, alpha=128.0)
    config.optimizer.update(learning_rate=10 * rate, frozen_dtype="compute")
  elif machine.small:  # one device: bfloat16 weights and moments, rounded stochastically
    config.model.transformer.param_dtype = "bfloat16"
    config.optimizer.update(moment_dtype="bfloat16", rounding="stochastic")
  config.run = dict(steps=steps, batch_size=rows)


def _decoder(config: ConfigDict, machine: _Machine) -> None:
  """The VQGAN's decoder and what leads into it, on unquantised features; two pictures a device at a time."""
  shared = machine.mesh["data"] * machine.mesh["fsdp"]
  config.task = "vision_tokenizer"
  config.data = dict(source="prepared", path="prepared")
  config.tokenizer_loss = dict(
      commitment=0.0, codebook=0.0, quantised_share=0.0, revive_every=0,  # features and codes stay as they are
      # Not told in the paper, and ours.
      l1=0.5, perceptual=0.5, perceptual_weights="vgg_lpips.safetensors", adversarial=0.0, held_out=256,
  )  # fmt: skip
  config.optimizer = dict(
      learning_rate=1e-5, b1=0.9, b2=0.99, trainable=_DECODER, accumulation=max(256 // (2 * shared), 1),
      # As above.
      warmup_steps=100, schedule="constant", weight_decay=0.0, clip_norm=1.0,
  )  # fmt: skip
  config.run = dict(steps=15_000, batch_size=256, report=True)


def _of_base(config: ConfigDict, machine: _Machine, stage: str) -> None:
  """What edits and stories have other than post-training; all of it ours."""
  rows, _ = machine.post
  steps, rate = _published(documents=rows, batch=16, steps=50_000 if stage == "edit" else 10_000, learning_rate=1e-5)
  # Two pictures, an instruction of up to some two hundred tokens; or three frames with their captions.
  shape = dict(sequence_length=2304, images_per_row=2, learnt_images_per_row=1) if stage == "edit" else {}
  config.data.update(**shape)
  config.optimizer.update(learning_rate=rate, warmup_steps=min(500, steps // 10))
  config.run.update(steps=steps)


def _published(*, documents: int, batch: int, steps: int, learning_rate: float) -> tuple[int, float]:
  """(steps, learning rate) that show as many documents as the paper does, `documents` a step."""
  return max(round(batch * steps / documents), 1), learning_rate * math.sqrt(documents / batch)
