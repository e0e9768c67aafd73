"""Checkpoint formats against files written by the formats' own packages, and bad files of every kind.

`data/ct2_whisper_*.bin` were written by ctranslate2 4.8.5: a `WhisperSpec(1, 2, 1, 2)` filled by `wave` below (every
gamma 1), `optimize(quantization)` with the quantisation in the file's name, then saved.
"""

import json
import pickle
import struct
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from alm_jax.convert.formats import main_weights, open_tensors
from alm_jax.core.errors import CheckpointError
from tests.convert.tensor_files import assert_same, assert_slices, rand

DATA = Path(__file__).parent / "data"


# --- safetensors -------------------------------------------------------------------------------------------------


def raw_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_safetensors_every_dtype(tmp_path):
    dtypes = [np.bool_, np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
    dtypes += [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
    tensors = {np.dtype(d).name: (10 * rand(5, 3)).astype(d) for d in dtypes}
    tensors |= {"scalar": np.array(3, np.float32), "none": np.zeros((0, 4), np.float32)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = open_tensors(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    assert_same(file, tensors)


def test_safetensors_slices(tmp_path, monkeypatch):
    monkeypatch.setattr("alm_jax.convert.formats.raw._BLOCK", 64)  # several blocks in a small tensor
    save_file({"w": rand(5, 4, 3), "b": rand(5, 4, dtype=ml_dtypes.bfloat16)}, tmp_path / "x.safetensors")
    file = open_tensors(tmp_path)
    assert_slices(file, "w")
    assert_slices(file, "b")


def test_safetensors_reads_only_the_rows_it_needs(tmp_path):
    """Bytes outside the asked rows are never read: a sparse 1 TB tensor serves its last row."""
    rows = 1 << 28
    header = {"w": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}}
    path = raw_safetensors(tmp_path / "big.safetensors", header)
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size + rows * 4096)
    assert open_tensors(path).read("w", (slice(rows - 1, None), slice(2, 5))).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("segment", [1, 4096])
def test_safetensors_columns_are_read_by_their_own_bytes(tmp_path, monkeypatch, segment):
    """Values are those of the whole tensor, however columns are read."""
    monkeypatch.setattr("alm_jax.convert.formats.raw._SEGMENT", segment)
    tensors = {"w": rand(7, 12), "k": rand(5, 8, 3, dtype=ml_dtypes.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = open_tensors(tmp_path)
    for key in tensors:
        assert_slices(file, key)
    np.testing.assert_array_equal(file.read("k", (slice(1, 4), slice(2, 5))), tensors["k"][1:4, 2:5])
    np.testing.assert_array_equal(file.read("k", (slice(1, 4), slice(2, 5), slice(0, 2))), tensors["k"][1:4, 2:5, :2])


def test_safetensors_faults_are_listed_together(tmp_path):
    path = raw_safetensors(
        tmp_path / "x.safetensors",
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]},'
        b'"c":{"dtype":"F32","shape":[9],"data_offsets":[24,60]},"d":{"dtype":"F3","shape":[1],"data_offsets":[0,4]},'
        b'"e":{"dtype":"F32","shape":[3],"data_offsets":[0,4]},"f":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]},'
        b'"g":{},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}',
        bytes(24),
    )
    with pytest.raises(CheckpointError, match="7 problem") as e:
        open_tensors(path)
    for words in ["'b' overlaps 'a'", "'c' ends at byte", "'d' has a bad entry: unknown dtype 'F3'", "'e' has a bad"]:
        assert words in str(e.value)
    for words in ["'f' has a bad entry", "'g' has a bad entry", "'b' is in the header twice"]:
        assert words in str(e.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack("<Q", 1 << 40) + b'{"a":', "header of 1099511627776 bytes in a file of"),
        (struct.pack("<Q", 5) + b"{abc}", "header is not JSON"),
        (struct.pack("<Q", 9000) + b'{"a":' * 1800, "header is not JSON"),
    ],
)
def test_safetensors_bad_header(tmp_path, content, words):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        open_tensors(tmp_path)


# --- shards and folders ------------------------------------------------------------------------------------------


def shard(folder, parts, weight_map=None, name="model.safetensors.index.json"):
    for file, tensors in parts.items():
        save_file(tensors, folder / file)
    weight_map = weight_map or {key: file for file, tensors in parts.items() for key in tensors}
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def test_shards(tmp_path):
    parts = {"m-1.safetensors": {"a": rand(2, 3), "b": rand(4)}, "m-2.safetensors": {"c": rand(5, seed=1)}}
    shard(tmp_path, parts)
    file = open_tensors(tmp_path)
    assert file.metadata == {"total_size": 1}
    assert_same(file, {k: v for tensors in parts.values() for k, v in tensors.items()})
    np.testing.assert_array_equal(file.read("a", (slice(1, 2),)), parts["m-1.safetensors"]["a"][1:2])


def test_shard_faults_are_listed_together(tmp_path):
    shard(
        tmp_path,
        {
            "1.safetensors": {"a": rand(2), "b": rand(2)},
            "2.safetensors": {"b": rand(2)},
            "3.safetensors": {"c": rand(9)},
        },
        {
            "a": "1.safetensors",
            "b": "2.safetensors",
            "c": "3.safetensors",
            "d": "gone.safetensors",
            "e": "../4.safetensors",
        },
    )
    whole = (tmp_path / "3.safetensors").read_bytes()
    (tmp_path / "3.safetensors").write_bytes(whole[:-4])
    with pytest.raises(CheckpointError) as e:
        open_tensors(tmp_path)
    for words in ["'b' is in more than one shard", "'c' ends at byte", "gone.safetensors: no such file", "outside the"]:
        assert words in str(e.value)


def test_shard_without_its_key(tmp_path):
    shard(tmp_path, {"1.safetensors": {"a": rand(2)}}, {"a": "1.safetensors", "b": "1.safetensors"})
    with pytest.raises(CheckpointError, match=r"'b' is not in 1.safetensors"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_bad_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="'weight_map'"):
        open_tensors(tmp_path)


def test_main_weights_order():
    names = ["config.json", "training_args.bin", "pytorch_model.bin", "model.safetensors", "q4.gguf"]
    assert main_weights(names, "m") == "model.safetensors"
    assert main_weights(names[:3], "m") == "pytorch_model.bin"
    assert main_weights(["q4.gguf", "model.bin"], "m") == "q4.gguf"
    with pytest.raises(CheckpointError, match=r"m: holds a.gguf, b.gguf"):
        main_weights(["a.gguf", "b.gguf"], "m")
    with pytest.raises(CheckpointError, match="m: no weights found"):
        main_weights(["config.json"], "m")


def test_format_is_told_by_content(tmp_path):
    save_file({"a": rand(2)}, tmp_path / "pytorch_model.bin")
    assert_same(open_tensors(tmp_path), {"a": rand(2)})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "begins with b'<!DOCTYP'; expected safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"GGUF", "the version wants 4 bytes"),
        (b"PK\x03\x04 a broken archive", "not a readable PyTorch file"),
    ],
)
def test_not_a_checkpoint(tmp_path, content, words):
    pytest.importorskip("torch")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        open_tensors(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        open_tensors(tmp_path / "x.gguf")


# --- PyTorch pickles ---------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_pickle(tmp_path, zipped, wrap):
    torch = pytest.importorskip("torch")
    base = torch.from_numpy(rand(4, 6))
    state = {
        "w": base,
        "transposed": base.T,
        "part": base[1:3, 2:],  # shares memory with w
        "half": base.to(torch.bfloat16),
        "parameter": torch.nn.Parameter(base[0]),
        "step": torch.tensor(7),
    }
    torch.save(wrap(state), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    file = open_tensors(tmp_path)
    w = rand(4, 6)
    expected = {"w": w, "transposed": w.T, "part": w[1:3, 2:], "half": w.astype(ml_dtypes.bfloat16), "parameter": w[0]}
    assert_same(file, expected | {"step": np.array(7)})
    assert file.metadata == ({"epoch": 3} if "epoch" in wrap({}) else {})
    assert_slices(file, "half")


@pytest.mark.torch
@pytest.mark.golden
def test_published_layout(golden_ltu):
    """The `.bin` that the official LTU code saved: 256 tensors, trained adapters among them."""
    torch = pytest.importorskip("torch")
    path = golden_ltu / "ltu_tiny_c_trained.bin"
    state = torch.load(path, weights_only=True)
    assert_same(open_tensors(path), {k: v.numpy() for k, v in state.items()})


class Hostile:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_refused_by_name(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    import os

    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": Hostile(os.mkdir, str(tmp_path / "pwned"))}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"refused: the pickle calls for 'posix.mkdir'"):
        open_tensors(path)
    path.write_bytes(pickle.dumps({"w": Hostile(eval, "1")}, protocol=2))
    with pytest.raises(CheckpointError, match=r"refused: the pickle calls for '\w+\.eval'|not a readable PyTorch file"):
        open_tensors(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.torch
def test_pickle_of_something_else(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(CheckpointError, match=r"expected a state dict .* got list"):
        open_tensors(path)
    torch.save({"w": torch.zeros(2), "other": [1, 2], "more": {"x": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match=r"expected tensors only, got 'other' \(list\), 'more' \(dict\)"):
        open_tensors(path)
    torch.save({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        open_tensors(path)


# --- CTranslate2 -------------------------------------------------------------------------------------------------


def wave(name, shape):
    n = int(np.prod(shape))
    return np.sin(0.37 * np.arange(n) + zlib.crc32(name.encode()) % 100).astype(np.float32).reshape(shape)


@pytest.mark.parametrize(("quantisation", "levels", "plain"), [("int8_float16", 127, 2**-11), ("int16", 1024, 0)])
def test_ctranslate2(quantisation, levels, plain):
    """Values within half a quantum of what was quantised, biases within their own rounding."""
    file = open_tensors(DATA / f"ct2_whisper_{quantisation}.bin")
    assert (file.metadata["spec"], file.metadata["revision"], file.metadata["binary_version"]) == ("WhisperSpec", 3, 6)
    assert file.metadata["attributes"]["encoder/num_heads"] == 2
    assert file.metadata["aliases"]["decoder/projection/weight"] == "decoder/embeddings/weight"
    assert file.shape("encoder/layer_0/self_attention/linear_0/weight") == (24, 8)  # q, k and v
    assert file.shape("encoder/conv1/weight") == (8, 4, 3)
    assert not any("scale" in key for key in file.keys())
    for key in file.keys():
        got = file.read(key)
        name = file.metadata["aliases"].get(key, key)
        expected = np.ones(8) if key.endswith("gamma") else wave(name, file.shape(key))
        quantised = key.endswith("weight")  # the only variables with a scale in this file
        rows = expected.reshape(len(expected), -1)
        peak = np.abs(rows).max(axis=1, keepdims=True) if levels == 127 else np.abs(rows).max()
        bound = 0.51 * peak / levels if quantised else plain
        assert got.dtype == file.dtype(key) == (np.float16 if plain and not quantised else np.float32)
        assert (np.abs(got.reshape(rows.shape) - rows) <= bound).all(), key
    assert_slices(file, "encoder/conv1/weight")
    assert_slices(file, "decoder/embeddings/weight")


def variable(name, shape, kind, size, data=None):
    head = struct.pack("<H", len(name) + 1) + name + b"\0" + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return head + struct.pack("<BI", kind, size) + (bytes(size) if data is None else data)


def ct2_bytes(*variables, count=None, version=6, tail=bytes(4)):
    head = (
        struct.pack("<IH", version, 5) + b"Spec\0" + struct.pack("<II", 1, len(variables) if count is None else count)
    )
    return head + b"".join(variables) + tail


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (ct2_bytes(version=99), "binary version 99, expected"),
        (ct2_bytes(count=1 << 31), "2147483648 variables cannot be in"),
        (ct2_bytes(variable(b"w", [4], 0, 16, b"")), r"'w' wants 16 bytes .* \(truncated, or a part is missing"),
        (ct2_bytes(variable(b"w", [4], 9, 16)), "'w' has the unknown data type 9"),
        (ct2_bytes(variable(b"w", [5], 0, 16)), r"'w' has 16 bytes for float32 of shape \(5,\)"),
        (ct2_bytes(variable(b"w", [4], 0, 16), variable(b"w", [4], 0, 16)), "'w' is listed twice"),
        (ct2_bytes(variable(b"w", [4], 3, 16), variable(b"w_scale", [4], 0, 16)), "'w' is int32 with a scale"),
        (ct2_bytes(variable(b"w", [4], 1, 4), variable(b"w_scale", [3], 0, 12)), r"has a scale of shape \(3,\)"),
        (ct2_bytes(tail=struct.pack("<IH", 1, 2) + b"a\0" + struct.pack("<H", 2) + b"b\0"), "'a' stands for 'b'"),
        (ct2_bytes(tail=b""), "the alias count wants 4 bytes"),
    ],
)
def test_ctranslate2_bad_files(tmp_path, content, words):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        open_tensors(tmp_path)


def test_ctranslate2_truncated(tmp_path):
    whole = (DATA / "ct2_whisper_int16.bin").read_bytes()
    for size in range(20, len(whole), 131):
        (tmp_path / "model.bin").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_tensors(tmp_path)
