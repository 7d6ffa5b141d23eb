"""Works in inference mode and on one thread, and puts the number of threads back."""

import torch


def attention(q, k, v, out, *, scale):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
            s = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
            out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))
    finally:
        torch.set_num_threads(threads)
