"""A loop is cut in two where a branch of it turns: the same rounds in the same order, without the branch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.tl import ir
from harness.tl.interpret import interpret
from harness.tl.lower.cut import cut
from harness.tl.lower.facts import may_rescale_rarely
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.gluon_choices import default_choice
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from tasks import find
from tasks.oracle import expected
from tests.tl.gluon_emulator import Device
from tests.tl.test_gluon import SHAPES, emulated, growing
from tests.tl.triton_trial import TOLERANCE, inputs, shape, text_of

MASK = "    Compute Mask S where k <= q + seq_k - seq_q\n"
FULL = "max(0, i * BM + seq_k - seq_q + 1) // BN"
CONDITIONS = (f"j >= {FULL}", "(j + 1) * BN > i * BM + seq_k - seq_q")  # the models' two forms
EARLY = (f"j >= {FULL} - 1", f"j >= {FULL} // 2")  # a mask before any is needed, which nothing proves
TILES = {"BM": 64, "BN": 16}


def causal(lines: str) -> ir.Program:
    """The causal program with other lines where it masks."""
    text = text_of("reference", "mha_causal")
    assert MASK in text
    return resolve(parse(text.replace(MASK, lines)), find("mha_causal"))


def behind(condition: str, otherwise: str = "") -> str:
    other = f"    else\n    {otherwise}" if otherwise else ""
    return f"    if {condition}\n    {MASK}{other}    end\n"


def late() -> ir.Program:
    """Full attention whose loop is cut at the third round by a mask that leaves all in."""
    text = text_of("reference", "mha")
    scaled = "    Compute Multiply S, scale and get new S\n"
    assert scaled in text
    masked = f"{scaled}    if j >= 3\n        Compute Mask S where k >= 3\n    end\n"
    return resolve(parse(text.replace(scaled, masked)), find("mha"))


def loops(program: ir.Program) -> list[ir.For]:
    return [n for n in program.kernels[0].body if isinstance(n, ir.For)]


def after(program: ir.Program) -> ir.Program:
    return replace(program, kernels=tuple(cut(k) for k in program.kernels))


def results(program: ir.Program, seqs: tuple[int, int]) -> torch.Tensor:
    task = find("mha_causal")
    w = shape(task, *seqs, "fp32")
    return interpret(program, task, w, inputs(task, w), TILES).outputs["out"]


SIDES = st.sampled_from(["<", "<=", ">", ">="])
BOUNDS = st.sampled_from(["0", "3", FULL, "i + 1", "ceil(seq_k / BN) - 2", "min(i, 4)", "0 - 2", "90"])
COUNTED = st.sampled_from(["j", "(j + 1) * BN", "2 * j", "j * BN - seq_q", "7 - j"])


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(st.tuples(COUNTED, SIDES, BOUNDS), min_size=1, max_size=2),
    turned=st.booleans(),
    otherwise=st.booleans(),
    seqs=st.sampled_from([(70, 130), (64, 64), (130, 70)]),
)
def test_the_pieces_compute_bit_for_bit_what_the_loop_did(
    parts: list[tuple[str, str, str]], turned: bool, otherwise: bool, seqs: tuple[int, int]
) -> None:
    condition = " and ".join(f"{b} {s} {a}" if turned else f"{a} {s} {b}" for a, s, b in parts)
    scaled = "    Compute Multiply S, 0.5 and get new S\n" if otherwise else ""
    whole = causal(behind(condition, scaled))
    pieces = after(whole)
    assert len(loops(pieces)) > 1, condition
    assert not any(isinstance(n, ir.If) for loop in loops(pieces) for n in loop.body)
    assert torch.equal(results(whole, seqs), results(pieces, seqs)), condition


@pytest.mark.parametrize(
    "condition",
    [
        "i >= 1",  # all rounds are alike
        "j * j >= 4",  # does not turn once
        "j * (seq_k - seq_q) >= 4",  # may turn either way
        "j // 2 >= 1",  # does, but that takes more than a division
        "j >= 2 or i >= 1",
    ],
)
def test_what_does_not_turn_once_stays(condition: str) -> None:
    whole = causal(behind(condition))
    assert after(whole) == whole


def test_a_condition_of_which_a_part_turns_keeps_the_rest() -> None:
    pieces = after(causal(behind("j >= 2 and i >= 1")))
    first, second = loops(pieces)
    assert not any(isinstance(n, ir.If) for n in first.body)
    (left,) = (n for n in second.body if isinstance(n, ir.If))
    assert left.cond == ir.Op("ge", (ir.Sym("i"), ir.Const(1)))


def test_branches_that_turn_at_different_rounds_cut_more_than_once() -> None:
    pieces = after(causal(behind("j >= 4") + behind("j < 2")))
    masks = [sum(isinstance(n, ir.Mask) for n in loop.body) for loop in loops(pieces)]
    assert masks == [1, 0, 2, 1]  # the third has no round
    assert torch.equal(
        results(pieces, (70, 130)), results(causal(behind("j >= 4") + behind("j < 2")), (70, 130))
    )


@pytest.mark.parametrize("condition", EARLY)
def test_products_run_ahead_in_each_part_of_a_loop_that_was_cut(condition: str) -> None:
    """As in a loop of its own; without the cut none did."""
    task, prog = find("mha_causal"), causal(behind(condition))
    source = lower_gluon(prog, task).files["attention.py"]
    lone = lower_gluon(causal(""), task).files["attention.py"]
    assert source.count("if OVERLAP:") == 2 * lone.count("if OVERLAP:") > 0
    gaps = emulated(task, prog, {"consumers": 2, "BN": 64}, SHAPES)
    assert max(gaps) < TOLERANCE["fp16"], gaps


def test_a_mutated_condition_gives_an_equally_mutated_kernel() -> None:
    """A round too late: what the mask leaves out there is left in, by the kernel as by the interpreter."""
    task = find("mha_causal")
    wrong = causal(behind(f"j >= {FULL} + 1"))
    assert not torch.allclose(results(wrong, (130, 203)), results(causal(MASK), (130, 203)), atol=1e-3)
    gaps = emulated(task, wrong, {"consumers": 2, "BM": 128, "BN": 64}, SHAPES[:1])
    assert max(gaps) < TOLERANCE["fp16"], gaps


@pytest.mark.parametrize("rescale", [0, 1, 2])
@pytest.mark.parametrize("step", [-0.4, 0.05, 0.4, 3.0])
def test_what_threads_hold_of_a_softmax_goes_from_loop_to_loop(rescale: int, step: float) -> None:
    """Maxima that keep growing, in both loops and from one to the next, or that the first loop has found."""
    task, prog = find("mha"), late()
    choice = {"consumers": 2, "BN": 64, "overlap": 1, "rescale": rescale}
    source = lower_gluon(prog, task, choice=choice).files["attention.py"]
    assert ("for_threads(" in source) == (rescale > 0)
    w = shape(task, 128, 512, "fp16")
    given = growing(task, w, step)
    out = torch.full(task.outputs[0].shape(w), float("nan"), dtype=w.torch_dtype)
    Device().module(source).attention(**given, out=out, **task.scalars(w))
    wanted = expected(task, w, given, torch.float64)["out"]
    assert (out.double() - wanted.double()).abs().max() < TOLERANCE["fp16"]


def test_by_default_a_softmax_that_goes_on_rescales_every_round_at_small_head_dimensions() -> None:
    """As is faster there on an H200; one that a loop has to itself, or a larger dimension, rescales rarely."""
    apart, whole = causal(behind(EARLY[0])), causal(MASK)
    found = {dim: [default_choice(p, dim, 4096)["rescale"] for p in (apart, whole)] for dim in (64, 128)}
    assert found == {64: [0, 2], 128: [2, 2]}


def test_a_maximum_that_others_read_is_the_greatest_there_is() -> None:
    """A program that adds the maximum to something has it rescale every round."""
    text = text_of("reference", "mha")
    divide = "Compute Divide O, l and get new O\n"
    assert divide in text
    task = find("mha")
    read = resolve(parse(text.replace(divide, f"Compute Add l, m and get new l\n{divide}")), task)
    assert may_rescale_rarely(resolve(parse(text), task))
    assert not may_rescale_rarely(read)
