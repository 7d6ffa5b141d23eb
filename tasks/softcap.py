"""Causal attention whose scores are capped smoothly, as in Gemma 2."""

import torch
from torch import Tensor

from tasks.grids import model_shape, with_hidden
from tasks.masks import causal, causal_pairs
from tasks.spec import Parameter, Task, Workload

NAME = "softcap"


def capped(s: Tensor, h: Tensor, i: Tensor, j: Tensor, w: Workload) -> Tensor:
    """softcap * tanh(s / softcap), of scores that are scaled already."""
    cap = w.params["softcap"]
    return cap * torch.tanh(s / cap)


TASK = Task(
    name=NAME,
    title="Causal attention with soft-capped scores",
    description=(
        "Scaled scores s pass through softcap * tanh(s / softcap) before mask and softmax, which "
        "bounds them smoothly. The scale need not be dim ** -0.5. Consecutive query heads share a "
        "kv head, g = h // (heads // kv_heads). Query i may see key j only where "
        "j <= i + seq_k - seq_q."
    ),
    math=(
        r"o_{h,i} = \sum_{j \le i + D} \mathrm{softmax}_j\left(c \tanh\left(\mathrm{scale} \cdot "
        r"q_{h,i} k_{g,j}^\top / c\right)\right) v_{g,j}, \quad D = N_k - N_q"
    ),
    mask=causal,
    score_mod=capped,
    visible_pairs=causal_pairs,
    parameters=(Parameter("softcap", "float", "bound of the scores' magnitude"),),
    tolerance_factor=3.0,
    workloads=with_hidden(
        {
            "smoke": (
                Workload(NAME, 1, 4, 2, 256, 256, 64, 64, "fp32", parameters=(("softcap", 50.0),)),
                Workload(NAME, 2, 2, 2, 129, 320, 64, 64, "fp32", 0.1, (("softcap", 20.0),)),
            ),
            "models": (
                model_shape(NAME, "Gemma 2 27B", (32, 16), 2048, 128, scale=144**-0.5, softcap=50.0),
                model_shape(NAME, "Gemma 2 27B", (32, 16), 4096, 128, scale=144**-0.5, softcap=50.0),
                model_shape(NAME, "Gemma 2 27B", (32, 16), 8192, 128, scale=144**-0.5, softcap=50.0),
            ),
        }
    ),
)
