#!/usr/bin/env python
"""Write the table of models, docs/models.md, from what the tests measured.

    python tools/models_page.py                      runs `pytest -m torch`, then writes the page
    python tools/models_page.py --results junit.xml  of a run of `pytest -m torch --junitxml=junit.xml`

Every test of a model against its PyTorch class records what it found (`tests/convert/parity.py`). A published model is
listed with the record of the pair that covers it. Exits with 1, and writes nothing, if a test failed or a listed model
has no record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from alm_jax.core import tree
from alm_jax.core.errors import AlmError, DataError
from alm_jax.models.registry import module_of, named_config

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "models.md"
BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Model:
    """A published model.

    Attributes:
        title: as it is called. pair: the record that covers it. config: a name in `CONFIGS`.
        dtype: of its published weights. source: what `alm convert` takes, a name on the hub or a file.
    """

    title: str
    pair: str
    config: str
    dtype: str
    source: str


MODELS = [
    Model("Vicuna 7B v1.3", "LLaMA", "vicuna_7b", "f16", "lmsys/vicuna-7b-v1.3"),
    Model("Vicuna 13B v1.3", "LLaMA", "vicuna_13b", "f16", "lmsys/vicuna-13b-v1.3"),
    Model("Llama 2 7B", "LLaMA", "llama2_7b", "f16", "meta-llama/Llama-2-7b-hf"),
    Model("Llama 2 13B", "LLaMA", "llama2_13b", "f16", "meta-llama/Llama-2-13b-hf"),
    Model("TinyLlama 1.1B", "LLaMA", "tinyllama_1.1b", "bf16", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    Model("Llama 3 8B", "LLaMA", "llama3_8b", "bf16", "meta-llama/Meta-Llama-3-8B"),
    Model("Llama 3.1 8B", "Llama 3.1", "llama3.1_8b", "bf16", "meta-llama/Llama-3.1-8B"),
    Model("Llama 3.2 1B", "Llama 3.1", "llama3.2_1b", "bf16", "meta-llama/Llama-3.2-1B"),
    Model("Llama 3.2 3B", "Llama 3.1", "llama3.2_3b", "bf16", "meta-llama/Llama-3.2-3B"),
    Model("SmolLM2 135M", "SmolLM2", "smollm2_135m", "bf16", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    Model("SmolLM2 360M", "SmolLM2", "smollm2_360m", "bf16", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    Model("SmolLM2 1.7B", "SmolLM2", "smollm2_1.7b", "bf16", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    Model("Qwen2 0.5B", "Qwen2", "qwen2_0.5b", "bf16", "Qwen/Qwen2-0.5B-Instruct"),
    Model("Qwen2 1.5B", "Qwen2", "qwen2_1.5b", "bf16", "Qwen/Qwen2-1.5B-Instruct"),
    Model("Qwen2 7B", "Qwen2", "qwen2_7b", "bf16", "Qwen/Qwen2-7B-Instruct"),
    Model("Qwen2.5 0.5B", "Qwen2", "qwen2.5_0.5b", "bf16", "Qwen/Qwen2.5-0.5B-Instruct"),
    Model("Qwen2.5 1.5B", "Qwen2", "qwen2.5_1.5b", "bf16", "Qwen/Qwen2.5-1.5B-Instruct"),
    Model("Qwen2.5 7B", "Qwen2", "qwen2.5_7b", "bf16", "Qwen/Qwen2.5-7B-Instruct"),
    Model("GPT-2", "GPT-2", "gpt2", "f32", "openai-community/gpt2"),
    Model("GPT-2 medium", "GPT-2", "gpt2_medium", "f32", "openai-community/gpt2-medium"),
    Model("GPT-2 large", "GPT-2", "gpt2_large", "f32", "openai-community/gpt2-large"),
    Model("GPT-2 XL", "GPT-2", "gpt2_xl", "f32", "openai-community/gpt2-xl"),
    Model("BERT base", "BERT", "bert_base", "f32", "google-bert/bert-base-uncased"),
    Model("BERT large", "BERT", "bert_large", "f32", "google-bert/bert-large-uncased"),
    Model("RoBERTa base", "RoBERTa", "roberta_base", "f32", "FacebookAI/roberta-base"),
    Model("RoBERTa large", "RoBERTa", "roberta_large", "f32", "FacebookAI/roberta-large"),
    Model("all-MiniLM-L6-v2", "MiniLM sentence encoder", "minilm_l6", "f32", "sentence-transformers/all-MiniLM-L6-v2"),
    Model("Whisper tiny", "Whisper", "whisper_seq2seq_tiny", "f32", "openai/whisper-tiny"),
    Model("Whisper base", "Whisper", "whisper_seq2seq_base", "f32", "openai/whisper-base"),
    Model("Whisper small", "Whisper", "whisper_seq2seq_small", "f32", "openai/whisper-small"),
    Model("Whisper medium", "Whisper", "whisper_seq2seq_medium", "f32", "openai/whisper-medium"),
    Model("Whisper large", "Whisper", "whisper_seq2seq_large_v1", "f32", "openai/whisper-large"),
    Model("Whisper large v2", "Whisper", "whisper_seq2seq_large_v2", "f32", "openai/whisper-large-v2"),
    Model("Whisper large v3", "Whisper", "whisper_seq2seq_large_v3", "f16", "openai/whisper-large-v3"),
    Model(
        "Whisper large v3 turbo", "Whisper", "whisper_seq2seq_large_v3_turbo", "f16", "openai/whisper-large-v3-turbo"
    ),
    Model("AST", "AST with classifier", "ast_10_10_0.4593", "f32", "MIT/ast-finetuned-audioset-10-10-0.4593"),
    Model("Audio-MAE", "Audio-MAE, fine-tuned, stride 16", "audio_mae_audioset", "f32", "finetuned.pth"),
    Model(
        "BEATs iter3+",
        "BEATs, fine-tuned",
        "beats_iter3_audioset",
        "f32",
        "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt1.pt",
    ),
    Model("EVA ViT-g/14", "BLIP-2 image encoder", "eva_vit_g", "f16", "eva_vit_g.pth"),
    Model(
        "InstructBLIP's Q-Former", "InstructBLIP", "instructblip_qformer", "f32", "Salesforce/instructblip-vicuna-7b"
    ),
    Model("MS-CLAP 2023", "MS-CLAP text tower", "msclap_2023", "f32", "CLAP_weights_2023.pth"),
    Model("PANNs CNN14", "PANNs CNN14", "cnn14_audioset", "f32", "Cnn14_mAP=0.431.pth"),
    Model("LAION CLAP", "LAION CLAP", "clap_htsat_unfused", "f32", "laion/clap-htsat-unfused"),
    Model("LAION CLAP, fused", "LAION CLAP with fusion", "clap_htsat_fused", "f32", "laion/clap-htsat-fused"),
]

PAGE_TEXT = """# Models

What `alm convert` reads and writes, and how far each model here is from its PyTorch class. This page is written by a
script from the results of the tests, not by hand:

```bash
pytest -m torch --junitxml=torch.xml       # every pair, with random weights on CPU
python tools/models_page.py --results torch.xml
```

Each test draws random weights for the PyTorch class, loads them through the table of rules, compares all outputs and
the gradients of all parameters in float32, writes the weights back, compares keys and bits with the state dict that it
began with, and has PyTorch load them with no missing and no unexpected key. Errors are max|a - b| / max(1, max|b|), the
largest over the tests of a pair; *direction* says what was checked, weights in and weights out. The models of the tests
are small, two or three layers of width 32: errors grow with depth. *Memory* is parameters times bytes of the published
dtype.

## Published models

Every name in `config` works where a config takes a model (`--set model.decoder=smollm2_135m`), and every source may be
a path.

| Model | `config` | PyTorch class | Direction | Forward | Gradients | Parameters | Memory | Command |
|---|---|---|---|---|---|---|---|---|
{models}

MS-CLAP 2023 and the systems LTU, LTU-AS and APT have no class in PyTorch libraries: `tools/check_golden.py` compares
them with recorded outputs of the official code.

To write a model back, convert what the command wrote:

```bash
alm convert HuggingFaceTB/SmolLM2-135M-Instruct out/smollm2 --to alm
alm convert out/smollm2 out/smollm2_hf --to hf
```

## All pairs tested

| Pair | PyTorch class | Direction | Outputs compared | Forward | Gradients |
|---|---|---|---|---|---|
{pairs}

Measured with {versions}.
"""


@dataclass
class Pair:
    """A model and a PyTorch class, with the largest errors over their tests."""

    model: str
    source: str
    directions: list[str]
    errors: dict[str, float]
    gradient_error: float | None

    def merge(self, other: Pair) -> None:
        """Take in what another test of the same pair found."""
        self.directions += [name for name in other.directions if name not in self.directions]
        for name, value in other.errors.items():
            self.errors[name] = max(value, self.errors.get(name, 0.0))
        found = [value for value in (self.gradient_error, other.gradient_error) if value is not None]
        self.gradient_error = max(found, default=None)

    @property
    def cells(self) -> list[str]:
        """Source class and directions, then errors."""
        gradients = "" if self.gradient_error is None else f"{self.gradient_error:.0e}"
        return [f"`{self.source}`", ", ".join(self.directions), f"{max(self.errors.values()):.0e}", gradients]


def read(reports: Iterable[Path]) -> dict[str, list[Pair]]:
    """The pairs in junit reports, by model; one a source class.

    Raises:
        DataError: a report cannot be read, or they hold no record, or failed tests, all of which are listed.
    """
    cases: list[ElementTree.Element] = []
    for report in reports:
        try:
            cases += ElementTree.parse(report).getroot().iter("testcase")
        except (OSError, ElementTree.ParseError) as error:
            raise DataError(f"{report}: cannot be read as a junit report ({error})") from error
    failed = [case.get("name", "?") for case in cases if {"failure", "error"} & {part.tag for part in case}]
    if failed:
        raise DataError(f"tests failed: {', '.join(failed)}")
    pairs: dict[tuple[str, str], Pair] = {}
    for case in cases:
        for found in case.iter("property"):
            if found.get("name") == "parity":
                pair = Pair(**json.loads(found.get("value", "")))
                known = pairs.setdefault((pair.model, pair.source), pair)
                if known is not pair:
                    known.merge(pair)
    if not pairs:
        raise DataError("no test recorded a pair; expected a report of pytest -m torch")
    by_model: dict[str, list[Pair]] = {}
    for pair in pairs.values():
        by_model.setdefault(pair.model, []).append(pair)
    return by_model


def page(pairs: dict[str, list[Pair]], models: Sequence[Model] = MODELS) -> str:
    """The page's text.

    Raises:
        DataError: models have no record.
    """
    missing = sorted({model.pair for model in models} - pairs.keys())
    if missing:
        raise DataError(f"no test recorded {', '.join(missing)}; expected a report of all tests of pytest -m torch")
    rows = []
    for model in models:
        pair = pairs[model.pair][0]
        rows.append([model.title, f"`{model.config}`", *pair.cells, *_size(model), _command(model)])
    tested = []
    for pair in (pair for model in sorted(pairs) for pair in pairs[model]):
        source, directions, *errors = pair.cells
        tested.append([pair.model, source, directions, ", ".join(pair.errors), *errors])
    names = ("jax", "flax", "torch", "transformers")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return PAGE_TEXT.format(models=_lines(rows), pairs=_lines(tested), versions=versions)


def parameters(config: Any) -> int:
    """Of a part or model."""
    return tree.size(tree.flatten(tree.abstract(lambda key: module_of(config)(config, key))))


def _size(model: Model) -> list[str]:
    count = parameters(named_config(model.config))
    size = count * BYTES[model.dtype]
    memory = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    return [f"{count:,}", f"{memory} ({model.dtype})"]


def _command(model: Model) -> str:
    return f"`alm convert {model.source} out/{model.config} --to alm`"


def _lines(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def run_tests(results: Path) -> None:
    """Run the tests; a failure is told by `read`."""
    command = [sys.executable, "-m", "pytest", "-m", "torch", f"--junitxml={results}", str(REPO / "tests")]
    subprocess.run(command, cwd=REPO, check=False)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="+", help="junit reports to read (default: the tests are run)")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write (default: docs/models.md)")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            reports = options.results or [Path(folder) / "torch.xml"]
            if options.results is None:
                run_tests(reports[0])
            options.out.write_text(page(read(reports)), encoding="utf-8")
    except AlmError as error:
        print(f"models_page: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
