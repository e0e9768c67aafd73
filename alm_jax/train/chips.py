"""Slices of TPUs and boxes of GPUs that need not be there, and what is published of their chips."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import AlmError, UsageError

GIB = 2**30
GPUS_A_HOST = 8

# Asked of libtpu before it is loaded: look for no TPU and no cloud metadata, share the machine, write no log files.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Chip:
    """What is published of a chip.

    Attributes:
        kind: `tpu` or `gpu`. hbm: GiB. peak: dense bfloat16 FLOP/s. bandwidth: bytes/s of the HBM.
        link: bytes/s that reach it from others of its slice or host, all links together, one way.
        example: a slice of it. kinds: what JAX calls its devices (`device_kind`). devices: JAX devices of a chip, which
            share all of this evenly.
        network: bytes/s that reach it from other hosts of GPUs, or other slices of TPUs; 0 where it is not known.
        options: what libtpu has to be told to make devices as such a machine has them.
    """

    kind: str
    hbm: int
    peak: float
    bandwidth: float
    link: float
    example: str
    kinds: tuple[str, ...]
    devices: int = 1
    network: float = 0.0
    options: tuple[tuple[str, str], ...] = ()


# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, whose "bidirectional ICI bandwidth" is twice `link` and whose
# "data center network bandwidth" is `network` (of v5e and v6e a 256th of a pod's).
# GPUs, SXM: NVIDIA's data sheets (without sparsity; NVLink in both directions is twice `link`) and, for `network`, the
# adapters of DGX A100 (200 Gbit/s a GPU), DGX H100, H200 and B200 (400 Gbit/s).
CHIPS: dict[str, Chip] = {
    "v4": Chip("tpu", 32, 275e12, 1200e9, 300e9, "v4:2x2x4", ("TPU v4",), options=(("chip_config_name", "megacore"),)),
    "v5e": Chip("tpu", 16, 197e12, 819e9, 200e9, "v5e:4x4", ("TPU v5 lite", "TPU v5e"), network=3.125e9),
    "v5p": Chip("tpu", 95, 459e12, 2765e9, 600e9, "v5p:2x2x4", ("TPU v5", "TPU v5p"), network=6.25e9),
    "v6e": Chip("tpu", 32, 918e12, 1638e9, 400e9, "v6e:4x4", ("TPU v6 lite", "TPU v6e"), network=12.5e9),
    "tpu7x": Chip("tpu", 192, 2307e12, 7380e9, 600e9, "tpu7x:2x2x2", ("TPU7x",), devices=2),
    "a100": Chip("gpu", 80, 312e12, 2039e9, 300e9, "a100:8", ("NVIDIA A100-SXM4-80GB",), network=25e9),
    "h100": Chip("gpu", 80, 989e12, 3350e9, 450e9, "h100:8", ("NVIDIA H100 80GB HBM3",), network=50e9),
    "h200": Chip("gpu", 141, 989e12, 4800e9, 450e9, "h200:8", ("NVIDIA H200",), network=50e9),
    "b200": Chip("gpu", 180, 2250e12, 8000e9, 900e9, "b200:8", ("NVIDIA B200",), network=50e9),
}


def peak_of(kind: str) -> float | None:
    """FLOP/s of a device by its `device_kind`; None if it is not known."""
    return next((chip.peak / chip.devices for chip in CHIPS.values() if kind in chip.kinds), None)


@dataclass(frozen=True)
class Topology:
    """Chips that a step is planned for.

    Attributes:
        name: `v5e:4x4`, `h100:8`; of several slices `2 x v5e:4x4`. devices: as JAX would see them there; of GPUs, which
            cannot be compiled for without one, names to make a mesh of.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]

    @property
    def hbm(self) -> int:
        """Bytes of a device."""
        return self.chip.hbm * GIB // self.chip.devices

    @property
    def peak(self) -> float:
        """FLOP/s of a device."""
        return self.chip.peak / self.chip.devices

    @property
    def bandwidth(self) -> float:
        """Bytes/s between a device and its HBM."""
        return self.chip.bandwidth / self.chip.devices

    @property
    def link(self) -> float:
        """Bytes/s that reach a device from others."""
        apart = self.chip.kind == "gpu" and len(self.devices) > GPUS_A_HOST
        return (self.chip.network if apart else self.chip.link) / self.chip.devices

    @property
    def network(self) -> float:
        """Bytes/s that reach a device from other slices."""
        return self.chip.network / self.chip.devices


@dataclass(frozen=True)
class _Absent:
    """A device that is not there, for `jax.make_mesh`."""

    id: int
    device_kind: str
    platform: str = "gpu"
    process_index: int = 0


def find_topology(name: str, slices: int = 1) -> Topology:
    """A slice such as `v5e:4x4`, the chips along each side, or several of them; or a number of GPUs, `h100:8`.

    Raises:
        UsageError: there is no such thing. AlmError: it is of TPUs, and `libtpu` is not installed.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not found or found[1] not in CHIPS:
        guess = did_you_mean(found[1], CHIPS) if found else ""
        examples = ", ".join(chip.example for chip in CHIPS.values())
        raise UsageError(f"topology {name!r} is no GENERATION:SHAPE that is known{guess or ','} such as {examples}")
    chip = CHIPS[found[1]]
    if chip.kind == "tpu":
        return _slices(name, chip, found[2], slices)
    count = int(found[2]) if found[2].isdigit() else 0
    if count < 1 or (count > GPUS_A_HOST and count % GPUS_A_HOST):
        whole = f"expected a number of GPUs, in whole hosts of {GPUS_A_HOST}"
        raise UsageError(f"topology {name!r}: {whole}: {chip.example}")
    return Topology(name, chip, tuple(_Absent(i, chip.kinds[0]) for i in range(count)))


def _slices(name: str, chip: Chip, shape: str, slices: int) -> Topology:
    sides = chip.example.count("x", chip.example.index(":")) + 1
    if len(shape.split("x")) != sides:
        raise UsageError(f"topology {name!r}: slices of it have {sides} sides, as in {chip.example}")
    if importlib.util.find_spec("libtpu") is None:
        raise AlmError("compiling for a TPU needs the libtpu package: pip install 'alm_jax[tpu]'")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options = dict(chip.options) | ({"num_slices": slices} if slices > 1 else {})
    try:
        made = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (jax.errors.JaxRuntimeError, IndexError) as error:  # a host of the slice would have no whole 2 x 2 chips
        detail = str(error).partition("\n")[0]
        raise UsageError(f"topology {name!r} cannot be made ({detail}); slices are such as {chip.example}") from error
    return Topology(name if slices == 1 else f"{slices} x {name}", chip, tuple(made.devices))
