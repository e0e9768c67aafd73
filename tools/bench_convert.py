#!/usr/bin/env python
"""Memory and time of reading and converting a large checkpoint.

    python tools/bench_convert.py --work FOLDER
    python tools/bench_convert.py --work FOLDER --shape vicuna_7b --rounds 1 --json 7b.json

In FOLDER a LLaMA of the named size is written once, with random weights in bfloat16 and several shards. Then are
measured, each in a process of its own and with the files in the page cache:

- load: reading it onto 8 host devices, parameters divided over all of them. Resident memory before the load, its peak
  during the load, and what the load added over the bytes of the arrays (goal: at most 1.25 times).
- load against PyTorch, A and B in turn: `from_pretrained` in bfloat16 and a contiguous transpose of every matrix, which
  is the work that our layout asks for (goal: at most 1.5 times its time). Imports are not counted on either side.
- convert: `alm convert` to this library's names, and its peak memory (goal: at most 24 GB).

Prints a Markdown table, writes JSON where asked, and exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

DEVICES = 8
MEMORY_GOAL, TIME_GOAL, CONVERT_GOAL = 1.25, 1.5, 24e9
_SHARD_BYTES = 500_000_000
_SEED = 0


def generate(folder: Path, shape: str) -> None:
    """Write a checkpoint of `transformers`' LLaMA with random weights, unless it is there."""
    import ml_dtypes
    import numpy as np

    from alm_jax.convert.formats.safetensors import Tensor
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.convert.save import save_safetensors, tensors
    from alm_jax.core import tree
    from alm_jax.core.files import new_folder
    from alm_jax.models.registry import module_of, named_config

    if folder.is_dir():
        return
    config, layout = named_config(shape), LAYOUTS["llama_hf"]
    shapes = tree.flatten(tree.abstract(lambda key: module_of(config)(config, key)))
    rng = np.random.default_rng(_SEED)

    def values(tensor: Tensor):
        def pieces():
            drawn = rng.standard_normal(tensor.shape, dtype=np.float32)
            drawn *= np.float32(0.02)
            yield drawn.astype(ml_dtypes.bfloat16)

        return Tensor(tensor.key, tensor.shape, np.dtype(ml_dtypes.bfloat16), pieces)

    with new_folder(folder) as partial:
        save_safetensors(partial, map(values, tensors(shapes, layout.table(config))), shard_bytes=_SHARD_BYTES)
        settings = layout.settings(config) | {"dtype": "bfloat16"}
        (partial / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def warm(folder: Path) -> int:
    """Read all files once, so that the page cache has them; their bytes."""
    size = 0
    for path in folder.iterdir():
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                size += len(piece)
    return size


def resident(field: str) -> int:
    """Bytes of resident memory of this process: now (`VmRSS`) or at the most (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def load_ours(folder: Path) -> dict[str, float]:
    """Read the checkpoint onto all devices."""
    import jax

    from alm_jax.convert.formats import open_tensors
    from alm_jax.convert.layouts import LAYOUTS, config_of
    from alm_jax.convert.load import load
    from alm_jax.core import tree
    from alm_jax.core.mesh import MeshConfig, make_mesh, shardings
    from alm_jax.models.registry import module_of

    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    jax.block_until_ready(jax.device_put(0.0, jax.devices()[-1]))
    _await_memory()
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    file = open_tensors(folder)
    config = config_of(file, "llama_hf")
    like = tree.abstract(lambda key: module_of(config)(config, key))
    target = {path: jax.ShapeDtypeStruct(leaf.shape, "bfloat16") for path, leaf in tree.flatten(like).items()}
    arrays = load(target, [(file, LAYOUTS["llama_hf"].table(config))], shardings=shardings(like, mesh))
    jax.block_until_ready(arrays)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = sum(leaf.nbytes for leaf in arrays.values())
    return {
        "seconds": seconds,
        "cpu": cpu,
        "before": before,
        "peak": resident("VmHWM"),
        "arrays": size,
        "devices": mesh.size,
    }


def load_torch(folder: Path) -> dict[str, float]:
    """`from_pretrained`, then every matrix as `[in, out]`."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.zeros(1)
    _await_memory()
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data = parameter.data.T.contiguous()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = sum(parameter.nbytes for parameter in model.parameters())
    return {"seconds": seconds, "cpu": cpu, "before": before, "peak": resident("VmHWM"), "arrays": size}


def convert(source: Path) -> dict[str, float]:
    """`alm convert SOURCE TARGET --to alm` in a process of its own; what it wrote is removed.

    Called in a small process: the peak that the kernel reports of one begins with that of the process that started it.
    """
    target = source.with_name(f"{source.name}-converted")
    command = [sys.executable, "-m", "alm_jax", "convert", str(source), str(target), "--to", "alm"]
    _await_memory()
    start = time.perf_counter()
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
        if status:
            raise SystemExit(f"{' '.join(command)}: exit status {status}")
        written = sum(path.stat().st_size for path in target.iterdir())
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return {"seconds": seconds, "cpu": cpu, "peak": usage.ru_maxrss * 1024, "bytes": written}


MEASURES = {"load": load_ours, "torch": load_torch, "convert": convert}


def _await_memory() -> None:
    """Tell the parent that the imports are done, and wait until it has made memory ready."""
    print("ready", flush=True)
    sys.stdin.readline()


def in_process(name: str, folder: Path, size: int) -> dict[str, float]:
    """What one of the functions above returns, in a fresh process.

    Just before it begins, memory of twice the checkpoint's size (half of what is free at the most) is touched and given
    back here: a virtual machine takes pages from its host when they are first used, and the side that runs second would
    find them there.
    """
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}
    command = [sys.executable, __file__, "--measure", name, "--work", str(folder)]
    free = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with mmap.mmap(-1, min(2 * size, free // 2)) as memory:
            for page in range(0, len(memory), mmap.PAGESIZE):
                memory[page] = 1
        output, _ = process.communicate("go\n")
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return json.loads(output.splitlines()[-1])


def measure(work: Path, shape: str, rounds: int, what: list[str]) -> dict[str, Any]:
    """All measurements of one shape."""
    folder = work / shape
    generate(folder, shape)
    packages = ("jax", "jaxlib", "numpy", "torch", "transformers")
    result: dict[str, Any] = {
        "shape": shape,
        "file_bytes": warm(folder),
        "shards": len(list(folder.glob("*.safetensors"))),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }
    for _ in range(rounds if {"load", "torch"} & set(what) else 0):
        for name in ("load", "torch"):
            if name in what:
                result.setdefault(name, []).append(in_process(name, folder, result["file_bytes"]))
    if "convert" in what:
        result["convert"] = in_process("convert", folder, result["file_bytes"])
    return result | {"goals": goals(result)}


def goals(result: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """`{goal: (as measured, at most)}`."""
    found = {}
    if "load" in result:
        ratios = [(once["peak"] - once["before"]) / once["arrays"] for once in result["load"]]
        found["memory added by the load / arrays"] = (max(ratios), MEMORY_GOAL)
    if "load" in result and "torch" in result:
        ours, theirs = (statistics.median(once["seconds"] for once in result[name]) for name in ("load", "torch"))
        found["time of the load / PyTorch's, medians"] = (ours / theirs, TIME_GOAL)
    if "convert" in result:
        found["peak of alm convert, GB"] = (result["convert"]["peak"] / 1e9, CONVERT_GOAL / 1e9)
    return found


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"`{result['shape']}`: {result['file_bytes'] / 1e9:.2f} GB in {result['shards']} shards; {result['cpus']} CPU "
        f"cores ({result['machine']}); {versions}",
        "",
        "| run | seconds | of the CPU | resident before, GB | peak, GB | arrays, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in (("load", f"alm_jax, {DEVICES} host devices"), ("torch", "PyTorch and transposes")):
        for once in result.get(name, []):
            sizes = " | ".join(f"{once[key] / 1e9:.2f}" for key in ("before", "peak", "arrays"))
            lines.append(f"| {label} | {once['seconds']:.2f} | {once['cpu']:.2f} | {sizes} |")
    if once := result.get("convert"):
        lines.append(f"| alm convert | {once['seconds']:.1f} | {once['cpu']:.1f} | - | {once['peak'] / 1e9:.2f} | - |")
    lines += ["", "| measure | value | goal |", "|---|---|---|"]
    lines += [f"| {name} | {value:.2f} | at most {most:g} |" for name, (value, most) in result["goals"].items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the generated checkpoint")
    parser.add_argument("--shape", default="tinyllama_1.1b", help="a registered LLaMA (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="loads on each side (default: %(default)s)")
    parser.add_argument("--what", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--json", type=Path, help="file for the measurements")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.work)))
        return 0
    result = measure(options.work, options.shape, options.rounds, options.what)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(report(result))
    return 0 if all(value <= most for value, most in result["goals"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
