"""Claims that only a GPU can check: compiled TL programs agree there with the language's own interpreter.

For every core task, the whole tile set, all dtypes and both styles; and for the lenient corpus too.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from harness.targets import find_target
from harness.tl.corpus_index import corpus
from harness.tl.lower.choices import shared_bytes
from tasks import find
from tests.tl.triton_trial import TOLERANCE, Trial, program, run_all, shape, text_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

TASKS = ("mha", "mha_causal", "gqa_causal", "mqa_causal", "mla_prefill", "sliding_window", "softcap", "cross")
TILES = tuple(itertools.product((64, 128), (32, 64, 128)))
SHAPES = ((256, 256), (130, 333), (333, 130))  # one that tiles divide, tails and offsets both ways
LIMIT = (find_target("h100").smem_per_block or 0) - 2048


def fits(name: str, tiles: tuple[int, int], dtype: str) -> bool:
    """Whether the tiles have room: f32 tiles of the widest heads do not."""
    task, prog = program("reference", name)
    w = shape(task, 64, 64, dtype)
    dim, dim_v = (max(16, 1 << (n - 1).bit_length()) for n in (w.dim, w.dim_v))
    choice = {"BM": tiles[0], "BN": tiles[1], "stages": 2}
    return shared_bytes(prog, choice, dim, dim_v, w.torch_dtype.itemsize) <= LIMIT


def trials() -> dict[str, Trial]:
    out: dict[str, Trial] = {}
    for name, tiles, dtype in itertools.product(TASKS, TILES, ("fp16", "bf16", "fp32")):
        if fits(name, tiles, dtype):
            turn = TILES.index(tiles) + TASKS.index(name)
            launch = ("warps", 8 if tiles[0] == 128 else 4), ("stages", 2), ("overlap", turn % 2)
            choice = (("BM", tiles[0]), ("BN", tiles[1]), *launch)
            shapes = tuple(shape(find(name), *seqs, dtype) for seqs in SHAPES)
            out[f"{name} {tiles} {dtype}"] = Trial(name, text_of("reference", name), shapes, choice, "cuda")
    small = (("BM", 64), ("BN", 32), ("warps", 4), ("stages", 2))
    for name, dtype in itertools.product(TASKS, ("fp16", "bf16", "fp32")):
        shapes = tuple(shape(find(name), *seqs, dtype) for seqs in SHAPES)
        out[f"primitive {name} {dtype}"] = Trial(name, text_of("primitive", name), shapes, small, "cuda")
    for entry in corpus("lenient"):
        tiled = "Tile BM" in entry.text and "BN" in entry.text
        shapes = tuple(shape(find(entry.task), *seqs, "fp16") for seqs in SHAPES)
        out[entry.name] = Trial(entry.task, entry.text, shapes, small if tiled else (), "cuda")
    return out


PLANNED = trials()


@pytest.fixture(scope="module")
def differences() -> dict[str, list[float] | str]:
    found = run_all(list(PLANNED.values()), max(1, (os.cpu_count() or 2) - 2), interpreted=False)
    return dict(zip(PLANNED, found, strict=True))


@pytest.mark.parametrize("name", PLANNED, ids=str)
def test_the_kernel_agrees_with_the_interpreter(differences: dict[str, list[float] | str], name: str) -> None:
    found, dtype = differences[name], PLANNED[name].workloads[0].dtype
    assert not isinstance(found, str), found
    assert max(found) < TOLERANCE[dtype], found
