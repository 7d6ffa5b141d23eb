"""The documentation keeps its word: links lead somewhere, files are there, constants are the code's.

Its commands are in `test_commands.py`.
"""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from harness.experiment import Experiment, experiment_of
from harness.verdicts import _LAST_STAGE, Stage, Verdict
from harness.verify.exam import Limits
from tests.docs.pages import PAGES, ROOT, blocks, plain, rows, text_of

page_by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def slug(heading: str) -> str:
    """The anchor that Markdown gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


@page_by_page
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]+))?\)", page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}#{anchor}"


@page_by_page
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:harness|tasks|baselines|reports|tests|examples|docs)/[\w./-]*)`", page.read_text()
    ):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_experiment_of_the_page_shows_the_defaults() -> None:
    data = tomllib.loads(blocks("docs/run-and-report.md", "toml")[0])
    shown = experiment_of(data, "page")
    default = Experiment(target="cpu", tasks=("mha_causal",))
    assert shown.limits == default.limits
    assert shown.sampling == default.sampling
    assert shown.group == default.group
    assert shown.request_limits == Limits()


def test_the_experiment_of_the_models_page_is_one_and_its_keys_have_their_defaults() -> None:
    data = tomllib.loads(blocks("docs/models.md", "toml")[0])
    shown = experiment_of(data, "page")
    default = Experiment(target="h100", tasks=("mha",))
    assert shown.budget.model_copy(update={"usd": None}) == default.budget
    assert shown.asking == default.asking
    for key, value, _ in rows("docs/models.md", "key"):
        assert json.loads(plain(value).replace("`", "")) == json.loads(
            json.dumps(getattr(default, plain(key)))
        ), key


def test_every_method_and_provider_is_explained() -> None:
    from harness.generate.methods import METHODS
    from harness.generation import GRACE_S
    from harness.llm.providers import KNOWN

    assert [plain(row[0]) for row in rows("docs/models.md", "method")] == list(METHODS)
    assert {plain(row[0]) for row in rows("docs/models.md", "provider")} >= set(KNOWN)
    assert f"up to {GRACE_S:g} s" in text_of("docs/models.md")


def test_every_verdict_is_explained_with_its_last_stage() -> None:
    shown = {Verdict(plain(v)): Stage(stage) for v, stage, _ in rows("docs/protocol.md", "verdict")}
    assert shown == dict(_LAST_STAGE)


def resolved(path: str) -> Any:
    """What a dotted path in the page names: an attribute of a module, or of something in it."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module of {path}")


def test_the_table_of_constants_is_the_codes() -> None:
    table = rows("docs/protocol.md", "constant")
    assert len(table) > 15
    for path, value, reason in table:
        assert resolved(plain(path)) == float(value), path
        assert reason, path


def test_the_constants_in_the_protocols_prose_are_the_codes() -> None:
    from harness.bench import CONTENTS
    from harness.entrants import INTERPRETER_RECIPES, INTERPRETER_SCORES
    from harness.looks import SECOND_LOOKS
    from harness.measure import judge, timing
    from harness.measure.late import LATE_MS
    from harness.measure.session import Policy
    from harness.measure.statistics import FEWEST_FOR_BOOTSTRAP, SINGLE_PAIR_HALF_WIDTH
    from harness.race import MARKED
    from harness.targets import TARGETS
    from harness.verify.tolerance import COSINE_ALLOWED, TILE_ROWS
    from harness.worker import moves
    from harness.worker.protocol import GUARD_BYTES
    from harness.worker.slots import POISON
    from tasks import find

    text, policy = text_of("docs/protocol.md"), Policy()
    cpu = experiment_of(tomllib.loads((ROOT / "harness/experiments/cpu.toml").read_text()), "cpu")
    slow = [f"`{t.name}`" for t in TARGETS.values() if t.reference == "float32"]
    said = [
        f"guards of {GUARD_BYTES} bytes",
        f"bytes are 0x{POISON:X}",
        f"at most {INTERPRETER_SCORES:_} scores".replace("_", " "),
        "the recipes `{}`, `{}` and `{}`".format(*INTERPRETER_RECIPES),
        f"slow ({', '.join(slow)})",
        f"which is {TILE_ROWS} queries",
        f"{COSINE_ALLOWED['fp16']:.0e} for fp16 and bf16, {COSINE_ALLOWED['fp32']:.0e} for fp32, "
        f"{COSINE_ALLOWED['fp64']:.0e} for fp64".replace("e-0", "e-"),
        f"| `r` | {find('mha').tolerance_factor:g}; {find('softcap').tolerance_factor:g} in `softcap` |",
        f"a fill of {timing.FLUSH_FACTOR} times the L2",
        f"a fill of {timing.CPU_FLUSH_BYTES >> 20} MiB",
        f"longer than {timing.GRAPH_LIMIT_MS:g} ms",
        f"3 to {policy.latency_calls} calls",
        f"about {policy.block_ms:g} ms, with {policy.min_iterations} to {policy.max_iterations} iterations",
        f"at most {policy.max_rounds} |",
        f"within {policy.near:g} times the anchor's time | {policy.near_rounds} |",
        f"within {policy.far:g} times | {policy.screen_rounds} |",
        f"beyond that | {policy.far_rounds} | 1 |",
        f"within {policy.half_width * 100:g} % for every candidate and for the duplicate, "
        f"after at least {policy.min_rounds} rounds",
        f"{policy.time_cap_s:g} s of sampling",
        f"`rounds_cap`: {policy.max_rounds} rounds",
        f"looked at again, up to {SECOND_LOOKS} times",
        f"lasts {judge.BURST_MS:g} ms in the first look",
        f"(1 to {moves.MOST_ROWS} rows, a {moves.SHARE}th of all)",
        "({two} on a GPU, {four} on a CPU)".format(
            two={2: "two"}[MARKED["cuda"]], four={4: "four"}[MARKED["cpu"]]
        ),
        f"more than {LATE_MS:g} ms beyond",
        f"down to {judge.BURST_MS / 2**judge.HALVINGS:.1f} ms",
        f"below {judge.SHARE:g} of it, less {judge.GAP_MS:g} ms and, for the launch, {judge.LAUNCH_MS:g} ms "
        "shared by as many calls as there are slots",
        f"more than {judge.EAGER_SLACK_MS:g} ms",
        f"{judge.CPU_SLACK_MS:g} ms are allowed for",
        f"{FEWEST_FOR_BOOTSTRAP} rounds or more",
        f"times or over {1 + SINGLE_PAIR_HALF_WIDTH:g}",
        f"at most {cpu.policy.max_iterations} iterations",
        f"asks for {cpu.policy.half_width * 100:g} %",
        "up to four candidates",
        "two that are timed, one adversarial",
    ]
    missing = [phrase for phrase in said if phrase not in text]
    assert not missing, missing
    assert (Experiment(target="cpu", tasks=("mha",)).group, CONTENTS) == (4, 3)


def test_the_slots_are_as_many_as_the_protocol_says() -> None:
    from types import SimpleNamespace

    from harness.bench import Bench
    from harness.experiment import Cell
    from harness.targets import find_target
    from tasks import find

    task = find("mha")
    for target, most in (("h100", 16), ("cpu", 4)):
        counts = {
            Bench.slots(SimpleNamespace(target=find_target(target)), Cell(task, w))  # type: ignore[arg-type]
            for name in ("smoke", "paper")
            for w in task.workloads[name]
        }
        assert min(counts) == 2
        assert max(counts) <= most
    text = text_of("docs/protocol.md")
    assert "exceed 5 times the L2, at least 2 and at most 16" in text
    assert "2 to 4 slots" in text
