"""Owns the feet of the help of `attnbench tl` and its commands: examples, what comes next, exit codes."""

from __future__ import annotations

from harness.exits import EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_STORE, EXIT_USAGE
from harness.manual import foot

_WRONG = "the program has errors"

TL = foot(
    "attnbench tl check first.tl",
    "attnbench tl run first.tl --seq-q 100 --heads 2",
    "attnbench tl lower first.tl --backend numba --out kernels/first_cpu",
    then="what `lower --out` writes is a candidate: `attnbench eval cpu --candidates kernels/first_cpu`.",
    codes=(EXIT_USAGE, EXIT_MACHINE, EXIT_STORE, EXIT_INTERRUPTED),
    found="the program has errors, or computes something else",
)
CHECK = foot(
    "attnbench tl check first.tl",
    "attnbench tl check first.tl --target a100",
    "attnbench tl check loose.tl --notes         # what was read into it",
    then="`attnbench tl explain CODE` for a finding; `attnbench tl run FILE` where there is none.",
    codes=(EXIT_USAGE, EXIT_INTERRUPTED),
    found=_WRONG,
)
RUN = foot(
    "attnbench tl run first.tl",
    "attnbench tl run first.tl --seq-q 100 --heads 2",
    "attnbench tl run --task mha --workload smoke:1 --tile BM=32 --target h100",
    then="`attnbench tl lower FILE` makes a kernel of it.",
    codes=(EXIT_USAGE, EXIT_INTERRUPTED),
    found="the program cannot run, or computes something else",
)
LOWER = foot(
    "attnbench tl lower first.tl",
    "attnbench tl lower first.tl --compile",
    "attnbench tl lower first.tl --backend numba --out kernels/first_cpu",
    then="`attnbench eval TARGET --candidates DIR` verifies and times what --out wrote.",
    codes=(EXIT_USAGE, EXIT_MACHINE, EXIT_STORE, EXIT_INTERRUPTED),
    found="the program has errors, or cannot be compiled to that backend",
)
FORMAT = foot(
    "attnbench tl format first.tl --write",
    "attnbench tl format first.tl --check",
    "attnbench tl format --task gqa_causal        # a task's reference program",
    codes=(EXIT_USAGE, EXIT_STORE, EXIT_INTERRUPTED),
    found="it cannot be read, or with --check is not canonical",
)
SPACE = foot(
    "attnbench tl space first.tl --target a100",
    "attnbench tl space --task mha_causal --target h100 --json",
    then="`attnbench tl tune` times what fits, on a GPU.",
    codes=(EXIT_USAGE, EXIT_INTERRUPTED),
    found=_WRONG,
)
MUTANTS = foot(
    "attnbench tl mutants --quick",
    then="docs/tl-reference.md has the figures of the whole test.",
    codes=(EXIT_USAGE, EXIT_INTERRUPTED),
)
EXPLAIN = foot(
    "attnbench tl explain TL501",
    then="docs/tl-diagnostics.md has them all.",
    codes=(EXIT_USAGE, EXIT_INTERRUPTED),
)
CODES = foot(
    "attnbench tl codes",
    then="`attnbench tl explain CODE` shows one with a wrong and a right example.",
    codes=(EXIT_USAGE, EXIT_INTERRUPTED),
)
TUNE = foot(
    "attnbench tl tune --task mha_causal --out tuned",
    "attnbench tl tune first.tl --backend cuda --workloads models --out tuned",
    then="`attnbench eval TARGET --candidates DIR` measures the candidate by the protocol.",
    codes=(EXIT_USAGE, EXIT_MACHINE, EXIT_STORE, EXIT_INTERRUPTED),
    found="the program has errors, or no choice fits",
)
