"""Typed, frozen configs, built once from an ml_collections ConfigDict at the edge.

Everything below the command line sees these dataclasses alone. `from_dict` refuses a field that it doesn't know,
naming the nearest one, and a value of the wrong type; each class's `__post_init__` refuses values that can't work together.
Defaults are the published 7B model's, as its released code runs it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from orthus_jax.config.model import (
  DiffusionConfig,
  ModelConfig,
  PixelsConfig,
  TransformerConfig,
  VisionEmbeddingConfig,
  VisionTokenizerConfig,
)  # fmt: skip
from orthus_jax.config.typed import BadRequest, from_dict, require, to_dict

__all__ = [
    "BadRequest", "Config", "DataConfig", "DiffusionConfig", "MeshConfig", "ModelConfig", "OptimizerConfig", "PixelsConfig",
    "RunConfig", "SamplingConfig", "TokenizerLossConfig", "TransformerConfig", "VisionEmbeddingConfig",
    "VisionTokenizerConfig", "from_dict", "to_dict",
]  # fmt: skip


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
    solver: of the diffusion: "ddim", "dpm" (DPM-Solver++ 2M, for fewer steps) or "ddpm" (ancestral, random).
    late_steps: solver steps of each picture's later patches; 0 means as many as the first ones.
    late_from: the share of a picture's patches that comes before the later ones.
    guidance_interval: (low, high), the part of diffusion time in which guidance holds: 0 is the picture, 1 pure noise.
    repetition_penalty: how much less likely text becomes that the response holds already; 1 turns it off.
    weights: "stored", or "int8" for those that are read at every position; one choice for all that is generated together.
    cache: keys and values in the "compute" dtype, or "int8"; likewise.
  """

  steps: int = 100
  guidance: float = 5.0
  image_guidance: float = 1.5
  unconditional_prompt: str = "Generate an image."
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  max_new_tokens: int = 2048
  solver: Literal["ddim", "dpm", "ddpm"] = "ddim"
  late_steps: int = 0
  late_from: float = 0.5
  guidance_interval: tuple[float, float] = (0.0, 1.0)
  repetition_penalty: float = 1.0
  weights: Literal["stored", "int8"] = "stored"
  cache: Literal["compute", "int8"] = "compute"

  def __post_init__(self):
    require(self.steps >= 1, f"sampling.steps={self.steps} must be at least 1")
    require(self.late_steps >= 0, f"late_steps={self.late_steps} must not be negative; 0 means sampling.steps")
    require(0 <= self.late_from <= 1, f"late_from={self.late_from} must lie in 0..1")
    low, high = self.guidance_interval
    require(0 <= low <= high <= 1, f"guidance_interval={self.guidance_interval} must be (low, high) in 0..1")
    require(self.repetition_penalty > 0, f"repetition_penalty={self.repetition_penalty} must be positive; 1 turns it off")
    require(self.guidance >= 0 and self.image_guidance >= 0, "guidance must not be negative; 1 turns it off")
    require(self.temperature >= 0, f"temperature={self.temperature} must not be negative; 0 is greedy")
    require(self.top_k >= 0, f"top_k={self.top_k} must not be negative; 0 means all")
    require(0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]")
    require(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be at least 1")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read, and how it is laid into batches.

  Attributes:
    source: "shapes" (the built-in world), "folder" (pictures beside a JSON-lines file), "tar" (pictures and texts in tar
      files, as WebDataset lays them out), or "prepared" (what `orthus prepare --out` made of one of them, for data that
      doesn't fit into memory).
    path: the data set's, the folder's or the tar files' place; empty: under the user's cache directory (shapes).
    mixture: for "prepared", (path, weight) pairs in the place of `path`: weights are shares of the rows.
    annotations: the JSON-lines file's name within the folder.
    pairs: which documents an image-text pair becomes.
    split: what training reads.
    documents: (kind, number) pairs, for "shapes": how many documents of a kind its training split has, in the place of the
      quickstart's few. A run of more steps needs more of them, or it learns them by heart.
    kinds: (kind, weight) pairs: how often a document of this kind is drawn, against one of weight 1; empty: all alike.
    later_kinds: (step, weights) pairs, in order of the step: from that step on, these weights take the place of `kinds`.
    sequence_length: T, positions per row.
    images_per_row: M, pictures that one row can hold.
    learnt_images_per_row: G, how many of them can be learnt rather than given. The image head works on as many in every
      row: where fewer are learnt, each is drawn (`diffusion.draws`) that many times oftener.
    caption_dropout: share of the documents that ask for a picture whose prompt is replaced by the unconditional one.
    text_length_power: a learnt token of a segment of n positions (an image's patches counted too) weighs n ** -power in
      the text loss: 0, all tokens alike; 1, all segments alike, so that one-word answers aren't drowned by
      descriptions; 0.5, between the two (the "square averaging" of InternVL 2.5, arXiv 2412.05271).
    tokenizer: a tokenizer.json or its directory; empty: the one shipped for shapes.
    turns: what an answer about a picture sees where a document asks several questions of one: "sequence": all that came
      before, as in a conversation; "separate": the picture and its own question alone, from the position where that would
      stand, so that what is learnt is what a single question meets. Separate turns need attention by a mask (xla, cudnn).
    cache_features: encode each picture once, ahead of training, instead of at every step.
    max_bad_share: more bad records than this share stop the run.
  """

  source: Literal["shapes", "folder", "tar", "prepared"] = "shapes"
  path: str = ""
  mixture: tuple[tuple[str, float], ...] = ()
  annotations: str = "metadata.jsonl"
  pairs: Literal["both", "to_image", "to_text"] = "both"
  split: str = "train"
  documents: tuple[tuple[str, int], ...] = ()
  kinds: tuple[tuple[str, float], ...] = ()
  later_kinds: tuple[tuple[int, tuple[tuple[str, float], ...]], ...] = ()
  sequence_length: int = 4096
  images_per_row: int = 4
  learnt_images_per_row: int = 4
  caption_dropout: float = 0.1
  text_length_power: float = 0.0
  tokenizer: str = ""
  turns: Literal["sequence", "separate"] = "sequence"
  cache_features: bool = False
  max_bad_share: float = 0.01

  def __post_init__(self):
    require(0 <= self.caption_dropout < 1, f"data.caption_dropout={self.caption_dropout} must lie in [0, 1)")
    require(
        0 <= self.text_length_power <= 1, f"data.text_length_power={self.text_length_power} must lie in [0, 1]"
    )
    require(0 <= self.max_bad_share <= 1, f"data.max_bad_share={self.max_bad_share} must lie in [0, 1]")
    require(
        1 <= self.learnt_images_per_row <= self.images_per_row,
        f"data.learnt_images_per_row={self.learnt_images_per_row} must lie in 1..images_per_row={self.images_per_row}",
    )
    steps = [0, *(step for step, _ in self.later_kinds)]
    require(
        all(a < b for a, b in zip(steps, steps[1:])), "data.later_kinds: steps must be above 0 and rise from pair to pair"
    )
    mixes = (self.kinds, *(kinds for _, kinds in self.later_kinds))
    require(all(w >= 0 for kinds in mixes for _, w in kinds), "data.kinds: weights must not be negative")
    require(all(not k or any(w for _, w in k) for k in mixes), "data.kinds gives no document a weight above 0")
    require(
        not self.mixture or (self.source == "prepared" and not self.path),
        "data.mixture is for data.source=prepared, in the place of data.path",
    )
    require(all(w > 0 for _, w in self.mixture), "data.mixture: weights must be above 0")
    require(not self.documents or self.source == "shapes", "data.documents is for data.source=shapes: leave it empty")
    if self.source == "prepared":
      require(bool(self.path or self.mixture), "data.path is empty: set it to the prepared folder, or set data.mixture")
      require(not self.cache_features, "data.cache_features: with data.source=prepared, use `prepare --images=features`")
      require(not self.later_kinds, "data.later_kinds isn't for data.source=prepared: leave it empty")
      for field in ("annotations", "pairs", "split"):
        default = type(self).__dataclass_fields__[field].default
        require(getattr(self, field) == default, f"data.{field} is settled when data is prepared: leave it at {default!r}")


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
    newton_schulz_steps: of Muon's orthogonalisation. Fewer cost less and leave small singular values smaller.
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
  newton_schulz_steps: int = 5
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  accumulation: int = 1
  moment_dtype: Literal["float32", "bfloat16"] = "float32"
  rounding: Literal["stochastic", "nearest"] = "stochastic"
  frozen_dtype: Literal["param", "compute"] = "param"
  ema_decay: float = 0.0
  trainable: tuple[str, ...] = (r"^(?!vision_tokenizer/).*",)

  def __post_init__(self):
    require(self.newton_schulz_steps >= 1, f"optimizer.newton_schulz_steps={self.newton_schulz_steps} must be at least 1")
    require(self.learning_rate > 0, f"optimizer.learning_rate={self.learning_rate} must be above 0")
    require(
        self.adamw_learning_rate == 0 or (self.name == "muon" and self.adamw_learning_rate > 0),
        "optimizer.adamw_learning_rate is for optimizer.name=muon; with adamw, set optimizer.learning_rate",
    )
    require(self.accumulation >= 1, f"optimizer.accumulation={self.accumulation} must be at least 1")
    require(0 <= self.ema_decay < 1, f"optimizer.ema_decay={self.ema_decay} must lie in [0, 1)")


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
    require(0 <= self.whiten <= 1, f"tokenizer_loss.whiten={self.whiten} must lie in [0, 1]")


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
    require(all(s == -1 or s >= 1 for s in sizes), f"mesh sizes {sizes} must be at least 1, or -1 for the rest")
    require(sizes.count(-1) <= 1, f"mesh sizes {sizes}: only one axis can take the rest (-1)")


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """The loop.

  Attributes:
    steps: how many.
    batch_size: rows of the global batch.
    seed: of initialisation, data order and every random draw.
    init_from: where the parameters start: pairs of (parameter name prefix, checkpoint or shipped weights).
    resume_from: a run, or one of its checkpoints, whose whole state (parameters, moments, average, step) this one goes on
      from, as long as it has no checkpoint of its own; empty: none.
    log_every: steps between metric records.
    sample_every: steps between picture grids and text samples; 0 never.
    checkpoint_every: steps between checkpoints; 0 only at the end.
    keep_checkpoints: how many of the newest are kept.
    keep_every: those of every so many steps are kept as well; 0: none.
    keep_best: and as many of those with the lowest training loss since the checkpoint before.
    max_skipped: an update whose loss or gradient isn't finite is skipped; so many in a row stop the run.
    spike_deviations: a loss that lies as many standard deviations above its running mean is logged; 0: none is.
    hang_timeout: seconds after which a step that doesn't end stops the process; 0: never.
    report: write report.html and report.json at the end.
    profile_steps: (first, last) step that the profiler records into the workdir's profile/, for TensorBoard and
      Perfetto; empty: none.
    compiler_options: (option, value) pairs for the compiler of the training step, above those of `parallel/compiler.py`:
      (("xla_tpu_scoped_vmem_limit_kib", "65536"),), say.
    peak_tflops: a device's peak in 1e12 FLOP/s, which MFU is a share of; 0: the published one where it is known.
  """

  steps: int = 1000
  batch_size: int = 16
  seed: int = 0
  init_from: tuple[tuple[str, str], ...] = ()
  resume_from: str = ""
  log_every: int = 10
  sample_every: int = 0
  checkpoint_every: int = 0
  keep_checkpoints: int = 2
  keep_every: int = 0
  keep_best: int = 0
  max_skipped: int = 10
  spike_deviations: float = 6.0
  hang_timeout: float = 1800.0
  report: bool = False
  profile_steps: tuple[int, ...] = ()
  compiler_options: tuple[tuple[str, str], ...] = ()
  peak_tflops: float = 0.0

  def __post_init__(self):
    first_last = self.profile_steps
    require(
        not first_last or (len(first_last) == 2 and 1 <= first_last[0] <= first_last[1]),
        f"run.profile_steps={first_last} must be (first, last) step, from 1, or empty",
    )
    require(self.peak_tflops >= 0, f"run.peak_tflops={self.peak_tflops} must not be negative; 0 means the published one")
    require(self.steps >= 1, f"run.steps={self.steps} must be at least 1")
    require(self.batch_size >= 1, f"run.batch_size={self.batch_size} must be at least 1")
    require(self.log_every >= 1, f"run.log_every={self.log_every} must be at least 1")
    require(self.keep_checkpoints >= 1, f"run.keep_checkpoints={self.keep_checkpoints} must be at least 1")
    require(self.max_skipped >= 1, f"run.max_skipped={self.max_skipped} must be at least 1")
    for field in ("sample_every", "checkpoint_every", "keep_every", "keep_best", "spike_deviations", "hang_timeout"):
      require(getattr(self, field) >= 0, f"run.{field}={getattr(self, field)} must not be negative; 0 turns it off")


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
    require(
        self.run.batch_size % self.optimizer.accumulation == 0,
        f"run.batch_size={self.run.batch_size} must be a multiple of optimizer.accumulation={self.optimizer.accumulation}",
    )
    require(
        self.task != "orthus" or self.model.transformer.text_loss_weight + self.model.diffusion.loss_weight > 0,
        "model.transformer.text_loss_weight and model.diffusion.loss_weight are both 0: nothing would be learnt",
    )
    require(
        not self.model.transformer.merge_positions or self.mesh.context == 1,
        "model.transformer.merge_positions needs mesh.context=1: it would merge the axis that the mesh splits",
    )
    require(
        self.task == "orthus" or self.model.vision_tokenizer.decoder,
        "task=vision_tokenizer needs model.vision_tokenizer.decoder=True: it trains the decoder too",
    )
    require(
        self.task == "orthus" or self.data.source != "prepared",
        "task=vision_tokenizer reads pictures: set data.source to shapes or folder",
    )
    if self.task == "orthus":
      need = self.model.vision_tokenizer.patches + 4
      require(
          self.data.sequence_length >= need,
          f"data.sequence_length={self.data.sequence_length} is too short for one image of"
          f" {self.model.vision_tokenizer.patches} patches: set it to at least {need}",
      )
      require(
          self.data.sequence_length <= self.model.transformer.max_positions,
          f"data.sequence_length={self.data.sequence_length} is beyond"
          f" model.transformer.max_positions={self.model.transformer.max_positions}",
      )
