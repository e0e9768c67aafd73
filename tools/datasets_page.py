#!/usr/bin/env python
"""Write the table of data sets in docs/datasets.md from the registry.

python tools/datasets_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from alm_jax.core.files import write_text
from alm_jax.data.sets.base import DataSet
from alm_jax.data.sets.registry import SETS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "datasets.md"
BEGIN, END = "<!-- the table is written by tools/datasets_page.py -->\n", "<!-- end of the table -->"


def page(text: str) -> str:
    """The page with its table made anew."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


def table() -> str:
    """The sets, a line each."""
    lines = ["| Name | Set | Clips | Hours | GB | Splits | Licence |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_line, SETS.values())]) + "\n"


def _line(dataset: DataSet) -> str:
    first, last = dataset.splits[0], dataset.splits[-1]
    splits = f"{first} to {last}" if len(dataset.splits) > 4 else ", ".join(dataset.splits)
    numbers = (f"{value:,g}" if value else "" for value in (dataset.hours, dataset.gigabytes))
    title = dataset.title if "," in dataset.url else f"[{dataset.title}]({dataset.url})"
    cells = (
        f"`{dataset.name}`",
        title,
        f"{dataset.clips:,}" if dataset.clips else "",
        *numbers,
        splits,
        dataset.licence,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
    sys.exit(0)
