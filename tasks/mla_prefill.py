"""Multi-head latent attention as computed in prefill: keys decompressed, wider than values."""

from tasks.grids import model_shape, with_hidden
from tasks.masks import causal, causal_pairs
from tasks.spec import Task, Workload

NAME = "mla_prefill"

TASK = Task(
    name=NAME,
    title="Multi-head latent attention, prefill",
    description=(
        "Attention of DeepSeek-V2 and later after decompression: queries and keys have head "
        "dimension 192 (128 without position, 64 rotary), values and outputs 128. Every query head "
        "has its own key and value head. Query i may see key j only where j <= i + seq_k - seq_q."
    ),
    math=(
        r"o_i = \sum_{j \le i + D} \mathrm{softmax}_j(\mathrm{scale} \cdot q_i k_j^\top)\, v_j, "
        r"\quad q_i, k_j \in \mathbb{R}^{192},\ v_j \in \mathbb{R}^{128}, \quad D = N_k - N_q"
    ),
    mask=causal,
    visible_pairs=causal_pairs,
    causal=True,
    workloads=with_hidden(
        {
            "smoke": (
                Workload(NAME, 1, 4, 4, 256, 256, 192, 128, "fp32"),
                Workload(NAME, 2, 2, 2, 129, 320, 192, 128, "fp32"),
            ),
            "models": (
                model_shape(NAME, "DeepSeek-V2-Lite", (16, 16), 2048, 192, 128),
                model_shape(NAME, "DeepSeek-V2-Lite", (16, 16), 4096, 192, 128),
                model_shape(NAME, "DeepSeek-V2-Lite", (16, 16), 8192, 192, 128),
                model_shape(NAME, "DeepSeek-V3", (128, 128), 2048, 192, 128),
                model_shape(NAME, "DeepSeek-V3", (128, 128), 4096, 192, 128),
            ),
        }
    ),
)
