"""Times compiled Hopper kernels beside cuDNN and FlashAttention on the paper's grid; needs such a GPU.

    python -m tests.tl.gluon_bench --out FILE.json [--cells mha_causal:2k:128,...] [--choices NAME,...] [--quick]

A cell is task:length:head dimension. Each call is one replay of a graph with a cold L2; contenders take turns; the
median counts. A choice is `default`, or settings such as `consumers=2+BN=64+pingpong=1`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from harness.build.loader import load
from harness.tl.lower.choices import Row
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.gluon_choices import default_table
from tests.tl.triton_trial import program

LENGTHS = {"512": 512, "1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192, "16k": 16384}
TOKENS, HIDDEN = 16384, 2048
CELLS = [f"{t}:{n}:{d}" for t, d, n in itertools.product(("mha_causal", "mha"), (128, 64), LENGTHS)]
QUICK = ["mha_causal:512:128", "mha_causal:2k:128", "mha:16k:128", "mha_causal:2k:64", "mha:16k:64"]
VARIANTS = [
    "default", "pingpong=1", "pingpong=0", "persistent=1", "persistent=0", "overlap=0", "BN=64", "consumers=2",
    "stages=3", "longest_first=0", "heads=4",
]  # fmt: skip
FLUSH_BYTES = 256 << 20

Call = Callable[[], object]


def settings(text: str) -> dict[str, int]:
    return {} if text == "default" else {k: int(v) for k, v in (part.split("=") for part in text.split("+"))}


class Cell:
    """Tensors of one cell, contiguous (batch, seq, heads, dim), and what is called on them."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.task, length, dim = name.split(":")
        self.seq, self.dim = LENGTHS[length], int(dim)
        self.batch, self.heads = TOKENS // self.seq, HIDDEN // self.dim
        self.causal = self.task == "mha_causal"
        shape = (self.batch, self.seq, self.heads, self.dim)
        generator = torch.Generator("cuda").manual_seed(0)
        drawn = [torch.randn(shape, generator=generator, device="cuda").to(dtype) for _ in range(3)]
        self.q, self.k, self.v = drawn
        self.out = torch.empty_like(self.q)
        self.scale = self.dim**-0.5

    @property
    def flops(self) -> float:
        return 4 * self.batch * self.heads * self.seq**2 * self.dim / (2 if self.causal else 1)

    def library(self, backend: SDPBackend) -> Call:
        q, k, v = (t.transpose(1, 2) for t in (self.q, self.k, self.v))

        def call() -> torch.Tensor:
            with sdpa_kernel(backend):
                return sdpa(q, k, v, is_causal=self.causal, scale=self.scale)

        return call

    def compiled(self, attention: Callable[..., object]) -> Call:
        return lambda: attention(self.q, self.k, self.v, self.out, scale=self.scale)

    def error(self) -> float:
        """Largest difference from float32 on the first and the last head."""
        worst = 0.0
        for b, h in ((0, 0), (self.batch - 1, self.heads - 1)):
            q, k, v = (t[b, :, h].float()[None, None] for t in (self.q, self.k, self.v))
            with sdpa_kernel(SDPBackend.MATH):
                rows = [
                    sdpa(q[:, :, a:a + 2048], k, v, scale=self.scale, attn_mask=self._mask(a, min(2048, self.seq - a)))
                    for a in range(0, self.seq, 2048)
                ]  # fmt: skip
            worst = max(worst, (torch.cat(rows, 2)[0, 0] - self.out[b, :, h].float()).abs().max().item())
        return worst

    def _mask(self, first: int, rows: int) -> torch.Tensor | None:
        if not self.causal:
            return None
        q = torch.arange(first, first + rows, device="cuda")
        return torch.arange(self.seq, device="cuda")[None, :] <= q[:, None]


def graph_of(call: Call) -> torch.cuda.CUDAGraph:
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def times(graphs: dict[str, torch.cuda.CUDAGraph], repeats: int) -> dict[str, float]:
    """Median milliseconds of a replay, the contenders one after the other in every repeat."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in graphs}
    for _ in range(repeats):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            flush.zero_()
            begin.record()
            graph.replay()
            end.record()
            marks[name].append((begin, end))
    torch.cuda.synchronize()
    return {n: statistics.median(a.elapsed_time(b) for a, b in pairs) for n, pairs in marks.items()}


def measured(
    names: list[str], choices: list[str], dtype: torch.dtype, repeats: int
) -> Iterator[dict[str, object]]:
    built: dict[tuple[str, str], Callable[..., object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            cell = Cell(name, dtype)
            calls = {
                "cudnn": cell.library(SDPBackend.CUDNN_ATTENTION),
                "flash": cell.library(SDPBackend.FLASH_ATTENTION),
            }
            graphs, problems = {}, {}
            for text in choices:
                try:
                    calls[text] = _candidate(cell, text, Path(folder), built)
                except Exception as error:  # a choice that cannot be is a line of the record
                    problems[text] = f"{type(error).__name__}: {error}"[:300]
            errors: dict[str, float] = {}
            for contender, call in calls.items():
                try:
                    graphs[contender] = graph_of(call)
                    if contender in choices:
                        cell.out.fill_(float("nan"))
                        graphs[contender].replay()
                        errors[contender] = cell.error()
                except Exception as error:
                    problems[contender] = f"{type(error).__name__}: {error}"[:300]
            for contender, ms in times(graphs, repeats).items():
                yield {"cell": name, "choice": contender, "ms": ms, "tflops": cell.flops / ms / 1e9,
                       "error": errors.get(contender)}  # fmt: skip
            for contender, problem in problems.items():
                yield {"cell": name, "choice": contender, "problem": problem}


def _candidate(
    cell: Cell, text: str, folder: Path, built: dict[tuple[str, str], Callable[..., object]]
) -> Call:
    """One candidate for each task and choice, since a choice decides which code there is."""
    key = cell.task, text
    if key not in built:
        task, prog = program("reference", cell.task)
        asked = settings(text)
        given = ("BM", "pingpong") if "consumers" in asked else ()  # which the consumers decide
        rows = [
            Row.of(r.bytes, r.dim, r.seq, {k: v for k, v in r.choice if k not in given} | asked)
            for r in default_table(prog)
        ]
        where = lower_gluon(prog, task, table=rows).write(folder / f"{cell.task}_{len(built)}")
        built[key] = load(where, "attention.py", "gluon", torch.device("cuda")).function
    return cell.compiled(built[key])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", default="")
    parser.add_argument("--choices", default="default")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="five cells")
    given = parser.parse_args()
    names = given.cells.split(",") if given.cells else QUICK if given.quick else CELLS
    choices = VARIANTS if given.choices == "all" else given.choices.split(",")
    records: list[dict[str, object]] = []
    cudnn: dict[str, float] = {}
    for record in measured(names, choices, getattr(torch, given.dtype), given.repeats):
        records.append(record)
        cell, tflops = str(record["cell"]), record.get("tflops")
        if isinstance(tflops, float):
            cudnn.setdefault(cell, tflops)
            error = f"{record['error']:.1e}" if record["error"] is not None else ""
            print(
                f"{cell:22} {record['choice']:34} {tflops:7.1f} TFLOP/s {tflops / cudnn[cell]:5.2f} {error}",
                flush=True,
            )
        else:
            print(f"{cell:22} {record['choice']:34} {record['problem']}", flush=True)
        given.out.write_text(
            json.dumps({"device": torch.cuda.get_device_name(), "records": records}, indent=1)
        )
    print("ratio: to the first contender of the cell, cuDNN where it runs")


if __name__ == "__main__":
    main()
