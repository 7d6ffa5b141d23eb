"""Owns the reference code of a definition: plain PyTorch, one text for each core task.

The text is what a reader of the trace set runs and what other kernels are checked against there. It is
no part of this project's own verification; a test holds it against the oracle of the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_RUN = '''\
import torch


@torch.no_grad()
def run({arguments}):
    """{title}.

    q (batch, seq_q, heads, dim), k (batch, seq_k, kv_heads, dim), v (batch, seq_k, kv_heads, dim_v)
    -> (batch, seq_q, heads, dim_v). Computed in float32, one batch entry and one key head at a time.
    """
    batch, seq_q, heads, _ = q.shape
    seq_k, kv_heads, dim_v = v.shape[1:]
    group = heads // kv_heads  # consecutive query heads share a key and value head
    out = torch.zeros(batch, seq_q, heads, dim_v, dtype=q.dtype, device=q.device)
{hidden}    for b in range(batch):
        for g in range(kv_heads):
            mine = slice(g * group, (g + 1) * group)
            queries = q[b, :, mine].float().transpose(0, 1)  # (group, seq_q, dim)
            keys, values = k[b, :, g].float(), v[b, :, g].float()
            scores = scale * (queries @ keys.T)
{changed}            out[b, :, mine] = ({probabilities} @ values).transpose(0, 1).to(q.dtype)
    return out
'''
_POSITIONS = """\
    i = torch.arange(seq_q, device=q.device)[:, None] + seq_k - seq_q  # the last query sees the last key
    j = torch.arange(seq_k, device=q.device)[None, :]
    hidden = {hidden}
    blind = hidden.all(-1, keepdim=True)  # a query that sees no key gives zeros
"""
_MASKED = """\
            scores = scores.masked_fill(hidden, float("-inf"))
"""
_CAUSAL = "j > i"
_WINDOW = "(j > i) | (j <= i - window)"
_SOFTCAP = """\
            scores = softcap * torch.tanh(scores / softcap)
"""


@dataclass(frozen=True)
class Form:
    """What a core task does beside the two products; `heads`: a constraint between the numbers of heads."""

    hidden: str = ""
    changed: str = ""
    heads: str = "heads % kv_heads == 0"


FORMS: Mapping[str, Form] = {
    "mha": Form(heads="heads == kv_heads"),
    "mha_causal": Form(_CAUSAL, heads="heads == kv_heads"),
    "gqa_causal": Form(_CAUSAL),
    "mqa_causal": Form(_CAUSAL, heads="kv_heads == 1"),
    "mla_prefill": Form(_CAUSAL, heads="heads == kv_heads"),
    "sliding_window": Form(_WINDOW),
    "softcap": Form(_CAUSAL, _SOFTCAP),
    "cross": Form(heads="heads == kv_heads"),
}


def reference(task: str, title: str, arguments: tuple[str, ...]) -> str | None:
    """Python text that defines `run` for these arguments; None for a task that is none of the core ones."""
    form = FORMS.get(task)
    if form is None:
        return None
    softmax = "torch.softmax(scores, -1)"
    return _RUN.format(
        arguments=", ".join(arguments),
        title=title,
        hidden=_POSITIONS.format(hidden=form.hidden) if form.hidden else "",
        changed=form.changed + (_MASKED if form.hidden else ""),
        probabilities=f"{softmax}.masked_fill(blind, 0.0)" if form.hidden else softmax,
    )
