import json
import pickle
import random
from itertools import pairwise

import gguf
import pytest
import regex

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.data.tokenizer import load_tokenizer, train_tokenizer

TEXTS = [
    "the dog barks at the other dog",
    "rain and wind, then rain 2024",
    "it's a church bell — é 🎵",
    "12 34 56 1234",
] * 3
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def samples(count=300):
    alphabet = "abdeghinort XYZ  \n\t's—é日本🎵²½0123456789.,;:!?-_()\u00a0\u3000٣"
    rng = random.Random(0)
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(60))) for _ in range(count)]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, 300)


def test_trained_tokenizer(trained, tmp_path):
    assert (trained.pad_id, trained.bos_id, trained.eos_id) == (0, 1, 2)
    assert 259 < trained.vocab_size <= 300
    assert all(trained.decode(trained.encode(t)) == t for t in samples() + TEXTS)
    assert trained.encode_batch(TEXTS) == [trained.encode(t) for t in TEXTS]
    assert trained.encode("a</s>")[-1] == 2
    assert trained.decode([1, *trained.encode("dog"), 2]) == "dog"
    assert trained.decode([1, *trained.encode("dog"), 2], skip_special=False) == "<s>dog</s>"
    assert trained.decode([*trained.encode("dog"), 10**6]) == "dog"
    assert train_tokenizer(TEXTS, 300).fingerprint == trained.fingerprint
    assert train_tokenizer(TEXTS, 290).fingerprint != trained.fingerprint
    trained.save(tmp_path)
    for same in (
        load_tokenizer(tmp_path),
        load_tokenizer(tmp_path / "tokenizer.json"),
        pickle.loads(pickle.dumps(trained)),
    ):
        assert same.fingerprint == trained.fingerprint and same.bos_id == 1
        assert same.encode_batch(TEXTS) == trained.encode_batch(TEXTS)


@pytest.mark.golden
def test_sentencepiece_as_the_official_tokenizer(golden_ltu, tmp_path):
    recorded = json.loads((golden_ltu / "ltu_tiny_c_text.json").read_text())
    tokenizer = load_tokenizer(golden_ltu / "ltu_tiny_c_spm.model")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 0, 400)
    for prompt in recorded["prompts"]:
        assert [1, *tokenizer.encode(prompt["infer"])] == prompt["infer_ids"]
    ids = recorded["decode"]["ids"]
    assert tokenizer.decode(ids) == recorded["decode"]["ltu_slice_6_m4"]
    assert tokenizer.decode([*ids, 400, 10**6]) == recorded["decode"]["ltu_slice_6_m4"]
    assert tokenizer.decode(ids, skip_special=False).endswith("Labels: Siren</s>")
    tokenizer.save(tmp_path)
    for same in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert same.fingerprint == tokenizer.fingerprint
        assert same.encode_batch(TEXTS) == [tokenizer.encode(t) for t in TEXTS]


def llama_cpp_encode(text, tokens, merges):
    """Byte-level BPE with llama.cpp's rules for "smollm", written out: split numbers, split as GPT-2, merge by rank."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    letters = {b: chr(b) for b in visible} | {b: chr(256 + n) for n, b in enumerate(hidden)}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    rank = {tuple(m.split(" ")): i for i, m in enumerate(merges)}
    ids = []
    for piece in regex.split(r"(\p{N})", text):
        for word in words.findall(piece):
            parts = [letters[b] for b in word.encode()]
            while pairs := [p for p in pairwise(parts) if p in rank]:
                first = min(pairs, key=rank.get)
                at = next(i for i, p in enumerate(pairwise(parts)) if p == first)
                parts[at : at + 2] = ["".join(first)]
            ids += [tokens.index(p) for p in parts]
    return ids


def write_gguf(path, trained, pre="smollm", model="gpt2", add_bos=False):
    trained.save(path.parent)
    bpe = json.loads((path.parent / "tokenizer.json").read_text())["model"]
    tokens = SPECIALS + sorted(t for t in bpe["vocab"] if t not in ("<pad>", "<s>", "</s>"))
    merges = [" ".join(m) for m in bpe["merges"]]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(add_bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (path.parent / "tokenizer.json").unlink()
    return tokens, merges


def test_gguf_as_llama_cpp(trained, tmp_path):
    tokens, merges = write_gguf(tmp_path / "model.gguf", trained)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 2, 2)
    assert tokenizer.vocab_size == len(tokens)
    for text in samples(100) + TEXTS:
        assert tokenizer.encode(text) == llama_cpp_encode(text, tokens, merges)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|im_start|>dog<|im_end|>") == [1, *tokenizer.encode("dog"), 2]
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint
    write_gguf(tmp_path / "model.gguf", trained, add_bos=True)
    assert load_tokenizer(tmp_path / "model.gguf").bos_id == 1


def test_unsuitable_files(trained, tmp_path):
    write_gguf(tmp_path / "a.gguf", trained, pre="exotic")
    with pytest.raises(DataError, match=r"a\.gguf: tokenizer gpt2/exotic is not supported"):
        load_tokenizer(tmp_path / "a.gguf")
    with pytest.raises(ConfigError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "empty")
    for name in ("tokenizer.model", "b.gguf"):
        (tmp_path / name).write_bytes(b"no tokenizer at all")
        with pytest.raises(DataError, match=f"{name}: cannot be read as a tokenizer"):
            load_tokenizer(tmp_path / name)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json, which names the EOS token"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ConfigError, match="not a tokenizer"):
        load_tokenizer(tmp_path / "x.txt")
    with pytest.raises(ConfigError, match="vocab_size is 100"):
        train_tokenizer(TEXTS, 100)
