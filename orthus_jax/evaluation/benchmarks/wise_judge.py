"""What WISE's judge programs read in a judge's answer."""

from __future__ import annotations

import re


def judge_scores(text: str, version: str = "verified") -> dict[str, float]:
  """What WISE's judge programs read in a judge's answer; nothing where they read nothing.

  Args:
    text: the answer.
    version: "legacy" (of several mentions the last counts) or "verified" (the first).
  """
  mention = r"(?i)({})\*{{0,2}}\s*:?\s*({})"
  if version == "legacy":
    named = re.findall(mention.format("consistency|realism|aesthetic quality", r"\d"), text)
    bare = re.findall(r"(?m)^\s*([0-2])\s*$", text)
    if named or len(bare) < 3:
      return {name.lower().replace(" ", "_"): float(digit) for name, digit in named}
    return dict(zip(("consistency", "realism", "aesthetic_quality"), map(float, bare)))
  if found := re.search(mention.format("score", r"[01]\b"), text):
    return {"score": float(found[2])}
  bare = re.findall(r"(?m)^\s*([01])\s*$", text)
  return {"score": float(bare[0])} if len(bare) == 1 else {}
