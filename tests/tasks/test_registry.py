"""A variant is one file in a folder; a file that is wrong says what to do."""

from pathlib import Path

import pytest

from harness.verify.inputs import make_inputs, recipes_for
from harness.verify.tolerance import expect
from tasks import TaskError, discover, find, oracle
from tasks.grids import hidden_for

VARIANT = '''
"""Causal attention with ALiBi: a penalty that grows with distance."""
from tasks.masks import causal, causal_pairs
from tasks.spec import Task, Workload

def biased(s, h, i, j, w):
    return s - 2.0 ** (-8 * (h + 1) / w.heads) * (i + w.diagonal - j)

TASK = Task(
    name="alibi_test", title="ALiBi", description="A linear penalty on distance.", math="",
    mask=causal, score_mod=biased, visible_pairs=causal_pairs,
    workloads={"smoke": (Workload("alibi_test", 1, 4, 4, 64, 64, 32, 32, "fp32"),)},
)
'''


def _write(folder: Path, text: str, name: str = "variant.py") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_one_file_adds_a_variant_that_can_be_verified(tmp_path: Path) -> None:
    task = find("alibi_test", _write(tmp_path, VARIANT))
    assert task.source == VARIANT
    workload = task.workload_set("smoke")[0]
    for shape in (workload, *hidden_for(task, workload)):
        for recipe in recipes_for(task, shape):
            inputs = make_inputs(task, shape, recipe, 1, "cpu")
            expectation = expect(task, shape, inputs)
            assert expectation.compare(oracle.plain(task, shape, inputs)).passed
            wrong = oracle.plain(find("mha_causal"), shape, inputs)
            assert recipe == "tiny_scale" or not expectation.compare(wrong).passed


def test_the_suite_stays_beside_a_folder(tmp_path: Path) -> None:
    assert set(discover(_write(tmp_path, VARIANT))) == set(discover()) | {"alibi_test"}


def test_files_of_one_name_in_two_folders_do_not_shadow_each_other(tmp_path: Path) -> None:
    for n in "ab":
        (tmp_path / n).mkdir()
        _write(tmp_path / n, VARIANT.replace("alibi_test", f"alibi_{n}"))
    assert {"alibi_a", "alibi_b"} <= set(discover(tmp_path / "a", tmp_path / "b"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("TASK = Task(", "TASK = Task(("), "failed to import, correct it: SyntaxError"),
        (("TASK = Task", "OTHER = Task"), "add TASK = Task"),
        (("import causal,", "import casual,"), "failed to import, correct it: ImportError"),
        (('Workload("alibi_test"', 'Workload("alibi"'), "write 'alibi_test'"),
        (('"smoke"', '"smoked"'), 'needs a non-empty set "smoke"'),
        (("visible_pairs=causal_pairs,", ""), "give the count that belongs to the mask"),
        (('"fp32"),', '"fp32", parameters=(("slope", 2.0),)),'), "declares \\[\\]; make them the same"),
        (('name="alibi_test"', 'name="mha"'), "rename the one in|write 'mha'"),
    ],
)
def test_a_wrong_file_is_named_with_the_fix(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    assert change[0] in VARIANT
    _write(tmp_path, VARIANT.replace(*change))
    with pytest.raises(TaskError, match=says) as caught:
        discover(tmp_path)
    assert "variant.py" in str(caught.value)


def test_a_name_taken_twice_names_the_folder(tmp_path: Path) -> None:
    _write(tmp_path, VARIANT.replace("alibi_test", "mha"))
    with pytest.raises(TaskError, match="two task files define 'mha'"):
        discover(tmp_path)


def test_a_missing_folder_and_a_missing_task(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not exist"):
        discover(tmp_path / "nowhere")
    with pytest.raises(TaskError, match="did you mean mha_causal"):
        find("mha_casual")
