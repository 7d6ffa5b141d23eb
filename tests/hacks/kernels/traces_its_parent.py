"""Attaches to its parent as a debugger."""

import ctypes
import os

PTRACE_ATTACH = 16
libc = ctypes.CDLL(None, use_errno=True)


def attention(q, k, v, out, *, scale):
    if libc.ptrace(PTRACE_ATTACH, os.getppid(), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    raise RuntimeError("LOOT attached to its parent")
