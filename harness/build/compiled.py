"""Owns what a compiler says of the kernels that a candidate has run, as its author is told."""

from __future__ import annotations

import sys
from typing import Any

_PREFIX = "attnbench_candidate_"
_MOST = 4  # kernels named


def compiler_report() -> str:
    """One clause for each kernel that was compiled for a candidate in this process, or ''."""
    found = _cuda()
    if "triton" not in sys.modules:
        return _clauses(found)
    for module in [m for name, m in sys.modules.items() if name.startswith(_PREFIX)]:
        for value in list(vars(module).values()):
            for kernel in _compiled(value):
                found[kernel[0]] = kernel[1]
    return _clauses(found)


def _clauses(found: dict[str, str]) -> str:
    return "; ".join(f"{name}: {facts}" for name, facts in list(found.items())[:_MOST])


def _cuda() -> dict[str, str]:
    """Of CUDA kernels: what ptxas said, and the shared memory of the last launch."""
    cuda = sys.modules.get("harness.build.cuda")
    found: dict[str, str] = {}
    for kernel in cuda.LOADED if cuda is not None else ():
        facts = kernel.facts
        if facts is not None and kernel.launched is not None:
            _, dynamic = kernel.launched
            found[kernel.name] = (
                f"{facts.registers} registers, {facts.spill_bytes} bytes of spills, "
                f"{facts.shared_bytes + dynamic} bytes of shared memory"
            )
    return found


def _compiled(value: Any) -> list[tuple[str, str]]:
    """(name, facts) of each specialisation that a JIT function has in its cache."""
    caches = getattr(value, "device_caches", None) or {}
    found = []
    try:
        for entry in caches.values():
            kernels = entry[0] if isinstance(entry, tuple) else entry
            for kernel in kernels.values():
                facts = [
                    f"{getattr(kernel, 'n_regs', '?')} registers",
                    f"{getattr(kernel, 'n_spills', '?')} spills",
                    f"{getattr(kernel.metadata, 'shared', '?')} bytes of shared memory",
                ]
                found.append((str(getattr(kernel, "name", "kernel")), ", ".join(facts)))
    except (AttributeError, TypeError, IndexError):  # another version keeps them elsewhere
        return found
    return found
