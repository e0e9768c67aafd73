"""docs/datasets.md lists the sets of the registry."""

import importlib

from alm_jax.data.sets.registry import SETS


def test_the_committed_table(repo):
    tool = importlib.import_module("datasets_page")
    text = (repo / "docs" / "datasets.md").read_text()
    assert text == tool.page(text), "run python tools/datasets_page.py"
    assert all(f"\n| `{name}` | " in text for name in SETS)
