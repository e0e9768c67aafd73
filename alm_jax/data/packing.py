"""Short rows packed into sequences, so that positions which would be padding hold text that is learnt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packs:
    """Which rows share a sequence: those of sequence i are `rows[starts[i] : starts[i + 1]]`.

    Attributes:
        rows: int32 [n], every row once.
        starts: int32 [sequences + 1].
    """

    rows: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[self.starts[index] : self.starts[index + 1]]

    def sums(self, sizes: np.ndarray) -> np.ndarray:
        """[sequences] of a size [n] of each row, summed over the rows of a sequence."""
        return np.add.reduceat(sizes[self.rows], self.starts[:-1])


def alone(n: int) -> Packs:
    """A sequence for each of n rows."""
    return Packs(np.arange(n, dtype=np.int32), np.arange(n + 1, dtype=np.int32))


def packed(lengths: np.ndarray, slots: np.ndarray, order: np.ndarray, *, length: int, max_slots: int) -> Packs:
    """Rows in sequences of at most `length` positions and `max_slots` windows: best fit, longest rows first.

    A row goes to the sequence with the least room that holds it. The rows of a sequence stay the same over epochs, so
    that every epoch has as many; they do not see each other.

    Args:
        lengths, slots: int [n] positions and windows of each row, each row within the limits or alone.
        order: a permutation of n, which says who comes first among rows of one length.
    """
    # open_with[room]: sequences with so many positions left, the latest last; `rooms` has a bit for each that is filled
    open_with: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0
    sequences: list[list[int]] = []
    windows: list[int] = []
    for row in order[np.argsort(-lengths[order], kind="stable")].tolist():
        size, heard = int(lengths[row]), int(slots[row])
        found, candidates = -1, rooms >> size << size
        while candidates:
            room = (candidates & -candidates).bit_length() - 1
            if windows[open_with[room][-1]] + heard <= max_slots:
                found = open_with[room].pop()
                rooms ^= 0 if open_with[room] else 1 << room
                break
            candidates ^= 1 << room
        if found < 0:
            found, room = len(sequences), length
            sequences.append([])
            windows.append(0)
        sequences[found].append(row)
        windows[found] += heard
        if (left := room - size) > 0 and windows[found] < max_slots:
            open_with[left].append(found)
            rooms |= 1 << left
    counts = np.fromiter(map(len, sequences), np.int32, len(sequences))
    rows = np.fromiter((row for sequence in sequences for row in sequence), np.int32, len(lengths))
    return Packs(rows, np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
