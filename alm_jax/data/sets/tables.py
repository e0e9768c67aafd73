"""Tables as they come: CSV and JSON of any encoding, with what is wrong in them named and left out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any

from alm_jax.data.sets.base import Report
from alm_jax.data.sets.files import Files

Row = dict[str, str]


def read_csv(
    files: Files,
    place: str,
    report: Report,
    columns: Sequence[str],
    *,
    header: Sequence[str] | None = None,
    delimiter: str = ",",
    comment: str = "",
) -> Iterator[tuple[str, Row]]:
    """The rows of a CSV, each with where it stands (`meta/esc50.csv:7`), cells stripped.

    Args:
        place: in `files`.
        columns: those that are needed; a row in which one is empty is reported and left out, and so is a table that
            lacks one.
        header: names of its columns, where the file has no line of them.
        comment: what lines start with that are no rows.
    """
    text = decode(files.read(place), place, report)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    names = [] if header is None else list(header)
    while True:
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            break
        except csv.Error as error:
            report.add("broken row", f"{place}:{reader.line_num}", str(error))
            continue
        if not any(cells) or (comment and cells[0].startswith(comment)):
            continue
        if not names:
            names = cells
            if missing := [column for column in columns if column not in names]:
                report.add("missing column", place, f"no {', '.join(missing)}; it has {', '.join(names)}")
                return
            continue
        where = f"{place}:{reader.line_num}"
        row = dict(zip(names, cells))
        if empty := [column for column in columns if not row.get(column)]:
            report.add("broken row", where, f"no {', '.join(empty)}")
        elif len(cells) > len(names):
            report.add("broken row", where, f"{len(cells)} cells, expected {len(names)}")
        else:
            yield where, row


def read_json(files: Files, place: str, report: Report, under: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON array or of JSON lines, each with where it stands.

    Args:
        under: the field of the outermost object that holds the array.
    """
    text = decode(files.read(place), place, report)
    try:
        held = _json_lines(text) if place.endswith(".jsonl") else json.loads(text)
        held = held[under] if under else held
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        report.add("broken table", place, f"not the JSON that is expected ({type(error).__name__}: {error})")
        return
    if not isinstance(held, list):
        report.add("broken table", place, f"a JSON {type(held).__name__}, expected an array")
        return
    for i, item in enumerate(held):
        where = f"{place}[{i}]"
        if isinstance(item, dict):
            yield where, item
        else:
            report.add("broken row", where, f"a JSON {type(item).__name__}, expected an object")


def fields(row: dict[str, Any], names: Sequence[str], where: str, report: Report) -> list[str] | None:
    """Fields of a JSON object that have to be there, as text; None, and a line in the report, where one is not."""
    values = [row.get(name) for name in names]
    if bad := [name for name, value in zip(names, values) if not isinstance(value, str | int | float) or value == ""]:
        report.add("broken row", where, f"no {', '.join(bad)}")
        return None
    return [str(value).strip() for value in values]


def number(text: str, where: str, report: Report) -> float | None:
    """A cell's number; None, and a line in the report, where it is none."""
    try:
        return float(text)
    except ValueError:
        report.add("broken row", where, f"{text!r} is no number")
        return None


def decode(data: bytes, place: str, report: Report) -> str:
    """Text of UTF-8 or UTF-16, byte-order mark or not; of another encoding as Windows writes it, which is reported."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        report.add("encoding", place, "not UTF-8; read as Windows-1252")
        return data.decode("cp1252", errors="replace")


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]
