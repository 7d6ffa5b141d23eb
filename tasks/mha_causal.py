"""Multi-head attention in which a query sees itself and what came before."""

from tasks.grids import paper_grid, with_hidden
from tasks.masks import causal, causal_pairs
from tasks.spec import Task, Workload

NAME = "mha_causal"
PAPER = paper_grid(NAME)

TASK = Task(
    name=NAME,
    title="Causal multi-head attention",
    description=(
        "Every query head has its own key and value head. Query i may see key j only where "
        "j <= i + seq_k - seq_q, so the last query sees every key. With seq_q > seq_k the first "
        "rows see nothing and are zero."
    ),
    math=(
        r"o_i = \sum_{j \le i + D} \mathrm{softmax}_j(\mathrm{scale} \cdot q_i k_j^\top)\, v_j, "
        r"\quad D = N_k - N_q"
    ),
    mask=causal,
    visible_pairs=causal_pairs,
    causal=True,
    workloads=with_hidden(
        {
            "smoke": (
                Workload(NAME, 1, 4, 4, 512, 512, 64, 64, "fp32"),
                Workload(NAME, 2, 2, 2, 129, 320, 64, 64, "fp32"),
                Workload(NAME, 1, 2, 2, 256, 256, 128, 128, "fp32"),
            ),
            "paper": (
                *PAPER,
                *(  # a prompt's last chunk against everything before it
                    Workload(NAME, 2, 16, 16, 512, 8192, 128, 128, dtype, label="chunked prefill")
                    for dtype in ("fp16", "bf16")
                ),
            ),
            "models": tuple(w for w in PAPER if w.dtype == "fp16" and w.seq_q in (2048, 4096, 8192)),
        }
    ),
)
