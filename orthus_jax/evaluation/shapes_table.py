"""The scores of the built-in world, as a table of plain text."""

from __future__ import annotations

import io

import rich.box
import rich.console
import rich.table

from orthus_jax.data.shapes import changes, questions
from orthus_jax.evaluation.results import Result

# Score name → what it says, in the order of tables. Those by question type and edit operation follow their section.
SECTIONS: dict[str, dict[str, str]] = {
    "Pictures from captions": {
        "single_object": "one thing: shape, colour and place", "two_object": "two things", "counting": "counting",
        "colors": "colours", "position": "relative position", "color_attr": "colours of two things",
        "geneval_overall": "mean of the six", "geneval_images": "all pictures alike",
        "geneval_prompts": "any of a prompt's pictures", "single_object_shape": "one thing: its shape",
        "single_object_color": "one thing: its colour", "single_object_place": "one thing: its place",
        "single_object_size": "one thing: its size, where asked for",
        "single_object_exact": "one thing: all asked for, nothing else",
        "picture_plans": "what was planned in words", "picture_as_planned": "pictures that show what was planned",
    },
    "Questions": {
        "open_accuracy": "open: colour, shape, count", "open_accuracy_all": "open, position too",
        "yes_no_accuracy": "yes/no", "pair_accuracy": "yes/no, both of a pair",
    },
    "Captions": {"captions": "say exactly what is there", "caption_attributes": "attributes right"},
    "Edits": {
        "edits": "as told", "edits_exact": "as told, every size right too", "kept": "untouched things kept",
        "edit_plans": "what was planned in words", "edit_as_planned": "pictures that show what was planned",
    },
    "Stories": {
        "story_turns": "turns right", "story_texts": "sentences that make sense", "story_pictures": "pictures that fit",
        "story_plans": "outlines that say what is there by then", "story_on_topic": "about what was asked",
        "story_length_ok": "three to five pictures",
    },
}  # fmt: skip
_BY_PART: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "Questions": {"open_": ("open:", questions.TYPES), "yes_no_": ("yes/no:", questions.TYPES),
                  "pair_": ("both of a pair:", questions.TYPES)},
    "Edits": {"edit_": ("change:", changes.OPERATIONS)},
}  # fmt: skip
_BRITISH = {"color": "colour", "add": "add something", "remove": "remove something"}


def rows(result: Result) -> list[tuple[str, str, str]]:
  """(section, score name, what it says) of every score there is, in a table's order."""
  found = []
  for section, labels in SECTIONS.items():
    names = labels | {f"{prefix}{part}": f"{words} {_BRITISH.get(part, part)}"
                      for prefix, (words, parts) in _BY_PART.get(section, {}).items() for part in parts}
    found += [(section, name, label) for name, label in names.items() if name in result.scores]
  return found


def table(result: Result) -> str:
  """The scores as a table of plain text, at most 112 columns wide."""
  shown = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  shown.add_column("score")
  shown.add_column("")
  for heading in ("%", "95% interval", "n", "baseline"):
    shown.add_column(heading, justify="right")
  before = None
  for section, name, label in rows(result):
    if section != before:
      shown.add_row(f"[bold]{section}[/bold]", *[""] * 5)
      before = section
    low, high = result.intervals[name]
    base = result.baselines.get(name)
    shown.add_row(
        f"  {name}", label, f"{100 * result.scores[name]:.1f}", f"{100 * low:.1f} – {100 * high:.1f}",
        str(result.counts[name]), "" if base is None else f"{100 * base:.1f}",
    )  # fmt: skip
  out = io.StringIO()
  rich.console.Console(file=out, width=112, no_color=True, highlight=False).print(shown)
  lines = [line.rstrip() for line in out.getvalue().splitlines()]
  if m := result.measures:
    lines.append(
        f"  pictures as a whole: Fréchet distance {m['frechet']:.3f}, {100 * m['sharpness']:.0f}% as sharp as the real ones;"
        f" {m['pictures_per_second']:.1f} a second"
    )
  return "\n".join(lines).strip("\n") + "\n"
