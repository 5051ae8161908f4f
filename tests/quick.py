"""How tests have XLA compile: programs run a few times here, and compiling them takes most of the time."""

from importlib.metadata import version


def flags(devices: int = 1) -> str:
  """`XLA_FLAGS` for a CPU of so many virtual devices that ask little of LLVM."""
  given = {"xla_force_host_platform_device_count": devices, "xla_backend_optimization_level": 0}
  # The emitters by MLIR take three quarters of what is left; jaxlib 0.12 knows no others,
  # 0.11 wasn't tried.
  if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    given["xla_cpu_use_fusion_emitters"] = "false"
  return " ".join(f"--{flag}={value}" for flag, value in given.items())


def environment(devices: int = 1) -> dict[str, str]:
  """Variables of a process that has them; that XLA knows them is known."""
  given = flags(devices)
  return {"XLA_FLAGS": given, "ORTHUS_XLA_FLAGS_TRIED": given}
