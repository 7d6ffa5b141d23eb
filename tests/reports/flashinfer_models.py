"""Owns flashinfer-bench's own models for the tests: read from the installed package, or None with the reason.

The package's first import pulls in flashinfer and a CUDA build of torch. Its data models need neither, so
they are imported without it: an empty package of its name stands in for its `__init__`. They install with
`pip install --no-deps flashinfer-bench safetensors` (150 kB and 500 kB).
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

MISSING = "flashinfer-bench is not installed: pip install --no-deps flashinfer-bench==0.1.2 safetensors"


@dataclass(frozen=True)
class Models:
    """The four pydantic models, the reader of a folder of traces, and the loader of Python solutions."""

    definition: Any
    solution: Any
    trace: Any
    trace_set: Any
    builder: Any


def models() -> Models | None:
    """The package's own; None where it is not installed."""
    found = importlib.util.find_spec("flashinfer_bench")
    if found is None or found.submodule_search_locations is None:
        return None
    if "flashinfer_bench" not in sys.modules:
        package = ModuleType("flashinfer_bench")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["flashinfer_bench"] = package
    try:
        from flashinfer_bench.compile.builders.python_builder import PythonBuilder
        from flashinfer_bench.data import Definition, Solution, Trace, TraceSet
    except ImportError:
        return None
    return Models(Definition, Solution, Trace, TraceSet, PythonBuilder)
