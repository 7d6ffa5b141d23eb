"""A table of a Hopper kernel is looked up by the keys that its longest loop goes over."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.tl.lower.choices import Row
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.gluon_choices import (
    LIMIT,
    LONG,
    SHORT,
    default_choice,
    default_table,
    shared_bytes,
)
from harness.tl.lower.gluon_reach import length, reaches
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from harness.tuning import looked_up_by
from harness.tuning_search import default_choices
from tasks import Workload, find
from tests.tl.gluon_emulator import Device
from tests.tl.triton_trial import program, text_of

OTHERS = ["mha", "mha_causal", "gqa_causal", "mqa_causal", "mla_prefill", "softcap", "cross"]


@cache
def module(*table: Row) -> Any:
    task, prog = program("reference", "sliding_window")
    return Device(132).module(lower_gluon(prog, task, table=table).files["attention.py"])


def window(seq_q: int, seq_k: int, keys: int, dim: int = 64) -> Workload:
    return Workload("sliding_window", 1, 4, 1, seq_q, seq_k, dim, dim, parameters=(("window", keys),))


@settings(deadline=None, max_examples=150)
@given(seq_q=st.integers(1, 700), more=st.integers(0, 700), keys=st.integers(1, 900))
def test_what_a_loop_goes_over_is_what_its_rows_see_and_no_more_than_tiles_add(seq_q, more, keys):
    _, prog = program("reference", "sliding_window")
    seq_k = seq_q + more
    seen = []
    for first in range(0, seq_q, 64):
        rows = range(first, min(first + 64, seq_q))
        seen.append(len({k for q in rows for k in range(max(0, q + more - keys + 1), q + more + 1)}))
    found = length(prog, window(seq_q, seq_k, keys))
    assert max(seen) <= found <= min(seq_k, max(seen) + 2 * 32 + 64)
    assert found == min(seq_k, module()._keys(seq_k, seq_q, keys))


def test_queries_that_see_nothing_take_no_rounds() -> None:
    _, prog = program("reference", "sliding_window")
    assert length(prog, window(64, 8, 4)) == min(64, module()._keys(8, 64, 4))
    assert all(r.keys({"seq_q": 64, "seq_k": 1, "window": 1}) >= 0 for r in reaches(prog))


@pytest.mark.parametrize("name", OTHERS)
def test_loops_that_begin_with_the_first_key_are_looked_up_by_the_longer_sequence(name: str) -> None:
    task, prog = program("reference", name)
    assert not reaches(prog)
    for w in task.workloads["models"]:
        assert length(prog, w) == looked_up_by(prog, w, "triton") == max(w.seq_q, w.seq_k)
    assert "_keys(" not in lower_gluon(prog, task).files["attention.py"]


def test_a_program_is_asked_not_its_name() -> None:
    """A band that begins with the first key has long loops; a causal program that skips far keys has short ones."""
    task, text = find("sliding_window"), text_of("reference", "sliding_window")
    whole = text.replace("max(0, i * BM + seq_k - seq_q - window + 1) // BN", "0")
    assert whole != text
    assert not reaches(resolve(parse(whole), task))
    half = text.replace("- window + 1", "- window // 2 + 1")
    assert length(resolve(parse(half), task), window(2048, 2048, 256)) < length(
        resolve(parse(text), task), window(2048, 2048, 256)
    )


def test_a_window_takes_the_choice_for_its_own_length_by_default() -> None:
    task, prog = program("reference", "sliding_window")
    choices = default_choices(prog, task.workloads["models"])
    for w in task.workloads["models"]:
        short = w.dim == 64
        held = choices[w.key]
        assert (SHORT.items() <= held.items()) == short
        assert (LONG.items() <= held.items()) == (w.dim == 128)
        keys = min(max(w.seq_q, w.seq_k), module()._keys(w.seq_k, w.seq_q, w.params["window"]))
        taken = module()._choose(w.dim, keys, w.seq_q, w.batch * w.heads, 132)
        assert (taken.consumers, taken.BN, taken.stages) == tuple(
            held[k] for k in ("consumers", "BN", "stages")
        )
    far = window(8192, 8192, 4096)
    assert default_choices(prog, [far])[far.key]["BN"] == 128
    (row,) = (row for row in default_table(prog) if SHORT.items() <= dict(row.choice).items())
    assert (row.dim, row.seq) == (64, 0)
    assert shared_bytes(prog, dict(row.choice), 64, 64) <= LIMIT
    _, causal = program("reference", "mha_causal")
    assert not SHORT.items() <= default_choice(causal, 64, 128).items()


def test_a_found_choice_serves_the_shape_that_it_was_found_on() -> None:
    """Windows of 128 and of 4096 keys over as many keys in all are two rows of a table."""
    _, prog = program("reference", "sliding_window")
    near, far = window(8192, 8192, 128), window(8192, 8192, 4096)
    table = [
        Row.of(2, 64, looked_up_by(prog, w, "gluon"), {"consumers": 2, "BM": 128, "BN": columns})
        for w, columns in ((near, 64), (far, 128))
    ]
    assert table[0].seq < 512 < table[1].seq
    for w, columns in ((near, 64), (far, 128)):
        keys = module(*table)._keys(w.seq_k, w.seq_q, w.params["window"])
        assert columns == module(*table)._choose(64, keys, w.seq_q, 64, 132).BN
