"""All tests run on the CPU, on eight virtual devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()


def pytest_addoption(parser):
  parser.addoption("--error-table", action="store_true", help="print the errors measured against references")


def pytest_terminal_summary(terminalreporter, config):
  if config.getoption("--error-table"):
    import measured

    for line in measured.table():
      terminalreporter.write_line(line)
