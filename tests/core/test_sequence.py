"""Padding and indexing of batches."""

import numpy as np
import pytest

from alm_jax.core.sequence import Row, collate


def _row(n, clips=()):
    values = np.arange(n) + 10
    nothing = np.full(n, -1)
    return Row(values, nothing, nothing, values + 1, np.ones(n), np.ones(n, bool), clips)


@pytest.mark.parametrize("pad", ["right", "left"])
def test_pads_are_seen_by_nobody_and_never_learnt(pad):
    batch = collate([_row(3, (0,)), _row(5)], 6, slots=2, pad=pad)
    real = batch.kv_segment_ids == 1
    assert real.sum(1).tolist() == [3, 5]
    assert (batch.q_segment_ids == batch.kv_segment_ids).all()
    assert (batch.loss_weight[~real] == 0).all() and not batch.penalty_mask[~real].any()
    assert (batch.audio_index[~real] == -1).all()
    assert batch.audio_clip.tolist() == [[0, -1], [-1, -1]]


def test_positions_count_true_tokens():
    batch = collate([_row(3)], 5, slots=0, pad="left")
    assert batch.positions.tolist() == [[0, 0, 0, 1, 2]]
    assert batch.tokens.tolist() == [[0, 0, 10, 11, 12]]
    assert batch.audio_clip is None


def test_rows_of_a_batch():
    batch = collate([_row(3), _row(2)], 4, slots=1)[1:]
    assert batch.shape == (1, 4) and batch.tokens[0, :2].tolist() == [10, 11] and batch.audio is None


def test_a_row_that_is_too_long():
    with pytest.raises(ValueError, match="7 positions in a batch of 6"):
        collate([_row(7)], 6, slots=0)
