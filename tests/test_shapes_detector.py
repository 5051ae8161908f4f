import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from orthus_jax.data.shapes import detector, drawing, language, world
from orthus_jax.data.shapes.detector import detect, matches
from orthus_jax.data.shapes.world import Scene, Thing
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import geneval_rules
from orthus_jax.evaluation.shapes_geneval import verdict


def fresh_scenes(seed, n):
  rng = np.random.default_rng(seed)
  for i in range(n):
    count = int(rng.integers(1, 5))
    if i % 3:
      yield world.sample_any(rng, count)
    else:
      yield world.sample_group(rng, count, of=("shape", "color")[int(rng.integers(2))], others=(4 - count) // 2)


def share_right(scenes, resolution=32, spoil=lambda pixels: pixels):
  right = [matches(detect(spoil(drawing.render(s, resolution))), s.things) for s in scenes]
  return sum(right) / len(right)


@pytest.mark.parametrize("resolution", world.RESOLUTIONS)
def test_right_on_fresh_scenes(resolution):
  assert share_right(list(fresh_scenes(resolution, 300)), resolution) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("resolution, n", ((32, 5000), (64, 2000), (128, 2000)))
def test_right_on_many_fresh_scenes(resolution, n):
  assert share_right(list(fresh_scenes(1000 + resolution, n)), resolution) >= 0.999


def test_steady_on_spoilt_pictures():
  rng = np.random.default_rng(5)

  def to_pixels(x):
    return np.clip(x + 0.5, 0, 255).astype(np.uint8)

  spoilers = {
      "noise": lambda x: to_pixels(x + rng.normal(0, 15, x.shape)),
      "blur": lambda x: to_pixels(ndimage.gaussian_filter(x.astype(float), (0.8, 0.8, 0))),
      "cast": lambda x: to_pixels(x * (1 + rng.uniform(-0.1, 0.1, 3))),
      "pale": lambda x: to_pixels(0.68 * x + 0.32 * np.array(world.BACKGROUND)),
      "ghost": lambda x: to_pixels(
          x + 0.15 * (drawing.render(world.sample_any(rng, 2)).astype(float) - world.BACKGROUND)),
  }
  shares = {name: share_right(list(fresh_scenes(6, 100)), spoil=spoil) for name, spoil in spoilers.items()}
  assert all(share >= (0.95 if name == "ghost" else 0.99) for name, share in shares.items()), shares


def test_a_cast_costs_no_likeness():
  scene = next(fresh_scenes(9, 1))
  for cast in ((0.8, 0.8, 0.8), (1.0, 0.95, 0.78), (0.78, 0.95, 1.0)):
    found = detect((drawing.render(scene) * np.array(cast)).astype(np.uint8))
    assert matches(found, scene.things) and min(d.score for d in found) > 0.8


def test_neighbours_do_not_count_as_part_of_a_thing():
  places = ("left", "center", "right", "top")
  things = tuple(Thing("diamond", "black", "large", place) for place in places)
  found = detect(drawing.render(Scene(things, ((0.4, 0.0), (0.0, -0.4), (-0.4, 0.0), (0.0, 0.4)))))
  assert matches(found, things) and min(d.score for d in found) > 0.88


def test_boxes_and_centers_scale_with_the_picture():
  scene = Scene((Thing("triangle", "green", "large", "bottom left"),), ((0.4, -0.3),))
  for resolution in world.RESOLUTIONS:
    (found,) = detect(drawing.render(scene, resolution))
    scale = resolution / 32
    assert np.allclose(np.array(found.center) / scale, drawing.center_of("bottom left", (0.4, -0.3)), atol=0.3)
    ink = np.nonzero(drawing.render(scene, resolution)[..., 0] < 140)
    drawn = (ink[1].min(), ink[0].min(), ink[1].max() + 1, ink[0].max() + 1)
    assert np.allclose(np.array(found.box) / scale, np.array(drawn) / scale, atol=1.2)
    assert found.score > 0.85


def test_blotches_are_dropped():
  rng = np.random.default_rng(0)
  background = np.full((32, 32, 3), world.BACKGROUND, np.uint8)
  assert detect(background) == [] and detect(np.full_like(background, 255)) == []
  for picture in (np.zeros_like(background), rng.integers(0, 256, background.shape).astype(np.uint8)):
    assert detect(picture) == []
  line, speck = background.copy(), background.copy()
  line[15:17, 4:28] = world.RGB["red"]
  speck[10:12, 10:12] = world.RGB["red"]
  assert detect(line) == [] and detect(speck) == []


def test_things_that_touch_are_told_apart():
  picture = drawing.render(Scene(
      (Thing("square", "red", "large", "left"), Thing("circle", "blue", "large", "center")), ((0.4, 0.0), (-0.4, 0.0))))
  picture[14:18, 9:13] = world.RGB["red"]  # a bridge
  assert {d.place for d in detect(picture)} == {"left", "center"}


def test_matches_is_about_all_attributes_and_no_order():
  scene = next(s for s in fresh_scenes(0, 50) if len(s.things) == 3)
  found = detect(drawing.render(scene))
  assert matches(found[::-1], scene.things) and not matches(found[:2], scene.things)
  assert not matches(found + found[:1], scene.things)
  for attribute, values in (("shape", world.SHAPES), ("color", world.COLORS), ("size", world.SIZES)):
    wrong = next(v for v in values if v != getattr(found[0], attribute))
    assert not matches([dataclasses.replace(found[0], **{attribute: wrong}), *found[1:]], scene.things)


def test_captions_are_true_of_their_pictures_and_seldom_of_others():
  rng = np.random.default_rng(2)
  for tag in language.TAGS:
    others = 0
    for _ in range(30):
      scene, other = language.sample_for(rng, tag), language.sample_for(rng, tag)
      _, metadata = language.caption(rng, scene, tag)
      assert verdict(detect(drawing.render(scene)), metadata) == (True, "")
      others += verdict(detect(drawing.render(other)), metadata)[0]
    assert others <= 12, tag


def test_descriptions_are_true_of_their_pictures():
  rng = np.random.default_rng(2)
  for _ in range(30):
    scene = language.sample_for(rng, language.DESCRIPTION)
    _, metadata = language.caption(rng, scene, language.DESCRIPTION)
    told = [world.Thing(i["class"], i["color"], i["size"], i["place"]) for i in metadata["include"]]
    assert matches(detect(drawing.render(scene)), told)


def found(shape, color, x, y, score=0.9, size="small", place="center", reach=3.0):
  return detector.Detection(shape, color, size, place, (x - reach, y - reach, x + reach, y + reach), (x, y), score)


@pytest.mark.parametrize("detections, include, right", (
    ([], [{"class": "circle", "count": 1}], False),
    ([found("circle", "red", 5, 5)], [{"class": "circle", "count": 1, "color": "blue"}], False),
    ([found("circle", "red", 5, 5), found("circle", "blue", 5, 25)],
     [{"class": "circle", "count": 1, "color": "blue"}], True),  # of equal scores, GenEval looks at the later
    ([found("circle", "red", 5, 5), found("circle", "blue", 5, 25, score=0.8)],
     [{"class": "circle", "count": 1, "color": "blue"}], False),  # and at the surest alone
    ([found("circle", "red", 5, 5)], [{"class": "circle", "count": 1, "place": "top"}], False),
    ([found("circle", "red", 5, 5, place="top")], [{"class": "circle", "count": 1, "place": "top"}], True),
    ([found("circle", "red", 5, 5)], [{"class": "circle", "count": 1, "size": "large"}], False),
    ([found("circle", "red", 5, 5)] * 2, [{"class": "circle", "count": 3}], False),
))
def test_geneval_includes(detections, include, right):
  correct, reason = verdict(detections, {"tag": "colors", "include": include})
  assert correct is right and bool(reason) is not right


def test_geneval_excludes():
  metadata = {"tag": "position", "include": [{"class": "circle", "count": 2}], "exclude": [{"class": "circle", "count": 3}]}
  assert [verdict([found("circle", "red", 5, 5)] * n, metadata)[0] for n in (1, 2, 3)] == [False, True, False]


@pytest.mark.parametrize("x, y, relations", (
    (5, 16, {"left of"}), (27, 16, {"right of"}), (16, 5, {"above"}), (16, 27, {"below"}),
    (5, 5, {"left of", "above"}),
    (5, 12, {"left of"}),  # 4 up, less 1.2, is under half of the distance
    (11, 12.2, {"left of"}),  # 0.6 and 0.4 of the distance, though 0.8 and 0.6 of what is left of it
    (15.5, 16, set()),  # within a tenth of the boxes
))
def test_geneval_relations(x, y, relations):
  circle, square = found("circle", "red", x, y), found("square", "red", 16, 16)
  boxes = [np.asarray(d.box, np.float32) for d in (circle, square)]
  assert set(geneval_rules.relations(*boxes)) == relations
  for how in world.RELATIONS:
    include = [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": [how, 0]}]
    metadata = {"tag": "position", "include": include}
    assert verdict([circle, square], metadata)[0] is (how in relations)
    assert not verdict([circle], metadata)[0]


def test_a_relation_holds_to_all_that_met_the_other_requirement():
  include = [{"class": "square", "count": 2}, {"class": "circle", "count": 1, "position": ["left of", 0]}]
  metadata = {"tag": "position", "include": include}
  circle, near, far = (found(s, "red", x, 16) for s, x in (("circle", 10), ("square", 20), ("square", 27)))
  assert verdict([circle, near, far], metadata)[0]
  assert not verdict([circle, near, found("square", "red", 3, 16)], metadata)[0]


def test_bad_requests():
  for shape in ((32, 32), (32, 64, 3), (40, 40, 3), (32, 32, 4)):
    with pytest.raises(BadRequest, match="32"):
      detect(np.zeros(shape, np.uint8))
