"""Allocates in each call, on three streams that are joined by events."""

import torch

STREAMS = []


def attention(q, k, v, out, *, scale):
    if not STREAMS:
        STREAMS.extend(torch.cuda.Stream() for _ in range(3))
    current = torch.cuda.current_stream()
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(k.shape[1] - q.shape[1])
    begun = current.record_event()
    for h in range(q.shape[2]):
        stream = STREAMS[h % len(STREAMS)]
        stream.wait_event(begun)
        with torch.cuda.stream(stream):
            keys, values = k[:, :, h].float(), v[:, :, h].float()
            s = (q[:, :, h].float() @ keys.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
            out[:, :, h] = (torch.softmax(s, -1).nan_to_num(0.0) @ values).to(out.dtype)
        current.wait_event(stream.record_event())
