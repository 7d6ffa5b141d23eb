"""Uses `out` as its scratch: sums that are not normalised yet lie there between two tiles of keys."""

import torch

TILE = 32


def attention(q, k, v, out, *, scale):
    diagonal = k.shape[1] - q.shape[1]
    rows = torch.arange(q.shape[1])[:, None]
    queries, keys, values, acc = (x.transpose(1, 2) for x in (q, k, v, out))
    acc.zero_()
    top = torch.full((*queries.shape[:3], 1), -3e38)
    total = torch.zeros_like(top)
    for start in range(0, k.shape[1], TILE):
        tile = slice(start, start + TILE)
        columns = torch.arange(k.shape[1])[None, tile]
        s = (queries @ keys[:, :, tile].transpose(-1, -2) * scale).masked_fill(
            columns > rows + diagonal, float("-inf")
        )
        new = torch.maximum(top, s.amax(-1, keepdim=True))
        p, decay = torch.exp(s - new), torch.exp(top - new)
        acc.mul_(decay).add_(p @ values[:, :, tile])
        total, top = total * decay + p.sum(-1, keepdim=True), new
    acc.div_(total.clamp_min(1e-30))
