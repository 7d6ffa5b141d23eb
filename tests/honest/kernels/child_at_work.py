"""Keeps a process of its own that computes in each call, over pipes; the call waits for its answer."""

import atexit
import struct
import subprocess
import sys

import numpy as np

PROGRAM = """
import struct, sys
import numpy as np
read, write = sys.stdin.buffer, sys.stdout.buffer
while head := read.read(16):
    n, m, d, scale = struct.unpack('<iiif', head)
    q, k, v = (np.frombuffer(read.read(4 * r * d), np.float32).reshape(r, d) for r in (n, m, m))
    s = q @ k.T * np.float32(scale)
    s[~np.tri(n, m, m - n, dtype=bool)] = -np.inf
    p = np.exp(s - s.max(-1, keepdims=True))
    write.write((p / p.sum(-1, keepdims=True) @ v).astype(np.float32).tobytes())
    write.flush()
"""
CHILD = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
atexit.register(CHILD.kill)


def attention(q, k, v, out, *, scale):
    n, m, d = q.shape[1], k.shape[1], q.shape[3]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            rows = [x[b, :, h].contiguous().numpy().tobytes() for x in (q, k, v)]
            CHILD.stdin.write(struct.pack("<iiif", n, m, d, scale) + b"".join(rows))
            CHILD.stdin.flush()
            answer = np.frombuffer(CHILD.stdout.read(4 * n * d), np.float32).reshape(n, d)
            out.numpy()[b, :, h] = answer
