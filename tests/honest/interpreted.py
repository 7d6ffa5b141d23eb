"""Runs the kernels for a GPU in Triton's interpreter, in a process of its own: `python -m tests.honest.interpreted`.

Prints the largest error of each, by name. What needs streams is called below them.
"""

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import torch


def error_of(file: Path, seq_q: int, seq_k: int) -> float:
    names: dict[str, object] = {}
    sys.path.insert(0, str(file.parent))
    module = __import__(file.stem)
    names.update(vars(module))
    torch.manual_seed(seq_k)
    q, k, v = (torch.randn(1, n, 2, 32) for n in (seq_q, seq_k, seq_k))
    out = torch.full((1, seq_q, 2, 32), float("nan"))
    if "launch" in names:
        names["launch"](q, k, v, out, 0.2)  # type: ignore[operator]
    else:
        names["attention"](q, k, v, out, scale=0.2)  # type: ignore[operator]
    a, b, c = (x.transpose(1, 2).double() for x in (q, k, v))
    seen = torch.ones(seq_q, seq_k, dtype=torch.bool).tril(seq_k - seq_q)
    weights = torch.softmax((a @ b.transpose(-1, -2) * 0.2).masked_fill(~seen, float("-inf")), -1)
    return float((out - (weights.nan_to_num() @ c).transpose(1, 2)).abs().max())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, max(error_of(Path(name), *lengths) for lengths in ((70, 70), (33, 130), (66, 40))))
