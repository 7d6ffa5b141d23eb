"""Owns the inputs of a check: recipes that make different mistakes visible, seeded by the judge.

Each recipe starts from standard normal tensors generated on the device in the workload's
dtype and changes them in place. Which mistake each is for stands in its `catches`. Fully
masked rows are a matter of shape (tasks.grids), unread memory of the worker's guard bands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.spec import DTYPES, Task, TaskError, Workload

Change = Callable[[Workload, dict[str, Tensor], torch.Generator], None]

_LOGIT_STD = 6.0  # peaked: a row of 2048 scores reaches 20, its softmax rests on a handful of keys
_NEEDLE_LOGIT = 24.0  # e^24 outweighs a million other keys
_WAVE_KEYS, _WAVE_HEIGHT = 512, 4.0
_HUGE = {"fp16": 2.0**10, "bf16": 2.0**20, "fp32": 2.0**20, "fp64": 2.0**20}
_TINY = 2.0**-6


@dataclass(frozen=True)
class Recipe:
    """How inputs are made; `needs` names the input tensors it changes."""

    name: str
    catches: str
    change: Change
    needs: tuple[str, ...] = ("q", "k", "v")

    def applies(self, task: Task) -> bool:
        return set(self.needs) <= {t.name for t in task.inputs}


def recipes_for(task: Task, workload: Workload) -> tuple[str, ...]:
    """Names of the recipes for this workload; raises TaskError where the task names one there is not."""
    if task.recipes is None:
        return tuple(r.name for r in RECIPES.values() if r.applies(task) and _has_a_choice(r, workload))
    unknown = sorted(set(task.recipes) - set(RECIPES))
    if unknown:
        raise TaskError(f"task {task.name} names recipes {unknown}; choose from {', '.join(RECIPES)}")
    return task.recipes


def make_inputs(
    task: Task, workload: Workload, recipe: str, seed: int, device: torch.device | str
) -> dict[str, Tensor]:
    """The task's input tensors by name, contiguous, on `device`, in their dtypes.

    The same (seed, device type) gives the same bits. Raises TaskError for an unknown recipe.
    """
    if recipe not in RECIPES:
        raise TaskError(f"unknown input recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    inputs = {
        t.name: torch.randn(
            t.shape(workload), generator=generator, device=device, dtype=DTYPES[t.dtype_of(workload)]
        )
        for t in task.inputs
    }
    RECIPES[recipe].change(workload, inputs, generator)
    return inputs


def _has_a_choice(recipe: Recipe, workload: Workload) -> bool:
    """With one key there is nothing to search or to compare."""
    return workload.seq_k > 1 or recipe.name not in ("needle", "constant_keys")


def _normal(w: Workload, inputs: dict[str, Tensor], generator: torch.Generator) -> None:
    """Standard normal: scores of unit variance at the usual scale."""


def _large_logits(w: Workload, inputs: dict[str, Tensor], generator: torch.Generator) -> None:
    # q k^T before scaling must stay far from fp16's 65504: its standard deviation is bounded.
    root = math.sqrt(w.dim)
    inputs["q"].mul_(min(_LOGIT_STD / (w.softmax_scale * root), 4096.0 / root))


def _needle(w: Workload, inputs: dict[str, Tensor], generator: torch.Generator) -> None:
    """One key at a random place, per batch and kv head, towards which every query leans."""
    q, k = inputs["q"], inputs["k"]
    length = math.sqrt(_NEEDLE_LOGIT / w.softmax_scale)
    sign = torch.randint(0, 2, (w.dim,), generator=generator, device=q.device).mul_(2).sub_(1)
    direction = sign.to(torch.float32) * (length / math.sqrt(w.dim))
    q.add_(direction.to(q.dtype))
    place = torch.randint(0, w.seq_k, (w.batch, 1, w.kv_heads, 1), generator=generator, device=k.device)
    planted = direction.to(k.dtype).expand(w.batch, 1, w.kv_heads, w.dim)
    k.scatter_(1, place.expand_as(planted), planted)


def _constant_keys(w: Workload, inputs: dict[str, Tensor], generator: torch.Generator) -> None:
    """All keys of a head equal, so weights are uniform; values swing by +-4 in waves of 512 keys.

    A running sum climbs to about 1000 and falls back to almost nothing, eight times in 4096 keys.
    What a 16-bit accumulator rounds off at the top stays as error at the bottom: 20 to 37 times
    the tile cap at 2049 keys (measured, all core tasks). In fp32 it is nothing, and equal weights
    round equally. With a window the wave is as long as the window, so that every row's sum returns.
    """
    window = int(w.params.get("window", w.seq_k))
    half_wave = max(1, (window if window < w.seq_k else _WAVE_KEYS) // 2)
    inputs["k"].copy_(inputs["k"][:, :1].clone().expand_as(inputs["k"]))
    place = torch.arange(w.seq_k, device=inputs["v"].device)
    wave = (1.0 - 2.0 * (place // half_wave % 2)) * _WAVE_HEIGHT
    inputs["v"].add_(wave.to(inputs["v"].dtype)[None, :, None, None])


def _outlier_channels(w: Workload, inputs: dict[str, Tensor], generator: torch.Generator) -> None:
    for name, factor in (("q", 8.0), ("k", 8.0), ("v", 16.0)):
        channels = inputs[name].shape[-1]
        order = torch.randperm(channels, generator=generator, device=inputs[name].device)
        factors = torch.ones(channels, device=inputs[name].device)
        factors[order[: max(1, channels // 64)]] = factor
        inputs[name].mul_(factors.to(inputs[name].dtype))


def _tiny_scale(w: Workload, inputs: dict[str, Tensor], generator: torch.Generator) -> None:
    for name in ("q", "k", "v"):
        inputs[name].mul_(_TINY)


def _huge_scale(w: Workload, inputs: dict[str, Tensor], generator: torch.Generator) -> None:
    """Large values, and large queries on small keys: nothing overflows that is kept in fp32."""
    inputs["q"].mul_(32.0)
    inputs["k"].mul_(1 / 32.0)
    inputs["v"].mul_(_HUGE[w.dtype])


RECIPES: Mapping[str, Recipe] = {
    r.name: r
    for r in (
        Recipe("normal", "most mistakes", _normal, ()),
        Recipe("large_logits", "missing running maximum, scores kept in 16 bits, no softcap", _large_logits),
        Recipe("needle", "skipped keys or tiles, wrong positions, wrong kv head", _needle),
        Recipe("constant_keys", "accumulators that lose small terms, wrong count of keys", _constant_keys),
        Recipe("outlier_channels", "quantised operands, lost channels", _outlier_channels),
        Recipe("tiny_scale", "absolute tolerances: zeros would pass them", _tiny_scale),
        Recipe("huge_scale", "16-bit accumulators that overflow", _huge_scale),
    )
}
