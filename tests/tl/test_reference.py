"""Claims about the reference programs: the interpreter says what the oracle says, for every core task, style and
tile choice; the numba compiler says what the interpreter says.

Numba compiles for seconds, so a few tasks and tile choices stand for all here; test_numba.py has more.
ATTNBENCH_WHOLE_TILE_SET=1 takes every task with every tile choice (minutes).
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch

from harness.tl.corpus_index import corpus
from harness.tl.interpret import interpret
from harness.tl.lower.numba import lower_numba
from tasks.oracle import expected
from tests.tl.triton_trial import difference, inputs, load, program, program_of, shape

TASKS = ("mha", "mha_causal", "gqa_causal", "mqa_causal", "mla_prefill", "sliding_window", "softcap", "cross")
TILES = tuple(itertools.product((64, 128), (32, 64, 128)))
SEQS = ((128, 128), (129, 200), (150, 61))
WHOLE = os.environ.get("ATTNBENCH_WHOLE_TILE_SET") == "1"


@pytest.fixture(autouse=True)
def _one_thread():
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


@pytest.mark.parametrize("style", ["reference", "primitive"])
@pytest.mark.parametrize("name", TASKS)
def test_the_interpreter_agrees_with_the_oracle_for_every_tile_choice(name, style):
    task, prog = program(style, name)
    assert set(itertools.product(*dict(prog.parameters).values())) == set(TILES)
    for seqs, (bm, bn) in itertools.product(SEQS, TILES):
        w = shape(task, *seqs, "fp32", heads=4)
        given = inputs(task, w)
        out = interpret(prog, task, w, given, {"BM": bm, "BN": bn}).outputs["out"]
        gap = (out.double() - expected(task, w, given)["out"].double()).abs().max().item()
        assert gap < 2e-5, (seqs, bm, bn)


@pytest.mark.parametrize("entry", corpus("lenient"), ids=lambda e: e.name)
def test_programs_as_models_write_them_compute_their_task(entry):
    task, prog = program_of(entry)
    for seqs in SEQS:
        w = shape(task, *seqs, "fp32")
        given = inputs(task, w)
        out = interpret(prog, task, w, given).outputs["out"]
        assert (out.double() - expected(task, w, given)["out"].double()).abs().max() < 2e-5


def numba_cases() -> list[tuple[str, tuple[int, int]]]:
    if WHOLE:
        return list(itertools.product(TASKS, TILES))
    return [("gqa_causal", (64, 32)), ("sliding_window", (128, 64)), ("softcap", (64, 128))]


@pytest.mark.parametrize("name,tiles", numba_cases(), ids=str)
def test_numba_agrees_with_the_interpreter(name, tiles, tmp_path: Path):
    task, prog = program("reference", name)
    choice = {"BM": tiles[0], "BN": tiles[1]}
    module = load(lower_numba(prog, task, choice), tmp_path)
    for seqs in SEQS:
        assert difference(module, task, prog, shape(task, *seqs, "fp32", heads=4), choice, "cpu") < 2e-5
