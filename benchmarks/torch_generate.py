"""Drawing as the released code does it, in plain PyTorch, for `benchmarks/generate.py` to measure against.

One picture at a time, eager, two guidance rows with a cache that grows by concatenation. At each patch the whole history
is embedded anew, though only the last patch enters the backbone; the LM head runs, though nobody reads it; and each solver
step calls the whole diffusion head. Written over named parameters as orthus_jax has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch_step import head

from orthus_jax.config import Config
from orthus_jax.diffusion import process


class Loop:
  """Draws the features of a picture, in the model's dtype; on a GPU if PyTorch finds one."""

  def __init__(self, config: Config, params: dict[str, Any]):
    self.config = config
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self.dtype = getattr(torch, config.model.transformer.dtype)
    self.p: dict[str, torch.Tensor] = {}
    for name, value in params.items():
      if name.startswith("vision_tokenizer/"):
        continue  # features are drawn, not decoded
      # Layers are stacked along the first axis.
      whole = self.tensor(name, value)
      self.p |= {name.replace("/layers/", f"/{i}/"): v for i, v in enumerate(whole)} if "/layers/" in name else {name: whole}
    for name, value in self.p.items():
      last = name.rpartition("/")[2]
      if last in ("q", "k", "v"):
        value = value.flatten(1)
      elif last == "out":
        value = value.flatten(0, 1)
      if last in ("q", "k", "v", "out", "gate", "up", "down", "kernel", "lm_head"):
        self.p[name] = value.T.contiguous()  # [out, in], as nn.Linear keeps it
    half = config.model.transformer.head_dim // 2
    self.frequency = config.model.transformer.rope_theta ** (-torch.arange(half, device=self.device) / half)

  def tensor(self, name: str, value: Any) -> torch.Tensor:
    """A parameter as it is computed in; on a GPU, where jax has it, without a copy."""
    dtype = torch.float32 if name == "vision_embedding/codebook" else self.dtype
    found = torch.from_dlpack(value) if self.device.type == "cuda" else torch.tensor(np.asarray(value, np.float32))
    return found.to(self.device, dtype)

  @torch.inference_mode()
  def draw(self, prompts: Sequence[Sequence[int]], noise: np.ndarray, *, steps: int, guidance: float) -> np.ndarray:
    """The first patches of a picture, as many as there are noises.

    Args:
      prompts: ids of the conditional and the unconditional prompt, begin-of-image included.
      noise: what each starts from, [patches, C].
      steps: of the solver.
      guidance: scale of v_u + s (v_c - v_u).

    Returns:
      Features [patches, C].
    """
    length = max(map(len, prompts))
    tokens = torch.tensor([[0] * (length - len(ids)) + list(ids) for ids in prompts])
    tokens = tokens.to(self.device)
    real = torch.tensor([[False] * (length - len(ids)) + [True] * len(ids) for ids in prompts]).to(self.device)
    self.cache: dict[str, torch.Tensor] = {}
    hidden = self.extend(F.embedding(tokens, self.p["token_embedding"]), real)
    history = torch.zeros(0, noise.shape[1], device=self.device)
    for start in torch.tensor(np.asarray(noise), device=self.device):
      F.linear(hidden[:, -1], self.p["lm_head"])
      feature = self.sample(hidden[:, -1], start, steps=steps, guidance=guidance)
      history = torch.cat([history, feature[None]])
      last = self.embed(history)[-1]
      real = torch.cat([real, torch.ones(2, 1, dtype=torch.bool, device=self.device)], 1)
      hidden = self.extend(last.expand(2, 1, -1), real)
    return history.cpu().numpy()

  def embed(self, history: torch.Tensor) -> torch.Tensor:
    """Every patch so far through the soft VQ."""
    c, codes = self.config.model, self.p["vision_embedding/codebook"]
    distance = (history * history).sum(-1, keepdim=True) - 2 * history @ codes.T + (codes * codes).sum(-1)
    rows = self.p["token_embedding"][c.image_token_start : c.image_token_start + c.vision_tokenizer.codes]
    embedded = (-distance / c.vision_embedding.temperature).softmax(-1).to(self.dtype) @ rows
    if c.vision_embedding.projection:
      embedded = embedded + history.to(self.dtype) @ self.p["vision_embedding/projection_kernel"]
    if c.vision_embedding.patch_positions:
      embedded = embedded + self.p["vision_embedding/position_embedding"][: len(history)]
    return embedded

  def extend(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """States of new positions x [2, T, D]; `real` [2, S] tells all positions so far from padding on the left."""
    T, S = x.shape[1], real.shape[1]
    seen = (real[:, None] & torch.ones(T, S, dtype=torch.bool, device=self.device).tril(S - T))[:, None]
    if T > 1:  # padding must see something
      seen = seen | torch.eye(T, S, dtype=torch.bool, device=self.device)
    position = (real.cumsum(1) - 1).clamp(min=0)[:, -T:]
    angle = (position[..., None] * self.frequency)[:, :, None]
    turn = angle.cos(), angle.sin()
    for i in range(self.config.model.transformer.layers):
      x = self.layer(x, f"transformer/{i}", turn, seen)
    return self.rms(x, "transformer/norm")

  def rms(self, x: torch.Tensor, name: str) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], self.p[f"{name}/scale"], self.config.model.transformer.norm_eps)

  def layer(self, x, name, turn, seen):
    p, t = self.p, self.config.model.transformer
    y = self.rms(x, f"{name}/attention_norm")

    def heads(kind):
      h = F.linear(y, p[f"{name}/attention/{kind}"]).unflatten(-1, (-1, t.head_dim))
      if kind == "v":
        return h.transpose(1, 2)
      norm = f"{name}/attention/{kind}_norm"
      h = F.layer_norm(h, (t.head_dim,), eps=t.norm_eps) * p[f"{norm}/scale"] + p[f"{norm}/bias"]
      a, b = h.chunk(2, -1)
      return torch.cat([a * turn[0] - b * turn[1], b * turn[0] + a * turn[1]], -1).to(x.dtype).transpose(1, 2)

    q = heads("q")
    for kind in ("k", "v"):
      new, key = heads(kind), f"{name}/{kind}"
      self.cache[key] = torch.cat([self.cache[key], new], 2) if key in self.cache else new
    o = F.scaled_dot_product_attention(
        q, self.cache[f"{name}/k"], self.cache[f"{name}/v"], attn_mask=seen, enable_gqa=t.heads != t.kv_heads
    )
    x = x + F.linear(o.transpose(1, 2).flatten(2), p[f"{name}/attention/out"])
    y = self.rms(x, f"{name}/mlp_norm")
    inner = F.silu(F.linear(y, p[f"{name}/mlp/gate"])) * F.linear(y, p[f"{name}/mlp/up"])
    return x + F.linear(inner, p[f"{name}/mlp/down"])

  def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
    return F.linear(x, self.p[f"{name}/kernel"], self.p[f"{name}/bias"])

  def sample(self, z: torch.Tensor, x: torch.Tensor, *, steps: int, guidance: float) -> torch.Tensor:
    """A feature [C] by DDIM from the noise x [C], which both rows share."""
    c = self.config.model.diffusion
    times = process.timesteps(c, steps)
    abar = process.alphas_cumprod(c)[times].tolist()
    for t, now, then in zip(times.tolist(), abar, [*abar[1:], 1.0]):
      both = x.to(z.dtype).expand(2, -1), torch.tensor([t, t], device=self.device), z
      conditional, unconditional = head(self.p, c.blocks, self.linear, *both).float()
      v = unconditional + guidance * (conditional - unconditional)
      a, s = now**0.5, (1 - now) ** 0.5
      x0, eps = ((x - s * v) / a, v) if c.target == "noise" else (a * x - s * v, a * v + s * x)
      x = then**0.5 * x0 + (1 - then) ** 0.5 * eps
    return x / c.latent_scale


def choose_threads(trial: Callable[[], object], *, times: int = 3) -> int:
  """Sets and returns the number of threads: all if a trial then takes a tenth less time than with one, else one.

  Products as small as a small model's gain little from a second thread, and where other work keeps the cores busy, waiting
  for it takes many times as long as the product.
  """

  def seconds(threads: int) -> float:
    torch.set_num_threads(threads)
    taken = []
    for _ in range(times):
      begin = time.perf_counter()
      trial()
      taken.append(time.perf_counter() - begin)
    return min(taken)

  every = torch.get_num_threads()
  chosen = every if seconds(every) < 0.9 * seconds(1) else 1
  torch.set_num_threads(chosen)
  return chosen
