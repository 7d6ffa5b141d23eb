"""Recipes: deterministic, in range, and each does what it is for."""

import pytest
import torch

from harness.verify.inputs import RECIPES, make_inputs, recipes_for
from tasks import discover, oracle
from tasks.spec import Task, TaskError, TensorSpec, Workload

SUITE = discover()
W = Workload("mha", 2, 4, 2, 96, 160, 64, 32)
every_recipe = pytest.mark.parametrize("recipe", RECIPES)


@every_recipe
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_shape_dtype_layout_and_range(recipe: str, dtype: str) -> None:
    w = W.with_(dtype=dtype)
    inputs = make_inputs(SUITE["mha"], w, recipe, 1, "cpu")
    assert list(inputs) == ["q", "k", "v"]
    for spec in SUITE["mha"].inputs:
        tensor = inputs[spec.name]
        assert tensor.shape == spec.shape(w) and tensor.dtype is w.torch_dtype
        assert tensor.is_contiguous() and bool(torch.isfinite(tensor).all())
    assert bool(torch.isfinite(oracle.plain(SUITE["mha"], w, inputs)["out"]).all())


@every_recipe
def test_a_seed_decides_everything(recipe: str) -> None:
    first, same, other = (make_inputs(SUITE["mha"], W, recipe, seed, "cpu") for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def _weights(recipe: str) -> torch.Tensor:
    """Softmax weights of the first batch and kv head: (seq_q, seq_k)."""
    inputs = make_inputs(SUITE["mha"], W, recipe, 2, "cpu")
    q, k = inputs["q"][0, :, 0].double(), inputs["k"][0, :, 0].double()
    return torch.softmax(q @ k.T * W.softmax_scale, -1)


def test_needle_takes_nearly_all_weight_of_every_query() -> None:
    largest = _weights("needle").max(-1)
    assert float(largest.values.min()) > 0.9 and len(set(largest.indices.tolist())) == 1


def test_constant_keys_weigh_the_same() -> None:
    weights = _weights("constant_keys")
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / W.seq_k))


def test_large_logits_are_peaked_and_tiny_ones_flat() -> None:
    assert float(_weights("large_logits").max(-1).values.mean()) > 0.5
    assert float(_weights("tiny_scale").max()) < 1.1 / W.seq_k


def test_a_custom_scale_keeps_large_logits_large_and_finite() -> None:
    for scale in (1e-3, 1.0, 144**-0.5):
        w = W.with_(scale=scale)
        inputs = make_inputs(SUITE["mha"], w, "large_logits", 2, "cpu")
        scores = (inputs["q"][0, :, 0].double() @ inputs["k"][0, :, 0].double().T) * scale
        assert 3 < float(scores.std()) < 9


def test_outliers_are_few_and_large() -> None:
    deviation = make_inputs(SUITE["mha"], W, "outlier_channels", 2, "cpu")["v"].float().std((0, 1, 2))
    assert int((deviation > 8).sum()) == 1


def test_a_task_chooses_recipes_and_others_are_left_out_where_they_cannot_apply() -> None:
    assert recipes_for(SUITE["mha"], W) == tuple(RECIPES)
    assert "needle" not in recipes_for(SUITE["mha"], W.with_(seq_k=1))
    x = TensorSpec("x", ("batch", "seq_q", "dim"))
    assert recipes_for(Task("t", "", "", "", {}, tensors=(x,)), W) == ("normal",)
    assert recipes_for(Task("t", "", "", "", {}, recipes=("needle",)), W) == ("needle",)


def test_unknown_recipes_are_named_with_those_there_are() -> None:
    with pytest.raises(TaskError, match=r"'neddle'.*choose.*needle"):
        recipes_for(Task("t", "", "", "", {}, recipes=("neddle",)), W)
    with pytest.raises(TaskError, match="choose one of normal"):
        make_inputs(SUITE["mha"], W, "neddle", 0, "cpu")
