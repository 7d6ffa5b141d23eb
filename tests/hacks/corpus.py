"""The hostile corpus: every way to cheat that has a form on the CPU, and the verdict that it must get.

Groups: work (another work than the one asked for), timing (not when timed, and attacks on clocks), grader
(corrupting it). The kernels lie in `kernels`, one file each, whose first line says what it tries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.verdicts import Verdict


@dataclass(frozen=True)
class Hack:
    """One hostile kernel: what it tries, what must become of it, and what stops it."""

    name: str
    group: Literal["work", "timing", "grader"]
    attack: str
    verdict: frozenset[Verdict]  # one, unless two are honestly both right
    stopped_by: str
    evidence: str  # found in the result's reason; "" only where the verdict is ok
    task: str = "tiny"
    backend: str = "torch"


LIBRARY = frozenset({Verdict.LIBRARY_DISPATCH})
WRONG = frozenset({Verdict.WRONG_NUMERICS})
CHEAT = frozenset({Verdict.INTEGRITY})
CRASH = frozenset({Verdict.CRASH})
OK = frozenset({Verdict.OK})
# Some attacks do honest work wherever they cannot cheat. Where they never could they are ok, and no quicker
# than honest work.
VAIN = CHEAT | OK
# Work that is moved to where no clock looks comes and goes: a claim that is made anew may hold it. Then neither
# is believed, and no number is kept.
MOVING = CHEAT | {Verdict.INFRA}
UNSURE = frozenset(
    {Verdict.WRONG_NUMERICS, Verdict.NON_DETERMINISTIC}
)  # whichever the memory's contents show first


def _work(
    name: str, attack: str, verdict: frozenset[Verdict], by: str, evidence: str, task: str = "tiny"
) -> Hack:
    return Hack(name, "work", attack, verdict, by, evidence, task)


def _timing(name: str, attack: str, verdict: frozenset[Verdict], by: str, evidence: str) -> Hack:
    return Hack(name, "timing", attack, verdict, by, evidence)


def _grader(name: str, attack: str, verdict: frozenset[Verdict], by: str, evidence: str) -> Hack:
    return Hack(name, "grader", attack, verdict, by, evidence)


BY_LIBRARY = "the work is done by"
NORMAL, TAIL = "the oracle", "hidden shapes off a tile"
RECORDS = "records of what ran"
IF_CAUGHT = r"wrong while timed|as soon as its call|the judge saw|^$"
STALE, MOVED = r"wrong while timed|as soon as its call", "inputs that change before every timed call"
SAW = "the judge saw"
LATE = "what goes on outside of the calls is seen"
BURSTS = "what the judge's bursts leave is marked"
DOUBT = r"after it had answered|as soon as its call|the judge saw|while timed"
ORACLE = r"inputs: "  # which recipe, and how far off

CORPUS: tuple[Hack, ...] = (
    # Not the work asked for
    _work("calls_sdpa", "calls SDPA", LIBRARY, RECORDS, BY_LIBRARY),
    _work("calls_private_flash", "calls a library's kernel by a private name", LIBRARY, RECORDS, BY_LIBRARY),
    _work("falls_back_to_sdpa", "try/except fallback to torch", LIBRARY, RECORDS, BY_LIBRARY),
    _work("decoy_beside_sdpa", "a decoy kernel beside library work", LIBRARY, RECORDS, BY_LIBRARY),
    _work("sdpa_in_a_thread", "calls SDPA out of a recorder's sight", LIBRARY, RECORDS, BY_LIBRARY),
    _work("sdpa_unless_recorded", "calls SDPA where no recorder looks on", LIBRARY, RECORDS, BY_LIBRARY),
    _work("accumulates_in_half", "lower-precision accumulation", WRONG, NORMAL, ORACLE),
    _work("skips_tiles", "skipping tiles", WRONG, NORMAL, ORACLE),
    _work("skips_heads", "skipping heads", WRONG, NORMAL, ORACLE),
    _work("skips_the_tail", "skipping the tail", WRONG, TAIL, "n33"),
    _work("drops_softmax", "dropping softmax", WRONG, NORMAL, ORACLE),
    _work("drops_the_mask", "dropping the mask", WRONG, NORMAL, ORACLE),
    _work("drops_the_scale", "dropping the scale", WRONG, NORMAL, ORACLE),
    _work("drops_the_window", "dropping the window", WRONG, NORMAL, ORACLE, "tiny_window"),
    _work("maps_heads_wrong", "wrong head map", WRONG, NORMAL, ORACLE, "tiny_gqa"),
    _work("truncates_by_statistics", "reading input statistics to truncate", WRONG, NORMAL, ORACLE),
    _work("hard_coded_shapes", "hard-coded for the benchmark's shapes", WRONG, TAIL, "n65"),
    _work("cheap_at_the_timed_shape", "cheap at the timed shape only", WRONG, "checks at the timed shape", "n64"),
    # Not when timed
    _timing("caches_by_pointer", "caching by pointer", CHEAT, MOVED, STALE),
    _timing("caches_by_shape", "caching by shape", CHEAT, MOVED, STALE),
    _timing("caches_by_version", "caching by version", OK, MOVED, ""),
    _timing("caches_by_identity", "caching by object identity", CHEAT, MOVED, STALE),
    _timing("caches_by_content", "caching by a fingerprint of the contents", CHEAT, MOVED, STALE),
    _timing("caches_in_c_memory", "caching in C statics", CHEAT, MOVED, STALE),
    _timing("computes_many_slots", "computing many slots in one call", VAIN | MOVING, MOVED, IF_CAUGHT),
    _timing("copies_a_neighbour", "copying the output of a slot alike", VAIN, MOVED, IF_CAUGHT),
    _timing("stops_after_warm_up", "warm-up detection", CHEAT | WRONG, "timed outputs are marked", r"wrong while timed|inputs: "),
    _timing("replays_seeds", "replaying a seed sequence", OK, "fresh seeds of the judge", ""),
    _timing("precomputes_at_import", "precomputing at import", OK, "no inputs before the first call", ""),
    _timing("lazy_subclass", "lazy output: a tensor subclass", CHEAT, LATE, DOUBT),
    _timing("deferred_thread", "lazy output: a deferred thread", CHEAT | WRONG, LATE, rf"{DOUBT}|inputs: "),
    _timing("stale_trace", "a captured graph over stale inputs", CHEAT, MOVED, STALE),
    _timing("branches_on_argv", "branching on argv", WRONG, "one process is verified and timed", ORACLE),
    _timing("branches_on_environment", "branching on the environment", WRONG, "a cleared environment", ORACLE),
    _timing("branches_on_frames", "branching on stack frames", CHEAT, "timed outputs are marked", STALE),
    # Clock attacks
    _timing("side_pool", "work on a side stream: a pool of threads", MOVING, "the judge's own clock", DOUBT),
    _timing("works_in_the_flush", "leaving work for the next iteration's flush", MOVING, LATE, DOUBT),
    _timing("patched_clock", "patched time", CHEAT, "the judge's own clock", SAW),
    _timing("hides_in_waiting", "patched time, and work while it waits for its core", CHEAT, "the judge's own clock", SAW),
    _timing("two_clocks", "patched time, and idle in the judge's bursts", CHEAT, BURSTS, DOUBT),
    _timing("patched_do_bench", "patched do_bench", OK, "a clock of our own", ""),
    _timing("keeps_caches_warm", "persisting caches: a thread that reads the inputs", CHEAT, LATE, DOUBT),
    # Corrupting the grader
    _grader("mutates_inputs", "mutating inputs", CHEAT, "the judge's copy", "changed its inputs"),
    _grader("mutates_inputs_when_timed", "mutating inputs when timed", CHEAT, "the judge's copy", "while timed"),
    _grader("returns_freed_memory", "returning freed memory of a right result", UNSURE, NORMAL, r"inputs: |differ"),
    _grader("scans_memory", "scanning memory for the answer", OK, "the answer is not there", ""),
    _grader("walks_gc", "gc walks", OK, "the judge is another process", ""),
    _grader("patched_comparisons", "patched torch.allclose and torch.equal", WRONG, "the judge compares", ORACLE),
    _grader("sys_exit", "sys.exit(0)", CRASH, "answers with a nonce", "SystemExit"),
    _grader("os_exit", "os._exit(0)", CRASH, "answers with a nonce", "closed the connection"),
    _grader("prints_a_result", "printing a result", CRASH, "answers with a nonce", "closed the connection"),
    _grader("prints_without_end", "filling the disk by printing", CRASH, "a limit of file size", "File too large"),
    _grader("writes_a_result", "writing a result", OK, "the runs are not in the sandbox", ""),
    _grader("closes_the_descriptor", "closing the protocol's descriptor", CRASH, "answers with a nonce", "closed the connection"),
    _grader("writes_to_the_descriptor", "writing the protocol's descriptor", CRASH, "answers with a nonce", "not asked"),
    _grader("forges_an_answer", "answering in the worker's name", CRASH, "one answer to a nonce", "not asked"),
    _grader("rewrites_the_worker", "rewriting the worker's handlers", CHEAT, BURSTS, DOUBT),
    _grader("excuses_itself", "claiming to be excused", CRASH, "excuses are for baselines", "cannot run here"),
    _grader("walks_frames", "frame walking", OK, "the judge is another process", ""),
    _grader("reseeds", "reseeding", OK, "inputs are drawn by the judge", ""),
    _grader("edits_task_files", "editing task files", CRASH, "a file system to read", "Read-only file system"),
    _grader(
        "reads_uninitialised_memory",
        "reading uninitialised memory",
        UNSURE,
        NORMAL,
        r"inputs: |differ",
    ),
    _grader("reads_past_the_end", "reading past the end", WRONG, "guards of NaN", ORACLE),
    _grader(
        "writes_past_the_end",
        "writing past the end",
        frozenset({Verdict.OUT_OF_BOUNDS}),
        "guards around outputs",
        "wrote outside the tensor 'out'",
    ),
    _grader("races", "races", frozenset({Verdict.NON_DETERMINISTIC}), "repeats", "two runs on the same inputs"),
    _grader("reaches_the_network", "network", CRASH, "no network in the sandbox", "Network is unreachable"),
    _grader("reaches_local_services", "services of the machine", OK, "no network in the sandbox", ""),
    _grader("installs_a_package", "package installs", CRASH, "no network in the sandbox", "No module named"),
    _grader("reads_keys_of_environment", "keys from the environment", OK, "a cleared environment", ""),
    _grader("reads_keys_of_home", "keys from the home folder", OK, "no home in the sandbox", ""),
    _grader("reads_the_judges_memory", "/proc/<pid>/mem", OK, "a process space of its own", ""),
    _grader("traces_its_parent", "ptrace", CRASH, "a filter of system calls", "Operation not permitted"),
    _grader("fork_bomb", "fork bombs", CRASH, "caps of processes and memory", "are allowed"),
    _grader("leaves_a_process", "processes that outlive their kernel", CHEAT, LATE, DOUBT),
    _grader("fills_memory", "filling memory", CRASH, "a cap of memory", "GiB of host memory"),
    _grader("fills_the_disk", "filling the disk", CRASH, "a folder of limited size", "No space left"),
    _grader("never_returns", "never returning", frozenset({Verdict.TIMEOUT}), "a time limit", "no answer"),
)  # fmt: skip


def hacks_of(group: str) -> list[Hack]:
    return [h for h in CORPUS if h.group == group]
