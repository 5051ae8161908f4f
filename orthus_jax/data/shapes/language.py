"""Captions of `shapes` scenes, what they promise in GenEval's form, and their parser.

The language is short, regular and lower case, with a few phrasings for each thing that can be said.
Questions live in `questions.py`, edits and stories in `changes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from orthus_jax.data.shapes import world
from orthus_jax.data.shapes.world import COLORS, PLACES, RELATIONS, SHAPES, SIZES, Scene, Thing, pick
from orthus_jax.errors import BadRequest

NUMBERS = ("zero", "one", "two", "three", "four")
PLURALS = {s: s + ("es" if s == "cross" else "s") for s in SHAPES}
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
DESCRIPTION = "description"
DESCRIBE = ("describe the picture", "what is in the picture?", "describe what you see")

_COUNTED = f"(?: (?:{'|'.join((*COLORS, *SHAPES))}))?(?: (?:{'|'.join(NUMBERS)}))?$"
_SINGULARS = {plural: shape for shape, plural in PLURALS.items()}
_PREFIXES = ("", "", "there is ", "a picture of ")


def noun(shape: str, *, color: str | None = None, size: str | None = None) -> str:
  """A noun without article: "large red circle"."""
  return " ".join(word for word in (size, color, shape) if word)


def located(thing: Thing, *, size: bool = True) -> str:
  """A thing with article and place: "a large red circle at the top left"."""
  return f"a {noun(thing.shape, color=thing.color, size=thing.size if size else None)} at the {thing.place}"


def describe(things: Sequence[Thing]) -> str:
  """All that there is to say of things, in the order given, without a prefix."""
  return " and ".join(located(t) for t in things)


def outline(things: Sequence[Thing]) -> str:
  """The same in few words and in reading order, each place ahead of what stands there: what is to be said or drawn next
  is then looked up by a place, where a description must first find which thing comes next."""
  return " and ".join(f"{t.place} {noun(t.shape, color=t.color, size=t.size)}" for t in reading_order(things))


def told(sentence: str, things: Sequence[Thing]) -> str:
  """A sentence of a story and the outline of its picture: "it turns blue: top left large blue circle"."""
  return f"{sentence}: {outline(things)}"


def split_told(text: str) -> tuple[str, str]:
  """A sentence, and the outline that follows its colon; the text itself and nothing where no outline does."""
  sentence, _, planned = text.partition(": ")
  return (sentence, planned) if parse_outline(planned) is not None else (text, "")


def counted(things: Sequence[Thing], attribute: str, places: Sequence[str], answer: str) -> str:
  """Of each thing what a question about an attribute compares, the count so far where it counts, and the answer: "top left red
  one, center blue, right red two: two". Each is looked up by its place, and nothing is left to count in the end."""
  said, found = [], 0
  for thing in reading_order(things):
    counts = thing.place in places
    found += counts
    said.append(f"{thing.place} {getattr(thing, attribute)}" + (f" {NUMBERS[found]}" if counts else ""))
  return f"{', '.join(said)}: {answer}"


def split_counted(text: str) -> tuple[str, str]:
  """What stands where, and the answer that follows its colon; nothing and the text itself where that isn't ahead of one.
  (Models trained before 1.8.0 of the data name the places that count alone.)"""
  ahead, _, answer = text.partition(": ")
  known = all(re.sub(_COUNTED, "", words) in PLACES for words in ahead.split(", "))
  return (ahead, answer) if answer and known else ("", text)


def outlined_edit(source: Sequence[Thing], before: Thing | None, after: Thing | None, things: Sequence[Thing]) -> str:
  """What is there, the change behind the thing that it befalls, and an outline of what is there then: "top red circle to top
  blue circle and center red square: top blue circle and …". So a thing is asked whether it is meant when it is named, where a
  change that comes first must be found among them all. What goes becomes "nothing"; what is added comes last, of "nothing"."""
  change = " to ".join(outline([thing]) if thing else "nothing" for thing in (before, after))
  said = [change if thing == before else outline([thing]) for thing in reading_order(source)]
  return f"{' and '.join(said if before else [*said, change])}: {outline(things)}"


def aim(text: str) -> str:
  """The outline of what is to be drawn: of an edit's words what follows the colon, of others all. (Models trained before 1.9.0
  of the data say the change alone ahead of it.)"""
  changed, _, planned = text.partition(": ")
  sides = [item.split(" to ") for item in changed.split(" and ")]
  changes = [item for item in sides if len(item) > 1]
  if not planned or len(changes) != 1 or len(changes[0]) != 2 or changes == [["nothing"] * 2]:
    return text
  things = [side for item in sides for side in item if side != "nothing" or len(item) == 1]
  return planned if all(len(parse_outline(thing) or ()) == 1 for thing in things) else text


def reading_order(things: Sequence[Thing]) -> tuple[Thing, ...]:
  """Things from top left to bottom right."""
  return tuple(sorted(things, key=lambda t: PLACES.index(t.place)))


def as_include(thing: Thing, *attributes: str) -> dict[str, Any]:
  """A GenEval requirement of one thing: its class, a count of one, and the attributes named."""
  return {"class": thing.shape, "count": 1} | {a: getattr(thing, a) for a in attributes}


# --- captions -------------------------------------------------------------------------------------------------------


def sample_for(rng: np.random.Generator, tag: str) -> Scene:
  """A scene that captions of a tag can be about."""
  if tag in ("single_object", "colors"):
    return world.sample_any(rng, 1)
  if tag in ("two_object", "color_attr"):
    return world.sample_distinct(rng, 2)
  if tag == "position":
    return world.sample_related(rng)
  if tag == "counting":
    return world.sample_group(rng, int(rng.integers(2, 5)))
  if tag == DESCRIPTION:
    return world.sample_any(rng, int(rng.integers(1, world.MAX_THINGS + 1)))
  raise BadRequest(f"no caption has the tag {tag!r}; the tags are {', '.join(TAGS + (DESCRIPTION,))}")


def caption(rng: np.random.Generator, scene: Scene, tag: str) -> tuple[str, dict[str, Any]]:
  """Words a caption.

  Args:
    rng: chooses the phrasing.
    scene: one that `sample_for(rng, tag)` could have given.
    tag: one of TAGS, or DESCRIPTION.

  Returns:
    The caption, and what it promises as GenEval writes it: {"tag", "include", "exclude"?, "prompt"}.
    An include may also carry "size" and "place", which GenEval doesn't have.

  Raises:
    BadRequest: for another tag.
  """
  things, prefix, exclude = scene.things, str(pick(rng, _PREFIXES)), None
  if tag == "single_object":
    thing, with_size = things[0], bool(rng.integers(2))
    include = [as_include(thing, *(("color", "size", "place") if with_size else ("color", "place")))]
    if rng.integers(4) == 0:
      what = noun(thing.shape, color=thing.color, size=thing.size if with_size else None)
      text = f"at the {thing.place} there is a {what}"
    else:
      text = prefix + located(thing, size=with_size)
  elif tag == "two_object":
    text = f"{prefix}a {things[0].shape} and a {things[1].shape}"
    include = [as_include(t) for t in things]
  elif tag == "color_attr":
    text = prefix + " and ".join(f"a {noun(t.shape, color=t.color)}" for t in things)
    include = [as_include(t, "color") for t in things]
  elif tag == "colors":
    text = f"{prefix}a {noun(things[0].shape, color=things[0].color)}"
    include = [as_include(things[0], "color")]
  elif tag == "position":
    how = world.relation(*things)
    assert how is not None  # of a related scene
    text = f"{prefix}a {things[0].shape} {_say_relation(rng, how)} a {things[1].shape}"
    include = [as_include(things[1]), as_include(things[0]) | {"position": [how, 0]}]
  elif tag == "counting":
    n, shape = len(things), things[0].shape
    colors = {t.color for t in things}
    color = colors.pop() if len(colors) == 1 and rng.integers(2) else None
    text = f"{prefix.replace('is', 'are') if prefix.startswith('there') else prefix}{NUMBERS[n]} "
    text += noun(PLURALS[shape], color=color)
    include = [{"class": shape, "count": n} | ({"color": color} if color else {})]
    exclude = [{"class": shape, "count": n + 1}]
  elif tag == DESCRIPTION:
    order = [things[i] for i in rng.permutation(len(things)).tolist()]
    text = prefix + describe(order)
    include = [as_include(t, "color", "size", "place") for t in order]
  else:
    raise BadRequest(f"no caption has the tag {tag!r}; the tags are {', '.join(TAGS + (DESCRIPTION,))}")
  metadata = {"tag": tag, "include": include, "prompt": text}
  return text, metadata | ({"exclude": exclude} if exclude else {})


def _say_relation(rng: np.random.Generator, how: str) -> str:
  return f"to the {how}" if how.endswith(" of") and rng.integers(2) else how


# --- parsing --------------------------------------------------------------------------------------------------------


def any_of(words: Sequence[str], name: str) -> str:
  """A pattern for one of the words, as a named group."""
  return f"(?P<{name}>{'|'.join(sorted(words, key=len, reverse=True))})"


def noun_pattern(suffix: str = "") -> str:
  """A pattern for a noun; its groups are size, color and shape, each with the suffix."""
  size, color, shape = (any_of(words, name + suffix)
                        for words, name in ((SIZES, "size"), (COLORS, "color"), (SHAPES, "shape")))
  return f"(?:{size} )?(?:{color} )?{shape}"


_PLACE = f" at the {any_of(PLACES, 'place')}"
_ONE = re.compile(f"an? {noun_pattern()}(?:{_PLACE})?")
_OUTLINED = re.compile(f"{any_of(PLACES, 'place')} {any_of(SIZES, 'size')} {any_of(COLORS, 'color')} {any_of(SHAPES, 'shape')}")
_INVERTED = re.compile(f"at the {any_of(PLACES, 'place')} there is (?P<rest>an? {noun_pattern()})")
_MANY = re.compile(
    f"{any_of(NUMBERS[2:], 'count')} (?:{any_of(COLORS, 'color')} )?{any_of(tuple(_SINGULARS), 'plural')}")
_RELATED = re.compile(
    f"an? {noun_pattern()} (?:to the )?{any_of(RELATIONS, 'relation')} an? {noun_pattern('_b')}")
_LEAD = re.compile("^(?:there is |there are |a picture of |we see )")


def normalize(text: str) -> str:
  """Lower case, single spaces, no punctuation."""
  return " ".join(re.sub(r"[.,;:!?\"]", " ", text.lower()).split())


def parse_caption(text: str) -> list[dict[str, Any]] | None:
  """What a caption promises, as the "include" list that `caption` gives; None where it isn't of this language."""
  text = normalize(text)
  if inverted := _INVERTED.fullmatch(text):
    text = f"{inverted['rest']} at the {inverted['place']}"
  text = _LEAD.sub("", text)
  if related := _RELATED.fullmatch(text):
    first = _include(related)
    second = _include(related, "_b")
    return [second, first | {"position": [related["relation"], 0]}]
  if many := _MANY.fullmatch(text):
    include = {"class": _SINGULARS[many["plural"]], "count": NUMBERS.index(many["count"])}
    return [include | ({"color": many["color"]} if many["color"] else {})]
  found = [_ONE.fullmatch(part) for part in text.split(" and ")]
  matches = [match for match in found if match]
  return [_include(match) for match in matches] if len(matches) == len(found) else None


def _include(match: re.Match[str], suffix: str = "") -> dict[str, Any]:
  groups = match.groupdict()
  include: dict[str, Any] = {"class": groups["shape" + suffix], "count": 1}
  return include | {a: groups[a + suffix] for a in ("color", "size", "place") if groups.get(a + suffix)}


def parse_outline(text: str) -> tuple[Thing, ...] | None:
  """The things of an outline; None where it is none, or two things share a place."""
  found = [_OUTLINED.fullmatch(part) for part in normalize(text).split(" and ")]
  things = tuple(Thing(m["shape"], m["color"], m["size"], m["place"]) for m in found if m)
  return things if len(things) == len(found) == len({t.place for t in things}) else None


def parse_things(text: str) -> tuple[Thing, ...] | None:
  """The things of a full description; None where an attribute is missing or two things share a place."""
  include = parse_caption(text)
  if include is None or any(not {"color", "size", "place"} <= i.keys() for i in include):
    return None
  things = tuple(Thing(i["class"], i["color"], i["size"], i["place"]) for i in include)
  return things if len({t.place for t in things}) == len(things) else None
