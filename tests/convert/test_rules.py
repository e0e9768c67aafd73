"""Rules, names, reading and writing, on small tables made here."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from alm_jax.convert import stream
from alm_jax.convert.load import check, contents, dead, fold, load
from alm_jax.convert.names import ADAPTER, PUBLISHED, Style, style_of
from alm_jax.convert.rules import CONV1D, LINEAR, SCALAR, TABLE, VECTOR, Part, Rearrange, Rule, Table, each
from alm_jax.convert.save import as_tensor, cast, export, save_safetensors
from alm_jax.convert.save import tensors as tensors_of
from alm_jax.core.errors import CheckpointError
from tests.convert.dict_file import DictFile, same_bits
from tests.devices import host_devices

PATCH = Rearrange("d 1 f t -> (f t) d", f=2, t=3)
PERMUTED = Rearrange("(h pair half) i -> i (h half pair)", h=2, half=2)
ARRANGEMENTS = [
    (VECTOR, (5,)),
    (LINEAR, (4, 6)),
    (CONV1D, (4, 6, 3)),
    (PATCH, (4, 1, 2, 3)),
    (PERMUTED, (8, 3)),
    (Rearrange("1 n d -> n d"), (1, 3, 4)),
    (Rearrange("1 1 d -> d"), (1, 1, 4)),
    (Rearrange("->"), ()),
]


def random(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("arrange, shape", ARRANGEMENTS, ids=lambda value: str(value))
def test_rearrange_is_undone_and_knows_its_shape(arrange, shape):
    x = random(shape)
    y = arrange.forward(x)
    assert y.shape == arrange.shape(shape)
    np.testing.assert_array_equal(arrange.inverse(y), x)


@pytest.mark.parametrize("arrange, shape", ARRANGEMENTS[:-1], ids=lambda value: str(value))
def test_window_reads_what_is_wanted(arrange, shape):
    rng = np.random.default_rng(1)
    part = Part(1, 3)
    packed = random((3 * shape[0], *shape[1:]))
    rule = Rule("p", "k", arrange, part)
    whole = arrange.forward(packed[shape[0] : 2 * shape[0]])
    assert rule.shape(packed.shape) == whole.shape
    for _ in range(30):
        bounds = [sorted(rng.choice(size + 1, 2, replace=False)) for size in whole.shape]
        wanted = tuple(slice(*bound) for bound in bounds)
        block, rest = rule.window(wanted, packed.shape)
        np.testing.assert_array_equal(arrange.forward(packed[block])[rest], whole[wanted])


def test_rearrangements_by_hand():
    w = random((4, 6))
    np.testing.assert_array_equal(LINEAR.forward(w), w.T)
    k = random((4, 1, 2, 3))
    np.testing.assert_array_equal(PATCH.forward(k), k.reshape(4, 6).T)
    c = random((4, 6, 3))
    np.testing.assert_array_equal(CONV1D.forward(c), np.transpose(c, (2, 1, 0)))


@pytest.mark.parametrize("shape, message", [((4,), "1 axes"), ((4, 2, 2, 3), "axis of 2"), ((4, 1, 3, 3), "axis of 3")])
def test_rearrange_refuses_other_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        PATCH.shape(shape)


def test_tables_that_name_something_twice_are_refused():
    one, other = Rule("a", "k", VECTOR), Rule("b", "k", VECTOR)
    with pytest.raises(ValueError, match="parts"):
        Table((one, other))
    with pytest.raises(ValueError, match="more than once"):
        Table((one, Rule("a", "l", VECTOR)))
    with pytest.raises(ValueError, match="more than once"):
        Table((one,), dead=("k",))
    with pytest.raises(ValueError, match="parts"):
        Table((Rule("a", "k", VECTOR, Part(0, 3)), Rule("b", "k", VECTOR, Part(2, 3))))
    with pytest.raises(ValueError, match="more than once"):  # one key in two stacks
        Table((Rule("a", ("k", "l"), VECTOR), Rule("b", ("k", "m"), VECTOR)))


def toy(layers=3, tied=False):
    """Two families of layers in one stack, a packed tensor, a convolution, dead and ignored keys."""
    keys = lambda a, b: (*each("a.{i}." + a, range(layers - 1)), *each("u.{i}." + b, range(1)))
    packed, bias = keys("qkv.weight", "qkv.weight"), keys("qkv.bias", "qkv.bias")
    return Table(
        (
            Rule("embed", "embed.weight", TABLE),
            *(() if tied else (Rule("head", "head.weight", LINEAR),)),
            Rule("blocks.norm", keys("norm.weight", "norm_a.weight"), VECTOR),
            *(Rule(f"blocks.{name}.kernel", packed, LINEAR, Part(i, 3)) for i, name in enumerate("qkv")),
            *(Rule(None if n == "k" else f"blocks.{n}.bias", bias, VECTOR, Part(i, 3)) for i, n in enumerate("qkv")),
            Rule("patch", "patch.weight", PATCH),
            Rule("scale", "scale", Rearrange("->")),
        ),
        dead=keys("norm_a.weight", "norm.weight"),
        ignored=("video.*",),
        tied=(("head.weight", "embed.weight"),) if tied else (),
        bare=("model.",),
    )


def toy_tensors(dtype=np.float32, layers=3):
    dim, shapes = 4, {"embed.weight": (7, 4), "head.weight": (7, 4), "patch.weight": (4, 1, 2, 3), "scale": ()}
    for block in (*(f"a.{i}" for i in range(layers - 1)), "u.0"):
        shapes |= {f"{block}.qkv.weight": (3 * dim, dim), f"{block}.qkv.bias": (3 * dim,)}
        shapes |= {f"{block}.norm.weight": (dim,), f"{block}.norm_a.weight": (dim,)}
    tensors = {key: random(shape, dtype, seed) for seed, (key, shape) in enumerate(shapes.items())}
    for key in tensors:
        if key.endswith("qkv.bias"):
            tensors[key][dim : 2 * dim] = 0
    return tensors


def toy_target(dtype=jnp.float32, layers=3):
    shapes = {"embed": (7, 4), "head": (4, 7), "blocks.norm": (layers, 4), "patch": (6, 4), "scale": ()}
    shapes |= {f"blocks.{n}.kernel": (layers, 4, 4) for n in "qkv"} | {f"blocks.{n}.bias": (layers, 4) for n in "qv"}
    return {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_values_and_bits_of_a_round_trip(dtype):
    tensors = toy_tensors(dtype) | {"video.x": np.ones(3, dtype)}
    file = DictFile(tensors)
    arrays = load(toy_target(dtype), [(file, toy())])
    assert list(arrays) == list(toy_target()) and all(isinstance(x, jax.Array) for x in arrays.values())
    np.testing.assert_array_equal(arrays["blocks.norm"][2], tensors["u.0.norm_a.weight"])
    np.testing.assert_array_equal(arrays["blocks.norm"][1], tensors["a.1.norm.weight"])
    np.testing.assert_array_equal(arrays["blocks.k.kernel"][2], tensors["u.0.qkv.weight"][4:8].T)
    np.testing.assert_array_equal(arrays["blocks.v.bias"][0], tensors["a.0.qkv.bias"][8:])
    unused = dead(file, toy())
    assert set(unused) == {"a.0.norm_a.weight", "a.1.norm_a.weight", "u.0.norm.weight"}
    del tensors["video.x"]  # another model's: not ours to write
    assert same_bits(dict(export(arrays, toy(), dead=unused)), tensors)


def test_scalars_alone_and_stacked():
    table = Table((Rule("scale", "s", SCALAR), Rule("scales", ("a", "b"), SCALAR)))
    tensors = {name: np.array(value, np.float32) for name, value in (("s", 0.5), ("a", 1.5), ("b", 2.5))}
    target = {"scale": jax.ShapeDtypeStruct((), np.float32), "scales": jax.ShapeDtypeStruct((2,), np.float32)}
    arrays = load(target, [(DictFile(tensors), table)])
    assert arrays["scale"] == 0.5 and arrays["scales"].tolist() == [1.5, 2.5]
    assert same_bits(dict(export(arrays, table)), tensors)


def test_values_are_cast_to_the_model_s_dtype():
    tensors = toy_tensors()
    arrays = load(toy_target(jnp.bfloat16), [(DictFile(tensors), toy())])
    np.testing.assert_array_equal(arrays["head"], tensors["head.weight"].T.astype(ml_dtypes.bfloat16))


def test_tied_tensors():
    target = {path: leaf for path, leaf in toy_target().items() if path != "head"}
    tensors = toy_tensors() | {"head.weight": toy_tensors()["embed.weight"]}
    table = toy(tied=True)
    file = DictFile(tensors)
    arrays, style = load(target, [(file, table)]), style_of(tensors, table)
    assert style == Style(tied=True)
    assert same_bits(dict(export(arrays, table, style, dead(file, table))), tensors)
    assert "head.weight" not in dict(export(arrays, table))
    with pytest.raises(CheckpointError, match=r"head\.weight of memory differs from embed\.weight"):
        load(target, [(DictFile(toy_tensors()), table)])


def test_zero_parts_must_be_zero():
    tensors = toy_tensors()
    tensors["a.1.qkv.bias"][5] = 1
    with pytest.raises(CheckpointError, match=r"a\.1\.qkv\.bias"):
        load(toy_target(), [(DictFile(tensors), toy())])


def test_one_error_lists_all_offenders():
    tensors = toy_tensors()
    tensors["a.0.extra"] = tensors["a.1.extra"] = np.ones(2)
    tensors["embed.weight"] = tensors["embed.weight"][:5]
    tensors["patch.weight"] = np.ones((4, 1, 2, 3), np.int32)
    del tensors["head.weight"], tensors["u.0.norm_a.weight"]
    target = toy_target()
    del target["scale"]
    target["new"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    with pytest.raises(CheckpointError) as error:
        check(target, [(DictFile(tensors), toy())])
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "unknown keys in memory: a.{0..1}.extra",
        "keys missing from memory: u.0.norm_a.weight",
        "embed.weight of shape (5, 4) makes (5, 4), parameter embed is (7, 4)",
        "patch.weight holds int32, parameter patch float32",
        "keys of memory with no place in the model: scale",
        "parameters that no key fills: head, new",
    ):
        assert part in message
    check(toy_target(), [(DictFile(toy_tensors()), toy())])


@pytest.mark.parametrize("shape", [(5, 4), (11, 4), (12,), (12, 4, 1), ()])
def test_wrong_shapes_are_errors(shape):
    tensors = toy_tensors() | {"a.0.qkv.weight": np.ones(shape, np.float32)}
    with pytest.raises(CheckpointError, match=r"a\.0\.qkv\.weight"):
        check(toy_target(), [(DictFile(tensors), toy())])


def test_a_model_of_other_depth_is_an_error():
    with pytest.raises(CheckpointError, match="expected 3 layers first"):
        check(toy_target(layers=4), [(DictFile(toy_tensors()), toy())])


def test_a_key_named_in_two_styles_and_a_parameter_in_two_files_are_errors():
    twice = {"l.base_layer.weight": np.ones((2, 2)), "l.weight": np.ones((2, 2))}
    table = Table((Rule("l", "l.weight", LINEAR),))
    target = {"l": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    with pytest.raises(CheckpointError, match=r"name a tensor twice in memory: l\.weight"):
        check(target, [(DictFile(twice), table)])
    one, other = (DictFile({"l.weight": np.ones((2, 2))}, path) for path in ("one.bin", "other.bin"))
    with pytest.raises(CheckpointError, match=r"parameter l is in one\.bin and again in other\.bin"):
        check(target, [(one, table), (other, table)])


def test_several_files_fill_one_model_and_init_allows_new_parameters():
    tensors = toy_tensors()
    halves = [{k: v for k, v in tensors.items() if (k[0] in "au") == flag} for flag in (True, False)]
    target = toy_target() | {"lora.a": jax.ShapeDtypeStruct((2,), jnp.float32)}
    sources = [(DictFile(half), toy()) for half in halves]
    with pytest.raises(CheckpointError, match=r"no key fills: lora\.a"):
        load(target, sources)
    assert set(load(target, sources, init=("lora.*",))) == set(toy_target())


def test_tables_compose_below_prefixes():
    table = toy().under("encoder.", "model.audio.") + Table((Rule("proj", "proj.weight", LINEAR),))
    tensors = {f"model.audio.{k}": v for k, v in toy_tensors().items()} | {"proj.weight": random((2, 3))}
    target = {f"encoder.{p}": s for p, s in toy_target().items()} | {"proj": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    file = DictFile(tensors)
    arrays = load(target, [(file, table)])
    assert same_bits(dict(export(arrays, table, dead=dead(file, table))), tensors)


def test_export_lists_what_has_no_place():
    arrays = load(toy_target(), [(DictFile(toy_tensors()), toy())])
    bad = {p: x for p, x in arrays.items() if p != "blocks.q.kernel"} | {"other": arrays["embed"]}
    with pytest.raises(CheckpointError) as error:
        list(export(bad, toy(), dead={"odd": np.ones(1)}))
    for part in ("without a rule: other", "packed tensors: blocks.q.kernel", "unknown dead tensors: odd"):
        assert part in str(error.value)
    some = dict(export({"head": arrays["head"]}, toy()))
    assert set(some) == {"head.weight"}


LORA_TABLE = Table(
    (
        Rule("q", each("model.layers.{i}.q_proj.weight", range(2)), LINEAR),
        Rule("q_a", each("model.layers.{i}.q_proj.lora_A.weight", range(2)), LINEAR),
        Rule("head", "lm_head.weight", LINEAR),
    ),
    bare=("model.",),
)


@pytest.mark.parametrize(
    "style, weight, lora",
    [
        (Style(), "model.layers.1.q_proj.weight", "model.layers.1.q_proj.lora_A.weight"),
        (
            PUBLISHED,
            "base_model.model.model.layers.1.q_proj.weight",
            "base_model.model.model.layers.1.q_proj.lora_A.default.weight",
        ),
        (
            Style(peft="", adapter="mine", base_layer=True),
            "base_model.model.model.layers.1.q_proj.base_layer.weight",
            "base_model.model.model.layers.1.q_proj.lora_A.mine.weight",
        ),
        (ADAPTER, None, "base_model.model.model.layers.1.q_proj.lora_A.weight"),
        (Style(bare="model."), "layers.1.q_proj.weight", "layers.1.q_proj.lora_A.weight"),
        (
            Style(prefix="module.", peft="", bare="model."),
            "module.base_model.model.layers.1.q_proj.weight",
            "module.base_model.model.layers.1.q_proj.lora_A.weight",
        ),
    ],
)
def test_styles_are_found_and_undone(style, weight, lora):
    canonical = ["model.layers.1.q_proj.weight", "model.layers.1.q_proj.lora_A.weight"]
    wrapped = {"model.layers.1.q_proj"}
    names = [style.name(key, wrapped) for key in canonical]
    assert names[1] == lora and (weight is None or names[0] == weight)
    assert style_of(names, LORA_TABLE) == style
    assert [style.canonical(name) for name in names] == canonical


def test_peft_around_a_part_of_a_model():
    table = LORA_TABLE.under("decoder.", "llama_model.")
    key = "llama_model.base_model.model.model.layers.0.q_proj.lora_A.default.weight"
    style = style_of([key, "mapper.weight"], table)
    assert style == Style(peft="llama_model.", adapter="default")
    assert style.canonical(key) == "llama_model.model.layers.0.q_proj.lora_A.weight"
    assert style.name(style.canonical(key)) == key and style.name("mapper.weight") == "mapper.weight"


def test_bad_styles_are_errors():
    with pytest.raises(CheckpointError, match=r"2 LoRA adapters \(a, b\)"):
        style_of(["l.lora_A.a.weight", "l.lora_A.b.weight"], LORA_TABLE)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        Style(bare="model.").name("lm_head.weight")


def test_contents_counts_dead_and_ignored_apart():
    found = contents([*toy_tensors(), "video.x", "odd"], toy())
    groups = (found.mapped, found.dead, found.ignored, found.unmapped)
    assert [len(group) for group in groups] == [13, 3, 1, 1]


def test_fold():
    assert fold([f"l.{i}.w" for i in (0, 1, 2, 5)]) == ["l.{0..2,5}.w"]
    assert fold(["l.3.w", "x", "e/layer_0/w", "e/layer_1/w"]) == ["l.3.w", "x", "e/layer_{0..1}/w"]


def test_long_tensors_are_read_in_chunks(monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK", 4 * 6 * 5)  # five rows of six float32
    monkeypatch.setattr(stream, "_TILE", 4)
    tensors = {"head.weight": random((23, 6))}
    file = DictFile(tensors)
    table = Table((Rule("head", "head.weight", LINEAR),))
    arrays = load({"head": jax.ShapeDtypeStruct((6, 23), jnp.float32)}, [(file, table)])
    np.testing.assert_array_equal(arrays["head"], tensors["head.weight"].T)
    assert [size for _, _, size in file.reads] == [30, 30, 30, 30, 18]


SHARDED = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from dict_file import DictFile
    from alm_jax.convert import stream
    from alm_jax.convert.load import load
    from alm_jax.convert.rules import LINEAR, VECTOR, Part, Rearrange, Rule, Table, each

    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    w = {f"l.{i}.w": np.random.default_rng(i).standard_normal((24, 16)).astype("f4") for i in range(3)}
    table = Table((Rule("q", each("l.{i}.w", range(3)), LINEAR, Part(0, 2)),
                   Rule("k", each("l.{i}.w", range(3)), Rearrange("(h p t) i -> i (h t p)", h=2, t=2), Part(1, 2))))
    want = {"q": np.stack([w[k][:12].T for k in w]),
            "k": np.stack([w[k][12:].reshape(2, 3, 2, 16).swapaxes(1, 2).reshape(12, 16).T for k in w])}
    target = {p: jax.ShapeDtypeStruct((3, 16, 12), "f4") for p in want}
    sizes = []
    for held in (1 << 20, 1):  # all shards of a parameter in one pass; one at a time
        stream._HELD = held
        for spec in (P(None, "a", "b"), P(None, None, "b"), P(None, ("a", "b")), P()):
            file = DictFile(w)
            shardings = {p: NamedSharding(mesh, spec) for p in target}
            arrays = load(target, [(file, table)], shardings=shardings)
            for path, array in arrays.items():
                assert array.sharding == shardings[path]
                np.testing.assert_array_equal(array, want[path])
            sizes.append(sum(size for _, _, size in file.reads))
    whole = 3 * 24 * 16
    print(sizes, whole)
    # one pass reads each value once; apart, a shard of rows reads its rows alone, and rearranged rows are read whole
    assert sizes[:4] == [whole] * 4, sizes
    assert sizes[4:] == [whole // 2 * (1 + 4), whole // 2 * (1 + 4), whole // 2 * (1 + 1), whole], sizes

    # a process whose devices hold the last rows reads these alone
    stream._HELD, file = 1 << 20, DictFile(w)
    fill = stream.Fill(table.rules[0], file, tuple(w))
    (shard,) = stream._read_shards(fill, [((0, 3), (0, 16), (6, 12))], np.dtype("f4")).values()
    np.testing.assert_array_equal(shard, want["q"][:, :, 6:])
    assert [index[0] for _, index, _ in file.reads] == [slice(6, 12)] * 3
    print("ok")
"""


def test_sharded_reads_take_only_the_rows_they_need(repo):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": host_devices(8)}
    command = [sys.executable, "-c", textwrap.dedent(SHARDED), os.path.dirname(__file__)]
    done = subprocess.run(command, env=env, cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok\n")


def test_safetensors_single_and_sharded(tmp_path):
    from safetensors import safe_open

    from alm_jax.convert.formats import open_tensors

    tensors = {f"t.{i}": random((5, 4), ml_dtypes.bfloat16, i) for i in range(6)} | {"s": np.float32([[1, 2]]).T}
    one = save_safetensors(tmp_path / "one", tensors.items())
    assert one.name == "model.safetensors"
    with safe_open(one, "np") as file:
        assert set(file.keys()) == set(tensors) and file.metadata() == {"format": "pt"}
    many = save_safetensors(tmp_path / "many", tensors.items(), shard_bytes=100)
    names = sorted(p.name for p in (tmp_path / "many").iterdir())
    assert names == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)] + ["model.safetensors.index.json"]
    assert json.loads(many.read_text())["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for path in (one, many):
        file = open_tensors(path)
        assert same_bits({key: file.read(key) for key in file.keys()}, tensors)


@pytest.mark.parametrize("stacked", [True, False])
def test_stored_parameters_are_written_without_being_held(stacked):
    """From one layout to another, and to one where a stack is one tensor, by reads of single layers."""
    file = DictFile({key: value for key, value in toy_tensors(ml_dtypes.bfloat16).items()})
    fills = check(toy_target(), [(file, toy())])
    stored = {path: stream.Stored(fill, toy_target()[path].shape) for path, fill in fills.items()}
    read = load(toy_target(jnp.bfloat16), [(DictFile(file.tensors), toy())])
    assert same_bits({path: np.asarray(leaf) for path, leaf in stored.items()}, read)
    ranks = {path: " ".join("abcd"[: len(leaf.shape)]) for path, leaf in toy_target().items()}
    own = Table(tuple(Rule(path, path, Rearrange(f"{axes} -> {axes}")) for path, axes in ranks.items()))
    unused = dead(file, toy())
    file.reads.clear()
    table = toy() if stacked else own
    made = list(tensors_of(stored, table, dead=unused if stacked else None))
    assert not file.reads
    expected = file.tensors if stacked else read
    assert {t.key: (t.shape, t.dtype) for t in made} == {k: (v.shape, v.dtype) for k, v in expected.items()}
    assert same_bits({tensor.key: tensor.read() for tensor in made}, expected)
    assert max(size for _, _, size in file.reads) <= 3 * 4 * 4  # one layer's query, key and value at the most
    # and back, from stacks
    if not stacked:
        whole = DictFile({tensor.key: tensor.read() for tensor in made})
        again = {path: stream.Stored(fill, toy_target()[path].shape)
                 for path, fill in check(toy_target(), [(whole, own)]).items()}  # fmt: skip
        assert same_bits(dict(export(again, toy(), dead=unused)), file.tensors)


def test_cast_tells_what_does_not_fit():
    values = {"a": np.float32([1, 65504]), "b": np.float32([1, 70000]), "c": np.float32([np.inf]), "d": np.arange(3)}
    beyond = []
    made = {key: cast(as_tensor(key, value), np.float16, beyond).read() for key, value in values.items()}
    assert beyond == ["b"]
    assert made["a"].dtype == np.float16 and np.isinf(made["c"]).all() and made["d"].dtype == values["d"].dtype


def test_a_failed_save_leaves_nothing(tmp_path):
    def broken():
        yield "a", np.ones(40)
        yield "b", np.ones(40)
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        save_safetensors(tmp_path / "x", broken(), shard_bytes=400)
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_safetensors(tmp_path / "file", [("a", np.ones(1))])
    with pytest.raises(CheckpointError, match="a comes twice"):
        save_safetensors(tmp_path / "x", [("a", np.ones(1)), ("a", np.ones(1))])
    save_safetensors(tmp_path / "x", [("a", np.ones(1))])
    with pytest.raises(CheckpointError, match=r"holds model\.safetensors already"):
        save_safetensors(tmp_path / "x", [("a", np.ones(1))])


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    """The limit on file sizes stands in for the disk's."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        tensors = [("a", np.ones(100)), ("b", np.ones(1000))]
        with pytest.raises(CheckpointError, match=r"cannot write the checkpoint.*too large"):
            save_safetensors(tmp_path, tensors, shard_bytes=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_save_whose_index_cannot_be_placed_leaves_nothing(tmp_path, monkeypatch):
    replace = os.replace

    def refuse(source, target):
        if str(target).endswith(".json"):
            raise OSError("refused")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CheckpointError, match="refused"):
        save_safetensors(tmp_path, [("a", np.ones(100)), ("b", np.ones(100))], shard_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_written_files_are_readable_like_their_folder(tmp_path):
    tmp_path.chmod(0o755)
    assert save_safetensors(tmp_path, [("a", np.ones(1))]).stat().st_mode & 0o777 == 0o644
