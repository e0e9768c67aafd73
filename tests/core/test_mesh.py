"""From logical axes to devices. Eight host devices are tested in a process of their own."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from alm_jax.core import mesh, tree
from alm_jax.core.errors import ConfigError
from alm_jax.layers.dense import Lora
from alm_jax.models.alm import build
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import ltu

TINY = ltu(
    LlamaConfig(vocab_size=64, dim=32, depth=2, heads=4, kv_heads=4, mlp_dim=64, lora=Lora()),
    CavMaeConfig(frames=64, mels=32, dim=16, heads=2, depth=2),
)


def test_specs_of_the_parts():
    specs = mesh.specs(tree.abstract(lambda key: build(TINY, key)))
    assert specs["decoder.blocks.attn.q.kernel"] == P(None, "fsdp", "tensor")
    assert specs["decoder.blocks.attn.o.kernel"] == P(None, "tensor", "fsdp")
    assert specs["decoder.blocks.attn.q.lora_a"] == P(None, "fsdp", None)
    assert specs["decoder.embed.embedding"] == P("tensor", "fsdp")
    assert specs["decoder.head.kernel"] == P("fsdp", "tensor")
    assert specs["encoder.blocks.mlp.up.kernel"] == P(None, "fsdp", "tensor")


def test_unknown_names_and_collisions_are_errors():
    with pytest.raises(ConfigError, match="colour"):
        mesh.DEFAULT_RULES.spec(("embed", "colour"))
    with pytest.raises(ConfigError, match="one mesh axis"):
        mesh.DEFAULT_RULES.spec(("heads", "mlp"))


@pytest.mark.parametrize("config", [mesh.MeshConfig(data=3), mesh.MeshConfig(-1, 0, 1), mesh.MeshConfig(-1, -1, 1)])
def test_sizes_that_do_not_fit_the_devices(config):
    with pytest.raises(ConfigError, match=r"does not fit 1 devices \(cpu\)"):
        mesh.make_mesh(config, jax.devices()[:1])


class Device(SimpleNamespace):
    """Of a pod of slices, as much of it as a mesh asks for."""

    __hash__ = object.__hash__


def pod(slices, chips):
    """Chips in an order that is not that of their slices."""
    one = lambda i: Device(id=i, slice_index=i % slices, process_index=i % slices, platform="other", device_kind="chip")
    return [one(i) for i in range(slices * chips)]


def test_sizes_beside_the_one_that_takes_the_rest():
    with pytest.raises(ConfigError, match=r"8 devices \(other\).*; those that are not -1 make 3, which has to"):
        mesh.make_mesh(mesh.MeshConfig(tensor=3), pod(1, 8))


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v6 lite"])
def test_sides_of_a_slice_are_divided_between_axes(kind):
    """A 4 x 4 torus as 8 x 2 and as 2 x 8; the two that talk most are neighbours."""
    shared = {"platform": "tpu", "device_kind": kind, "slice_index": 0, "core_on_chip": 0}
    chips = [
        Device(id=4 * y + x, coords=(x, y, 0), process_index=2 * (y // 2) + x // 2, **shared)
        for y in range(4)
        for x in range(4)
    ]
    for config in (mesh.MeshConfig(1, 8, 2), mesh.MeshConfig(2, 8)):
        made = mesh.make_mesh(config, chips)
        assert made.size == 16 and len({device.id for device in made.devices.flat}) == 16
    for first, second in mesh.make_mesh(mesh.MeshConfig(1, 8, 2), chips).devices.reshape(8, 2):
        apart = [abs(a - b) % 4 for a, b in zip(first.coords, second.coords)]
        assert sorted(min(each, 4 - each) for each in apart) == [0, 0, 1]


def test_slices_are_replicas_of_each_other():
    made = mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=-1, tensor=2, slices=3), pod(3, 8))
    assert dict(made.shape) == {"data": 6, "fsdp": 2, "context": 1, "tensor": 2}
    slices = np.vectorize(lambda device: device.slice_index)(made.devices)
    assert [set(row.flat) for row in slices] == [{0}, {0}, {1}, {1}, {2}, {2}]


def test_devices_of_slices_that_the_mesh_does_not_name():
    with pytest.raises(ConfigError, match=r"24 devices are of 3 slices, and mesh\.slices is 1: set mesh\.slices to 3"):
        mesh.make_mesh(mesh.MESHES["fsdp"], pod(3, 8))


def test_constrain_does_nothing_without_a_mesh():
    x = jax.numpy.ones((2, 3))
    assert mesh.constrain(x, "batch", None) is x


EIGHT = """
from dataclasses import replace
import jax
from jax.sharding import PartitionSpec as P
from alm_jax.core import mesh, tree
from alm_jax.core.errors import ConfigError
from alm_jax.models.alm import build
from tests.core.test_mesh import TINY
assert jax.device_count() == 8
m = mesh.make_mesh(mesh.MeshConfig(data=-1, fsdp=2, tensor=2))
assert dict(m.shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
like = tree.abstract(lambda key: build(TINY, key))
places = mesh.shardings(like, m)
assert places["decoder.embed.embedding"].shard_shape((64, 32)) == (32, 16)
assert mesh.batch_sharding(m).shard_shape((8, 5)) == (2, 5)
assert dict(mesh.make_mesh(mesh.MeshConfig(data=1, fsdp=-1, slices=2)).shape)["data"] == 2  # a CPU has no slices

# Statistics of an optimiser: over the first axis that the replicas divide, beside what divides it already.
def shared(path, shape):
    return tuple(mesh.over_replicas(places[path], shape).spec)

assert shared("decoder.blocks.attn.q.lora_a", (2, 32, 8)) == ("data", "fsdp", None)
assert shared("decoder.blocks.attn.q.lora_a", (3, 32, 8)) == (None, ("fsdp", "data"), None)
assert shared("decoder.blocks.attn.q.lora_a", (3, 2, 7)) == (None, "fsdp", None)

# Activations: what the mesh does not divide stays whole.
m = mesh.make_mesh(mesh.MeshConfig(data=1, fsdp=2, context=4))
with jax.set_mesh(m):
    for length, spec in ((8, ("fsdp", "context")), (9, ("fsdp",))):
        x = jax.jit(lambda x: mesh.constrain(x, "batch", "length", None))(jax.numpy.ones((2, length, 3)))
        assert x.sharding.is_equivalent_to(jax.NamedSharding(m, P(*spec)), 3), x.sharding
odd = replace(TINY, decoder=replace(TINY.decoder, vocab_size=62))
try:
    mesh.shardings(tree.abstract(lambda key: build(odd, key)), mesh.make_mesh(mesh.MeshConfig(2, 1, 4)))
except ConfigError as error:
    print(error)
"""


def test_eight_devices(repo):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repo)}
    result = subprocess.run(
        [sys.executable, "-c", EIGHT], env={**__import__("os").environ, **env}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "does not divide decoder.embed.embedding (62, 32)" in result.stdout
    assert result.stdout.rstrip().endswith("take mesh.fsdp and mesh.tensor that do")
