"""GGUF against files that the `gguf` package writes and against ggml's C routines; bad files of every kind."""

import struct

import gguf
import ml_dtypes
import numpy as np
import pytest

from alm_jax.convert.formats import open_tensors
from alm_jax.core.errors import CheckpointError
from tests.convert.tensor_files import assert_same, assert_slices, rand

K = gguf.GGMLQuantizationType


def write_gguf(path, tensors, **metadata):
    """`tensors`: name -> (array or raw bytes as uint8 rows, quantisation type or None)."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        add = {int: writer.add_uint32, str: writer.add_string, list: writer.add_array, float: writer.add_float32}
        add[type(value)](key, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_plain_types_shapes_and_metadata(tmp_path):
    w = rand(3, 4, 5)
    bf16 = w.astype(ml_dtypes.bfloat16)
    tensors = {"f32": (w, None), "f16": (w.astype(np.float16), None), "bf16": (bf16.view(np.uint8), K.BF16)}
    tokens = ["<s>", "Ġthé", "\n"]
    path = write_gguf(
        tmp_path / "m.gguf", tensors, tokens=tokens, ids=[3, 1, 2], scores=[0.5, -1.0], eps=1e-5, depth=30
    )
    file = open_tensors(tmp_path)
    assert file.path == path
    assert_same(file, {"f32": w, "f16": w.astype(np.float16), "bf16": bf16})
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["tokens"] == tokens
    assert (file.metadata["ids"], file.metadata["scores"], file.metadata["depth"]) == ([3, 1, 2], [0.5, -1.0], 30)
    assert file.metadata["eps"] == np.float32(1e-5)
    assert_slices(file, "bf16")


def halves(block, at, count=1):
    return [float(x) for x in np.frombuffer(block[at : at + 2 * count], np.float16)]


def q8_0(block):
    (d,) = halves(block, 0)
    return [d * q for q in np.frombuffer(block[2:], np.int8).tolist()]


def q4_0(block):
    (d,) = halves(block, 0)
    return [d * ((q & 15) - 8) for q in block[2:]] + [d * ((q >> 4) - 8) for q in block[2:]]


def q4_1(block):
    d, m = halves(block, 0, 2)
    return [d * (q & 15) + m for q in block[4:]] + [d * (q >> 4) + m for q in block[4:]]


def q4_k(block):
    """`dequantize_row_q4_K` of ggml-quants.c, one value at a time."""
    d, dmin = halves(block, 0, 2)
    packed, quants, out = block[4:16], block[16:], []
    for j in range(8):
        if j < 4:
            scale, least = packed[j] & 63, packed[j + 4] & 63
        else:
            scale = packed[j + 4] & 15 | packed[j - 4] >> 6 << 4
            least = packed[j + 4] >> 4 | packed[j] >> 6 << 4
        for q in quants[j // 2 * 32 : j // 2 * 32 + 32]:
            out.append(d * scale * (q >> 4 if j % 2 else q & 15) - dmin * least)
    return out


def q6_k(block):
    """`dequantize_row_q6_K` of ggml-quants.c, one value at a time."""
    low, high, scales = block[:128], block[128:192], np.frombuffer(block[192:208], np.int8).tolist()
    (d,) = halves(block, 208)
    out = [0.0] * 256
    for half in range(2):
        ql, qh, sc = low[64 * half :], high[32 * half :], scales[8 * half :]
        for i in range(32):
            for quarter in range(4):
                nibble = ql[i + 32 * (quarter % 2)] >> (4 if quarter > 1 else 0) & 15
                q = (nibble | (qh[i] >> 2 * quarter & 3) << 4) - 32
                out[128 * half + 32 * quarter + i] = d * sc[i // 16 + 2 * quarter] * q
    return out


@pytest.mark.parametrize(
    ("kind", "decode", "halves_at"),
    [(K.Q8_0, q8_0, [0]), (K.Q4_0, q4_0, [0]), (K.Q4_1, q4_1, [0, 2]), (K.Q4_K, q4_k, [0, 2]), (K.Q6_K, q6_k, [208])],
)
def test_gguf_quantised(tmp_path, kind, decode, halves_at):
    """Random blocks against ggml's C routines written out by the value."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (4, 2, size), dtype=np.uint8)
    for at in halves_at:  # finite scales
        blocks[..., at : at + 2] = rng.normal(size=(4, 2, 1)).astype(np.float16).view(np.uint8)
    write_gguf(tmp_path / "m.gguf", {"w": (blocks.reshape(4, 2 * size), kind)})
    file = open_tensors(tmp_path)
    assert (file.shape("w"), file.dtype("w")) == ((4, 2 * values), np.float32)
    expected = np.array([[x for block in row for x in decode(block.tobytes())] for row in blocks])
    # products of float16 and small integers, rounded to float32 once or twice: 2**-22 of the largest term
    np.testing.assert_allclose(file.read("w"), expected, rtol=0, atol=np.abs(expected).max() * 2**-22)
    assert_slices(file, "w")


@pytest.mark.parametrize(("kind", "quantum"), [(K.Q8_0, 127), (K.Q4_0, 8), (K.Q4_1, 15), (K.BF16, 256), (K.F16, 2048)])
def test_gguf_quantised_by_its_own_package(tmp_path, kind, quantum):
    """What `gguf` quantises is read as it dequantises it, within a quantum of the values."""
    values = rand(6, 64)
    data = gguf.quants.quantize(values, kind)
    write_gguf(tmp_path / "m.gguf", {"w": (data, kind)})
    got = open_tensors(tmp_path).read("w").astype(np.float32)
    np.testing.assert_array_equal(got, gguf.quants.dequantize(data, kind))
    assert np.abs(got - values).max() <= 1.01 * np.abs(values).max() * (2 if kind == K.Q4_1 else 1) / quantum


def gguf_bytes(tensor_count=0, entries=b"", entry_count=0, infos=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, entry_count) + entries + infos


def text(s):
    return struct.pack("<Q", len(s)) + s


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gguf_bytes(tensor_count=1 << 60), "1152921504606846976 tensors cannot be in a file of 24 bytes"),
        (gguf_bytes(entry_count=1 << 60), "metadata entries cannot be in a file"),
        (gguf_bytes(entry_count=1, entries=text(b"a") + struct.pack("<IIQ", 9, 4, 1 << 60)), "'a' wants .* bytes"),
        (gguf_bytes(entry_count=1, entries=text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 60)), "'a' cannot be in"),
        (gguf_bytes(entry_count=1, entries=text(b"a") + struct.pack("<IIQ", 9, 9, 1)), "unknown value type 9"),
        (gguf_bytes(entry_count=1, entries=text(b"a") + struct.pack("<IQ", 99, 0)), "unknown value type 99"),
        (gguf_bytes(entry_count=1, entries=struct.pack("<QQ", 1 << 40, 0)), "a metadata key wants"),
        (gguf_bytes(entry_count=1, entries=text(b"\xff") + struct.pack("<IQ", 8, 0)), "not UTF-8"),
        (gguf_bytes(version=1), "GGUF version 1, expected 2 or 3"),
        (gguf_bytes(1, infos=text(b"w") + struct.pack("<IQ", 77, 0) + bytes(8)), "'w' has 77 axes"),
    ],
)
def test_gguf_absurd_counts(tmp_path, content, words):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        open_tensors(tmp_path)


def test_gguf_bad_tensors_are_listed_together(tmp_path):
    def info(name, size, kind, offset):
        return text(name) + struct.pack("<IQIQ", 1, size, kind, offset)

    infos = info(b"odd", 100, K.Q8_0, 0) + info(b"iq", 256, K.IQ2_XS, 0) + info(b"new", 4, 999, 0)
    infos += info(b"a", 8, K.F32, 0) + info(b"b", 8, K.F32, 16) + info(b"far", 1 << 40, K.F32, 64)
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(tensor_count=6, infos=infos) + bytes(512))
    with pytest.raises(CheckpointError, match="5 problem") as e:
        open_tensors(tmp_path)
    for words in ["'odd' of shape (100,) does not divide", "'iq' has type 17 (IQ2_XS), expected", "'new' has type 999"]:
        assert words in str(e.value)
    for words in ["'b' overlaps 'a'", "'far' ends at byte"]:
        assert words in str(e.value)


def test_gguf_truncated(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"w": (rand(64, 64), None)}, tokens=["a", "b"])
    whole = path.read_bytes()
    for size in range(4, len(whole) - 1, 97):  # at any point
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"truncated|cannot be in"):
            open_tensors(path)


def test_gguf_part_of_a_split(tmp_path):
    write_gguf(tmp_path / "m.gguf", {"w": (rand(2, 2), None)}, **{"split.count": 2})
    with pytest.raises(CheckpointError, match="one part of a split GGUF"):
        open_tensors(tmp_path)
