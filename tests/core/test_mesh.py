"""From logical axes to devices. Eight host devices are tested in a process of their own."""

import subprocess
import sys

import jax
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
    with pytest.raises(ConfigError, match="does not fit 1 devices"):
        mesh.make_mesh(config, jax.devices()[:1])


def test_constrain_does_nothing_without_a_mesh():
    x = jax.numpy.ones((2, 3))
    assert mesh.constrain(x, "batch", None) is x


EIGHT = """
import jax
from alm_jax.core import mesh, tree
from alm_jax.core.errors import ConfigError
from alm_jax.models.alm import build
from tests.core.test_mesh import TINY
assert jax.device_count() == 8
m = mesh.make_mesh(mesh.MeshConfig(data=-1, fsdp=2, tensor=2))
assert dict(m.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
like = tree.abstract(lambda key: build(TINY, key))
places = mesh.shardings(like, m)
assert places["decoder.embed.embedding"].shard_shape((64, 32)) == (32, 16)
assert mesh.batch_sharding(m).shard_shape((8, 5)) == (2, 5)
try:
    mesh.shardings(like, mesh.make_mesh(mesh.MeshConfig(data=1, fsdp=1, tensor=8)))
except ConfigError as error:
    print(error)
"""


def test_eight_devices(repo):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repo)}
    result = subprocess.run(
        [sys.executable, "-c", EIGHT], env={**__import__("os").environ, **env}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
