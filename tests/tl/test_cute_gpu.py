"""Claims that only a GPU can check: programs compiled to CuTe agree there with the language's interpreter.

For every core task and tile choice that fits, both styles, the lenient corpus, tensors that are not aligned, and
from the PTX of older architectures through the driver.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from harness.build.products import ARCH_VARIABLE
from harness.targets import find_target
from harness.tl.corpus_index import corpus
from harness.tl.lower.cute_choices import complete, shared_bytes
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from tasks import find
from tests.tl.test_triton_gpu import TASKS
from tests.tl.triton_trial import TOLERANCE, Trial, program, run_all, shape, text_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SHAPES = ((256, 256), (130, 333), (333, 130))  # one that tiles divide, tails and offsets both ways
# rows, columns, warps, tiles in flight and in use, ptxas' level
CHOICES = (
    (128, 64, 4, 2, 2), (128, 128, 4, 2, 2), (64, 64, 4, 2, 3), (64, 32, 4, 3, 2), (128, 32, 4, 3, 3),
    (128, 64, 8, 2, 2), (64, 128, 2, 2, 1), (64, 64, 4, 4, 2),
)  # fmt: skip
NAMES = ("BM", "BN", "warps", "stages", "optimize")
LIMIT = find_target("h100").smem_per_block or 0
SMALL = tuple(zip(NAMES, (64, 32, 4, 2, 2), strict=True))


def trials() -> dict[str, Trial]:
    out: dict[str, Trial] = {}
    for name, sizes in itertools.product(TASKS, CHOICES):
        task, prog = program("reference", name)
        choice = dict(zip(NAMES, sizes, strict=True))
        w = shape(task, 64, 64, "fp16")
        if shared_bytes(prog, choice, w.dim, w.dim_v) > LIMIT:
            continue
        dtype = "bf16" if CHOICES.index(sizes) % 3 == 1 else "fp16"
        shapes = tuple(shape(task, *seqs, dtype) for seqs in SHAPES)
        fixed = tuple(choice.items())
        out[f"{name} {sizes} {dtype}"] = Trial(
            name, text_of("reference", name), shapes, fixed, "cuda", "cuda"
        )
    for name in TASKS:
        shapes = tuple(shape(find(name), *seqs, "fp16") for seqs in SHAPES)
        out[f"primitive {name}"] = Trial(name, text_of("primitive", name), shapes, SMALL, "cuda", "cuda")
        odd = tuple(shape(find(name), *seqs, "fp16").with_(dim=72, dim_v=40) for seqs in SHAPES[1:])
        out[f"odd head dimensions {name}"] = Trial(
            name, text_of("reference", name), odd, SMALL, "cuda", "cuda"
        )
        odder = tuple(shape(find(name), *seqs, "bf16").with_(dim=21, dim_v=33) for seqs in SHAPES[1:])
        out[f"unaligned {name}"] = Trial(name, text_of("reference", name), odder, SMALL, "cuda", "cuda")
    for entry in corpus("lenient"):
        prog = resolve(parse(entry.text), find(entry.task))
        shapes = tuple(shape(find(entry.task), *seqs, "fp16") for seqs in SHAPES)
        out[entry.name] = Trial(
            entry.task, entry.text, shapes, tuple(complete(prog, {}).items()), "cuda", "cuda"
        )
    return out


PLANNED = trials()
OLDER = {
    f"{arch} {name}": (arch, Trial(
        name, text_of("reference", name), (shape(find(name), 130, 333, "fp16"),), SMALL, "cuda", "cuda"
    ))
    for arch, name in itertools.product(("compute_75", "compute_80", "compute_89"), TASKS)
}  # fmt: skip


@pytest.fixture(scope="module")
def differences() -> dict[str, list[float] | str]:
    workers = max(1, (os.cpu_count() or 2) - 2)
    found = run_all(list(PLANNED.values()), workers, interpreted=False)
    return dict(zip(PLANNED, found, strict=True))


@pytest.fixture(scope="module")
def older() -> dict[str, list[float] | str]:
    """From PTX that the driver compiles for the GPU at hand."""
    out: dict[str, list[float] | str] = {}
    with pytest.MonkeyPatch.context() as patch:
        for arch in dict.fromkeys(arch for arch, _ in OLDER.values()):
            patch.setenv(ARCH_VARIABLE, arch)
            mine = {name: trial for name, (a, trial) in OLDER.items() if a == arch}
            out |= dict(zip(mine, run_all(list(mine.values()), 8, interpreted=False), strict=True))
    return out


@pytest.mark.parametrize("name", PLANNED, ids=str)
def test_the_kernel_agrees_with_the_interpreter(differences: dict[str, list[float] | str], name: str) -> None:
    found, dtype = differences[name], PLANNED[name].workloads[0].dtype
    assert not isinstance(found, str), found
    assert max(found) < TOLERANCE[dtype], found


@pytest.mark.parametrize("name", OLDER, ids=str)
def test_ptx_of_older_architectures_agrees_too(older: dict[str, list[float] | str], name: str) -> None:
    found = older[name]
    assert not isinstance(found, str), found
    assert max(found) < TOLERANCE["fp16"], found
