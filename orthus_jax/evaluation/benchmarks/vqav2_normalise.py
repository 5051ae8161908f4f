"""Answers to VQAv2 as its tool compares them, and as LLaVA rewrites them ahead of that."""

from __future__ import annotations

import functools
import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'  # of which not: . : ' $ % & * # | ~ ^
_ANY_MARK = re.compile(f"[{re.escape(_MARKS)}]")
_FULL_STOP = re.compile(r"\.(?!\d)", re.ASCII)  # the tool's pattern means to heed a digit ahead of it too, and doesn't
_MOST_FULL_STOPS = 32  # it gives re.UNICODE, which is 32, where a count is due
_DIGITS_COMMA = re.compile(r"\d,\d", re.ASCII)  # ASCII: its patterns are Python 2's
_DIGITS_COMMAS = re.compile(r"(?<=\d),+(?=\d)")  # LLaVA's, Python 3's
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {"none": "0"} | {
    word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
# Words that are found where exactly one of their apostrophes is missing. Those of the tool's table that have a capital never
# meet a text, which is lower case by then.
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in _APOSTROPHES for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round in the tool's table


@functools.lru_cache(maxsize=1 << 16)  # most answers are given again and again
def outer(text: str) -> str:
  """What is always done: line breaks and tabs become blanks, outer blanks go."""
  return text.replace("\n", " ").replace("\t", " ").strip()


def punctuation(text: str, digits_comma: re.Pattern[str] = _DIGITS_COMMA) -> str:
  """Marks deleted or made blanks, and full stops deleted, as the tool does.

  A mark is deleted if it stands beside a blank anywhere, or if a comma stands between two digits anywhere, which are looked
  for in the untouched text.
  """
  found = text
  if _ANY_MARK.search(text):
    all_vanish = digits_comma.search(text) is not None
    for mark in _MARKS:
      if mark in found:
        found = found.replace(mark, "" if all_vanish or mark + " " in text or " " + mark in text else " ")
  return _FULL_STOP.sub("", found, count=_MOST_FULL_STOPS) if "." in found else found


def words(text: str) -> str:
  """Lower case, numbers' words as digits, no articles, apostrophes where they belong."""
  kept = (w for w in (_NUMBERS.get(w, w) for w in text.lower().split()) if w not in _ARTICLES)
  return " ".join(CONTRACTIONS.get(w, w) for w in kept)


@functools.lru_cache(maxsize=1 << 16)
def full(text: str) -> str:
  """All that the tool does to an answer where the ten people's answers differ."""
  return words(punctuation(text))


@functools.lru_cache(maxsize=1 << 16)
def full_python3(text: str) -> str:
  """The same in LLaVA's and lmms-eval's copy."""
  return words(punctuation(text, _DIGITS_COMMAS))


@functools.lru_cache(maxsize=1 << 16)
def llava(text: str) -> str:
  """What LLaVA makes of an answer ahead of a submission, and lmms-eval ahead of its comparison."""
  text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
  return full_python3(outer(text))


@functools.lru_cache(maxsize=1 << 16)
def straight(text: str) -> str:
  """What the tool's rules mean to do: a comma between digits goes alone, and somebody'd is left as it is."""
  text = _DIGITS_COMMAS.sub("", outer(text))
  return words(punctuation(text)).replace("somebodyd", "somebody'd")
