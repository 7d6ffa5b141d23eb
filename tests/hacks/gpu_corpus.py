"""Hostile kernels that need a GPU, and the verdict that each must get; their sources lie in `gpu`."""

from __future__ import annotations

from dataclasses import dataclass

from harness.verdicts import Verdict

LIBRARY = frozenset({Verdict.LIBRARY_DISPATCH})
WRONG = frozenset({Verdict.WRONG_NUMERICS})
CHEAT = frozenset({Verdict.INTEGRITY})
OK = frozenset({Verdict.OK})
UNTOLD = frozenset({Verdict.INFRA, Verdict.INTEGRITY})  # launches may explain it: no number; or caught
CLOCK = UNTOLD | {Verdict.OK}  # or measured by what the records hold
UNREADY = OK | CHEAT | {Verdict.CRASH}  # PyTorch refuses to read an event that has not happened


@dataclass(frozen=True)
class GpuHack:
    """One hostile kernel: its language, what it tries, what must become of it, and what stops it."""

    name: str
    backend: str
    attack: str
    verdict: frozenset[Verdict]
    stopped_by: str
    evidence: str = ""
    needs: str = ""  # a package without which it is left out


RECORDS = "names in the kernel records"
GPU_CORPUS = (
    GpuHack("calls_sdpa_flash", "torch", "PyTorch's flash attention", LIBRARY, RECORDS, "flash-attention"),
    GpuHack("calls_cudnn", "torch", "cuDNN", LIBRARY, RECORDS, "cuDNN"),
    GpuHack("calls_flash_attn_4", "torch", "the flash-attn package", LIBRARY, RECORDS, "flash-att", "flash_attn"),
    GpuHack("calls_flex", "torch", "a compiled flex_attention", LIBRARY, RECORDS, "Flex"),
    GpuHack("falls_back_to_torch", "triton", "try, except: PyTorch", LIBRARY, RECORDS, "the work is done by"),
    GpuHack("decoy_beside_cudnn", "triton", "a decoy beside library work", LIBRARY, RECORDS, "cuDNN"),
    GpuHack("accumulates_in_half", "triton", "16-bit accumulation", WRONG, "2049 keys among the hidden shapes", "inputs: "),
    GpuHack("keeps_answers_when_captured", "triton", "replays that only copy", CHEAT, "swapped contents", "timed"),
    GpuHack("counts_on_the_device", "triton", "warm-up detection on the device", CHEAT, "poisoned outputs", "timed"),
    GpuHack("keeps_answers_by_content", "triton", "a cache by fingerprint", CHEAT, "inputs that change", "timed"),
    GpuHack("graph_over_stale_inputs", "triton", "a graph over stale inputs", WRONG, "fresh inputs", "inputs: "),
    GpuHack("works_on_a_side_stream", "triton", "an unjoined stream", CLOCK, "records of the whole device"),
    GpuHack("works_in_the_next_flush", "triton", "work in the next flush", CLOCK, "records, the judge's clock"),
    GpuHack("patches_events", "triton", "patched Event.elapsed_time", OK, "kernel records"),
    GpuHack("patches_events_and_records", "triton", "patched events, no records", CHEAT, "the judge's clock", "the judge saw"),
    GpuHack("patches_synchronize", "triton", "patched synchronize", UNREADY, "outputs read at once"),
    GpuHack("patches_everything", "triton", "events, records, synchronize", CHEAT, "the judge's clock", "judge saw|was wrong|went on"),
    GpuHack("patches_everything_uncaptured", "triton", "the same, and no graph can hold it", UNTOLD, "the judge's clock", "judge saw|was wrong|went on"),
    GpuHack("persists_in_the_cache", "triton", "a persisting L2 window", OK, "the reset before each call"),
    GpuHack("returns_freed_memory", "triton", "freed memory of a right result", WRONG, "fresh inputs", "inputs: "),
    GpuHack("scans_the_device", "torch", "a scan of device memory", WRONG, "the answer is not there", "inputs: "),
    GpuHack("races", "triton", "a race", WRONG | {Verdict.NON_DETERMINISTIC}, "repeats, the oracle"),
    GpuHack("writes_past_the_end", "triton", "a write out of bounds", frozenset({Verdict.OUT_OF_BOUNDS}), "guards", "outside"),
    GpuHack("mutates_inputs", "triton", "changed inputs", CHEAT, "the judge's copy", "changed its inputs"),
)  # fmt: skip
# Faults: what a kernel can do to a GPU by mistake.
FAULTS = {
    "illegal_address": frozenset({Verdict.CRASH}),
    "misaligned": frozenset({Verdict.CRASH}),
    "device_assert": frozenset({Verdict.CRASH}),
    "loops_on_the_gpu": frozenset({Verdict.TIMEOUT}),
    "fills_the_device": frozenset({Verdict.CRASH}),
}
