"""Imports what it needs on the first call only, SciPy among it."""


def attention(q, k, v, out, *, scale):
    import importlib

    import numpy as np

    softmax = importlib.import_module("scipy.special").softmax
    queries, keys, values, result = (x.numpy().swapaxes(1, 2) for x in (q, k, v, out))
    s = queries @ keys.swapaxes(-1, -2) * np.float32(scale)
    hidden = ~np.tri(s.shape[-2], s.shape[-1], s.shape[-1] - s.shape[-2], dtype=bool)
    s[..., hidden] = -np.inf
    result[...] = softmax(s, axis=-1) @ values
