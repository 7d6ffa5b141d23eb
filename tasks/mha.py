"""Multi-head attention without a mask."""

from tasks.grids import paper_grid, with_hidden
from tasks.spec import Task, Workload

NAME = "mha"
PAPER = paper_grid(NAME)

TASK = Task(
    name=NAME,
    title="Multi-head attention",
    description=(
        "Every query head has its own key and value head, and every query sees every key. "
        "seq_q and seq_k may differ."
    ),
    math=r"o_i = \sum_{j} \mathrm{softmax}_j(\mathrm{scale} \cdot q_i k_j^\top)\, v_j",
    workloads=with_hidden(
        {
            "smoke": (
                Workload(NAME, 1, 4, 4, 512, 512, 64, 64, "fp32"),
                Workload(NAME, 2, 2, 2, 200, 333, 64, 64, "fp32"),
                Workload(NAME, 1, 2, 2, 256, 256, 128, 128, "fp32"),
            ),
            "paper": PAPER,
            "models": tuple(w for w in PAPER if w.dtype == "fp16" and w.seq_q in (2048, 4096, 8192)),
        }
    ),
)
