"""Owns a run's results as Parquet: the lines and columns of the CSV, with types."""

from __future__ import annotations

from reports.dataset import Dataset
from reports.export import COLUMNS, result_lines

INSTALL = "pip install 'attnbench[parquet]' (or pyarrow)"
_WHOLE = frozenset({"batch", "heads", "kv_heads", "seq_q", "seq_k", "dim", "dim_v", "line", "sample"})
_YES_NO = frozenset({"causal"})
_REAL = frozenset(
    {
        "tflops",
        "percent_of_peak",
        "percent_of_bandwidth",
        "device_time_ms",
        "device_time_p10_ms",
        "device_time_p90_ms",
        "call_latency_ms",
        "ratio_over_anchor",
        "ratio_low",
        "ratio_high",
        "noise_ratio",
        "speedup_vs_best_baseline",
        "speedup_low",
        "speedup_high",
    }
)  # all other columns are text


class ParquetMissing(RuntimeError):
    """The library that writes Parquet is not installed; the text says how to install it."""


def parquet_bytes(dataset: Dataset) -> bytes:
    """One row a result; null where a column does not apply. Raises ParquetMissing without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ParquetMissing(f"--format parquet needs pyarrow: {INSTALL}") from error
    types = {
        **dict.fromkeys(_WHOLE, pyarrow.int64()),
        **dict.fromkeys(_YES_NO, pyarrow.bool_()),
        **dict.fromkeys(_REAL, pyarrow.float64()),
    }
    schema = pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in COLUMNS])
    table = pyarrow.Table.from_pylist(list(result_lines(dataset)), schema=schema)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
