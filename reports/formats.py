"""Owns what a run can be exported as: each format's name, its files, and whether it is one text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reports.dataset import Dataset
from reports.export import csv_text, json_text
from reports.parquet import parquet_bytes
from reports.pytest_benchmark import pytest_benchmark_text

Files = Mapping[str, bytes]  # relative path -> content; "" is the export itself, where it is one file


@dataclass(frozen=True)
class Format:
    """One form of a run; `default` is its file or folder in a folder that holds several."""

    name: str
    default: str
    is_text: bool  # one file that a terminal can show
    is_folder: bool
    make: Callable[[Dataset], Files]


def _text(of: Callable[[Dataset], str]) -> Callable[[Dataset], Files]:
    return lambda dataset: {"": of(dataset).encode()}


def _trace_set(dataset: Dataset) -> Files:
    from reports.flashinfer.traceset import trace_set  # with the tasks comes torch

    return {name: text.encode() for name, text in trace_set(dataset).files.items()}


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("flashinfer", "flashinfer", False, True, _trace_set),
        Format("pytest-benchmark", "pytest-benchmark.json", True, False, _text(pytest_benchmark_text)),
        Format("csv", "results.csv", True, False, _text(csv_text)),
        Format("json", "report.json", True, False, _text(json_text)),
        Format("parquet", "results.parquet", False, False, lambda dataset: {"": parquet_bytes(dataset)}),
    )
}
