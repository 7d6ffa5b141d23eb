"""The documentation keeps its word: links lead somewhere, commands exist, examples run."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from harness.build.manifest import read_candidate
from harness.cli import app
from harness.experiment import Experiment, experiment_of
from harness.measure.session import Policy
from harness.measure.timing import FLUSH_FACTOR
from harness.verify.exam import Limits
from tasks import find
from tasks.oracle import expected

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_their_options_exist(page):
    for line in re.findall(r"(?:^    |`)attnbench ([^`\n#]+)", page.read_text(), re.MULTILINE):
        words = line.split()
        found = CliRunner(env={"COLUMNS": "300"}).invoke(app, [words[0], "--help"])
        assert found.exit_code == 0, line
        for option in (w for w in words[1:] if w.startswith("--") and w != "--help"):
            assert option in found.output, line


def test_the_new_task_of_the_page_works(tmp_path):
    (source,) = blocks("docs/tasks.md", "python")
    (tmp_path / "dilated.py").write_text(source)
    task = find("dilated", tmp_path)
    w = task.workloads["smoke"][0].with_(seq_q=9, seq_k=13)
    i, j = torch.arange(9)[:, None], torch.arange(13)[None, :]
    assert int(task.mask(i, j, w).sum()) == task.visible_pairs(w)
    inputs = {t.name: torch.randn(t.shape(w)) for t in task.inputs}
    assert not expected(task, w, inputs)["out"].isnan().any()


def test_the_kernel_of_the_page_is_right(tmp_path):
    (toml,), (source,) = blocks("docs/write-a-kernel.md", "toml"), blocks("docs/write-a-kernel.md", "python")
    (tmp_path / "candidate.toml").write_text(toml)
    for name in ("full.py", "causal.py"):
        (tmp_path / name).write_text(source)
    assert read_candidate(tmp_path).tasks == ("mha", "mha_causal")
    task = find("mha")
    w = task.workloads["smoke"][0].with_(seq_q=32, seq_k=32)
    inputs = {t.name: torch.randn(t.shape(w)) for t in task.inputs}
    out = torch.empty(task.outputs[0].shape(w))
    scope: dict = {}
    exec(source, scope)
    scope["attention"](*inputs.values(), out, **task.scalars(w))
    torch.testing.assert_close(out.double(), expected(task, w, inputs)["out"], atol=1e-5, rtol=1e-4)


def test_the_experiment_of_the_page_shows_the_defaults():
    data = tomllib.loads(blocks("docs/run-and-report.md", "toml")[0])
    shown = experiment_of(data, "page")
    plain = Experiment(target="cpu", tasks=("mha_causal",))
    assert shown.limits == plain.limits
    assert shown.sampling == plain.sampling
    assert shown.group == plain.group


def test_the_constants_of_the_protocol_are_the_codes():
    text = " ".join((ROOT / "docs/protocol.md").read_text().split())
    policy = Policy()
    assert f"writes {FLUSH_FACTOR} times the L2" in text
    assert f"{policy.near_rounds} rounds within {policy.near} times" in text
    assert f"{policy.screen_rounds} up to {policy.far:g} times, {policy.far_rounds} beyond" in text
    assert f"within {policy.half_width:.1%}".replace(".2%", ".2 %") in text
    assert f"at least {policy.min_rounds} rounds" in text
    assert Limits().call_s == 30
