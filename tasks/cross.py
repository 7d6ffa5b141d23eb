"""Cross attention: queries of one sequence, keys and values of another, any two lengths."""

from tasks.grids import with_hidden
from tasks.spec import Task, Workload

NAME = "cross"

TASK = Task(
    name=NAME,
    title="Cross attention",
    description=(
        "Every query sees every key of another sequence. The two lengths are unrelated, often odd, "
        "and the keys may be so few that one tile holds them all."
    ),
    math=r"o_i = \sum_{j < N_k} \mathrm{softmax}_j(\mathrm{scale} \cdot q_i k_j^\top)\, v_j",
    workloads=with_hidden(
        {
            "smoke": (
                Workload(NAME, 1, 4, 4, 512, 77, 64, 64, "fp32"),
                Workload(NAME, 1, 2, 2, 113, 203, 64, 64, "fp32"),
                Workload(NAME, 2, 2, 2, 799, 3, 64, 64, "fp32"),
            ),
            "models": (
                Workload(NAME, 4, 10, 10, 4096, 77, 64, 64, label="SDXL, text to image"),
                Workload(NAME, 16, 20, 20, 1024, 77, 64, 64, label="SDXL, text to image"),
                Workload(NAME, 32, 20, 20, 448, 1500, 64, 64, label="Whisper large, decoder to audio"),
                Workload(NAME, 16, 20, 20, 1023, 1024, 64, 64, label="odd lengths"),
            ),
        },
        extra=(
            Workload(NAME, 1, 2, 2, 1023, 1024, 64, 64),
            Workload(NAME, 2, 2, 2, 799, 3, 64, 64),
        ),
    ),
)
