"""Owns invented runs for tests of the reports: valid records, figures from a formula, no kernel run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from harness.records import (
    Block,
    CandidateRecord,
    Check,
    Identity,
    KernelRecord,
    Measurement,
    Ratio,
    Result,
    Summary,
    Telemetry,
    Verification,
    WorkloadRecord,
)
from harness.runs import Environment, RunSummary
from harness.seals import sealed
from harness.verdicts import Verdict

SOURCE = "import torch\n\n\ndef attention(q, k, v, out, *, scale):\n    ...  # <invented & only for tests>\n"
PEAK = {"h100": 989.4}
REASONS = {
    Verdict.SKIPPED: "flash-attn is not installed: pip install flash-attn",
    Verdict.INTEGRITY: "it wrote into its inputs",
    Verdict.NO_CODE: "no answer held a kernel",
    Verdict.CRASH: "the worker ended with signal 11 in the first call",
    Verdict.BUILD_ERROR: "kernel.py, line 12: tl.dot needs an inner size of at least 16, got 8",
    Verdict.TIMEOUT: "one call ran longer than 30 s",
    Verdict.WRONG_NUMERICS: "max error 0.31 where 0.0042 is allowed, batch 0, head 3, rows 64-127",
    Verdict.WRONG_SHAPE: "out is (2, 512, 16, 64), not (2, 512, 16, 128)",
    Verdict.NON_DETERMINISTIC: "two calls on the same inputs differ in 3 elements",
    Verdict.OUT_OF_BOUNDS: "wrote outside the tensor 'out'",
    Verdict.IMPOSSIBLE: "0.01 ms, where the multiplications alone take 0.08 ms",
    Verdict.LIBRARY_DISPATCH: "the work is done by cudnn_generated_fort_native_sdpa_sm90",
    Verdict.PROVEN: "numerics right in the interpreter; this machine has no GPU to time it",
    Verdict.INFRA: "the worker was killed by the machine's memory limit",
}

Rate = Callable[[WorkloadRecord], float | Verdict]  # TFLOP/s, or the verdict that stands in its place


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def workload(
    seq: int, dim: int = 128, dtype: str = "fp16", *, causal: bool = True, tokens: int = 16384, seq_q: int = 0
) -> WorkloadRecord:
    heads, batch, seq_q = 2048 // dim, max(1, tokens // seq), seq_q or seq
    pairs = seq_q * seq // (2 if causal else 1)
    mask = "causal" if causal else "full"
    return WorkloadRecord(
        key=f"b{batch}-h{heads}-n{seq_q}x{seq}-d{dim}-{mask}-{dtype}",
        batch=batch,
        heads=heads,
        kv_heads=heads,
        seq_q=seq_q,
        seq_k=seq,
        dim=dim,
        dim_v=dim,
        dtype=dtype,
        scale=dim**-0.5,
        causal=causal,
        flops=4 * batch * heads * pairs * dim,
        bytes=8 * batch * heads * seq * dim,
    )


def paper(causal: bool = True) -> list[WorkloadRecord]:
    """24 workloads: two dtypes, two head dims, six lengths."""
    return [
        workload(seq, dim, dtype, causal=causal)
        for dtype in ("fp16", "bf16")
        for dim in (128, 64)
        for seq in (512, 1024, 2048, 4096, 8192, 16384)
    ]


def candidate(name: str, kind: str = "candidate", family: str = "") -> CandidateRecord:
    baseline = kind == "baseline"
    return CandidateRecord(
        sha256=sha(name),
        name=name,
        kind="baseline" if baseline else "candidate",
        method="baseline" if baseline else "folder",
        backend="torch" if baseline else "triton",
        family=family,
        files={} if baseline else {"kernel.py": hashlib.sha256(SOURCE.encode()).hexdigest()},
    )


def ratio(anchor: str, median: float, width: float = 0.001) -> Ratio:
    return Ratio(
        anchor=anchor,
        median=median,
        low=median * (1 - width),
        high=median * (1 + width),
        pairs=24,
        stopped="precise",
    )


def wobble(*of: object) -> float:
    """A reproducible number in [-1, 1)."""
    return int(sha("/".join(map(str, of)))[:8], 16) / 2**31 - 1


def measurement(w: WorkloadRecord, name: str, target: str, tflops: float, over: Ratio) -> Measurement:
    time_ms = w.flops / tflops / 1e9
    peak = PEAK.get(target)
    gbs = w.bytes / time_ms / 1e6
    telemetry = Telemetry(
        sm_mhz=1755 + 30 * wobble(name, w.key),
        memory_mhz=2619,
        power_w=640 + 50 * wobble(w.key),
        temperature_c=61,
        throttle=("sw_power_cap",) if w.seq_k >= 8192 else (),
    )
    return Measurement(
        clock="kernel_records" if target != "cpu" else "wall",
        captured=target != "cpu",
        device_time=Summary(median_ms=time_ms, p10_ms=time_ms * 0.99, p90_ms=time_ms * 1.015, samples=240),
        call_latency=Summary(median_ms=time_ms + 0.02, p10_ms=time_ms, p90_ms=time_ms + 0.05, samples=40),
        ratio=over,
        graph_time=None,
        judge_slope_ms=None,
        noise=ratio(over.anchor, 1 + 0.003 * wobble("noise", name, w.key), 0.0004),
        blocks=tuple(
            Block(
                round=n,
                started_s=0.5 * n,
                iterations=10,
                median_ms=time_ms,
                telemetry=telemetry if target != "cpu" else None,
            )
            for n in range(2)
        ),
        kernels=(KernelRecord(name=f"{name}_kernel", calls=1, time_ms=time_ms),),
        floor_ms=w.flops / peak / 1e9 if peak else None,
        tflops=tflops,
        percent_of_peak=100 * tflops / peak if peak else None,
        gbytes_per_s=gbs,
        percent_of_bandwidth=100 * gbs / 3352 if peak else None,
    )


def check(w: WorkloadRecord, passed: bool) -> Check:
    return Check(
        workload=w.key,
        recipe="normal",
        seed=7,
        passed=passed,
        error_max=0.001 if passed else 0.31,
        error_allowed=0.0042,
        tile_error=0.002 if passed else 0.8,
        tile_error_allowed=0.02,
        cosine_distance=1e-7 if passed else 0.2,
        timed=False,
    )


def environment(target: str = "h100", device: str = "NVIDIA H100 80GB HBM3") -> Environment:
    return Environment(
        device=device,
        target=target,
        harness="0.1.0",
        python="3.12.3",
        platform="Linux-6.8 x86_64",
        driver="570.86" if target != "cpu" else "",
        cuda="12.8" if target != "cpu" else "",
        libraries={"torch": "2.11.0", "triton": "3.6.0"},
        gpu={"power limit": "700 W"} if target != "cpu" else {},
        baselines={"cudnn": "usable", "flash-attn": REASONS[Verdict.SKIPPED]},
        sandbox="bubblewrap 0.11",
    )


def result(
    task: str,
    w: WorkloadRecord,
    who: CandidateRecord,
    verdict: Verdict,
    measured: Measurement | None,
    *,
    env: Environment | None = None,
    sample: int = 0,
    recorded_at: str = "2026-11-20T08:00:00Z",
) -> Result:
    env = env or environment()
    identity = Identity(
        task=sha(task),
        workload=w.key,
        candidate=who.sha256,
        target=env.target,
        harness="0.1.0",
        sample=sample or who.sample,
        trial=who.trial,
    )
    wrong = verdict is Verdict.WRONG_NUMERICS
    checks = (check(w, not wrong),)
    checked = verdict is Verdict.OK or wrong
    verification = Verification(checks=checks, repeats_identical=None) if checked else None
    return Result(
        id=identity.digest,
        identity=identity,
        task=task,
        target=env.target,
        device=env.device,
        environment=env.digest,
        workload=w,
        candidate=who,
        verdict=verdict,
        reason=REASONS.get(verdict, ""),
        sandboxed=True,
        verification=verification,
        measurement=measured,
        recorded_at=recorded_at,
    )


def results(
    task: str,
    workloads: Iterable[WorkloadRecord],
    contenders: dict[str, tuple[str, Rate]],
    *,
    anchor: str = "cudnn",
    env: Environment | None = None,
) -> list[Result]:
    """Results of every contender (name -> kind, rate) on every workload, paired with one anchor."""
    env = env or environment()
    found = []
    for w in workloads:
        base = contenders[anchor][1](w)
        assert isinstance(base, float)
        for name, (kind, rate) in contenders.items():
            who = candidate(name, kind, f"{name} 9.19" if kind == "baseline" else "")
            value = rate(w)
            if isinstance(value, Verdict):
                found.append(result(task, w, who, value, None, env=env))
                continue
            over = ratio(anchor, value / base, 0.0006 + 0.0004 * wobble(name, w.key))
            measured = measurement(w, name, env.target, value, over)
            found.append(result(task, w, who, Verdict.OK, measured, env=env))
    return found


def stored(lines: Iterable[Result]) -> Iterator[str]:
    """The lines as a store writes them, each sealed after the one before."""
    seal = ""
    for line in lines:
        kept = sealed(line, seal)
        seal = kept.seal
        yield kept.model_dump_json()


def write_run(
    folder: Path,
    lines: Iterable[Result],
    *,
    env: Environment | None = None,
    torn: bool = False,
    summaries: Iterable[RunSummary] | None = None,
    more: Iterable[Environment] = (),
) -> Path:
    """A run's directory as the store writes it; with `torn` its last line is cut in the middle."""
    folder.mkdir(parents=True, exist_ok=True)
    env = env or environment()
    lines = list(lines)
    written = "".join(line + "\n" for line in stored(lines))
    (folder / "results.jsonl").write_text(written[: -len(written.splitlines()[-1]) // 2] if torn else written)
    (folder / "environment.json").write_text(json.dumps({e.digest: e.content for e in (env, *more)}))
    experiment = f'target = "{env.target}"\ntasks = ["mha_causal"]\nworkloads = "paper"\nbaselines = "all"\n'
    (folder / "experiment.toml").write_text(experiment)
    summary = RunSummary(
        started_at="2026-11-20T07:58:00Z",
        wall_s=842.0,
        gpu_work_s=611.0,
        results=len(lines),
        stages_s={"build": 41.5, "verify": 208.0, "measure": 489.0, "worker start": 88.0},
    )
    summaries = [summary] if summaries is None else summaries
    (folder / "summary.jsonl").write_text("".join(s.model_dump_json() + "\n" for s in summaries))
    for who in {r.candidate.sha256: r.candidate for r in lines if r.candidate.kind == "candidate"}.values():
        for name in who.files:
            path = folder / "artifacts" / who.sha256 / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(SOURCE)
    return folder


def curve(top: float, half: float, at: dict[tuple[int, str], Verdict] | None = None) -> Rate:
    """Throughput that saturates with length; `at` puts verdicts at (head dim, dtype)."""

    def rate(w: WorkloadRecord) -> float | Verdict:
        found = (at or {}).get((w.dim, w.dtype))
        shrink = 0.8 if w.dim == 64 else 1.0
        noise = 1 + 0.01 * wobble(top, half, w.key)
        return found or top * shrink * w.seq_k / (w.seq_k + half) * noise

    return rate


def full_contenders() -> dict[str, tuple[str, Rate]]:
    return {
        "cudnn": ("baseline", curve(610, 420)),
        "flash-attn-4": ("baseline", curve(660, 780)),
        "sdpa-flash": ("baseline", curve(345, 300)),
        "sdpa-efficient": ("baseline", curve(176, 260)),
        "flex": ("baseline", curve(470, 900)),
        "naive": ("baseline", curve(14, 100)),
        "flash-attn": ("baseline", lambda w: Verdict.SKIPPED),
        "triton-tma": ("candidate", curve(515, 380, {(64, "bf16"): Verdict.WRONG_NUMERICS})),
        "warp-specialised": (
            "candidate",
            curve(672, 690, {(64, "fp16"): Verdict.BUILD_ERROR, (64, "bf16"): Verdict.TIMEOUT}),
        ),
    }


def h100_run(folder: Path, torn: bool = False) -> Path:
    """Two tasks of 24 cells, seven baselines (one skipped), two candidates that fail on some."""
    who = full_contenders()
    lines = results("mha_causal", paper(), who) + results("mha", paper(causal=False), who)
    return write_run(folder, lines, torn=torn)


def cpu_run(folder: Path) -> Path:
    """One cell on a CPU: two baselines, one candidate, one proven only."""
    env = environment("cpu", "AMD EPYC 9V74")
    w = workload(512, 64, "fp32", tokens=512)
    who: dict[str, tuple[str, Rate]] = {
        "sdpa": ("baseline", lambda w: 0.1234),
        "naive": ("baseline", lambda w: 0.0456),
        "numba-tiled": ("candidate", lambda w: 0.0871),
        "triton-tma": ("candidate", lambda w: Verdict.PROVEN),
    }
    return write_run(folder, results("mha_causal", [w], who, anchor="sdpa", env=env), env=env)


def tiny_run(folder: Path) -> Path:
    """Two cells, three baselines, two candidates of which one fails once: small enough to read."""
    two = [workload(1024), workload(4096)]
    wrong = Verdict.WRONG_NUMERICS
    who: dict[str, tuple[str, Rate]] = {
        "cudnn": ("baseline", lambda w: 400.0 if w.seq_k < 4096 else 550.0),
        "flash-attn-4": ("baseline", lambda w: 380.0 if w.seq_k < 4096 else 600.0),
        "flash-attn": ("baseline", lambda w: Verdict.SKIPPED),
        "mine": ("candidate", lambda w: 300.0 if w.seq_k < 4096 else 630.0),
        "broken": ("candidate", lambda w: wrong if w.seq_k < 4096 else 300.0),
    }
    return write_run(folder, results("mha_causal", two, who))
