import collections
import hashlib
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import ndimage

from orthus_jax.data.shapes import drawing, world
from orthus_jax.data.shapes.world import Scene, Thing
from orthus_jax.errors import BadRequest

seeds = st.integers(0, 2**32)
EXTREMES = tuple(itertools.product((-world.JITTER, world.JITTER), repeat=2))


def samplers(rng):
  n = int(rng.integers(1, 5))
  yield n, world.sample_any(rng, n)
  yield n, world.sample_distinct(rng, n)
  for of in ("shape", "color"):
    yield 4, world.sample_group(rng, n, of=of, others=4 - n)
  yield 2, world.sample_related(rng)


@hypothesis.given(seeds)
def test_scenes_hold_their_promises(seed):
  for n, scene in samplers(np.random.default_rng(seed)):
    assert len(scene.things) == len(scene.jitter) == n
    assert len({t.place for t in scene.things}) == n
    assert all(abs(v) <= world.JITTER for offset in scene.jitter for v in offset)
    for t in scene.things:
      assert (t.shape in world.SHAPES and t.color in world.COLORS
              and t.size in world.SIZES and t.place in world.PLACES)
  assert list(samplers(np.random.default_rng(seed))) == list(samplers(np.random.default_rng(seed)))


@hypothesis.given(seeds, st.integers(1, 4), st.sampled_from(("shape", "color")))
def test_a_group_is_alike_and_the_others_are_not(seed, n, of):
  things = world.sample_group(np.random.default_rng(seed), n, of=of, others=4 - n).things
  kinds = [getattr(t, of) for t in things]
  assert set(kinds[:n]) == {kinds[0]} and kinds[0] not in kinds[n:]


def test_split_ignores_order_and_jitter_and_stays_what_it_is():
  rng = np.random.default_rng(0)
  for _ in range(50):
    scene = world.sample_any(rng, 3)
    again = Scene(scene.things[::-1], world.sample_jitter(rng, 3))
    assert world.split_of(scene) == world.split_of(again) == world.split_of(scene.things)
  single = [Thing(*v) for v in itertools.product(world.SHAPES, world.COLORS, world.SIZES, world.PLACES)]
  splits = [world.split_of([t]) for t in single]
  # Pinned: data sets and checkpoints of different machines and versions must agree on what is held out.
  assert hashlib.sha256("".join(s[0] + s[1] for s in splits).encode()).hexdigest()[:16] == "b7e817acc2714738"
  counts = collections.Counter(world.split_of(world.sample_any(rng, 2)) for _ in range(4000))
  assert abs(counts["test"] - 200) < 60 and abs(counts["validation"] - 200) < 60 and counts["train"] > 3400


@hypothesis.given(seeds)
def test_sampling_in_a_split_stays_in_it(seed):
  rng = np.random.default_rng(seed)
  for split in world.SPLITS:
    assert world.split_of(world.sample_in_split(lambda: world.sample_any(rng, 2), split)) == split


@pytest.mark.parametrize("resolution", world.RESOLUTIONS)
def test_pictures_are_whole_and_smooth(resolution):
  scale = resolution / world.CANVAS
  for shape, size, place, jitter in itertools.product(world.SHAPES, world.SIZES, world.PLACES, EXTREMES):
    picture = drawing.render(Scene((Thing(shape, "black", size, place),), (jitter,)), resolution)
    assert picture.shape == (resolution, resolution, 3) and picture.dtype == np.uint8
    alpha = (world.BACKGROUND[0] - picture[..., 0].astype(float)) / (world.BACKGROUND[0] - world.RGB["black"][0])
    margin = 8
    x, y = (v * scale + margin for v in drawing.center_of(place, jitter))
    whole = drawing.coverage(shape, size, x, y, resolution + 2 * margin, resolution + 2 * margin, scale)
    assert np.abs(np.pad(alpha, margin) - whole).max() < 0.01  # nothing cut off by the border or the stencil
    assert ((whole > 0.05) & (whole < 0.95)).any()


def test_a_small_picture_is_a_large_one_averaged():
  rng = np.random.default_rng(3)
  for _ in range(50):
    scene = world.sample_any(rng, 4)
    small = drawing.render(scene, 32).astype(float)
    large = drawing.render(scene, 128).reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 1.0 and np.abs(small - large).max() < 90  # corners


def test_neighbours_stay_apart():
  pitch = np.diff(world.CELL_CENTERS).min()
  assert pitch - 2 * world.JITTER - 2 * max(world.REACH.values()) >= 1.5 - 1e-9
  for a, b in itertools.product(world.SHAPES, repeat=2):
    for places, jitter in ((("left", "center"), ((0.4, 0.0), (-0.4, 0.0))),
                           (("top", "center"), ((0.0, 0.4), (0.0, -0.4)))):
      things = tuple(Thing(s, "black", "large", p) for s, p in zip((a, b), places))
      dark = drawing.render(Scene(things, jitter))[..., 0] < 125
      assert ndimage.label(dark, np.ones((3, 3)))[1] == 2


def test_every_large_thing_is_bigger_than_every_small_one():
  area = {z: [drawing.coverage(s, z, 16, 16, 32, 32).sum() for s in world.SHAPES] for z in world.SIZES}
  assert min(area["large"]) > 1.3 * max(area["small"])


def test_colors_are_far_apart():
  colors = np.array([*world.RGB.values(), world.BACKGROUND], float)
  distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
  assert distances[~np.eye(len(colors), dtype=bool)].min() > 150


def test_relations():
  a, b = Thing("circle", "red", "small", "left"), Thing("square", "red", "small", "top right")
  assert world.relation(a, b) == "left of" and world.relation(b, a) == "right of"
  assert world.relation(Thing("circle", "red", "small", "bottom"), b) == "below"
  assert world.relation(Thing("circle", "red", "small", "bottom left"), b) is None


def test_bad_requests():
  with pytest.raises(BadRequest, match="48"):
    drawing.render(Scene((), ()), 48)
  with pytest.raises(BadRequest, match="star"):
    drawing.signed_distance("star", np.zeros(1), np.zeros(1), 1.0)
