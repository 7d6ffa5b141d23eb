"""Masks and their pair counts agree, for every shape."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.masks import causal, causal_pairs, sliding_window, sliding_window_pairs
from tasks.spec import Workload

lengths = st.integers(1, 40)


def _shape(seq_q: int, seq_k: int, window: int = 1) -> Workload:
    return Workload("t", 1, 1, 1, seq_q, seq_k, 8, 8, parameters=(("window", window),))


def _positions(w: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(w.seq_q)[:, None], torch.arange(w.seq_k)[None, :]


@given(lengths, lengths)
@settings(deadline=None)
def test_causal_pairs_are_the_pairs_of_the_mask(seq_q: int, seq_k: int) -> None:
    w = _shape(seq_q, seq_k)
    assert causal_pairs(w) == int(causal(*_positions(w), w).sum())


@given(lengths, lengths, st.integers(1, 60))
@settings(deadline=None, max_examples=300)
def test_window_pairs_are_the_pairs_of_the_mask(seq_q: int, seq_k: int, window: int) -> None:
    w = _shape(seq_q, seq_k, window)
    assert sliding_window_pairs(w) == int(sliding_window(*_positions(w), w).sum())


def test_the_last_query_sees_every_key_and_its_own_is_the_last() -> None:
    w = _shape(3, 5)
    i, j = _positions(w)
    assert causal(i, j, w).sum(1).tolist() == [3, 4, 5]


def test_early_rows_see_nothing_with_more_queries_than_keys() -> None:
    w = _shape(5, 3)
    assert causal(*_positions(w), w).sum(1).tolist() == [0, 0, 1, 2, 3]


def test_a_window_counts_the_own_position() -> None:
    w = _shape(4, 4, 2)
    assert sliding_window(*_positions(w), w).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


@given(lengths, lengths)
@settings(deadline=None)
def test_a_window_wider_than_the_keys_is_causal(seq_q: int, seq_k: int) -> None:
    w = _shape(seq_q, seq_k, seq_k + 1)
    assert torch.equal(sliding_window(*_positions(w), w), causal(*_positions(w), w))
    assert sliding_window_pairs(w) == causal_pairs(w)
