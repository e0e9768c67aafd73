"""docs/datasets.md lists the sets of the registry."""

import importlib.util

from alm_jax.data.sets.registry import SETS


def test_the_committed_table(repo):
    spec = importlib.util.spec_from_file_location("datasets_page", repo / "tools" / "datasets_page.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = (repo / "docs" / "datasets.md").read_text()
    assert text == tool.page(text), "run python tools/datasets_page.py"
    assert all(f"\n| `{name}` | " in text for name in SETS)
