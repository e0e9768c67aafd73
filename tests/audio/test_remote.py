"""Shards at a URL, of which only what is asked for is fetched."""

import http.server
import threading
from functools import partial

import fsspec
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from fsspec.implementations.memory import MemoryFileSystem

from alm_jax.audio.io import load_audio
from alm_jax.audio.records import WRITER_OPTIONS, encode_example, record_path
from alm_jax.audio.remote import FETCHED_FROM, Ranges
from alm_jax.core.errors import AudioError

NAME = "set-train.array_record-00000-of-00001"
BLOCK = 1 << 16
# within a block, as long as one and over several; the 40 headers end anywhere
SIZES = [1, 7, 300, BLOCK // 2 - 30, BLOCK // 2, 3 * BLOCK, 20, *range(9000, 9033)]


def write(path, sizes, options=WRITER_OPTIONS):
    """A shard of random clips of so many samples; these."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(-32768, 32768, n).astype("<i2") for n in sizes]
    writer = ArrayRecordWriter(str(path), options)
    for i, samples in enumerate(clips):
        writer.write(encode_example({"audio": samples.tobytes(), "id": str(i), "rate": 16000}))
    writer.close()
    return clips


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / NAME
    return path, write(path, SIZES)


@pytest.fixture
def asked(monkeypatch):
    """(start, end) of all that is read of files in memory."""
    ranges = []
    whole = MemoryFileSystem.cat_file

    def cat_file(self, path, start=None, end=None, **kwargs):
        ranges.append((start, end))
        return whole(self, path, start=start, end=end, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    yield ranges
    MemoryFileSystem.store.clear()


def stands_for(folder, url):
    folder.mkdir(exist_ok=True)
    (folder / FETCHED_FROM).write_text(url)
    return folder / NAME


def heard(path, number):
    samples, rate = load_audio(record_path(path, number, str(number)))
    assert rate == 16000
    return samples * 32768


def test_records_come_by_range(shard, asked, tmp_path):
    source, clips = shard
    fsspec.filesystem("memory").pipe_file("/bucket/set/" + NAME, source.read_bytes())
    path = stands_for(tmp_path / "a", "memory://bucket/set")
    order = np.random.default_rng(1).permutation(len(SIZES)).tolist()
    for n, number in enumerate(order):
        np.testing.assert_array_equal(heard(path, number), clips[number])
        assert len(asked) == n + 2  # the index, and one request a clip
    assert asked[0] == (source.stat().st_size - 2 * BLOCK, source.stat().st_size)
    for number, (start, end) in zip(order, asked[1:]):
        # a record's bytes and some 100 around them, a header of 24 bytes a block, and the last one's padding
        bytes_of = 2 * SIZES[number]
        padding = BLOCK if number == len(SIZES) - 1 else 0
        assert bytes_of < end - start < (bytes_of + 200) * (1 + 24 / BLOCK) + 48 + padding
    for number in order:
        np.testing.assert_array_equal(heard(path, number), clips[number])
    assert len(asked) == len(SIZES) + 1  # nothing again
    assert path.read_bytes()[64:] == source.read_bytes()[64:]  # all but the signature, which nothing reads
    assert [each.name for each in path.parent.iterdir() if ".partial" in each.name] == []


def test_what_was_fetched_stays_and_what_was_broken_off_comes_again(shard, asked, tmp_path):
    source, clips = shard
    fsspec.filesystem("memory").pipe_file("/bucket/" + NAME, source.read_bytes())
    path = stands_for(tmp_path / "a", "memory://bucket")
    for number in (3, 8):
        heard(path, number)
    starts = Ranges.of(path).starts
    with path.open("r+b") as file:  # as a process leaves it that is killed before a record's first bytes are written
        file.seek(starts[8])
        file.write(bytes(8))
    del asked[:]
    np.testing.assert_array_equal(heard(path, 8), clips[8])
    np.testing.assert_array_equal(heard(path, 3), clips[3])
    assert asked == [(starts[8], starts[9])]

    with path.open("r+b") as file:
        file.seek(starts[3] + 1000)
        file.write(b"damaged")
    with pytest.raises(AudioError, match="cannot read record 3"):  # the reader checks hashes
        heard(path, 3)
    np.testing.assert_array_equal(heard(path, 8), clips[8])  # and goes on


def test_what_cannot_be_had(shard, asked, tmp_path):
    source, _ = shard
    memory = fsspec.filesystem("memory")
    path = stands_for(tmp_path / "a", "memory://bucket")
    with pytest.raises(AudioError, match=rf"memory://bucket/{NAME}: cannot be fetched \(FileNotFoundError"):
        heard(path, 0)
    memory.pipe_file("/bucket/" + NAME, source.read_bytes())
    heard(path, 0)
    memory.pipe_file("/bucket/" + NAME, source.read_bytes()[:1000])
    with pytest.raises(AudioError, match=r"cannot be fetched .*of the .* bytes from"):
        heard(path, 20)
    with pytest.raises(AudioError, match="cannot read record 40"):
        heard(path, len(SIZES))

    write(tmp_path / "b", [100], "group_size:1,zstd")
    memory.pipe_file("/other/" + NAME, (tmp_path / "b").read_bytes())
    with pytest.raises(AudioError, match=r"cannot be fetched .*not an uncompressed chunk"):
        heard(stands_for(tmp_path / "c", "memory://other"), 0)


def test_an_index_longer_than_the_first_guess(asked, tmp_path):
    clips = write(tmp_path / "many", [1] * 12000)
    fsspec.filesystem("memory").pipe_file("/bucket/" + NAME, (tmp_path / "many").read_bytes())
    path = stands_for(tmp_path / "a", "memory://bucket")
    np.testing.assert_array_equal(heard(path, 11999), clips[11999])
    np.testing.assert_array_equal(heard(path, 5000), clips[5000])


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file by ranges."""

    def __init__(self, data, sent, *args):
        self.data, self.sent = data, sent
        super().__init__(*args)

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self):
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = self.data[int(first) : int(last) + 1]
        self.sent.append(len(part))
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args):
        pass


def test_over_http(shard, asked, tmp_path):
    pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")
    source, clips = shard
    data, sent = source.read_bytes(), []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, data, sent))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        path = stands_for(tmp_path / "a", f"http://127.0.0.1:{server.server_port}/set")
        for number in (5, 20):
            np.testing.assert_array_equal(heard(path, number), clips[number])
        assert len(sent) == 3 and sum(sent) < 2 * BLOCK + 2 * (SIZES[5] + SIZES[20]) + 1000 < len(data)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
