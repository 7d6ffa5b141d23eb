"""A soak: hundreds of trials, three in ten of them bad, through the whole pipeline; nothing may leak.

    python -m tests.soak --trials 300 --target cpu --out DIR [--seed N] [--shapes N]

A trial is a kernel on a workload. With `--shapes 1` each is a candidate of its own, in a worker of its own;
with more, a candidate keeps its worker over so many workloads, as in any run. The program ends with 1 and
says why if a verdict is not the one expected, or if processes, descriptors, memory, shared memory or files
are left; `soak.json` in DIR holds all of it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
BAD_SHARE = 0.3
GROWTH_MIB = 64  # of the judge's own memory, between the first third and the end
LENGTHS = (48, 64, 80, 96)
LIMITS = {"load_s": 30, "first_call_s": 8, "call_s": 8}
SAMPLING = {"half_width": 0.2, "time_cap_s": 0.2, "block_ms": 5, "min_rounds": 2, "max_rounds": 4}

TASK = '''
"""A tiny causal task for a soak."""
from tasks.masks import causal, causal_pairs
from tasks.spec import Task, Workload

def shape(n):
    return Workload("soaked", 1, 2, 2, n, n, {dim}, {dim}, "{dtype}")

TASK = Task(
    name="soaked", title="Soaked", description="Causal attention, small.", math="o = softmax(q k) v",
    mask=causal, visible_pairs=causal_pairs, causal=True,
    workloads={{"smoke": tuple(shape(n) for n in {lengths}), "hidden": (shape(33), shape(65))}},
)
'''

GOOD = """
import torch

def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2).float() for x in (q, k, v))
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(k.shape[-2] - q.shape[-2])
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))
"""
BY_HEAD = (
    GOOD.replace("def attention(", "def compute(")
    + """
def attention(q, k, v, out, *, scale):
    for h in range(q.shape[2]):
        compute(*(x[:, :, h : h + 1] for x in (q, k, v, out)), scale=scale)
"""
)
WORKSPACE = """
import torch

KEPT = {}

def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2).float() for x in (q, k, v))
    shape = (*q.shape[:3], k.shape[2])
    if shape not in KEPT:
        hidden = torch.ones(shape[-2:], dtype=torch.bool, device=q.device).triu(shape[-1] - shape[-2] + 1)
        KEPT[shape] = torch.empty(shape, device=q.device), hidden
    s, hidden = KEPT[shape]
    torch.matmul(q, k.transpose(-1, -2), out=s)
    s.mul_(scale).masked_fill_(hidden, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))
"""
STALE = (
    GOOD.replace("def attention(", "def compute(")
    + """
CACHE, COUNT = {}, [0]

def attention(q, k, v, out, *, scale):
    COUNT[0] += 1
    key = (q.data_ptr(), out.data_ptr(), tuple(q.shape))
    if key in CACHE and COUNT[0] > 21:
        out.copy_(CACHE[key])
        return
    compute(q, k, v, out, scale=scale)
    CACHE[key] = out.clone()
"""
)
LIBRARY = """
import torch.nn.functional as F

def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out.copy_(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2))
"""


def then(line: str) -> str:
    """A kernel that is right, and does this at the end of each call."""
    return GOOD + f"    {line}\n"


def instead(old: str, new: str) -> str:
    """The right kernel with a mistake."""
    assert old in GOOD
    return GOOD.replace(old, new)


@dataclass(frozen=True)
class Kind:
    """A way to write a kernel, and the verdict that it must get."""

    source: str
    verdict: str
    share: float = 1.0  # how often it is drawn
    targets: str = "any"  # cpu, gpu
    earlier: str = (
        ""  # the verdict where it is caught before that: with several shapes a worker has had more calls
    )

    def fits(self, gpu: bool) -> bool:
        return self.targets == "any" or (self.targets == "gpu") == gpu

    @property
    def backend(self) -> str:
        return "triton" if "import triton" in self.source else "torch"


def shipped(folder: str, verdict: str, share: float = 1.0) -> dict[str, Kind]:
    """The kernels for a GPU that lie in a folder of these tests."""
    return {
        f"{file.stem}": Kind(file.read_text(), verdict, share, "gpu")
        for file in sorted((HERE / folder / "gpu").glob("[a-z]*.py"))
    }


SOUND: dict[str, Kind] = {
    "plain": Kind(GOOD, "ok", 3),
    "by_head": Kind(BY_HEAD, "ok"),
    "workspace": Kind(WORKSPACE, "ok"),
    **shipped("honest", "ok"),
}
_LOST = {"loops_on_the_gpu": "timeout"}  # of the faults of a GPU; the others crash
BAD: dict[str, Kind] = {
    "no_mask": Kind(instead("masked_fill(~seen,", "masked_fill(seen & ~seen,"), "wrong_numerics"),
    "no_scale": Kind(instead("* scale)", "* 1.0)"), "wrong_numerics"),
    "off_by_one": Kind(instead("k.shape[-2] - q.shape[-2])", "k.shape[-2] - q.shape[-2] - 1)"), "wrong_numerics"),
    "zeros": Kind(then("out.zero_()"), "wrong_numerics"),
    "mean": Kind(instead("torch.softmax(s, -1)", "torch.softmax(s * 0, -1).nan_to_num()"), "wrong_numerics"),
    "tail": Kind(then("out[:, -1] = float('nan')"), "wrong_numerics"),
    "raises": Kind(then("raise ValueError('no')"), "crash"),
    "aborts": Kind(then("import os; os.abort()"), "crash"),
    "leaves": Kind(then("import os; os._exit(0)"), "crash"),
    "exits": Kind(then("raise SystemExit(0)"), "crash"),
    "segfaults_at_import": Kind("import ctypes\nctypes.string_at(0)\n", "crash"),
    "no_python": Kind("def attention(:\n", "build_error"),
    "no_function": Kind("x = 1\n", "build_error"),
    "no_module": Kind("import there_is_no_such_module\n", "build_error"),
    "hangs": Kind(then("while True: pass"), "timeout", 0.3),
    "oversteps": Kind(then("out.as_strided((1,), (1,), out.storage_offset() + out.numel()).zero_()"), "out_of_bounds"),
    "wavers": Kind(
        GOOD.replace("import torch\n", "import torch\nCALLS = [0]\n")
        + "    CALLS[0] += 1\n"
        + "    out.view({2: torch.int16, 4: torch.int32}[out.element_size()])[-1, -1, -1, -1] ^= CALLS[0] & 1\n",
        "non_deterministic",
    ),
    "mutates": Kind(then("q.neg_()"), "integrity"),
    "stale": Kind(STALE, "integrity", 1, "cpu", earlier="wrong_numerics"),
    "borrows": Kind(LIBRARY, "library_dispatch", 1, "gpu"),
    **{name: Kind(k.source, _LOST.get(name, "crash"), 0.3, "gpu") for name, k in shipped("faults", "").items()},
}  # fmt: skip


def lot(candidates: int, seed: int, gpu: bool) -> list[str]:
    """Names of kinds, one for each candidate: so many of them bad, in an order of chance that the seed fixes."""
    chance = random.Random(seed)
    bad = round(BAD_SHARE * candidates)
    drawn: list[str] = []
    for kinds, count in ((SOUND, candidates - bad), (BAD, bad)):
        names = [name for name, kind in kinds.items() if kind.fits(gpu)]
        drawn += chance.choices(names, [kinds[name].share for name in names], k=count)
    chance.shuffle(drawn)
    return drawn


def kind_of(name: str) -> Kind:
    return SOUND.get(name) or BAD[name]


@dataclass
class Level:
    """What this process and its machine hold at one moment."""

    processes: list[int]
    descriptors: int
    shared: list[str]
    files: list[str]

    @classmethod
    def now(cls, folder: Path) -> Level:
        from harness.worker.family import members

        gc.collect()
        return cls(
            processes=sorted(set(members(os.getpid())) - {os.getpid()}),
            descriptors=len(os.listdir("/proc/self/fd")),
            shared=sorted(os.listdir("/dev/shm")),
            # The device's lock stays: a file that is held must not be removed.
            files=sorted(p.name for p in folder.iterdir() if p.suffix != ".lock"),
        )

    def left(self, before: Level) -> list[str]:
        """What is there now and was not before, in words."""
        told = []
        if new := set(self.processes) - set(before.processes):
            told.append(f"processes left: {', '.join(f'{p} {_command(p)}' for p in sorted(new))}")
        if self.descriptors > before.descriptors:
            told.append(f"{self.descriptors} open descriptors, and {before.descriptors} before: {_open()}")
        if new_shared := set(self.shared) - set(before.shared):
            told.append(f"left in /dev/shm: {', '.join(sorted(new_shared))}")
        if new_files := set(self.files) - set(before.files):
            told.append(f"left in the temporary folder: {', '.join(sorted(new_files))}")
        return told


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "gone"


def _open() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return sorted(found)


def resident_mib() -> float:
    """Memory of this process that is its own."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


@dataclass
class Soak:
    """What came of it."""

    target: str
    seed: int
    trials: int
    candidates: int
    kinds: dict[str, int]
    wall_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)
    seconds_at: list[float] = field(default_factory=list)  # when each result was there
    resident_mib: list[float] = field(default_factory=list)  # of the judge, then
    verdicts: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)

    @property
    def grown_mib(self) -> float:
        """Between the end of the first third and the end; medians, since the allocator breathes."""
        seen, third = self.resident_mib, len(self.resident_mib) // 3
        if third < 4:
            return 0.0
        return statistics.median(seen[-third // 2 :]) - statistics.median(seen[third // 2 : third])

    @property
    def problems(self) -> list[str]:
        grown = self.grown_mib
        growth = [f"the judge's memory grew by {grown:.0f} MiB"] if grown > GROWTH_MIB else []
        return [*self.wrong, *self.leaks, *growth]


class Watching:
    """An observer that notes time and memory at each result, and says how far it is."""

    def __init__(self, soak: Soak) -> None:
        self.soak, self.began = soak, time.monotonic()

    def begin(self, trials: int, done: int) -> None:
        self.total = trials

    def cell(self, cell: object) -> None:
        pass

    def recorded(self, result: object) -> None:
        self.soak.seconds_at.append(round(time.monotonic() - self.began, 2))
        self.soak.resident_mib.append(round(resident_mib(), 1))
        done = len(self.soak.seconds_at)
        if done % 25 == 0 or done == self.total:
            print(f"{done} of {self.total} after {self.soak.seconds_at[-1]:.0f} s", flush=True)


def write_candidates(names: Iterable[str], folder: Path) -> list[Path]:
    """A folder for each, whose content is its own even where its kind is another's."""
    found = []
    for number, name in enumerate(names):
        kind, place = kind_of(name), folder / f"{number:03}-{name}"
        place.mkdir(parents=True)
        (place / "candidate.toml").write_text(f'task = "soaked"\nbackend = "{kind.backend}"\n')
        (place / "attention.py").write_text(f"{kind.source}\n# {number}\n")
        found.append(place)
    return found


def wrong_verdicts(
    told: Mapping[str, Sequence[tuple[str, str]]], names: Sequence[str], shapes: int
) -> list[str]:
    """Of (verdict, reason) by candidate, what is not as expected, in words."""
    found = []
    for number, name in enumerate(names):
        label = f"{number:03}-{name}"
        results = told.get(label, [])
        if len(results) != shapes:
            found.append(f"{label}: {len(results)} results, and {shapes} expected")
        expected, earlier = kind_of(name).verdict, kind_of(name).earlier
        found += [
            f"{label}: {v}, not {expected}: {reason}" for v, reason in results if v not in (expected, earlier)
        ]
    return found


def soak(trials: int, target: str, out: Path, seed: int, shapes: int = 1) -> Soak:
    """Run it in `out`; the temporary folder is `out`/tmp meanwhile."""
    from harness.bench import Bench
    from harness.build.manifest import read_candidate
    from harness.experiment import experiment_of, make_plan
    from harness.pipeline import evaluate
    from harness.records import Result
    from harness.store import Store
    from harness.targets import find_target
    from tasks import discover
    from tests.conftest import SANDBOX

    gpu = find_target(target).is_gpu
    names = lot(trials // shapes, seed, gpu)
    done = Soak(target, seed, shapes * len(names), len(names), dict(Counter(names)))
    tasks, temporary = out / "tasks", out / "tmp"
    for folder in (tasks, temporary):
        folder.mkdir(parents=True)
    dim, dtype = (64, "fp16") if gpu else (32, "fp32")
    (tasks / "soaked.py").write_text(TASK.format(dim=dim, dtype=dtype, lengths=LENGTHS[:shapes]))
    folders = write_candidates(names, out / "candidates")
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = str(temporary)
    data = {
        "target": target,
        "tasks": ["soaked"],
        "workloads": "smoke",
        "baselines": ["naive"],
        "limits": LIMITS if not gpu else {"first_call_s": 60, "call_s": 20},
        "sampling": SAMPLING,
        "group": 8,
        "seed": seed,
    }
    experiment = experiment_of(data, "soak")
    plan = make_plan(experiment, discover(tasks), [read_candidate(f) for f in folders])
    if gpu:
        import torch

        torch.zeros(1, device="cuda")  # the driver's own descriptors are no leak
    before = Level.now(temporary)
    began = time.monotonic()

    def run() -> list[Result]:
        """In a function of its own: what a bench holds, its descriptors too, goes with the last name of it."""
        with (
            Store(out / "run", resume=False) as store,
            Bench(experiment, find_target(target), task_folders=[tasks], sandbox=SANDBOX) as bench,
        ):
            done.stages_s = evaluate(plan, bench, store, Watching(done)).stages_s
            return list(store.results.values())

    results = run()
    done.wall_s = round(time.monotonic() - began, 1)
    told: dict[str, list[tuple[str, str]]] = {}
    for result in results:
        told.setdefault(result.candidate.name, []).append((result.verdict.value, result.reason))
    done.verdicts = dict(Counter(v for name in told if name != "naive" for v, _ in told[name]))
    done.wrong = wrong_verdicts(told, names, shapes)
    done.wrong += [f"naive: {v}: {reason}" for v, reason in told["naive"] if v != "ok"]
    done.leaks = _settled(before, temporary)
    return done


def _settled(before: Level, folder: Path, within_s: float = 10.0) -> list[str]:
    """What is left, once what ends by itself has ended."""
    deadline = time.monotonic() + within_s
    while True:
        _bury()
        left = Level.now(folder).left(before)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _adopt() -> None:
    """Whatever descends from this process stays below it, orphans too: so none is missed at the end."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def _bury() -> None:
    """Orphans that have ended wait for somebody to take note."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", type=int, default=1, choices=range(1, len(LENGTHS) + 1))
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True)
    _adopt()
    done = soak(asked.trials, asked.target, asked.out.resolve(), asked.seed, asked.shapes)
    told = asdict(done) | {"grown_mib": round(done.grown_mib, 1), "problems": done.problems}
    (asked.out / "soak.json").write_text(json.dumps(told, indent=1))
    each = done.wall_s / max(1, done.trials)
    print(f"{done.trials} trials of {done.candidates} candidates in {done.wall_s:.0f} s, {each:.2f} s each")
    print("where the time went:", ", ".join(f"{k} {v:.0f} s" for k, v in done.stages_s.items() if v >= 0.5))
    print("verdicts:", ", ".join(f"{v} {n}" for v, n in sorted(done.verdicts.items(), key=lambda x: -x[1])))
    print(f"memory of the judge: {done.resident_mib[-1]:.0f} MiB, grown by {done.grown_mib:.0f} MiB")
    for problem in done.problems:
        print("PROBLEM:", problem)
    print("nothing wrong, nothing left" if not done.problems else f"{len(done.problems)} problems")
    return 1 if done.problems else 0


if __name__ == "__main__":
    sys.exit(main())
