"""Meshes and the one place where logical axis names become device axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from alm_jax.core import axes as ax
from alm_jax.core import tree
from alm_jax.core.errors import ConfigError

DATA, FSDP, CONTEXT, TENSOR = "data", "fsdp", "context", "tensor"
MESH_AXES = (DATA, FSDP, CONTEXT, TENSOR)  # what talks most is innermost, between neighbours


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1 and takes the rest.

    Attributes:
        data: replicas that see different rows; they share the optimiser's state (ZeRO-1).
        fsdp: rows and parameters both divided (ZeRO-3).
        tensor: heads, feed-forward units and vocabulary divided.
        context: positions of a row divided; where attention needs whole rows, heads instead (`axes.ROW_HEADS`).
        slices: slices of TPUs, or groups of hosts, between which the network is slower. Each is a mesh of the sizes
            above, and they are replicas: the mesh has `slices` times `data` devices along its data axis.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    slices: int = 1


MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(data=1, fsdp=-1),
    "fsdp_tensor4": MeshConfig(data=1, fsdp=-1, tensor=4),
    "fsdp_tensor8": MeshConfig(data=1, fsdp=-1, tensor=8),
    "fsdp_context4": MeshConfig(data=1, fsdp=-1, context=4),
}
"""By name, for `--set mesh=fsdp`."""


@dataclass(frozen=True)
class Rules:
    """Mesh axes of every logical axis name; names absent here are errors, `()` means replicated."""

    mapping: tuple[tuple[str, tuple[str, ...]], ...] = (
        (ax.LAYERS, ()),
        (ax.EMBED, (FSDP,)),
        (ax.HEADS, (TENSOR,)),
        (ax.KV_HEADS, (TENSOR,)),
        (ax.MLP, (TENSOR,)),
        (ax.VOCAB, (TENSOR,)),
        (ax.LORA, ()),
        (ax.PATCH, ()),
        (ax.POSITION, ()),
        (ax.FEATURES, ()),
        (ax.BATCH, (DATA, FSDP)),
        (ax.LENGTH, (CONTEXT,)),
        (ax.ROW_HEADS, (TENSOR, CONTEXT)),
    )

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """Partition of an array whose axes have these names.

        Raises:
            ConfigError: a name is unknown, or two axes of the array ask for one mesh axis.
        """
        mapping = dict(self.mapping)
        unknown = [name for name in axes if name is not None and name not in mapping]
        if unknown:
            raise ConfigError(f"logical axes {unknown} have no sharding rule; known: {', '.join(mapping)}")
        entries = [() if name is None else mapping[name] for name in axes]
        used = [mesh_axis for entry in entries for mesh_axis in entry]
        if len(used) != len(set(used)):
            raise ConfigError(f"axes {tuple(axes)} map to {used}: one mesh axis can divide only one array axis")
        return PartitionSpec(*(entry if len(entry) > 1 else (entry[0] if entry else None) for entry in entries))


DEFAULT_RULES = Rules()


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the axes `MESH_AXES` over the given (default: all) devices.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices, or the devices are of other slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    found = len({getattr(device, "slice_index", 0) for device in devices})
    if found > 1 and found != config.slices:
        raise ConfigError(
            f"the {len(devices)} devices are of {found} slices, and mesh.slices is {config.slices}: set mesh.slices to "
            f"{found}, and the other sizes to those of one slice"
        )
    sizes, mend = [getattr(config, name) for name in MESH_AXES], "set one of them to -1, which takes what others leave"
    if sizes.count(-1) == 1:
        known = prod(size for size in sizes if size != -1) * config.slices
        sizes[sizes.index(-1)] = len(devices) // known if known > 0 else 0
        mend = f"those that are not -1 make {known}, which has to divide it"
    if min(*sizes, config.slices) < 1 or prod(sizes) * config.slices != len(devices):
        wanted = ", ".join(f"{name}={size}" for name, size in vars(config).items())
        raise ConfigError(
            f"mesh ({wanted}) does not fit {len(devices)} devices ({devices[0].platform}): the sizes must multiply to "
            f"that number; {mend}"
        )
    # A side of the slice may be divided between axes: v6e:4x4 as 8 x 2.
    if found > 1:
        outer = (config.slices, *[1] * (len(sizes) - 1))
        placed = mesh_utils.create_hybrid_device_mesh(sizes, outer, devices, allow_split_physical_axes=True)
    else:
        sizes[0] *= config.slices
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def specs(module: Any, rules: Rules = DEFAULT_RULES) -> dict[str, PartitionSpec]:
    """`{path: PartitionSpec}` of every parameter of a module, abstract or not."""
    return {path: rules.spec(axes) for path, axes in tree.logical_axes(module).items()}


def shardings(module: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> dict[str, NamedSharding]:
    """`{path: NamedSharding}` of every parameter.

    Raises:
        ConfigError: an axis is not divisible by the devices along it; the message lists all such parameters.
    """
    result, offenders = {}, []
    leaves = tree.flatten(module)
    for path, spec in specs(module, rules).items():
        sharding = NamedSharding(mesh, spec)
        try:
            sharding.shard_shape(leaves[path].shape)
        except ValueError:
            offenders.append(f"{path} {leaves[path].shape} by {spec}")
        result[path] = sharding
    if offenders:
        raise ConfigError(
            f"mesh {dict(mesh.shape)} does not divide {'; '.join(offenders)}: take mesh.fsdp and mesh.tensor that do"
        )
    return result


def over_replicas(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """The same, and divided over `data` as well, along the first axis of `shape` that this divides evenly, if any.

    For what each replica may update a share of: an optimiser's statistics (ZeRO-1, Rajbhandari et al. 2020).
    """
    sizes, spec = sharding.mesh.shape, [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    for axis, size in enumerate(shape):
        along = () if spec[axis] is None else (spec[axis],) if isinstance(spec[axis], str) else tuple(spec[axis])
        if sizes[DATA] > 1 and size % prod(sizes[name] for name in (*along, DATA)) == 0:
            spec[axis] = (*along, DATA) if along else DATA
            return NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return sharding


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows divided over `data` and `fsdp`, everything else whole."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def constrain(x: jax.Array, *axes: str | None, rules: Rules = DEFAULT_RULES) -> jax.Array:
    """Pin an activation's layout by logical axis names; does nothing outside `jax.set_mesh`.

    Mesh axes that do not divide an axis evenly leave it whole: the frames of an encoder, over `context`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    counts = parts(axes, rules)
    spec = [entry if size % count == 0 else None for entry, size, count in zip(rules.spec(axes), x.shape, counts)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: where what is traced now will run, be it compiled ahead of time for devices elsewhere."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """As `platform`, the model of the device: `TPU v5 lite`, `NVIDIA H100 80GB HBM3`, `cpu`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.devices()[0] if device is None else device).device_kind


def mesh_axes(name: str, rules: Rules = DEFAULT_RULES) -> tuple[str, ...]:
    """Mesh axes that divide a logical axis inside `per_device`; none where it runs its function as it is."""
    return dict(rules.mapping)[name] if _several_devices() else ()


def parts(axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> tuple[int, ...]:
    """Into how many parts the mesh of `jax.set_mesh` divides each axis of an array with these names."""
    sizes, mapping = jax.sharding.get_abstract_mesh().shape, {None: (), **dict(rules.mapping)}
    return tuple(prod(sizes.get(axis, 1) for axis in mapping[name]) for name in axes)


def indivisible(shape: Sequence[int], axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> str | None:
    """Which axis of an array the mesh of `jax.set_mesh` cannot divide evenly, in words; None if it can."""
    for size, name, count in zip(shape, axes, parts(axes, rules)):
        if size % count:
            return f"the mesh has {count} devices along {name}, which do not divide {size}"
    return None


def per_device(
    f: Callable[..., tuple[jax.Array, ...]],
    arguments: Sequence[Sequence[str | None]],
    results: Sequence[Sequence[str | None]],
    rules: Rules = DEFAULT_RULES,
) -> Callable[..., tuple[jax.Array, ...]]:
    """`f` on each device's part of its arguments (`jax.shard_map`), for kernels that the compiler cannot divide.

    Without several devices in `jax.set_mesh` it is `f` itself. Inside, collectives take `mesh_axes`.

    Args:
        arguments, results: logical axis names of each array that `f` takes, and of each in the tuple that it returns.
    """
    if not _several_devices():
        return f
    specs = [tuple(rules.spec(axes) for axes in group) for group in (arguments, results)]
    return jax.shard_map(f, in_specs=specs[0], out_specs=specs[1], check_vma=False)


def _several_devices() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1
