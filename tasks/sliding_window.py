"""Causal attention limited to the last `window` keys."""

from tasks.grids import model_shape, with_hidden
from tasks.masks import sliding_window, sliding_window_pairs
from tasks.spec import Parameter, Task, Workload

NAME = "sliding_window"

TASK = Task(
    name=NAME,
    title="Causal sliding-window attention",
    description=(
        "Query i sees the key at its own position p = i + seq_k - seq_q and the window - 1 keys "
        "before it: 0 <= p - j < window. Consecutive query heads share a kv head, "
        "g = h // (heads // kv_heads). Key tiles outside the band need not be read."
    ),
    math=(
        r"o_{h,i} = \sum_{0 \le i + D - j < W} "
        r"\mathrm{softmax}_j(\mathrm{scale} \cdot q_{h,i} k_{g,j}^\top)\, v_{g,j}, \quad D = N_k - N_q"
    ),
    mask=sliding_window,
    visible_pairs=sliding_window_pairs,
    parameters=(Parameter("window", "int", "keys a query sees, its own position included"),),
    workloads=with_hidden(
        {
            "smoke": (
                Workload(NAME, 1, 4, 2, 512, 512, 64, 64, "fp32", parameters=(("window", 128),)),
                Workload(NAME, 2, 4, 4, 129, 320, 64, 64, "fp32", parameters=(("window", 100),)),
            ),
            "models": (
                model_shape(NAME, "Mistral 7B v0.1", (32, 8), 8192, 128, window=4096),
                model_shape(NAME, "Mistral 7B v0.1", (32, 8), 16_384, 128, window=4096),
                model_shape(NAME, "Gemma 2 9B, window only", (16, 8), 8192, 256, window=4096),
                model_shape(NAME, "gpt-oss, without sinks", (64, 8), 2048, 64, window=128),
                model_shape(NAME, "gpt-oss, without sinks", (64, 8), 8192, 64, window=128),
            ),
        }
    ),
)
