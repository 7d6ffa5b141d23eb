"""Inputs change between calls in the same way on both sides, and an answer of before is then wrong."""

import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.verify.tolerance import expect
from harness.worker.moves import Move, draw, from_json, make, to_json
from harness.worker.protocol import layout_of
from tasks import find, oracle

sizes = st.integers(1, 40)


def layout(batch: int, seq: int, heads: int = 2, dim: int = 4):
    shape = (batch, seq, heads, dim)
    return layout_of(
        [
            ("q", shape, "fp32", "input", 4),
            ("k", shape, "fp32", "input", 4),
            ("o", shape, "fp32", "output", 4),
        ],
        1,
    )


@given(sizes, sizes, st.integers(0, 10**6))
def test_rows_trade_places_and_nothing_else_changes(batch, seq, seed):
    moves = draw(layout(batch, seq), random.Random(seed))
    assert [m.tensor for m in moves] == (["q", "k"] if batch * seq > 1 else [])
    before = torch.arange(batch * seq * 8.0).view(batch, seq, 2, 4)
    tensors = {"q": before.clone(), "k": before.clone()}
    make(tensors, moves)
    for m in moves:
        rows, was = tensors[m.tensor].view(-1, 8), before.view(-1, 8)
        expected = list(range(batch * seq))
        for n in range(m.rows):
            expected[m.first + n], expected[m.second + n] = m.second + n, m.first + n
        assert sorted(expected) == list(range(batch * seq))  # the two do not overlap
        assert torch.equal(rows, was[expected])
    make(tensors, moves)  # each undoes itself
    assert torch.equal(tensors["q"], before)


@given(st.integers(0, 10**6))
def test_both_sides_read_the_same_moves(seed):
    moves = draw(layout(2, 30), random.Random(seed))
    assert from_json(json.loads(json.dumps(to_json(moves)))) == moves


@pytest.mark.parametrize("name", ["mha", "mha_causal", "gqa_causal", "sliding_window", "mla_prefill"])
def test_an_answer_of_before_the_moves_is_wrong(name):
    task = find(name)
    w = task.workload_set("smoke")[0].with_(dtype="fp32")
    generator = torch.Generator().manual_seed(1)
    inputs = {t.name: torch.randn(t.shape(w), generator=generator, dtype=w.torch_dtype) for t in task.inputs}
    stale = oracle.plain(task, w, inputs)
    assert expect(task, w, inputs).compare(stale).passed
    tensors = [(t.name, t.shape(w), "fp32", t.role, 4) for t in task.tensors]
    moves = [m for m in draw(layout_of(tensors, 1), random.Random(2)) if m.tensor == "q"]
    assert moves == [Move("q", moves[0].first, moves[0].second, moves[0].rows)]
    make(inputs, moves)
    assert not expect(task, w, inputs).compare(stale).passed
