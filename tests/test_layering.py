"""The shape of the code: imports run one way, heavy ones stay where they belong, files stay short and documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

# Besides itself and core, which every package may import.
MAY_IMPORT = {
    "core": set(),
    "kernels": set(),
    "layers": {"kernels"},
    "audio": {"kernels"},
    "vision": set(),
    "models": {"kernels", "layers", "audio", "vision"},
    "convert": {"models"},
    "data": {"audio"},
    "train": {"models", "data", "convert"},
    "infer": {"audio", "vision", "models", "data", "convert"},
    "eval": {"audio", "infer", "data"},
    "api": {"models", "convert", "data", "train", "infer"},
    "cli": {"kernels", "layers", "audio", "models", "convert", "data", "train", "infer", "eval", "api"},
}
TORCH = {"torch", "transformers"}
MAX_LINES = 500


@dataclass(frozen=True)
class Import:
    """One imported module: where, which, and whether it is imported when the file is."""

    file: Path
    line: int
    module: str
    in_function: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(REPO)}:{self.line} imports {self.module}"


def python_files(*roots: str) -> list[Path]:
    return sorted(path for root in roots for path in (REPO / root).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def package_of(path: Path) -> str:
    """`alm_jax/train/loop.py` -> `train`; files directly in `alm_jax` -> their own name."""
    return path.relative_to(REPO / "alm_jax").parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> tuple[Import, ...]:
    return tuple(_walk(path, tree(path), in_function=False, for_types=False))


def _walk(path: Path, node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        names: list[str] = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}:{child.lineno} uses a relative import"
            # `from alm_jax import train` imports a module too.
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        for name in names:
            yield Import(path, child.lineno, name, in_function, for_types)
        inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typed = for_types or (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"))
        yield from _walk(path, child, inside, typed)


def test_imports_run_one_way():
    wrong = []
    for path in python_files("alm_jax"):
        package = package_of(path)
        if package in ("__init__", "__main__"):
            continue
        assert package in MAY_IMPORT, f"alm_jax/{package} is not in the table of layers"
        for found in imports(path):
            parts = found.module.split(".")
            if parts[0] == "alm_jax" and parts[1] not in {package, "core", "__version__"} | MAY_IMPORT[package]:
                wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def within(path: Path, *folders: str) -> bool:
    return any(path.is_relative_to(REPO / folder) for folder in folders)


def test_nothing_imports_the_command_line():
    files = [path for path in python_files("alm_jax", "configs", "tools") if not within(path, "alm_jax/cli")]
    wrong = [str(i) for path in files for i in imports(path) if i.module.startswith("alm_jax.cli")]
    assert wrong == ["alm_jax/__main__.py:5 imports alm_jax.cli.main.main"]


def test_the_package_itself_imports_nothing_until_it_is_used():
    eager = [i.module for i in imports(REPO / "alm_jax" / "__init__.py") if not (i.in_function or i.for_types)]
    assert eager == ["__future__.annotations", "typing.TYPE_CHECKING", "typing.Any"]


def test_torch_and_transformers_are_imported_inside_functions_of_convert_and_tools():
    wrong = [
        str(found)
        for path in python_files("alm_jax", "configs", "tools")
        for found in imports(path)
        if found.module.split(".")[0] in TORCH and not found.for_types
        if not (found.in_function and within(path, "alm_jax/convert", "tools"))
    ]
    assert not wrong, "\n".join(wrong)


def test_only_public_modules_of_other_libraries():
    def private(module: str) -> bool:
        return any(re.match(r"_[^_]", part) for part in module.split("."))

    wrong = [
        str(found)
        for path in python_files("alm_jax", "configs", "launch", "tools", "tests")
        for found in imports(path)
        if not found.module.startswith(("alm_jax.", "tests.")) and private(found.module)
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short():
    sizes = {path: len(path.read_text().splitlines()) for path in python_files("alm_jax", "configs", "launch", "tools")}
    assert not {str(path.relative_to(REPO)): size for path, size in sizes.items() if size > MAX_LINES}


def test_public_names_are_documented():
    missing = []
    for path in python_files("alm_jax", "launch", "tools"):
        where = path.relative_to(REPO)
        if tree(path).body and not ast.get_docstring(tree(path)):
            missing.append(f"{where}: module")
        for node in tree(path).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{where}:{node.lineno} {node.name}")
    assert not missing, "\n".join(missing)


def test_no_paths_of_one_machine():
    folders = "|".join(("work", "root", "home/[a-z]+", "mnt", "tmp/[a-z_]+"))
    pattern = re.compile(rf"""(^|[\s"'`=(:])/({folders})/""")
    texts = [
        *python_files("alm_jax", "configs", "launch", "tools", "tests"),
        REPO / ".ci" / "run",
        REPO / "pyproject.toml",
    ]
    texts += sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])
    wrong = [
        f"{path.relative_to(REPO)}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("import torch", [("torch", False, False)]),
        ("def f():\n    from torch import nn", [("torch.nn", True, False)]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", [("torch", False, True)]),
        ("try:\n    import torch.nn\nexcept ImportError:\n    raise", [("torch.nn", False, False)]),
        ("class A:\n    import torch", [("torch", False, False)]),
    ],
)
def test_the_reader_of_imports(text, want):
    found = [i for i in _walk(REPO / "x.py", ast.parse(text), False, False) if "torch" in i.module]
    assert [(i.module, i.in_function, i.for_types) for i in found] == want
