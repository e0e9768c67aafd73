"""XLA's flags in tests, and in processes that tests start."""

from importlib.metadata import version

# Tests compile far more than they compute; these halve their time.
FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # an XLA that does not know a flag ends the process
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def host_devices(n: int) -> str:
    """`XLA_FLAGS` for n devices on the CPU."""
    return f"{FLAGS} --xla_force_host_platform_device_count={n}"
