"""Raises the worker's own error for a baseline that cannot run here, to leave every rate."""

import sys


def attention(q, k, v, out, *, scale):
    failed = sys.modules["harness.worker.protocol"].RequestFailed
    raise failed("cannot_run", "this attention cannot run here")
