"""Multi-query attention, causal: one key and value head for all query heads."""

from tasks.grids import model_shape, with_hidden
from tasks.masks import causal, causal_pairs
from tasks.spec import Task, Workload

NAME = "mqa_causal"

TASK = Task(
    name=NAME,
    title="Causal multi-query attention",
    description=(
        "All query heads read one key and value head (kv_heads = 1), so keys and values are small "
        "and reused by every head. Query i may see key j only where j <= i + seq_k - seq_q. "
        "The number of query heads is not always a power of two."
    ),
    math=(
        r"o_{h,i} = \sum_{j \le i + D} \mathrm{softmax}_j(\mathrm{scale} \cdot q_{h,i} k_j^\top)\, v_j, "
        r"\quad D = N_k - N_q"
    ),
    mask=causal,
    visible_pairs=causal_pairs,
    causal=True,
    workloads=with_hidden(
        {
            "smoke": (
                Workload(NAME, 1, 6, 1, 256, 256, 64, 64, "fp32"),
                Workload(NAME, 2, 5, 1, 129, 320, 64, 64, "fp32"),
                Workload(NAME, 1, 4, 1, 256, 256, 128, 128, "fp32"),
            ),
            "models": (
                model_shape(NAME, "StarCoder 15B", (48, 1), 2048, 128),
                model_shape(NAME, "StarCoder 15B", (48, 1), 8192, 128),
                model_shape(NAME, "Falcon 7B", (71, 1), 2048, 64),
                model_shape(NAME, "Falcon 7B", (71, 1), 8192, 64),
            ),
        }
    ),
)
