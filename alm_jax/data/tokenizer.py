"""One seam over tokenizers: sentencepiece models, `tokenizer.json` files, and those embedded in GGUF files."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alm_jax.core.errors import CheckpointError, ConfigError, DataError
from alm_jax.core.gguf import read_header

if TYPE_CHECKING:
    import tokenizers

_PADDING_ROWS = 1024
_FILES = ("tokenizer.json", "tokenizer.model", "*.gguf", "vocab.txt")
_NAMES = "tokenizer.json, tokenizer.model, *.gguf or vocab.txt"
_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4


class Tokenizer(ABC):
    """Text to ids and back; equal values pickle, also to data workers.

    Attributes:
        bos_id: the id that opens a text, None for models whose texts open with none (SmolLM2, GPT-2).
        eos_id: the id that ends an answer.
        pad_id: an id for padding (never seen by a model here).
        vocab_size: number of ids.
        fingerprint: sha256 of the tokenizer's definition, for the keys of caches.
    """

    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no BOS or EOS added. Special tokens that it spells out (`<|im_end|>`) become their id."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""

    @abstractmethod
    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids; `skip_special` leaves BOS, EOS and the like out. Ids out of the vocabulary are skipped."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the files that `load_tokenizer(folder)` reads."""


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model as LLaMA's slow tokenizer uses it: BOS 1, EOS 2, padding 0 where the model names none."""

    def __init__(self, model: bytes):
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=model)
        self._model = model
        bos, pad = self._processor.bos_id(), self._processor.pad_id()
        self.bos_id = bos if bos >= 0 else None
        self.eos_id = self._processor.eos_id()
        self.pad_id = pad if pad >= 0 else self._processor.unk_id()
        self.vocab_size = self._processor.vocab_size()
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=os.cpu_count())

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        known = [int(i) for i in ids if 0 <= i < self.vocab_size]
        pieces = []
        for special, run in groupby(known, self._processor.is_control):
            if not special:
                pieces.append(self._processor.decode(list(run)))
            elif not skip_special:
                pieces.extend(self._processor.id_to_piece(list(run)))
        return "".join(pieces)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self._model)

    def __reduce__(self):
        return SentencePieceTokenizer, (self._model,)


class JsonTokenizer(Tokenizer):
    """A `tokenizers` definition (`tokenizer.json`).

    Args:
        definition: the file's text.
        eos, pad: tokens, as `tokenizer_config.json` names them.

    BOS is what the definition's own post-processor opens a text with, if anything.
    """

    def __init__(self, definition: str, *, eos: str, pad: str | None = None):
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._eos, self._pad = eos, pad
        opening = self._tokenizer.encode("").ids
        self.eos_id = self._id(eos)
        self.bos_id = opening[0] if opening and opening[0] != self.eos_id else None
        self.pad_id = self.eos_id if pad is None else self._id(pad)
        self.vocab_size = self._tokenizer.get_vocab_size()
        named = json.dumps([self._tokenizer.to_str(), eos, pad])
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ConfigError(f"tokenizer_config.json names the token {token!r}, which tokenizer.json does not hold")
        return found

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return self._tokenizer.decode([int(i) for i in ids if i >= 0], skip_special_tokens=skip_special)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": self._eos, "pad_token": self._pad}))

    def __reduce__(self):
        return _json_tokenizer, (self._tokenizer.to_str(), self._eos, self._pad)


def _json_tokenizer(definition: str, eos: str, pad: str | None) -> JsonTokenizer:
    return JsonTokenizer(definition, eos=eos, pad=pad)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer from `tokenizer.json` (with `tokenizer_config.json` beside it), a sentencepiece `*.model`, a
    `*.gguf` file, or BERT's `vocab.txt`; or from a folder that holds one, looked for in this order.

    Raises:
        ConfigError: no such file, or none in the folder.
        DataError: the file cannot be read as a tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        found = [f for pattern in _FILES for f in sorted(path.glob(pattern))]
        if not found:
            raise ConfigError(f"{path}: no {_NAMES} in this folder")
        path = found[0]
    elif not path.is_file():
        raise ConfigError(f"{path}: no such tokenizer file or folder")
    loaders = {".json": _from_json, ".model": _from_sentencepiece, ".gguf": _from_gguf, "vocab.txt": _from_word_pieces}
    load = next((loader for ending, loader in loaders.items() if path.name.endswith(ending)), None)
    if load is None:
        raise ConfigError(f"{path}: not a tokenizer; expected {_NAMES}")
    try:
        return load(path)
    except (ConfigError, DataError):
        raise
    except Exception as e:  # both libraries raise bare Exception or RuntimeError on a broken file
        raise DataError(f"{path}: cannot be read as a tokenizer: {str(e).splitlines()[0] if str(e) else e!r}") from e


def check_size(tokenizer: Tokenizer, rows: int, model: str) -> None:
    """Check that a tokenizer can belong to an embedding of `rows` rows: every id has one, and no more of them are left
    than rounding up explains (T5 has 28, Qwen2.5 7B 399).

    Raises:
        CheckpointError: it cannot.
    """
    if not 0 <= rows - tokenizer.vocab_size <= _PADDING_ROWS:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the embedding of {model} {rows} rows: give the tokenizer "
            "that belongs to it (alm ask, alm convert: --tokenizer)"
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer: `<pad>` 0, `<s>` 1 (opens a text), `</s>` 2; the same texts, the same ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    specials = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(specials) + len(alphabet):
        raise ConfigError(f"vocab_size is {vocab_size}; bytes and special tokens take {len(specials) + len(alphabet)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return JsonTokenizer(tokenizer.to_str(), eos="</s>", pad="<pad>")


def _from_sentencepiece(path: Path) -> Tokenizer:
    return SentencePieceTokenizer(path.read_bytes())


def _from_json(path: Path) -> Tokenizer:
    beside = path.with_name("tokenizer_config.json")
    if not beside.is_file():
        raise ConfigError(f"{path}: tokenizer_config.json, which names the EOS token, is not beside it")
    config = json.loads(beside.read_text(encoding="utf-8"))

    def token(name: str) -> str | None:
        value = config.get(name)
        return value.get("content") if isinstance(value, dict) else value

    eos = token("eos_token") or token("sep_token")  # BERT's texts end in [SEP]
    if not eos:
        raise ConfigError(f"{beside}: no eos_token")
    return JsonTokenizer(path.read_text(encoding="utf-8"), eos=eos, pad=token("pad_token"))


def _from_word_pieces(path: Path) -> Tokenizer:
    """BERT's, lower-cased unless `tokenizer_config.json` beside it says otherwise."""
    from tokenizers import BertWordPieceTokenizer

    beside = path.with_name("tokenizer_config.json")
    settings = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    tokenizer = BertWordPieceTokenizer(str(path), lowercase=settings.get("do_lower_case", True))
    return JsonTokenizer(tokenizer.to_str(), eos="[SEP]", pad="[PAD]")


def _from_gguf(path: Path) -> Tokenizer:
    """Byte-level BPE from GGUF metadata (keys: llama.cpp `gguf-py/gguf/constants.py`)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    metadata = read_header(path).metadata

    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    kind, pre = value("model"), value("pre")
    if kind != "gpt2" or pre not in _pre_tokenizers():
        known = ", ".join(_pre_tokenizers())
        raise DataError(f"{path}: tokenizer {kind}/{pre} is not supported (only gpt2 with {known}); use tokenizer.json")
    tokens, types = value("tokens"), value("token_type")
    merges = [tuple(merge.split(" ")) for merge in value("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizers()[pre]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, kind in zip(tokens, types) if kind == _GGUF_CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, kind in zip(tokens, types) if kind == _GGUF_USER_DEFINED]
    )
    if value("add_bos_token", False):
        bos = tokens[value("bos_token_id")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, value("bos_token_id"))]
        )
    eos = value("eos_token_id")
    return JsonTokenizer(tokenizer.to_str(), eos=tokens[eos], pad=tokens[value("padding_token_id", eos)])


def _pre_tokenizers() -> dict[str, tokenizers.pre_tokenizers.PreTokenizer]:
    """llama.cpp's names of ways to split text before merging (`src/llama-vocab.cpp`)."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    gpt2 = ByteLevel(add_prefix_space=False)
    return {"gpt-2": gpt2, "smollm": Sequence([Digits(individual_digits=True), gpt2])}
