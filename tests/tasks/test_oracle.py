"""The oracle against an independent formula, element by element."""

import math
from dataclasses import replace

import pytest
import torch

from tasks import discover, oracle
from tasks.grids import hidden_shapes
from tasks.spec import Task, Workload

SUITE = discover()


def _by_hand(task: Task, w: Workload, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loops of Python over the definition: (batch, seq_q, heads, dim_v), float64."""
    q, k, v = (inputs[name].double() for name in ("q", "k", "v"))
    out = torch.zeros(w.batch, w.seq_q, w.heads, w.dim_v, dtype=torch.float64)
    at = torch.tensor
    for b in range(w.batch):
        for h in range(w.heads):
            g = h // w.group
            for i in range(w.seq_q):
                weights = torch.zeros(w.seq_k, dtype=torch.float64)
                for j in range(w.seq_k):
                    if task.mask is not None and not bool(task.mask(at(i), at(j), w)):
                        continue
                    s = float(q[b, i, h] @ k[b, j, g]) * w.softmax_scale
                    if task.score_mod is not None:
                        s = float(task.score_mod(at(s, dtype=torch.float64), at(h), at(i), at(j), w))
                    weights[j] = math.exp(s)
                if weights.sum() > 0:
                    out[b, i, h] = weights @ v[b, :, g] / weights.sum()
    return out


@pytest.mark.parametrize("name", SUITE)
@pytest.mark.parametrize(("seq_q", "seq_k"), [(5, 9), (9, 5), (7, 7)])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_oracle_is_the_definition(
    name: str, seq_q: int, seq_k: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "CHUNK_ELEMENTS", {"cpu": chunk, "cuda": chunk})
    task, config = SUITE[name], SUITE[name].workload_set("smoke")[0]
    window = tuple((n, 3 if n == "window" else x) for n, x in config.parameters)
    kv_heads = min(2, config.kv_heads)
    w = config.with_(
        batch=2,
        heads=config.group * kv_heads,
        kv_heads=kv_heads,
        seq_q=seq_q,
        seq_k=seq_k,
        dim=8,
        dim_v=4,
        parameters=window,
    )
    generator = torch.Generator().manual_seed(1)
    inputs = {t.name: torch.randn(t.shape(w), generator=generator) for t in task.inputs}
    torch.testing.assert_close(
        oracle.expected(task, w, inputs)["out"], _by_hand(task, w, inputs), rtol=1e-11, atol=1e-12
    )


def test_rows_that_see_nothing_are_zero() -> None:
    w = next(s for s in hidden_shapes([SUITE["mha_causal"].workload_set("smoke")[0]]) if s.seq_q > s.seq_k)
    inputs = {t.name: torch.randn(t.shape(w)) for t in SUITE["mha_causal"].inputs}
    out = oracle.expected(SUITE["mha_causal"], w, inputs)["out"]
    assert not out[:, : -w.diagonal].any() and out[:, -w.diagonal :].all(-1).all()


def test_plain_computes_in_the_test_dtype() -> None:
    w = Workload("mha", 1, 2, 2, 64, 64, 32, 32, "bf16")
    inputs = {t.name: torch.randn(t.shape(w)).bfloat16() for t in SUITE["mha"].inputs}
    low = oracle.plain(SUITE["mha"], w, inputs)["out"]
    exact = oracle.expected(SUITE["mha"], w, inputs)["out"]
    assert low.dtype is torch.bfloat16 and exact.dtype is torch.float64
    assert 0 < float((low - exact).abs().max()) < 0.05


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_a_score_mod_sees_absolute_positions_where_unseen_keys_are_skipped(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "CHUNK_ELEMENTS", {"cpu": chunk, "cuda": chunk})
    task = replace(SUITE["sliding_window"], score_mod=lambda s, h, i, j, w: s + 0.3 * (j % 3) + 0.1 * h * i)
    w = Workload("sliding_window", 1, 2, 2, 7, 9, 8, 4, "fp32", parameters=(("window", 3),))
    inputs = {t.name: torch.randn(t.shape(w)) for t in task.inputs}
    torch.testing.assert_close(
        oracle.expected(task, w, inputs)["out"], _by_hand(task, w, inputs), rtol=1e-11, atol=1e-12
    )
