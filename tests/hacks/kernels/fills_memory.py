"""Takes memory without end."""

TAKEN = []


def attention(q, k, v, out, *, scale):
    while True:
        TAKEN.append(b"x" * (1 << 26))
