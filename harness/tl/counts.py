"""Owns what an interpreted program costs, in bytes, FLOPs and exponentials: the input of a roofline."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """Work of a whole program on one workload.

    Global bytes count the elements that lie inside the matrices, by each matrix's own element
    size (the index vector of a gather too); shared bytes what is written to shared tiles, whole
    tiles; GEMM FLOPs are 2 m n k of whole tiles; an exponential is one element exponentiated, by
    exp or exp2, or by a softmax (its tile and its factor `a`, so that the same softmax written in
    primitive operations counts the same).
    """

    global_bytes_read: int
    global_bytes_written: int
    shared_bytes: int
    gemm_flops: int
    exponentials: int


@dataclass(slots=True)
class Meter:
    """The same figures while they grow; past `deadline` (of time.thread_time()) the work is given up."""

    global_bytes_read: int = 0
    global_bytes_written: int = 0
    shared_bytes: int = 0
    gemm_flops: int = 0
    exponentials: int = 0
    deadline: float = math.inf

    def counts(self) -> Counts:
        return Counts(
            self.global_bytes_read,
            self.global_bytes_written,
            self.shared_bytes,
            self.gemm_flops,
            self.exponentials,
        )
