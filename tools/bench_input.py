#!/usr/bin/env python
"""Clips a second of the input pipeline on one core, against PyTorch's DataLoader with kaldi-native-fbank.

    pip install -e ".[torch]" kaldi-native-fbank
    python tools/bench_input.py --work FOLDER
    python tools/bench_input.py --work FOLDER --clips 96 --rounds 9 --json input.json

Both sides do the same work, that of LTU's training: decode a flac of ten seconds (44.1, 32 and 16 kHz in turn),
resample it to 16 kHz by a windowed sinc, take 80 mel bands of 1024 frames and normalise them, write the row into its
prompt and tokenize it, and join rows to batches. That both give the same batches is checked first. (LTU has 128 bands,
of which one is empty at this rate: kaldi-native-fbank refuses them.)

- ours: `alm_jax.data.pipeline`, without workers.
- PyTorch: soundfile, torchaudio's resampling (one strided convolution, its kernel kept), kaldi-native-fbank,
  `tokenizers`, and `torch.utils.data.DataLoader` without workers.

All of it runs in this process on one core, A and B in turn. Seconds are processor time, which other work on the machine
hardly changes. Prints a Markdown table of medians, writes JSON where asked, and exits with 1 if ours is slower.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

SECONDS, RATES, BATCH, MELS = 10.0, (44100, 32000, 16000), 8, 80
GOAL = 1.0  # clips a second, ours over PyTorch's
TOLERANCE = 0.02  # of normalised features: kaldi-native-fbank computes in float32, and its near-silent bins show it
_WORDS = "What can be heard in this recording of a street with rain and two dogs that bark at a passing car".split()


def generate(work: Path, clips: int) -> Path:
    """Write the clips and the rows about them, unless they are there; the path of the rows."""
    import numpy as np
    import soundfile

    from alm_jax.data.mixing import noise

    rows = work / f"rows-{clips}.json"
    if rows.is_file():
        return rows
    work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    told = []
    for i in range(clips):
        rate = RATES[i % len(RATES)]
        wave = noise(1.0, int(SECONDS * rate), rate, rng)
        soundfile.write(work / f"{i}.flac", 0.3 * wave / np.abs(wave).max(), rate, subtype="PCM_16")
        question, answer = (" ".join(rng.choice(_WORDS, n)) for n in (12, 40))
        told.append({"instruction": f"{question}?", "audio_id": f"{i}.flac", "output": f"{answer}."})
    rows.write_text(json.dumps(told), encoding="utf-8")
    return rows


class Ours:
    """This library's pipeline over the rows of a file, in their order."""

    name = "alm_jax"

    def __init__(self, rows: Path, tokenizer: Any):
        from alm_jax.audio.frontend import KaldiFbank
        from alm_jax.core.sequence import Layout
        from alm_jax.data.pipeline import make_pipeline
        from alm_jax.data.plan import DataSpec, Source
        from alm_jax.data.templates import ALPACA_SHORT

        self.pipeline = make_pipeline(
            DataSpec((Source(str(rows)),), BATCH, (512,), shuffle=False, last="pad"),
            template=ALPACA_SHORT,
            layout=Layout(bos="after_audio", loss_on="all", max_text_tokens=480),
            tokenizer=tokenizer,
            audio=KaldiFbank(num_mels=MELS),
            audio_tokens=32,
        )

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """(features [B, frames, mels], token ids [B, L], 0 where there is no text) of each batch."""
        for loaded in self.pipeline.iterate(0, self.pipeline.plan.steps_per_epoch):
            yield loaded.batch.audio[:, 0], loaded.batch.tokens

    def stages(self) -> dict[str, Callable[[int], Any]]:
        """Each part of the work by itself, of clip i."""
        from alm_jax.audio.io import load_audio
        from alm_jax.audio.resample import resample
        from alm_jax.core.sequence import collate
        from alm_jax.data.layout import lay_out

        data = self.pipeline
        rows = data.rowsets[0]
        paths = [rows.heard(rows[i])[0] for i in range(len(rows))]
        waves = [load_audio(path) for path in paths]
        at_rate = [resample(wave, rate, 16000) for wave, rate in waves]
        lay = lambda i: lay_out(data.template.parts(rows[i]), data.layout, data.tokenizer, audio_tokens=32)
        laid_out = [lay(i) for i in range(len(rows))]
        return {
            "decode": lambda i: load_audio(paths[i]),
            "resample": lambda i: resample(*waves[i], 16000),
            "filterbank": lambda i: data.audio.numpy(at_rate[i]),
            "tokenize": lay,
            "batch": lambda i: collate([laid_out[i]], 512, slots=1),
        }


def kaldi_options(mels: int) -> Any:
    """LTU's filterbank for kaldi-native-fbank."""
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type = 0.0, "hanning"
    options.mel_opts.num_bins = mels
    return options


def kaldi_fbank(options: Any, wave: Any) -> Any:
    """Log-mel [1024, mels] of samples [n] at 16 kHz, padded with zeros or cut, and normalised as LTU does."""
    import kaldi_native_fbank as knf
    import numpy as np

    extractor = knf.OnlineFbank(options)
    extractor.accept_waveform(16000, wave.tolist())
    extractor.input_finished()
    frames = np.zeros((1024, options.mel_opts.num_bins), np.float32)
    for i in range(min(1024, extractor.num_frames_ready)):
        frames[i] = extractor.get_frame(i)
    return (frames + 5.081) / 4.4849


class PyTorch:
    """The same work by a `DataLoader`."""

    name = "PyTorch"

    def __init__(self, rows: Path, tokenizer: Any):
        import torch

        torch.set_num_threads(1)
        self.torch, self.tokenizer = torch, tokenizer
        self.folder, self.rows = rows.parent, json.loads(rows.read_text())
        self.kernels: dict[int, tuple[Any, int, int, int]] = {}
        self.options = kaldi_options(MELS)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.fbank(self.resample(*self.decode(i))), self.tokenize(i)

    def decode(self, i: int) -> tuple[Any, int]:
        """The first channel of a clip, and its rate."""
        import soundfile

        samples, rate = soundfile.read(self.folder / self.rows[i]["audio_id"], dtype="float32", always_2d=True)
        return self.torch.from_numpy(samples[:, 0]), rate

    def resample(self, wave: Any, rate: int, target: int = 16000) -> Any:
        """`torchaudio.functional.resample`, whose kernel `torchaudio.transforms.Resample` keeps."""
        torch = self.torch
        if rate == target:
            return wave
        if rate not in self.kernels:
            common = math.gcd(rate, target)
            old, new = rate // common, target // common
            base = min(old, new) * 0.99
            width = math.ceil(6 * old / base)
            times = torch.arange(0, -new, -1)[:, None, None] / new + torch.arange(-width, width + old)[None, None] / old
            times = (times * base).clamp(-6, 6)
            window, times = torch.cos(times * math.pi / 6 / 2) ** 2, times * math.pi
            sinc = torch.where(times == 0, torch.tensor(1.0), times.sin() / times)
            self.kernels[rate] = sinc * window * (base / old), width, old, new
        kernel, width, old, new = self.kernels[rate]
        padded = torch.nn.functional.pad(wave[None, None], (width, width + old))
        found = torch.nn.functional.conv1d(padded, kernel, stride=old).transpose(1, 2).reshape(-1)
        return found[: math.ceil(new * len(wave) / old)]

    def fbank(self, wave: Any) -> Any:
        """Log-mel [1024, mels], padded with zeros or cut, and normalised."""
        return self.torch.from_numpy(kaldi_fbank(self.options, wave))

    def tokenize(self, i: int) -> Any:
        """Ids of prompt and answer, BOS before and EOS behind."""
        row = self.rows[i]
        text = f"### Instruction:\n{row['instruction']}\n\n### Response:\n{row['output']}"
        return self.torch.tensor([self.tokenizer.bos_id, *self.tokenizer.encode(text), self.tokenizer.eos_id])

    def collate(self, rows: list[tuple[Any, Any]]) -> tuple[Any, Any, Any, Any]:
        """Features, padded ids, their mask, and labels."""
        torch = self.torch
        features, ids = zip(*rows)
        tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = torch.arange(tokens.shape[1]) < torch.tensor(list(map(len, ids)))[:, None]
        return torch.stack(features), tokens, mask, torch.where(mask, tokens, -100)

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """As `Ours.batches`."""
        for features, tokens, *_ in self.torch.utils.data.DataLoader(self, BATCH, collate_fn=self.collate):
            yield features.numpy(), tokens.numpy()

    def stages(self) -> dict[str, Callable[[int], Any]]:
        """As `Ours.stages`."""
        waves = [self.decode(i) for i in range(len(self))]
        at_rate = [self.resample(*wave) for wave in waves]
        whole = [(self.fbank(wave), self.tokenize(i)) for i, wave in enumerate(at_rate)]
        return {
            "decode": self.decode,
            "resample": lambda i: self.resample(*waves[i]),
            "filterbank": lambda i: self.fbank(at_rate[i]),
            "tokenize": self.tokenize,
            "batch": lambda i: self.collate(whole[i : i + 1]),
        }


def check(ours: Ours, theirs: PyTorch) -> float:
    """The largest difference of features.

    Raises:
        SystemExit: the two sides do not give the same batches.
    """
    import numpy as np

    largest = 0.0
    for (features, tokens), (expected, ids) in zip(ours.batches(), theirs.batches(), strict=True):
        largest = max(largest, float(np.abs(features[: len(expected)] - expected).max()))
        for row, wanted in zip(tokens, ids):
            if row[row > 0].tolist() != wanted[wanted > 0].tolist():
                raise SystemExit("the two sides tokenize differently")
    if largest > TOLERANCE:
        raise SystemExit(f"features differ by up to {largest:.3g}, more than {TOLERANCE}")
    return largest


def timed(work: Iterable[Any]) -> tuple[float, float]:
    """(processor, wall) seconds that it takes to make all of something."""
    start, wall = time.process_time(), time.perf_counter()
    for _ in work:
        pass
    return time.process_time() - start, time.perf_counter() - wall


def measure(work: Path, clips: int, rounds: int) -> dict[str, Any]:
    """All measurements."""
    from alm_jax.data.tokenizer import train_tokenizer

    rows = generate(work, clips)
    tokenizer = train_tokenizer([" ".join(_WORDS)], 400)
    sides = [Ours(rows, tokenizer), PyTorch(rows, tokenizer)]
    difference = check(*sides)
    seconds: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
    for turn in range(rounds):
        for side in sides if turn % 2 else sides[::-1]:
            seconds[side.name].append(timed(side.batches()))
    parts: dict[str, dict[str, list[float]]] = {side.name: {} for side in sides}
    stages = {side.name: side.stages() for side in sides}
    for _ in range(min(3, rounds)):
        for name, of in stages.items():
            for stage, do in of.items():
                parts[name].setdefault(stage, []).append(timed(map(do, range(clips)))[0] / clips)
    packages = ("numpy", "scipy", "soundfile", "tokenizers", "torch", "kaldi-native-fbank")
    return {
        "clips": clips,
        "rounds": rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, one used",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "difference": difference,
        "seconds": seconds,
        "clips_per_s": {name: clips / statistics.median(cpu for cpu, _ in runs) for name, runs in seconds.items()},
        "ratio": statistics.median(
            theirs / mine for (mine, _), (theirs, _) in zip(*(seconds[side.name] for side in sides))
        ),
        "ms_a_clip": {
            name: {stage: 1000 * statistics.median(spent) for stage, spent in of.items()} for name, of in parts.items()
        },
    }


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    names = list(result["clips_per_s"])
    lines = [
        f"{result['clips']} clips of {SECONDS:g} s, {result['rounds']} rounds, {result['machine']}; {versions}. "
        f"Features differ by up to {result['difference']:.1g}.",
        "",
        f"| | {' | '.join(names)} | ratio |",
        "|---|---|---|---|",
        "| clips/s a core, median | "
        + " | ".join(f"{result['clips_per_s'][name]:.1f}" for name in names)
        + f" | **{result['ratio']:.2f}** (goal: at least {GOAL:g}) |",
    ]
    for stage in result["ms_a_clip"][names[0]]:
        mine, theirs = (result["ms_a_clip"][name][stage] for name in names)
        lines.append(f"| {stage}, ms a clip | {mine:.2f} | {theirs:.2f} | {theirs / mine:.2f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the generated clips")
    parser.add_argument("--clips", type=int, default=48, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="on each side (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    options = parser.parse_args(argv)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # before NumPy is imported
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = measure(options.work, options.clips, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(report(result))
    return 0 if result["ratio"] >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
