"""Plain ways of doing what the product does in a batch, to compare with."""

from collections.abc import Mapping, Sequence
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.inference.model import Model
from orthus_jax.interop import names
from orthus_jax.models import params as params_lib
from orthus_jax.models.heads.diffusion import DiffusionHead
from orthus_jax.models.heads.masked import HIDDEN
from orthus_jax.models.orthus import Orthus


def split_prediction(x_t: jax.Array, prediction: jax.Array, abar: jax.Array, *, kind: str) -> tuple[jax.Array, jax.Array]:
  """(x0, eps) as the head's prediction implies them; `abar` is a scalar."""
  a, s = jnp.sqrt(abar), jnp.sqrt(1.0 - abar)
  if kind == "noise":
    return (x_t - s * prediction) / a, prediction
  return a * x_t - s * prediction, a * prediction + s * x_t


def ddim_step(x_t: jax.Array, prediction: jax.Array, *, abar: jax.Array, abar_next: jax.Array, kind: str) -> jax.Array:
  """One deterministic DDIM step (eta 0, no clipping) from abar to abar_next; the last goes to 1."""
  x0, eps = split_prediction(x_t, prediction, abar, kind=kind)
  return jnp.sqrt(abar_next) * x0 + jnp.sqrt(1.0 - abar_next) * eps


def draw(head: DiffusionHead, z_NRD, weights: Sequence[float], noise_NC, *, steps: int) -> jax.Array:
  """Features [N, C] by DDIM as the engine calls the head: of each position the row's own state, then its guides'.

  Args:
    head: the head.
    z_NRD: R states a position.
    weights: of each of them in the prediction followed.
    noise_NC: what each position starts from.
    steps: of the solver.
  """
  N, R = z_NRD.shape[:2]
  owner_X = np.concatenate([np.arange(N), np.repeat(np.arange(N), R - 1)])
  weight_X = np.concatenate([np.full(N, weights[0]), np.tile(np.asarray(weights[1:]), N)])
  mix_NX = np.where(np.arange(N)[:, None] == owner_X, weight_X, 0.0).astype(np.float32)
  z_XD = jnp.concatenate([z_NRD[:, 0], z_NRD[:, 1:].reshape(N * (R - 1), z_NRD.shape[-1])])

  graphdef, state = nnx.split(head)
  return _draw(graphdef, state, z_XD, jnp.asarray(noise_NC), owner_X, mix_NX, steps=steps)


@functools.partial(jax.jit, static_argnames=("graphdef", "steps"))
def _draw(graphdef, state, z_XD, noise_NC, owner_X, mix_NX, *, steps):
  N = len(noise_NC)
  return nnx.merge(graphdef, state).sample(
      z_XD, noise_NC, owner_X=owner_X, mix_BX=mix_NX, key_B=jax.random.split(jax.random.key(0), N),
      solvers=(("ddim", steps),), solver_B=jnp.zeros(N, int), interval_B2=jnp.asarray([[0.0, 1e9]] * N),
      wanted_B=jnp.ones(N, bool),
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames="graphdef")
def _states(graphdef, params, tokens, features, slot, hidden):
  """All states [T, D] of one row; `hidden` is None but for a masked head."""
  n = tokens.shape[0]
  return params_lib.merge(graphdef, params)(
      tokens[None], features_BJC=features[None], slot_BT=slot[None], position_BT=jnp.arange(n)[None],
      segment_ids_BT=jnp.ones((1, n), int), hidden_BJ=None if hidden is None else hidden[None],
  )[0]  # fmt: skip


def answer(model: Model, prompt, *, seed: int, weights, branches, max_new: int, first_boi: bool, planned: bool = False) -> list:
  """A greedy answer by plain Python, which computes every branch's whole row anew for each new position.

  Args:
    model: of any system.
    prompt: laid out.
    seed: of the request.
    weights: of the prompt's own prediction and its branches'.
    branches: laid out, what guidance compares with.
    max_new: positions at most.
    first_boi: whether it begins with a picture, and ends with it.
    planned: whether words come first that end with a picture, and it with that.

  Returns:
    Tokens and features, in order.
  """
  net: Orthus = params_lib.merge(model.graphdef, model.params)
  config, tk, how = model.config.model, model.tokenizer, model.config.sampling
  P, C, kind = config.vision_tokenizer.patches, config.vision_tokenizer.latent_dim, config.image_head.kind
  codebook = np.asarray(model.params["vision_tokenizer/codebook"])
  key = jax.random.key(seed)
  text = np.zeros(config.transformer.vocab_size, bool)
  text[: tk.vocab_size] = tk.text_ids_mask()

  def row(laid):
    """(token or feature) items of a laid-out prompt."""
    features = model.encode([i.pixels for i in laid.images]).reshape(-1, C) if laid.images else np.zeros((0, C))
    patches = iter(features)
    return [next(patches) if image >= 0 else int(t) for t, image in zip(laid.tokens_T, laid.image_T)]

  def all_states(items):
    size = 96  # one program for all lengths: causality keeps what follows from mattering
    tokens, slot, features = np.zeros(size, int), np.full(size, -1), np.zeros((size, C), np.float32)
    hidden = np.zeros(size, bool)
    patches = 0
    for i, item in enumerate(items):
      if isinstance(item, int):
        tokens[i] = item
      else:
        slot[i] = patches
        hidden[patches] = item is None
        features[patches] = 0 if item is None else item
        patches += 1
    hidden = hidden if kind == "masked" else None
    return np.asarray(_states(model.graphdef, model.params, tokens, features, slot, hidden))[: len(items)]

  def next_patch(histories, k):
    z = np.stack([all_states(items)[-1] for items in histories])
    if kind == "diffusion":
      noise = how.image_temperature * jax.random.normal(k, (1, C))
      return np.asarray(draw(net.image_head, z[None], weights, noise, steps=how.steps)[0])
    if kind == "regression":
      return np.tensordot(np.asarray(weights), np.asarray(net.image_head(z)), 1) / config.diffusion.latent_scale
    start = config.image_token_start
    logits = np.tensordot(np.asarray(weights), np.asarray(net.logits(z))[:, start : start + len(codebook)], 1)
    return codebook[int(jax.random.categorical(k, logits / how.image_temperature))]

  def whole_picture(histories, k):
    codes, S = [HIDDEN] * P, how.steps
    for step in range(1, S + 1):
      patches = [None if c == HIDDEN else codebook[c] for c in codes]
      z = np.stack([all_states([*items, *patches])[-P:] for items in histories])
      start = config.image_token_start
      logits = np.tensordot(np.asarray(weights), np.asarray(net.logits(z))[..., start : start + len(codebook)], 1)
      at_step = jax.random.fold_in(k, step)
      drawn = np.asarray(jax.random.categorical(jax.random.fold_in(at_step, 0), jnp.asarray(logits, jnp.float32)))
      noise = np.asarray(jax.random.gumbel(jax.random.fold_in(at_step, 1), (P,)))
      temperature = how.image_temperature * np.prod([1 - s / S for s in range(1, step + 1)])
      unknown = [p for p in range(P) if codes[p] == HIDDEN]
      log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1))
      sure = {p: log_p[p, drawn[p]] + temperature * noise[p] for p in unknown}
      codes = [int(drawn[p]) if p in sure else codes[p] for p in range(P)]
      left = max(min(int(P * np.cos(step / S * np.pi / 2) + 1e-4), len(unknown) - 1), 1)
      for p in sorted(unknown, key=sure.get)[: left if step < S else 0]:
        codes[p] = HIDDEN
    return [codebook[c] for c in codes]

  main, guides = row(prompt), [row(b) for b in branches]
  if first_boi:
    main.append(tk.boi)
  out, image = [], []
  drawing = first_boi
  while len(out) < max_new:
    k = jax.random.fold_in(key, len(out))
    if drawing and len(image) < P:
      histories = [main, *(g + [tk.boi] + image for g in guides)]
      fresh = whole_picture(histories, k) if kind == "masked" else [next_patch(histories, k)]
      image += fresh
    elif drawing:
      fresh, drawing, image = [tk.eoi], False, []
    else:
      logits = np.array(net.logits(all_states(main)[-1]))
      allowed = text.copy()
      allowed[[tk.sep, tk.eos]] = not planned
      allowed[tk.boi] = len(out) + P + 2 <= max_new
      if planned and len(out) + P + 2 == max_new:
        allowed[:] = np.arange(len(allowed)) == tk.boi
      fresh = [int(np.where(allowed, logits, -np.inf).argmax())]
      drawing = fresh[0] == tk.boi
    out += fresh
    main += fresh
    last = fresh[-1]
    if isinstance(last, int) and (last in (tk.sep, tk.eos) or (last == tk.eoi and (first_boi or planned))):
      break
  return out


def import_params(published: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """All our parameters from published ones held in memory.

  Args:
    published: by published key.
    shapes: ours, by our name.
  """
  params = {}
  for name, shape in shapes.items():
    key, layout = names.published_name(name)
    if "{}" in key:
      parts = [names.from_torch(published[key.format(i)], shape[1:], layout) for i in range(shape[0])]
      params[name] = np.stack(parts)
    else:
      params[name] = names.from_torch(published[key], shape, layout)
  return params
