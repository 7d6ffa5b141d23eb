"""The paper's grid and the hidden shapes."""

import pytest

from tasks import discover
from tasks.grids import hidden_for, hidden_shapes, paper_grid
from tasks.spec import Task, Workload

SUITE = discover()


def test_the_paper_grid_holds_16k_tokens_of_hidden_size_2048() -> None:
    grid = paper_grid("mha")
    assert len(grid) == 24
    assert all(w.batch * w.seq_q == 16_384 and w.heads * w.dim == 2048 for w in grid)


def test_causal_paper_set_has_a_chunk_against_a_long_past() -> None:
    assert any((w.seq_q, w.seq_k) == (512, 8192) for w in SUITE["mha_causal"].workload_set("paper"))


@pytest.mark.parametrize("task", SUITE.values(), ids=SUITE)
def test_hidden_shapes_of_every_workload_keep_its_configuration(task: Task) -> None:
    for w in (w for name in task.workloads if name != "hidden" for w in task.workload_set(name)):
        shapes = hidden_for(task, w)
        assert 5 <= len(shapes) <= 7
        for s in shapes:
            assert (s.dim, s.dim_v, s.dtype, s.group, s.scale) == (w.dim, w.dim_v, w.dtype, w.group, w.scale)
            assert s.params.keys() == w.params.keys()
            assert s.batch * s.heads * s.seq_q * s.seq_k < 1 << 24, "small enough for a CPU oracle"


def test_hidden_shapes_are_nasty() -> None:
    shapes = hidden_shapes([Workload("t", 4, 8, 8, 4096, 4096, 64, 64)])
    assert any(s.seq_q > s.seq_k for s in shapes) and any(s.seq_q < s.seq_k for s in shapes)
    assert any(s.batch == 1 for s in shapes) and any(s.batch > 1 and s.kv_heads > 1 for s in shapes)
    assert max(s.seq_k for s in shapes) > 2048
    assert all(s.seq_k % 16 for s in shapes)


def test_hidden_windows_have_both_edges_inside_the_shape() -> None:
    w = Workload("sliding_window", 1, 8, 8, 8192, 8192, 64, 64, parameters=(("window", 4096),))
    shapes = hidden_for(SUITE["sliding_window"], w)
    assert sum(s.params["window"] < s.seq_k for s in shapes) >= 4
    assert any(s.params["window"] > s.seq_k for s in shapes)


def test_a_task_may_bring_its_own_hidden_shapes() -> None:
    own = Workload("mine", 1, 2, 2, 64, 64, 64, 64)
    task = Task("mine", "", "", "", {"smoke": (own,), "hidden": (own,)})
    assert hidden_for(task, own.with_(seq_q=4096, seq_k=4096)) == (own,)
    assert len(hidden_for(task, own.with_(dtype="bf16"))) == 5
