"""Runs one example against the oracle in a process of its own: backend modules are chosen at import.

usage: python -m tests.build.example_worker CANDIDATE TASK[,TASK...] DEVICE DTYPE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import tasks
from harness.build.loader import load
from harness.build.manifest import read_candidate
from tasks.oracle import expected, plain
from tasks.spec import Workload

EXAMPLES = Path(__file__).parents[2] / "examples" / "candidates"
SHAPES = [(2, 64, 64), (1, 113, 203), (1, 203, 113), (1, 1, 70), (1, 65, 63), (1, 130, 256)]


def main(name: str, task_name: str, device: str, dtype: str) -> None:
    manifest, task = read_candidate(EXAMPLES / name), tasks.find(task_name)
    built = load(manifest.folder, manifest.entry(task_name), manifest.backend, torch.device(device))
    kv_heads = 1 if task_name.startswith("gqa") else 2
    for dim in (64, 128):
        for batch, seq_q, seq_k in SHAPES:
            w = Workload(task_name, batch, 2, kv_heads, seq_q, seq_k, dim, dim, dtype)
            inputs = {s.name: torch.randn(s.shape(w)).to(device, w.torch_dtype) for s in task.inputs}
            out = torch.full((batch, seq_q, 2, dim), float("nan"), dtype=w.torch_dtype, device=device)
            built.function(*inputs.values(), out, scale=w.softmax_scale)
            reference = expected(task, w, inputs)["out"]
            allowed = 2 * (plain(task, w, inputs)["out"] - reference).abs().max() + 2e-6
            error = (out - reference).abs().max()
            assert error <= allowed, f"{name} {w.key}: error {error:.2e}, allowed {allowed:.2e}"


if __name__ == "__main__":
    candidate, tasks_of_it, *rest = sys.argv[1:]
    for one in tasks_of_it.split(","):
        main(candidate, one, *rest)
