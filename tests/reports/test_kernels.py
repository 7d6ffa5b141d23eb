"""What compiled kernels take of a multiprocessor stands in the report, each kernel once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.records import CompiledKernel
from reports import load_run
from reports.dataset import Dataset
from reports.kernel_sections import kernels_section
from reports.markdown import markdown
from tests.reports.synthetic import tiny_run

KERNEL = CompiledKernel(
    name="mha_kernel<half_t, 64>",
    arch="sm_80",
    registers=240,
    spill_bytes=8,
    threads=128,
    shared_bytes=65536,
    blocks=2,
    occupancy=0.125,
    limited_by="registers",
    tensor_core=("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",),
    compile_s=2.0,
)


def with_kernels(dataset: Dataset, *kernels: CompiledKernel) -> Dataset:
    rows = tuple(
        row if row.is_baseline else dataclasses.replace(
            row, result=row.result.model_copy(update={"kernels": kernels})
        )
        for row in dataset.rows
    )  # fmt: skip
    return dataclasses.replace(dataset, rows=rows)


def test_without_kernels_there_is_no_section(tmp_path: Path) -> None:
    assert kernels_section(load_run(tiny_run(tmp_path))) is None


def test_a_kernel_stands_once_whenever_it_was_compiled(tmp_path: Path) -> None:
    dataset = load_run(tiny_run(tmp_path))
    later = KERNEL.model_copy(update={"compile_s": 3.5})
    other = KERNEL.model_copy(
        update={"name": "merge", "spill_bytes": 0, "tensor_core": (), "blocks": None, "occupancy": None}
    )
    section = kernels_section(with_kernels(dataset, KERNEL, later, other))
    assert section is not None
    (table,) = section.tables
    cells = [[entry.text for entry in line] for line in table.lines]
    assert len(cells) == 2 * len(dataset.candidates)
    assert cells[0][1:3] == ["mha_kernel<half_t, 64>", "sm_80"]
    assert cells[0][4:] == ["240", "8", "65,536", "2", "12%, registers", "m16n8k16"]
    assert cells[1][4:] == ["240", "0", "65,536", "", "", "none"]
    assert "with spills" in section.lead[0]
    assert "## Compiled kernels" in markdown(with_kernels(dataset, KERNEL))
