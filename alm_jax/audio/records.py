"""Clips as records: `tf.train.Example`s in ArrayRecord files, audio as int16 samples beside their rate.

They are what TFDS reads and writes (`tfds.features`, audio with `Encoding.BYTES`). Our own coding does without
TensorFlow and TFDS, whose import takes seconds in each worker, and writes the same bytes for the same clip: TFDS leaves
the order of an example's fields to a hash that differs from process to process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.audio.remote import Ranges
from alm_jax.core.errors import AudioError

WRITER_OPTIONS = "group_size:1,uncompressed"  # a record is read alone, and stands in the file as it is
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access
_PLACE = re.compile(r"(?P<shard>.*\.array_record-\d{5,}-of-\d{5,})#(?P<number>\d+)/(?P<id>.*)", re.DOTALL)
_OPEN_SHARDS = 256  # a process's open files


def record_path(shard: str | Path, number: int, clip_id: str) -> Path:
    """The path by which a clip in a shard is heard (`io.load_audio`): `SHARD#NUMBER/ID`."""
    return Path(f"{shard}#{number}/{clip_id}")


def record_place(path: str | Path) -> tuple[str, int, str] | None:
    """(shard, number, id) of a path that `record_path` gave; None for any other."""
    found = _PLACE.fullmatch(str(path))
    return None if found is None else (found["shard"], int(found["number"]), found["id"])


def read_record(shard: str, number: int) -> dict[str, list[Any]]:
    """The fields of one record.

    Raises:
        AudioError: no such shard or record, or it is damaged.
    """
    try:
        reader, ranges = _reader(shard)
        if ranges is not None:
            ranges.fetch(number)
        return decode_example(reader.read([number])[0])
    except AudioError:
        raise
    except Exception as error:  # ArrayRecord raises bare errors on missing and broken files
        reason = (str(error) or repr(error)).splitlines()[0][:200]
        raise AudioError(
            f"{shard}: cannot read record {number} ({reason}): prepare the set again, what is whole is kept"
        ) from None


def record_audio(shard: str, number: int, clip_id: str) -> tuple[np.ndarray, int]:
    """int16 samples [n] of a clip and their rate.

    Raises:
        AudioError: as `read_record`; or another clip stands there.
    """
    fields = read_record(shard, number)
    if fields["id"] != [clip_id.encode()]:
        raise AudioError(
            f"{shard}: record {number} is not {clip_id}: the set was prepared anew, delete rows that were made from it"
        )
    return np.frombuffer(fields["audio"][0], np.dtype("<i2")), fields["rate"][0]


def encode_example(fields: Mapping[str, bytes | str | int | Sequence[str]]) -> bytes:
    """A `tf.train.Example`, the same bytes for the same fields; texts become UTF-8."""
    example = _example_class()()
    for name, value in fields.items():
        feature = example.features.feature[name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            values: Iterable[str | bytes] = (value,) if isinstance(value, str | bytes) else value
            feature.bytes_list.value.extend(v.encode() if isinstance(v, str) else v for v in values)
            feature.bytes_list.SetInParent()  # an empty list is one too
    return example.SerializeToString(deterministic=True)


def decode_example(data: bytes) -> dict[str, list[Any]]:
    """The fields of a `tf.train.Example`: lists of bytes, floats or integers."""
    features = _example_class().FromString(data).features.feature
    return {
        name: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else []
        for name, feature in features.items()
    }


@lru_cache(_OPEN_SHARDS)
def _reader(shard: str) -> tuple[Any, Ranges | None]:
    """ArrayRecord's reader of a shard, and what fetches its records if it lies elsewhere."""
    from array_record.python.array_record_module import ArrayRecordReader

    ranges = Ranges.of(Path(shard))
    return ArrayRecordReader(shard, _READER_OPTIONS), ranges


@cache
def _example_class() -> Any:
    """The message of tensorflow/core/example/{example,feature}.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="alm_jax/example.proto", package="alm_jax", syntax="proto3")

    def message(name: str) -> descriptor_pb2.DescriptorProto:
        return file.message_type.add(name=name)

    def field(of: Any, name: str, number: int, kind: int | str, repeated: bool = False, **more: Any) -> None:
        kind = (
            {"type": kinds.TYPE_MESSAGE, "type_name": f".alm_jax.{kind}"} if isinstance(kind, str) else {"type": kind}
        )
        label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        of.field.add(name=name, number=number, label=label, **kind, **more)

    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, kind in enumerate((kinds.TYPE_BYTES, kinds.TYPE_FLOAT, kinds.TYPE_INT64), start=1):
        name = ("Bytes", "Float", "Int64")[number - 1]
        field(message(f"{name}List"), "value", 1, kind, repeated=True)
        field(feature, f"{name.lower()}_list", number, f"{name}List", oneof_index=0)
    features = message("Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    field(entry, "key", 1, kinds.TYPE_STRING)
    field(entry, "value", 2, "Feature")
    field(features, "feature", 1, "Features.FeatureEntry", repeated=True)
    field(message("Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("alm_jax.Example"))
