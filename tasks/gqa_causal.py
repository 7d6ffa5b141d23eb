"""Grouped-query attention, causal: what most open models of today compute in prefill."""

from tasks.grids import model_shape, with_hidden
from tasks.masks import causal, causal_pairs
from tasks.spec import Task, Workload

NAME = "gqa_causal"

TASK = Task(
    name=NAME,
    title="Causal grouped-query attention",
    description=(
        "Consecutive query heads share a key and value head: query head h reads kv head "
        "g = h // (heads // kv_heads). Query i may see key j only where j <= i + seq_k - seq_q. "
        "The group size is not always a power of two."
    ),
    math=(
        r"o_{h,i} = \sum_{j \le i + D} \mathrm{softmax}_j(\mathrm{scale} \cdot q_{h,i} k_{g,j}^\top)\, "
        r"v_{g,j}, \quad g = \lfloor h / (H / H_{kv}) \rfloor, \quad D = N_k - N_q"
    ),
    mask=causal,
    visible_pairs=causal_pairs,
    causal=True,
    workloads=with_hidden(
        {
            "smoke": (
                Workload(NAME, 1, 8, 2, 256, 256, 64, 64, "fp32"),
                Workload(NAME, 2, 6, 2, 129, 320, 64, 64, "fp32"),
                Workload(NAME, 1, 7, 1, 192, 192, 128, 128, "fp32"),
            ),
            "models": (
                model_shape(NAME, "Llama 3.1 8B", (32, 8), 2048, 128),
                model_shape(NAME, "Llama 3.1 8B", (32, 8), 8192, 128),
                model_shape(NAME, "Llama 3.1 70B", (64, 8), 4096, 128),
                model_shape(NAME, "Llama 3.1 405B", (128, 8), 8192, 128),
                model_shape(NAME, "Qwen2.5 7B", (28, 4), 4096, 128),
                model_shape(NAME, "Qwen3 235B-A22B", (64, 4), 4096, 128),
            ),
        }
    ),
)
