"""What others have published, to stand beside a score. Protocols differ, so these are neighbours and no yardstick."""

from __future__ import annotations

import dataclasses

_ORTHUS = "arXiv 2412.00127"


@dataclasses.dataclass(frozen=True)
class Published:
  """A figure.

  Attributes:
    system: whose.
    value: in the unit of the benchmark's main score.
    source: where it stands.
  """

  system: str
  value: float
  source: str


def _paper(orthus: float, chameleon: float, showo: float) -> tuple[Published, ...]:
  """A column of Orthus' paper, whose Chameleon-7B was trained on Orthus' data."""
  systems = {"Orthus-7B": orthus, "Chameleon-7B": chameleon, "Show-o 1.3B": showo}
  return tuple(Published(name, value, _ORTHUS) for name, value in systems.items())


# Benchmark → the main score's name, what it is multiplied by to be in the papers' unit, and others' figures. Papers seldom say
# which of POPE's figures theirs is; it mostly is F1, as LLaVA has it.
PUBLISHED: dict[str, tuple[str, float, tuple[Published, ...]]] = {
    "geneval": ("Overall", 1.0, (
        *_paper(0.58, 0.43, 0.53),
        Published("Show-o 1.3B", 0.68, "arXiv 2408.12528"), Published("Emu3-Gen", 0.54, "arXiv 2409.18869"),
        Published("Janus 1.3B", 0.61, "arXiv 2410.13848"), Published("Janus-Pro-7B", 0.80, "arXiv 2501.17811"),
        Published("Show-o2-7B", 0.76, "arXiv 2506.15564"),
    )),
    "mme": ("Perception", 1.0, (
        *_paper(1265.8, 1056.9, 948.4),
    )),
    "pope": ("mean/f1", 100.0, (
        *_paper(79.6, 77.8, 73.8),
        Published("Janus 1.3B", 87.0, "arXiv 2410.13848"),
    )),
    "vqav2": ("overall", 1.0, (
        *_paper(63.2, 57.8, 59.3),
    )),
    "gqa": ("accuracy", 1.0, (
        *_paper(52.8, 49.6, 48.7),
        Published("Show-o 1.3B", 58.0, "arXiv 2408.12528"), Published("Janus 1.3B", 59.1, "arXiv 2410.13848"),
    )),
    "mmmu": ("Overall", 100.0, (
        *_paper(28.2, 26.7, 25.1),
        Published("Janus 1.3B", 30.5, "arXiv 2410.13848"), Published("Show-o2-7B", 48.9, "arXiv 2506.15564"),
    )),
    "dpg_bench": ("score", 1.0, (
        Published("Emu3-Gen", 80.6, "arXiv 2409.18869"), Published("Janus-Pro-7B", 84.2, "arXiv 2501.17811"),
        Published("Show-o2-7B", 86.14, "arXiv 2506.15564"),
    )),
    "ip2p": ("sim_1", 1.0, (Published("Orthus-7B", 0.238, _ORTHUS),)),
}  # fmt: skip
