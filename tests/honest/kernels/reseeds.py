"""Seeds every generator of random numbers in each call, and draws from them."""

import random

import numpy as np
import torch


def attention(q, k, v, out, *, scale):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    order = torch.randperm(q.shape[2]).tolist()  # of the heads: the same in each call
    for h in order:
        keys, values = k[:, :, h], v[:, :, h]
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        s = (q[:, :, h] @ keys.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
        out[:, :, h] = torch.softmax(s, -1) @ values
