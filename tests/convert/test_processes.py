"""Loads on several processes, whose reads the kernel counts."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.devices import host_devices

WORKER = """
    import sys
    import jax
    from jax.sharding import NamedSharding, PartitionSpec as P

    port, rank, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(f"localhost:{port}", 2, rank)

    import numpy as np
    from alm_jax.convert.formats import open_tensors
    from alm_jax.convert.load import load
    from alm_jax.convert.rules import LINEAR, Rule, Table
    from alm_jax.core.mesh import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    assert len(jax.devices()) == 8 and len(jax.local_devices()) == 4
    file = open_tensors(path)
    names = ("whole", "rows", "columns")  # the first also reads modules
    table = Table(tuple(Rule(name, f"{name}.weight", LINEAR) for name in names))
    specs = {"rows": P(None, "fsdp"), "columns": P("fsdp"), "whole": P()}
    for name in names:
        shape = file.shape(f"{name}.weight")[::-1]
        read = lambda: int(next(line for line in open("/proc/self/io") if line.startswith("rchar")).split()[1])
        before = read()
        target = {name: jax.ShapeDtypeStruct(shape, "bfloat16")}
        rules = Table(tuple(rule for rule in table.rules if rule.path == name), ignored=("*",))
        arrays = load(target, [(file, rules)], shardings={name: NamedSharding(mesh, specs[name])})
        print(name, read() - before, flush=True)
        whole = file.read(f"{name}.weight").T
        for shard in arrays[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel does not count reads")
def test_each_process_reads_the_bytes_that_its_devices_hold(tmp_path, repo, monkeypatch):
    """Of two, with four devices each: half of a tensor divided by rows or columns, all of a replicated one."""
    rng = np.random.default_rng(0)
    values = lambda *shape: rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    tensors = {"rows": values(512, 4096), "columns": values(256, 8192), "whole": values(64, 128)}
    save_file({f"{name}.weight": value for name, value in tensors.items()}, tmp_path / "model.safetensors")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", host_devices(4))
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(port)]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)],
            cwd=repo,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, (out, err) in zip(workers, results):
        assert worker.returncode == 0, err
        read = {name: int(count) for name, count in (line.split() for line in out.splitlines())}
        for name, share in (("rows", 0.5), ("columns", 0.5), ("whole", 1.0)):
            wanted = share * tensors[name].nbytes
            assert wanted <= read[name] <= wanted + (20_000 if share < 1 else 500_000), (name, read)
