"""Typed, frozen configs, built once from an ml_collections ConfigDict at the edge.

Everything below the command line sees these dataclasses alone. `from_dict` refuses a field that it doesn't know,
naming the nearest one, and a value of the wrong type; each class's `__post_init__` refuses values that can't work together.
Defaults are the published 7B model's, as its released code runs it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from orthus_jax.typed_config import BadRequest, from_dict, to_dict

__all__ = [
    "BadRequest", "Config", "DataConfig", "DiffusionConfig", "MeshConfig", "ModelConfig", "OptimizerConfig", "PixelsConfig",
    "RunConfig", "SamplingConfig", "TokenizerLossConfig", "TransformerConfig", "VisionEmbeddingConfig",
    "VisionTokenizerConfig", "from_dict", "to_dict",
]  # fmt: skip


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise BadRequest(message)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The backbone (Chameleon): a causal pre-norm transformer with rotary positions and QK-norm.

  Attributes:
    vocab_size: V, rows of the token embedding and of the LM head.
    width: D.
    mlp_width: F, of the SwiGLU MLP.
    layers: L.
    heads: N query heads.
    kv_heads: K key and value heads; divides `heads`.
    head_dim: H.
    max_positions: the longest sequence.
    rope_theta: base of the rotary frequencies.
    norm_eps: epsilon of the RMS norms and of the QK-norm.
    embedding_std: standard deviation of a fresh token embedding.
    norm_placement: "pre" (7B) or "swin" (34B: the norm on the sub-layer's output, x + norm(f(x))).
    dtype: what activations are computed in.
    param_dtype: what its parameters, the token embedding and the LM head are kept in. A step casts what is kept in
      float32 to `dtype` once, before it is gathered from the devices that share it.
    remat: what of each layer is kept for the backward pass, the rest being computed again: "none" (recomputes nothing),
      "dots" (keeps products with weights, and attention), "mlp" (keeps the MLP's two inner products, and attention),
      "qkv" (keeps queries, keys, values and attention), "attention" (keeps it alone), "full" (keeps the layer's input
      alone), or "offload" (as "qkv", but these and the layer's input wait in the host's memory).
    scan_unroll: how many layers one step of the scan over layers holds.
    merge_positions: flatten rows and positions for matrix products. A CPU multiplies matrices 1.4 times as fast as
      stacks of them; but it mixes the axes that a mesh may split, so it is for meshes without a context axis.
    attention: the backend; each honours segment ids. "splash" is a TPU's kernel, "cudnn" an NVIDIA GPU's, "xla" runs
      anywhere; "auto" takes the kernel of the platform that the program is for, where it can do the model's shapes.
    attention_block: positions per tile of a TPU's kernel, at most.
    text_loss_weight: of cross-entropy in text_loss_weight * cross-entropy + diffusion.loss_weight * diffusion; 0 leaves
      the LM head out of the step.
    loss_chunk: positions of a row whose logits exist at a time in training; 0 means all. With `merge_positions`, all do.
  """

  vocab_size: int = 65536
  width: int = 4096
  mlp_width: int = 11008
  layers: int = 32
  heads: int = 32
  kv_heads: int = 32
  head_dim: int = 128
  max_positions: int = 4096
  rope_theta: float = 10000.0
  norm_eps: float = 1e-5
  embedding_std: float = 0.02
  norm_placement: Literal["pre", "swin"] = "pre"
  dtype: Literal["float32", "bfloat16"] = "bfloat16"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "dots", "mlp", "qkv", "attention", "full", "offload"] = "full"
  scan_unroll: int = 1
  merge_positions: bool = False
  attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
  attention_block: int = 512
  text_loss_weight: float = 1.0
  loss_chunk: int = 512

  def __post_init__(self):
    _require(self.heads % self.kv_heads == 0, f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
    _require(self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even, for rotary positions")
    _require(self.layers >= 1, f"layers={self.layers} must be at least 1")
    _require(1 <= self.scan_unroll <= self.layers, f"scan_unroll={self.scan_unroll} must lie in 1..layers={self.layers}")
    _require(
        self.attention_block >= 128 and self.attention_block % 128 == 0,
        f"attention_block={self.attention_block} must be a multiple of 128",
    )
    _require(self.text_loss_weight >= 0, f"text_loss_weight={self.text_loss_weight} must not be negative; 0 turns it off")
    _require(self.loss_chunk >= 0, f"loss_chunk={self.loss_chunk} must not be negative; 0 means whole rows")


@dataclasses.dataclass(frozen=True)
class PixelsConfig:
  """How a picture becomes values for the vision tokenizer, (byte * scale - mean) / std, and back.

  Defaults are the published processor's.

  Attributes:
    resample: the filter that scales the shortest edge to the resolution, before the centre square is cut out.
    scale: of a byte; the published one isn't 1 / 127.5, so that white is 0.989 and not 1.
    mean, std: of red, green and blue.
  """

  resample: Literal["lanczos", "nearest", "bilinear", "bicubic", "box", "hamming"] = "lanczos"
  scale: float = 0.0078
  mean: tuple[float, float, float] = (1.0, 1.0, 1.0)
  std: tuple[float, float, float] = (1.0, 1.0, 1.0)

  def __post_init__(self):
    _require(self.scale > 0 and min(self.std) > 0, f"pixels.scale={self.scale} and std={self.std} must be above 0")


@dataclasses.dataclass(frozen=True)
class VisionTokenizerConfig:
  """The VQGAN.

  Attributes:
    pixels: how pictures become its input.
    resolution: pixels per side.
    base_channels: channels at full resolution, before `channel_multipliers`.
    channel_multipliers: one per level; each level but the last halves the resolution.
    res_blocks: residual blocks per encoder level; a decoder level has one more.
    latent_dim: C, values per patch.
    codes: rows of the codebook.
    norm_groups: groups of each GroupNorm.
    decoder: whether there is one; `transformers`' Chameleon has none, and a model without one can't draw.
    dtype: what it is computed in.
  """

  pixels: PixelsConfig = PixelsConfig()
  resolution: int = 512
  base_channels: int = 128
  channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  res_blocks: int = 2
  latent_dim: int = 256
  codes: int = 8192
  norm_groups: int = 32
  decoder: bool = True
  dtype: Literal["float32", "bfloat16"] = "float32"

  def __post_init__(self):
    factor = 2 ** (len(self.channel_multipliers) - 1)
    _require(len(self.channel_multipliers) >= 1, "channel_multipliers needs at least one level")
    _require(
        self.resolution % factor == 0 and self.resolution >= factor,
        f"resolution={self.resolution} must be a multiple of {factor}, as there are {len(self.channel_multipliers)} levels",
    )
    for m in self.channel_multipliers:
      _require(
          self.base_channels * m % self.norm_groups == 0,
          f"base_channels={self.base_channels} x {m} must be a multiple of norm_groups={self.norm_groups}",
      )

  @property
  def side(self) -> int:
    """Patches per side."""
    return self.resolution // 2 ** (len(self.channel_multipliers) - 1)

  @property
  def patches(self) -> int:
    """P, patches per image."""
    return self.side**2


@dataclasses.dataclass(frozen=True)
class VisionEmbeddingConfig:
  """How an image feature enters the backbone: the soft VQ of Orthus.

  Attributes:
    temperature: tau of softmax(-|v - c|^2 / tau); towards 0 it becomes Chameleon's hard VQ.
    fresh_rows: how the image codes' rows of a fresh token embedding start: "random", or "projected": as one random
      projection of the codes, so that similar codes start alike. Rows that a checkpoint brings are left as they are.
  """

  temperature: float = 1.0
  fresh_rows: Literal["random", "projected"] = "random"

  def __post_init__(self):
    _require(self.temperature > 0, f"vision_embedding.temperature={self.temperature} must be above 0")


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
  """The diffusion head and its process.

  Attributes:
    width: of the head's MLP.
    blocks: residual blocks of the head.
    target: what the head predicts: "velocity" (released code) or "noise" (paper, Eq. 3).
    schedule: betas "scaled_linear" (linear in their square root; released code) or "linear" (paper).
    beta_start, beta_end: first and last beta.
    timesteps: of the forward process.
    zero_terminal_snr: rescale so that the last step is pure noise; needs the velocity target.
    latent_scale: features are multiplied by this before diffusion and divided by it after.
    draws: independent (t, eps) per patch and training step.
    loss_weight: lambda in cross-entropy + lambda * diffusion; 0 leaves the image head out of the step.
    loss_chunk: patches of a row that the head works on at a time in training, each with all its draws; 0 means all.
      With `merge_positions`, all are.
  """

  width: int = 1536
  blocks: int = 3
  target: Literal["velocity", "noise"] = "velocity"
  schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
  beta_start: float = 0.00085
  beta_end: float = 0.012
  timesteps: int = 1000
  zero_terminal_snr: bool = True
  latent_scale: float = 0.1
  draws: int = 8
  loss_weight: float = 100.0
  loss_chunk: int = 512

  def __post_init__(self):
    _require(
        not (self.zero_terminal_snr and self.target == "noise"),
        "diffusion.target=noise can't start from pure noise: set diffusion.zero_terminal_snr=False",
    )
    _require(0 < self.beta_start < self.beta_end < 1, f"betas {self.beta_start}..{self.beta_end} must rise within (0, 1)")
    _require(self.timesteps >= 2 and self.draws >= 1, "diffusion.timesteps must be at least 2 and draws at least 1")
    _require(self.loss_weight >= 0, f"diffusion.loss_weight={self.loss_weight} must not be negative; 0 turns it off")
    _require(self.loss_chunk >= 0, f"diffusion.loss_chunk={self.loss_chunk} must not be negative; 0 means whole rows")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """An Orthus model: one backbone, a vision tokenizer, a vision embedding and an image head.

  Attributes:
    image_token_start: the first row of the token embedding that stands for an image code; `vision_tokenizer.codes`
      rows follow from there.
  """

  transformer: TransformerConfig = TransformerConfig()
  vision_tokenizer: VisionTokenizerConfig = VisionTokenizerConfig()
  vision_embedding: VisionEmbeddingConfig = VisionEmbeddingConfig()
  diffusion: DiffusionConfig = DiffusionConfig()
  image_token_start: int = 4

  def __post_init__(self):
    end = self.image_token_start + self.vision_tokenizer.codes
    _require(
        end <= self.transformer.vocab_size,
        f"the vocabulary of {self.transformer.vocab_size} has no room for image codes {self.image_token_start}..{end - 1}",
    )


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How documents are generated.

  Attributes:
    steps: solver steps per patch.
    guidance: scale s of v_u + s (v_c - v_u); 1 turns it off.
    image_guidance: in editing, the scale of the picture's part (v_img - v_0); `guidance` is then the text's.
    unconditional_prompt: what the unconditional row is told in the place of the prompt.
    temperature: of text; 0 is greedy.
    top_k: text is sampled among the k likeliest; 0 means all.
    top_p: and within this mass of probability.
    max_new_tokens: longest response, counting each patch as one.
  """

  steps: int = 100
  guidance: float = 5.0
  image_guidance: float = 1.5
  unconditional_prompt: str = "Generate an image."
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  max_new_tokens: int = 2048

  def __post_init__(self):
    _require(self.steps >= 1, f"sampling.steps={self.steps} must be at least 1")
    _require(self.guidance >= 0 and self.image_guidance >= 0, "guidance must not be negative; 1 turns it off")
    _require(self.temperature >= 0, f"temperature={self.temperature} must not be negative; 0 is greedy")
    _require(self.top_k >= 0, f"top_k={self.top_k} must not be negative; 0 means all")
    _require(0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]")
    _require(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be at least 1")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read, and how it is laid into batches.

  Attributes:
    source: "shapes" (the built-in world), "folder" (pictures beside a JSON-lines file), or "prepared" (what
      `orthus prepare --out` made of one of them, for data that doesn't fit into memory).
    path: the data set's or the folder's place; empty: under the user's cache directory (shapes).
    mixture: for "prepared", (path, weight) pairs in the place of `path`: weights are shares of the rows.
    annotations: the JSON-lines file's name within the folder.
    pairs: which documents an image-text pair becomes.
    split: what training reads.
    kinds: (kind, weight) pairs: how often a document of this kind is drawn, against one of weight 1; empty: all alike.
    sequence_length: T, positions per row.
    images_per_row: M, pictures that one row can hold.
    learnt_images_per_row: G, how many of them can be learnt rather than given.
    caption_dropout: share of the documents that ask for a picture whose prompt is replaced by the unconditional one.
    text_length_power: a learnt token of a segment of n positions (an image's patches counted too) weighs n ** -power in
      the text loss: 0, all tokens alike; 1, all segments alike, so that one-word answers aren't drowned by
      descriptions; 0.5, between the two (the "square averaging" of InternVL 2.5, arXiv 2412.05271).
    tokenizer: a tokenizer.json or its directory; empty: the one shipped for shapes.
    cache_features: encode each picture once, ahead of training, instead of at every step.
    max_bad_share: more bad records than this share stop the run.
  """

  source: Literal["shapes", "folder", "prepared"] = "shapes"
  path: str = ""
  mixture: tuple[tuple[str, float], ...] = ()
  annotations: str = "metadata.jsonl"
  pairs: Literal["both", "to_image", "to_text"] = "both"
  split: str = "train"
  kinds: tuple[tuple[str, float], ...] = ()
  sequence_length: int = 4096
  images_per_row: int = 4
  learnt_images_per_row: int = 4
  caption_dropout: float = 0.1
  text_length_power: float = 0.0
  tokenizer: str = ""
  cache_features: bool = False
  max_bad_share: float = 0.01

  def __post_init__(self):
    _require(0 <= self.caption_dropout < 1, f"data.caption_dropout={self.caption_dropout} must lie in [0, 1)")
    _require(
        0 <= self.text_length_power <= 1, f"data.text_length_power={self.text_length_power} must lie in [0, 1]"
    )
    _require(0 <= self.max_bad_share <= 1, f"data.max_bad_share={self.max_bad_share} must lie in [0, 1]")
    _require(
        1 <= self.learnt_images_per_row <= self.images_per_row,
        f"data.learnt_images_per_row={self.learnt_images_per_row} must lie in 1..images_per_row={self.images_per_row}",
    )
    _require(all(w >= 0 for _, w in self.kinds), "data.kinds: weights must not be negative")
    _require(
        not self.mixture or (self.source == "prepared" and not self.path),
        "data.mixture is for data.source=prepared, in the place of data.path",
    )
    _require(all(w > 0 for _, w in self.mixture), "data.mixture: weights must be above 0")
    if self.source == "prepared":
      _require(bool(self.path or self.mixture), "data.path is empty: set it to the prepared folder, or set data.mixture")
      _require(not self.cache_features, "data.cache_features: with data.source=prepared, use `prepare --images=features`")
      for field in ("annotations", "pairs", "split", "max_bad_share"):
        default = type(self).__dataclass_fields__[field].default
        _require(getattr(self, field) == default, f"data.{field} is settled when data is prepared: leave it at {default!r}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer: AdamW, or Muon for matrices with AdamW for everything else.

  Attributes:
    name: "adamw" (the published recipe) or "muon" (optax.contrib.muon, its updates scaled to AdamW's size), which learns
      more from each step and costs some matrix products more.
    learning_rate: at its peak.
    adamw_learning_rate: under Muon, the peak for what AdamW trains; 0 means the same.
    warmup_steps: linear rise from 0.
    schedule: after warm-up: "constant", "cosine" or "linear", both down to `final_fraction` of the peak.
    b1, b2, eps: AdamW's.
    weight_decay: on matrices alone, not on norms, biases or embeddings.
    clip_norm: the global gradient norm is clipped to it; 0 turns that off.
    accumulation: microbatches that one step adds up.
    moment_dtype: what the optimizer's moments are kept in; its arithmetic is float32 always.
    rounding: how new values are rounded to bfloat16 parameters (model.transformer.param_dtype) and moments: at random in
      proportion to the distance ("stochastic"), so that small updates count on average, or to the "nearest".
    frozen_dtype: what frozen parameters are kept in: as trained ones are ("param"), or in the dtype that they are
      computed in ("compute"), which gives the same numbers in half the memory.
    ema_decay: of the averaged copy of the parameters that is evaluated and saved beside them; 0 turns it off.
    trainable: regular expressions over parameter names; a parameter that matches none is frozen.
  """

  name: Literal["adamw", "muon"] = "adamw"
  learning_rate: float = 1e-4
  adamw_learning_rate: float = 0.0
  warmup_steps: int = 100
  schedule: Literal["constant", "cosine", "linear"] = "constant"
  final_fraction: float = 0.0
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  accumulation: int = 1
  moment_dtype: Literal["float32", "bfloat16"] = "float32"
  rounding: Literal["stochastic", "nearest"] = "stochastic"
  frozen_dtype: Literal["param", "compute"] = "param"
  ema_decay: float = 0.0
  trainable: tuple[str, ...] = (r"^(?!vision_tokenizer/).*",)

  def __post_init__(self):
    _require(self.learning_rate > 0, f"optimizer.learning_rate={self.learning_rate} must be above 0")
    _require(
        self.adamw_learning_rate == 0 or (self.name == "muon" and self.adamw_learning_rate > 0),
        "optimizer.adamw_learning_rate is for optimizer.name=muon; with adamw, set optimizer.learning_rate",
    )
    _require(self.accumulation >= 1, f"optimizer.accumulation={self.accumulation} must be at least 1")
    _require(0 <= self.ema_decay < 1, f"optimizer.ema_decay={self.ema_decay} must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig:
  """Training of the vision tokenizer.

  Attributes:
    commitment: beta of the VQ loss, pulling features towards their codes.
    codebook: weight of the codes' pull towards features.
    quantised_share: share of the pictures decoded from their codes; the rest is decoded from unquantised features,
      as Orthus does.
    noise: standard deviation of noise added to unquantised features, so that the decoder forgives the diffusion head's
      small errors; it also keeps the commitment from shrinking the features to nothing.
    whiten: how far the features of weights.npz are whitened (`training/whitening.py`): directions of variance s are
      scaled by s ** (-whiten / 2). Unquantised pictures stay the same; a diffusion head learns even features faster.
    l1: share of absolute (against squared) error in the reconstruction loss.
    revive_every: steps between replacements of codes that nobody used by fresh features.
  """

  commitment: float = 0.25
  codebook: float = 1.0
  quantised_share: float = 0.5
  noise: float = 0.0
  whiten: float = 0.0
  l1: float = 0.5
  revive_every: int = 50

  def __post_init__(self):
    _require(0 <= self.whiten <= 1, f"tokenizer_loss.whiten={self.whiten} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices per mesh axis; -1 stands for all that the other axes leave.

  Attributes:
    data: copies of the whole model (between slices).
    fsdp: parameters and batch are split.
    tensor: heads, MLP and vocabulary are split.
    context: positions are split.
  """

  data: int = 1
  fsdp: int = -1
  tensor: int = 1
  context: int = 1

  def __post_init__(self):
    sizes = dataclasses.astuple(self)
    _require(all(s == -1 or s >= 1 for s in sizes), f"mesh sizes {sizes} must be at least 1, or -1 for the rest")
    _require(sizes.count(-1) <= 1, f"mesh sizes {sizes}: only one axis can take the rest (-1)")


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """The loop.

  Attributes:
    steps: how many.
    batch_size: rows of the global batch.
    seed: of initialisation, data order and every random draw.
    init_from: where the parameters start: pairs of (parameter name prefix, checkpoint or shipped weights).
    log_every: steps between metric records.
    sample_every: steps between picture grids and text samples; 0 never.
    checkpoint_every: steps between checkpoints; 0 only at the end.
    keep_checkpoints: how many are kept.
    report: write report.html and report.json at the end.
    profile_steps: (first, last) step that the profiler records into the workdir's profile/, for TensorBoard and
      Perfetto; empty: none.
    peak_tflops: a device's peak in 1e12 FLOP/s, which MFU is a share of; 0: the published one where it is known.
  """

  steps: int = 1000
  batch_size: int = 16
  seed: int = 0
  init_from: tuple[tuple[str, str], ...] = ()
  log_every: int = 10
  sample_every: int = 0
  checkpoint_every: int = 0
  keep_checkpoints: int = 2
  report: bool = False
  profile_steps: tuple[int, ...] = ()
  peak_tflops: float = 0.0

  def __post_init__(self):
    first_last = self.profile_steps
    _require(
        not first_last or (len(first_last) == 2 and 1 <= first_last[0] <= first_last[1]),
        f"run.profile_steps={first_last} must be (first, last) step, from 1, or empty",
    )
    _require(self.peak_tflops >= 0, f"run.peak_tflops={self.peak_tflops} must not be negative; 0 means the published one")
    _require(self.steps >= 1, f"run.steps={self.steps} must be at least 1")
    _require(self.batch_size >= 1, f"run.batch_size={self.batch_size} must be at least 1")
    _require(self.log_every >= 1, f"run.log_every={self.log_every} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment.

  Attributes:
    task: "orthus" trains the whole model, "vision_tokenizer" the VQGAN alone.
  """

  task: Literal["orthus", "vision_tokenizer"] = "orthus"
  model: ModelConfig = ModelConfig()
  sampling: SamplingConfig = SamplingConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  tokenizer_loss: TokenizerLossConfig = TokenizerLossConfig()
  mesh: MeshConfig = MeshConfig()
  run: RunConfig = RunConfig()

  def __post_init__(self):
    _require(
        self.run.batch_size % self.optimizer.accumulation == 0,
        f"run.batch_size={self.run.batch_size} must be a multiple of optimizer.accumulation={self.optimizer.accumulation}",
    )
    _require(
        self.task != "orthus" or self.model.transformer.text_loss_weight + self.model.diffusion.loss_weight > 0,
        "model.transformer.text_loss_weight and model.diffusion.loss_weight are both 0: nothing would be learnt",
    )
    _require(
        not self.model.transformer.merge_positions or self.mesh.context == 1,
        "model.transformer.merge_positions needs mesh.context=1: it would merge the axis that the mesh splits",
    )
    _require(
        self.task == "orthus" or self.model.vision_tokenizer.decoder,
        "task=vision_tokenizer needs model.vision_tokenizer.decoder=True: it trains the decoder too",
    )
    _require(
        self.task == "orthus" or self.data.source != "prepared",
        "task=vision_tokenizer reads pictures: set data.source to shapes or folder",
    )
    if self.task == "orthus":
      need = self.model.vision_tokenizer.patches + 4
      _require(
          self.data.sequence_length >= need,
          f"data.sequence_length={self.data.sequence_length} is too short for one image of"
          f" {self.model.vision_tokenizer.patches} patches: set it to at least {need}",
      )
      _require(
          self.data.sequence_length <= self.model.transformer.max_positions,
          f"data.sequence_length={self.data.sequence_length} is beyond"
          f" model.transformer.max_positions={self.model.transformer.max_positions}",
      )
