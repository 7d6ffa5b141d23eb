"""Owns a baseline's first call: it warms and compiles, and turns a library's refusal into a reason."""

from __future__ import annotations

import warnings

import torch

from baselines.base import Call, CannotRun
from tasks.spec import Workload

# A refusal quotes the library; longer messages are cut here (characters).
REASON_LENGTH = 400


def first_call(call: Call, workload: Workload) -> Call:
    """Run `call` once and return it.

    Raises CannotRun where the library refuses, where memory does not suffice and where the
    result has another shape; a fault of the device itself is no refusal and passes through.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            out = call()
        except torch.OutOfMemoryError as error:
            raise CannotRun("needs more memory than the device has") from error
        except (RuntimeError, NotImplementedError, ValueError, AssertionError, TypeError) as error:
            said = [str(w.message) for w in caught if "not used because" not in str(w.message)]
            text = " ".join(" ".join([f"{type(error).__name__}: {error}", *said]).split())
            raise CannotRun(f"the library refuses: {text[:REASON_LENGTH]}") from error
    if out.is_cuda:
        torch.cuda.synchronize(out.device)
    shape = (workload.batch, workload.seq_q, workload.heads, workload.dim_v)
    if tuple(out.shape) != shape:
        raise CannotRun(f"the library returned shape {tuple(out.shape)} where {shape} is asked for")
    return call
