#!/usr/bin/env python
"""Compare this library with recorded outputs of the official PyTorch code.

    python tools/check_golden.py FOLDER/ltu/ltu_tiny FOLDER/ltu/ltu_tiny_c FOLDER/ltu/ltuas_tltr_tiny

Each PREFIX is a fixture: official weights `PREFIX.safetensors`, sizes `PREFIX_config.json`, arrays `PREFIX_io.npz`. Our
model is built from the sizes, takes the official weights through the conversion tables, and its results are compared.
Prints a line an array and a last line a fixture; exits with 0 if every array of every fixture is accounted for and
within tolerance, else with 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from alm_jax.core.errors import AlmError
from golden import apt_audiomae, apt_fbank, apt_llm, apt_qformer, ltu, ltu_as, mats, msclap
from golden.report import Report

# A fixture is of the kind that its name begins with, the longest first: `ltu_tiny_c` has text and a trainer's record.
KINDS: dict[str, Callable[[Path, Report], None]] = {
    "ltu_tiny_c": ltu.check_training,
    "ltu_tiny": ltu.check_model,
    "ltuas_tltr_tiny": ltu_as.check,
    "apt_audiomae": apt_audiomae.check,
    "msclap": msclap.check,
    "apt_qformer": apt_qformer.check,
    "apt_fbank": apt_fbank.check,
    "apt_llm_head_longaudio": apt_llm.check_long_audio,
    "apt_llm": apt_llm.check,
    "mats_train": mats.check_training,
    "mats_santa": mats.check_santa,
}


def check(prefix: Path) -> bool:
    """Check one fixture, print its lines, and say whether all is well."""
    kind = next((kind for kind in KINDS if prefix.name == kind or prefix.name.startswith(kind + "_")), None)
    report = Report(prefix.name)
    if kind is None:
        report.fail(f"unknown kind of fixture; known: {', '.join(KINDS)}")
    elif not list(prefix.parent.glob(prefix.name + "[._]*")):
        report.fail(f"no files {prefix}*")
    else:
        try:
            KINDS[kind](prefix, report)
        except (AlmError, OSError, KeyError) as error:
            report.fail(f"{type(error).__name__}: {error}")
    return report.close()


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", nargs="+", type=Path, help="path of a fixture without its endings")
    prefixes = parser.parse_args(argv).prefix
    return 0 if all([check(prefix) for prefix in prefixes]) else 1


if __name__ == "__main__":
    sys.exit(main())
