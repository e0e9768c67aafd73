"""Counts of a program's text against hand-worked ones: of lines as the TPU compiler writes them, and of a real one."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from alm_jax.core.mesh import MeshConfig, make_mesh
from alm_jax.train import hlo
from alm_jax.train.chips import find_topology
from alm_jax.train.hlo import Collective

# A loop of 6 trips (from 2 to 12 by twos; the end is handed in) around one of 3; what is in VMEM has S(1).
LOOPS = """HloModule m

%inner (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %w = bf16[16,16]{1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %y = bf16[8,16]{1,0:T(8,128)(2,1)} convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %t = (s32[]{:T(128)}, /*index=1*/bf16[8,16]{1,0:T(8,128)(2,1)}) tuple(%next, %y)
}

%inner_end (p: (s32[], bf16[8,16])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.1, %three), direction=LT
}

%outer (q: (s32[], s32[], bf16[8,16])) -> (s32[], s32[], bf16[8,16]) {
  %q = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %end = s32[]{:T(128)} get-tuple-element(%q), index=1
  %z = bf16[8,16]{1,0} get-tuple-element(%q), index=2
  %two = s32[]{:T(128)} constant(2)
  %j.next = s32[]{:T(128)} add(%j, %two)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%zero, %z)
  %loop = (s32[]{:T(128)}, bf16[8,16]{1,0}) while(%start), condition=%inner_end, body=%inner
  %u = bf16[8,16]{1,0} get-tuple-element(%loop), index=1
  %all-gather.1 = bf16[16,16]{1,0} all-gather(%u), replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}
  ROOT %t.1 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%j.next, %end, %u)
}

%outer_end (q: (s32[], s32[], bf16[8,16])) -> pred[] {
  %q.1 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %j.1 = s32[]{:T(128)} get-tuple-element(%q.1), index=0
  %end.1 = s32[]{:T(128)} get-tuple-element(%q.1), index=1
  ROOT %lt.2 = pred[]{:T(512)} compare(%j.1, %end.1), direction=LT
}

ENTRY %main (a: bf16[8,16]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %from = s32[]{:T(128)} constant(2)
  %copied = s32[]{:T(128)} copy(%from)
  %to = s32[]{:T(128)} constant(12)
  %s = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%copied, %to, %a)
  %while.2 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[8,16]{1,0}) while(%s), condition=%outer_end, body=%outer
  ROOT %r = bf16[8,16]{1,0} get-tuple-element(%while.2), index=2
}
"""

# An exchange beside a product's work, as three fusions; a sum of which each keeps its part; a slice updated in place.
FUSIONS = """HloModule m

%begin (p: bf16[8,4]) -> (bf16[8,4], bf16[8,16]) {
  %p = bf16[8,4]{1,0} parameter(0)
  %all-gather.1 = bf16[8,16]{1,0} all-gather(%p), replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
  ROOT %call = (bf16[8,4]{1,0}, bf16[8,16]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (p: bf16[8,4], g: bf16[8,16], x: f32[32,8]) -> (f32[32,8], bf16[8,4], bf16[8,16]) {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  %g.1 = bf16[8,16]{1,0} parameter(1)
  %x.1 = f32[32,8]{1,0} parameter(2)
  %all-gather.2 = bf16[8,16]{1,0} all-gather(%p.1), replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
  %square = f32[32,8]{1,0} multiply(%x.1, %x.1)
  ROOT %t.1 = (f32[32,8]{1,0}, bf16[8,4]{1,0}, bf16[8,16]{1,0}) tuple(%square, %p.1, %all-gather.2)
}

%all-reduce-scatter.1 (p: f32[32,8]) -> f32[8,8] {
  %p.2 = f32[32,8]{1,0} parameter(0)
  %all-reduce.1 = f32[32,8]{1,0} all-reduce(%p.2), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %part = u32[] partition-id()
  ROOT %slice.1 = f32[8,8]{1,0} dynamic-slice(%all-reduce.1, %part, %part), dynamic_slice_sizes={8,8}
}

%store (stack: f32[6,8,8], i: s32[], x: f32[8,8]) -> f32[6,8,8] {
  %stack = f32[6,8,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x.2 = f32[8,8]{1,0} parameter(2)
  %row = f32[1,8,8]{2,1,0} bitcast(%x.2)
  ROOT %update = f32[6,8,8]{2,1,0} dynamic-update-slice(%stack, %row, %i, %i, %i)
}

%load (stack: f32[6,8,8], i: s32[]) -> f32[8,8] {
  %stack.1 = f32[6,8,8]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %piece = f32[1,8,8]{2,1,0} dynamic-slice(%stack.1, %i.1, %i.1, %i.1), dynamic_slice_sizes={1,8,8}
  ROOT %flat = f32[8,8]{1,0} bitcast(%piece)
}

ENTRY %main (a: bf16[8,4], b: f32[32,8], c: f32[6,8,8], d: s32[]) -> f32[8,8] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = f32[32,8]{1,0} parameter(1)
  %c = f32[6,8,8]{2,1,0} parameter(2)
  %d = s32[]{:S(6)} parameter(3)
  %fusion.1 = (bf16[8,4]{1,0}, bf16[8,16]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %g0 = bf16[8,4]{1,0} get-tuple-element(%fusion.1), index=0
  %g1 = bf16[8,16]{1,0} get-tuple-element(%fusion.1), index=1
  %fusion.2 = (f32[32,8]{1,0}, bf16[8,4]{1,0}, bf16[8,16]{1,0}) fusion(%g0, %g1, %b), kind=kLoop, calls=%beside
  %g2 = f32[32,8]{1,0} get-tuple-element(%fusion.2), index=0
  %fusion.3 = f32[8,8]{1,0} fusion(%g2), kind=kCustom, calls=%all-reduce-scatter.1
  %fusion.4 = f32[6,8,8]{2,1,0} fusion(%c, %d, %fusion.3), kind=kLoop, calls=%store
  ROOT %fusion.5 = f32[8,8]{1,0} fusion(%fusion.4, %d), kind=kLoop, calls=%load
}
"""


def test_loops_count_as_often_as_they_run():
    """5 trips of 3: the compiler's 2 to 12 by twos."""
    found = hlo.cost(LOOPS, devices=8)
    assert found.flops == 5 * 3 * 2 * 8 * 16 * 16
    # the inner loop's product reads and writes [8, 16] in HBM; the outer loop's exchange the same and twice as much;
    # counters in HBM are added (two read, one written), and one is copied
    product, exchange = 2 * 8 * 16 * 2, 3 * 8 * 16 * 2
    assert found.bytes == 5 * (3 * (product + 12) + exchange + 12) + 8
    assert found.collectives == (Collective("all-gather", 5, 5 * 512, 5 * 256),)
    assert found.unknown_loops == 0


def test_a_loop_of_unknown_length_counts_once():
    text = LOOPS.replace("%to = s32[]{:T(128)} constant(12)", "%to = s32[]{:T(128)} get-tuple-element(%a), index=0")
    found = hlo.cost(text, devices=8)
    assert found.unknown_loops == 1 and found.flops == 3 * 2 * 8 * 16 * 16


def test_fusions_count_once():
    found = hlo.cost(FUSIONS, devices=8)
    gathered, summed = 8 * 16 * 2, 32 * 8 * 4
    assert found.collectives == (
        Collective("reduce-scatter", 1, summed, summed * 3 // 4),
        Collective("all-gather", 1, gathered, gathered * 3 // 4),
    )
    # a part is read and all of it written; the square and the sum read and write what they need; of the stack a slice
    # is written, and read
    part, piece = 8 * 4 * 2, 8 * 8 * 4
    assert found.bytes == (part + gathered) + 2 * summed + (summed + piece) + 2 * piece + 2 * piece


@pytest.mark.parametrize(
    ("window", "labels", "image", "kernel", "result", "multiplications"),
    [
        ("size=1", "0bf_io0->0bf", (4, 8, 64), (64, 32, 1), (4, 8, 32), 4 * 8 * 64 * 32),
        # four matrices by four others: the window meets one of four at each place
        (
            "size=4x4 stride=3x3 lhs_dilate=4x4",
            "0b1f_0o1i->01bf",
            (4, 64, 4, 32),
            (4, 16, 4, 32),
            (4, 4, 64, 16),
            4 * 4 * 64 * 16 * 32,
        ),
        # 128 by [128, 4 x 32]: each of four outputs meets one tap inside
        ("size=1x4 pad=0_0x3_3 rhs_reversal=0x1", "0b1f_0i1o->0b1f", (6, 9, 1, 128), (1, 128, 4, 32), (6, 9, 4, 32),
         6 * 9 * 128 * 4 * 32),
        # frames of 80 mels by three taps, a pad before and behind: 2 of 3 x 10 meet it
        ("size=3 pad=1_1", "b0f_0io->b0f", (2, 10, 80), (3, 80, 5), (2, 10, 5), 2 * 80 * 5 * (3 * 10 - 2)),
    ],
)  # fmt: skip
def test_convolutions(window, labels, image, kernel, result, multiplications):
    shape = lambda dims: f"f32[{','.join(map(str, dims))}]{{0}}"
    text = (
        "ENTRY %main (a: f32[]) -> f32[] {\n"
        f"  %a = {shape(image)} parameter(0)\n  %b = {shape(kernel)} parameter(1)\n"
        f"  ROOT %c = {shape(result)} convolution(%a, %b), window={{{window}}}, dim_labels={labels}\n}}\n"
    )
    assert hlo.cost(text, devices=1).flops == 2 * multiplications


def test_groups():
    assert hlo._group("replica_groups={{0,2,4},{1,3,5}}, dimensions={0}", 6) == 3
    assert hlo._group("replica_groups=[2,4]<=[4,2]T(1,0), x", 8) == 4
    assert hlo._group("replica_groups=mesh['data'=4,'fsdp'=8] {'data','fsdp':(2)4}, x", 32) == 16
    assert hlo._group("replica_groups={}, x", 16) == 16


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_compiled_layers(monkeypatch):
    """Six layers [1024, 1024] over four chips, whose rows and weights are divided: XLA's own count has one of them."""
    monkeypatch.delenv("XLA_FLAGS")  # libtpu ends the process at flags that its own XLA does not know
    layers, width, rows = 6, 1024, 4096
    mesh = make_mesh(MeshConfig(1, -1, 1), find_topology("v5e:2x2").devices)
    place = lambda *spec: jax.NamedSharding(mesh, P(*spec))
    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.bfloat16, sharding=place(None, "fsdp"))
    x = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16, sharding=place("fsdp"))
    layer = lambda x, w: (jax.lax.with_sharding_constraint(jnp.tanh(x @ w), place("fsdp")), None)
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0]).lower(x, weights).compile()
    found = hlo.cost(compiled.as_text(), mesh.size)
    once = 2 * rows // 4 * width * width
    assert found.flops == layers * once
    assert once <= compiled.cost_analysis()["flops"] < 2 * once
    (gathered,) = found.collectives
    weight = 2 * width * width
    assert gathered == Collective("all-gather", layers, layers * weight, layers * weight * 3 // 4)
    # its part of the weights, and x in and out at least
    assert found.bytes >= layers * weight // 4 + 2 * 2 * rows // 4 * width


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_compiled_for_two_slices(monkeypatch):
    """A weight is gathered and its gradient divided inside a slice; each device's part is summed over the two, of which
    each then updates a half."""
    monkeypatch.delenv("XLA_FLAGS")  # libtpu ends the process at flags that its own XLA does not know
    topology = find_topology("v5e:2x2", slices=2)
    mesh = make_mesh(MeshConfig(1, -1, slices=2), topology.devices)
    assert topology.name == "2 x v5e:2x2"
    assert [{device.slice_index for device in row.flat} for row in mesh.devices] == [{0}, {1}]
    place = lambda *spec: jax.NamedSharding(mesh, P(*spec))
    w = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=place("fsdp"))
    x = jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=place(("data", "fsdp")))

    def update(w, x):
        gradient = jax.grad(lambda w, x: jnp.sum((x @ w) ** 2))(w, x)
        return w + jax.lax.with_sharding_constraint(jnp.sin(gradient), place("fsdp", "data"))

    compiled = jax.jit(update, out_shardings=w.sharding).lower(w, x).compile()
    kinds = {each.kind: each for each in hlo.cost(compiled.as_text(), mesh.size).collectives}
    part = 1024 * 1024 // 4 * 4
    assert kinds.pop(hlo.BETWEEN_SLICES) == Collective("between slices", 2, 2 * part, part + part // 2)
    assert kinds.keys() == {"all-gather", "reduce-scatter"}
