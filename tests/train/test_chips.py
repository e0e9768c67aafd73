"""Topologies: names that are refused, and the devices of those that exist where libtpu is installed."""

import importlib.util
from math import prod

import pytest

from alm_jax.cli.main import main
from alm_jax.core.errors import AlmError, UsageError
from alm_jax.train.chips import CHIPS, GIB, find_topology, peak_of


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "GENERATION:SHAPE that is known, such as v4:2x2x4, v5e:4x4"),
        ("v5f:4x4", "did you mean 'v5"),
        ("v5e:4x4x4", "slices of it have 2 sides, as in v5e:4x4"),
        ("v5p:2x2", "slices of it have 3 sides, as in v5p:2x2x4"),
        ("v5e:4y4", "GENERATION:SHAPE"),
        ("h10:8", "did you mean 'h100'"),
        ("h100:2x4", "expected a number of GPUs, in whole hosts of 8: h100:8"),
        ("h100:0", "expected a number of GPUs"),
        ("h100:12", "in whole hosts of 8"),
    ],
)
def test_unknown_topologies(name, message):
    with pytest.raises(UsageError, match=message):
        find_topology(name)


def test_without_libtpu(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AlmError, match=r"pip install 'alm_jax\[tpu\]'"):
        find_topology("v5e:4x4")
    assert main(["plan", "ltu/tiny", "--topology", "v5e:4x4"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert len(find_topology("h100:8").devices) == 8


def test_a_config_that_names_none(capsys):
    assert main(["plan", "ltu/tiny"]) == 2
    assert "ltu/tiny names no topology: say which by --topology, such as v5e:4x4" in capsys.readouterr().err


def test_gpus_of_several_hosts_are_further_apart():
    assert find_topology("h100:8").link == 450e9 and find_topology("h100:16").link == 50e9
    assert find_topology("h100:4").hbm == 80 * GIB


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5e", 197e12),
        ("TPU v5p", 459e12),
        ("TPU7x", 2307e12 / 2),  # of one of the two devices of a chip
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        *((other, None) for other in ("cpu", "TPU v4 lite", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "")),
    ],
)
def test_peaks_of_known_devices(kind, peak):
    assert peak_of(kind) == peak


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_slices(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # libtpu ends the process at flags that its own XLA does not know
    for name, chip in CHIPS.items():
        topology = find_topology(chip.example)
        sides = [int(side) for side in chip.example.split(":")[1].split("x")]
        assert len(topology.devices) == prod(sides) * chip.devices, name
        assert topology.hbm == chip.hbm * GIB / chip.devices
        assert topology.peak * len(topology.devices) == chip.peak * prod(sides)
        assert {peak_of(device.device_kind) for device in topology.devices} == {topology.peak}, name
        if chip.kind == "tpu":
            two = find_topology(chip.example, slices=2)
            assert two.name == f"2 x {chip.example}" and len(two.devices) == 2 * len(topology.devices)
            assert {device.slice_index for device in two.devices} == {0, 1}
    with pytest.raises(UsageError, match="topology 'v5e:3x3' cannot be made"):
        find_topology("v5e:3x3")
