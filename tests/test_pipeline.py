"""The whole way of a trial on the CPU, with real workers: kernels of one's own, good and bad.

Workers are dear (each is a process that imports torch), so the bad kernels share one run; in
each group of four are others that must not suffer from them.
"""

from __future__ import annotations

import re

import pytest

from harness.records import Result
from harness.verdicts import Verdict
from reports import load_run, render
from tests.conftest import GOOD
from tests.ground import Ground, Silent, of, verdicts

BOTH = ("sdpa-flash", "naive")


def test_a_kernel_of_ones_own_goes_the_whole_way_once(tmp_path):
    ground = Ground(tmp_path, (64, 96, 128))
    folders = [ground.candidate("good")]
    results = ground.run(folders, baselines=BOTH)
    assert len(results) == 9
    assert {r.verdict for r in results} == {Verdict.OK}, [r.reason for r in results]
    mine = of(results, "good")
    for result in mine:
        measured = result.measurement
        assert measured is not None
        assert result.verification is not None
        assert measured.clock == "wall"
        assert measured.noise is not None
        assert measured.judge_slope_ms is not None
        assert measured.ratio.anchor in ("sdpa-flash", "naive")
        rows = [r for r in results if r.workload == result.workload]
        if {r.measurement.ratio.anchor for r in rows} != {measured.ratio.anchor}:
            # On a busy machine it was timed anew, when both were recorded: then beside the faster one.
            human = {r.candidate.name: r.measurement.device_time.median_ms for r in rows if r not in mine}
            assert measured.ratio.anchor == min(human, key=human.get)
        timed = [c for c in result.verification.checks if c.timed]
        assert len(timed) >= 2
        assert {c.recipe for c in timed} == {"normal"}
        assert {c.workload for c in timed} == {result.workload.key}
        assert {c.workload for c in result.verification.checks} > {result.workload.key}
        assert result.verification.repeats_identical
        assert result.verification.inputs_untouched
    files = {p.name for p in render(tmp_path / "run")}
    assert {"report.html", "report.md", "report.csv", "report.json", "table.tex"} <= files
    assert len(load_run(tmp_path / "run").rows) == 9
    assert (tmp_path / "run" / "artifacts" / mine[0].candidate.sha256 / "attention.py").exists()
    assert ground.summary.results == 9
    assert not ground.summary.interrupted
    assert sum(ground.summary.stages_s.values()) == pytest.approx(ground.summary.wall_s, abs=0.2)

    file = ground.run_path / "results.jsonl"
    kept = file.read_bytes().splitlines(keepends=True)[:-1]
    file.write_bytes(b"".join(kept))
    observer = Silent()
    again = ground.run(folders, observer, BOTH)
    assert observer.seen == ground.summary.results == 1  # what was lost, and nothing else
    assert {r.id for r in again} == {r.id for r in results}
    assert file.read_bytes().splitlines(keepends=True)[:-1] == kept


# Nineteen calls verify a kernel, two at least warm it up; a busy machine times it eight times only.
LATER = GOOD.replace("import torch\n", "import torch\nCOUNT = [0]\n") + (
    "    COUNT[0] += 1\n    if COUNT[0] > 21:\n        {then}\n"
)
STALE = GOOD.replace("def attention(", "def compute(") + (
    "\n\nCACHE, COUNT = {}, [0]\n\n"
    "def attention(q, k, v, out, *, scale):\n"
    "    COUNT[0] += 1\n"
    "    key = (q.data_ptr(), out.data_ptr(), tuple(q.shape))\n"
    "    if key in CACHE and COUNT[0] > 21:\n"
    "        out.copy_(CACHE[key])\n"
    "        return\n"
    "    compute(q, k, v, out, scale=scale)\n"
    "    CACHE[key] = out.clone()\n"
)
CLAIM = "    from harness.worker.protocol import RequestFailed\n    raise RequestFailed({})\n"
# The worker's own code, as a candidate finds it in its process: what it answers is a claim.
LIE = GOOD + "\nimport os, struct\nimport __main__ as worker\nHANDLERS, SEND = worker.HANDLERS, worker.send\n"


def lie(op: str, answer: str) -> str:
    return LIE + f"HANDLERS['{op}'] = lambda state, args, fds: {answer}\n"


def send(code: str) -> str:
    return LIE + f"worker.send = lambda sock, message: {code}\n"


CHEAT = Verdict.INTEGRITY
BAD = {
    "no_python": ("def attention(:\n", Verdict.BUILD_ERROR, "SyntaxError"),
    "no_function": ("x = 1\n", Verdict.BUILD_ERROR, "defines no function"),
    "raises_the_unspeakable": (GOOD + "    raise ValueError('a \\udc80')\n", Verdict.CRASH, r"a \?"),
    "excuses_itself": (GOOD + CLAIM.format("'cannot_run', 'not for me'"), Verdict.CRASH, "not for me"),
    # not when timed
    "stale_results": (STALE, CHEAT, "wrong while timed"),
    "changes_inputs_later": (LATER.format(then="k[0, 0, 0, 0] += 1"), CHEAT, "while timed"),
    "skips_later": (LATER.format(then="out.zero_()"), CHEAT, "wrong while timed"),
    "dies_later": (LATER.format(then="import os; os.abort()"), Verdict.CRASH, "SIGABRT"),
    "oversteps_later": (
        LATER.format(then="import ctypes; ctypes.memset(out.data_ptr() + out.numel() * 4, 0, 4)"),
        Verdict.OUT_OF_BOUNDS,
        "wrote outside",
    ),
    # the worker's word
    "claims_a_nanosecond": (
        LIE + "BLOCK = HANDLERS['block']\nHANDLERS['block'] = lambda s, a, f: "
        "{'samples_ms': [2e-6 for _ in BLOCK(s, a, f)['samples_ms']]}\n",
        CHEAT,
        "the judge saw",
    ),
    "plans_forever": (lie("plan", "{'estimate_ms': float('inf')}"), Verdict.CRASH, "estimate"),
    "has_odd_records": (
        lie("start_records", "{'available': True}") + "HANDLERS['stop_records'] = lambda *_: {'blocks': [{}]}\n",
        Verdict.CRASH,
        "records",
    ),
    "fails_oddly": (
        send("SEND(sock, {'nonce': message['nonce'], 'ok': False, 'error': {'kind': [], 'message': ''}})"),
        Verdict.CRASH,
        "neither a value nor an error",
    ),
    "answers_deeply": (
        send("sock.sendall(struct.pack('>I', 200_000) + b'[' * 200_000)"),
        Verdict.CRASH,
        "not JSON",
    ),
}  # fmt: skip
EXAMPLES = {"broken_crash": Verdict.CRASH, "broken_mask_edge": Verdict.WRONG_NUMERICS}
SOUND = 3


@pytest.fixture(scope="module")
def bad_run(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """All the bad kernels in one run, and sound ones among them."""
    ground = Ground(tmp_path_factory.mktemp("bad"))
    folders = [ground.example(name, "torch") for name in EXAMPLES]
    folders += [ground.candidate(name, source) for name, (source, _, _) in BAD.items()]
    for n in range(SOUND):
        folders.insert(6 * n + 2, ground.candidate(f"sound{n}"))
    return ground.run(folders)


@pytest.mark.corpus
@pytest.mark.parametrize("name", BAD)
def test_a_bad_kernel_gets_its_verdict(bad_run, name):
    _, verdict, reason = BAD[name]
    (result,) = of(bad_run, name)
    assert result.verdict is verdict, result.reason
    assert re.search(reason, result.reason)


@pytest.mark.corpus
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_shipped_kernel_that_is_broken_on_purpose_is(bad_run, name):
    assert verdicts(bad_run, name) == {EXAMPLES[name]}


@pytest.mark.corpus
def test_sound_kernels_do_not_suffer_from_bad_ones_beside_them(bad_run):
    for name in ["naive", *(f"sound{n}" for n in range(SOUND))]:
        (result,) = of(bad_run, name)
        assert result.verdict is Verdict.OK, (name, result.reason)
    assert len(bad_run) == len({r.id for r in bad_run}) == 1 + len(EXAMPLES) + len(BAD) + SOUND


def test_a_hung_kernel_costs_its_limit_once(tmp_path):
    ground = Ground(tmp_path, (64, 96, 128))
    results = ground.run([ground.example("broken_hang", "torch")], limits={"first_call_s": 2, "call_s": 10})
    assert verdicts(results, "broken_hang") == {Verdict.TIMEOUT}
    assert verdicts(results, "naive") == {Verdict.OK}
    assert 2 < ground.summary.stages_s["verify"] < 4


def test_triton_on_a_cpu_is_proven_and_never_timed(tmp_path):
    ground = Ground(tmp_path)
    results = ground.run([ground.example("triton_flash", "triton", "causal.py")])
    (mine,) = of(results, "triton_flash")
    assert mine.verdict is Verdict.PROVEN, mine.reason
    assert mine.measurement is None
    assert mine.verification is not None
    assert not any(c.timed for c in mine.verification.checks)
    assert "interpreter" in mine.reason
