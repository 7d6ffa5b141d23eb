"""Every command of every page is run in a small form, or shown for a reason and checked against the program."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from harness.experiment import SHIPPED
from harness.generate.methods import METHODS
from harness.llm.keys import KEY_VARIABLES
from tasks import discover
from tests import gate_trial
from tests.commands import commands, parse
from tests.docs.ground import Grounds
from tests.docs.ledger import RUN, SHOWN, Step
from tests.docs.pages import PAGES, ROOT, Line, command_lines
from tests.tl import hopper_study

SHOWN_LINES = {line: reason for reason, lines in SHOWN.items() for line in lines}
RUN_LINES = {step.line for step in RUN}
OF_THE_READER = ("my_kernels", "my_tasks", "my_report", "kernels", "questions", "tuned", "first.tl", "runs")
COMMANDS = {c.name for c in commands()}
EXAMPLES = {" ".join(shlex.split(line, comments=True)) for c in commands() for line in c.examples}
WHAT_TO_DO = (
    "is neither run nor shown. Give it a Step in RUN of tests/docs/ledger.py, so that it is run in a small form, "
    "or, where it needs a GPU, a provider, minutes or the network, a line in SHOWN with that reason."
)
page_by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> Grounds:
    return Grounds(tmp_path_factory.mktemp("pages"))


@page_by_page
def test_every_command_of_a_page_is_run_or_shown(page: Path) -> None:
    unknown = [f"{line} {WHAT_TO_DO}" for line in command_lines(page) if not known(line)]
    assert not unknown, "\n".join(unknown)


def known(line: Line) -> bool:
    """Whether something is done with it: by the ledger, or by a rule for what is no command of attnbench."""
    text = " ".join(shlex.split(line.text, comments=True)) if "'" not in line.text else line.text
    if line.text in RUN_LINES or line.text in SHOWN_LINES:
        return True
    if line.page == "docs/commands.md" and text in EXAMPLES:
        return True  # an example of the help: tests/test_help.py parses it
    return (line.inline and is_mention(text)) or other_program(line.text)


def is_mention(text: str) -> bool:
    """A sentence that names a command, or says how it is called with the reader's own names in capitals."""
    text = text.replace("python3 -m harness.cli", "attnbench").removesuffix(" --help")
    if text in COMMANDS or text == "attnbench COMMAND":
        return True
    words = text.split()
    if words[0] != "attnbench" or not any(re.fullmatch(r"[A-Z]{2,}(:[A-Z]+)?", word) for word in words):
        return False
    check_names(parse(words[1:]))
    return True


def other_program(text: str) -> bool:
    """Commands of other programs; each raises AssertionError where what it names is not there."""
    words = shlex.split(text)
    while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        words = words[1:]
    match words:
        case ["nox", "-s", session, *rest]:
            return is_session(session, rest)
        case ["python3", "-m", "pip", "install", *what]:
            return all(is_installable(word) for word in what)
        case ["export", setting]:
            return setting.partition("=")[0] in KEY_VARIABLES
        case ["pytest", *rest]:
            return all(is_of_pytest(word) for word in rest)
        case ["ruff" | "mypy" | "nox"]:
            return True
    return False


def is_session(session: str, rest: list[str]) -> bool:
    """A session of noxfile.py; what stands after -- is parsed as what the session passes it to."""
    assert session in sessions(), f"nox has no session {session}"
    if rest:
        assert rest[0] == "--", rest
        kind, _, target = session.partition("-")
        if kind in ("eval", "compile"):
            check_names(parse(["eval", target, *rest[1:]]))
        elif kind == "gate":
            parse(["gate", *rest[1:]])
        elif session == "report":
            check_names(parse(["report", *rest[1:]]))
        else:
            assert all(is_of_pytest(word) for word in rest[1:])
    return True


def sessions() -> set[str]:
    """Names of the sessions in noxfile.py."""
    source = (ROOT / "noxfile.py").read_text()
    assigned = (n for n in ast.parse(source).body if isinstance(n, ast.Assign))
    gpus = next(ast.literal_eval(n.value) for n in assigned if getattr(n.targets[0], "id", "") == "GPUS")
    named = re.findall(r'@nox\.session\(name="([\w-]+)"', source)
    return {*named, *re.findall(r"@nox\.session\ndef (\w+)", source)} | {
        f"{verb}-{gpu}" for gpu in gpus for verb in ("eval", "compile")
    }


def is_installable(word: str) -> bool:
    """nox, this project with extras that it has, or an option of pip."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = re.fullmatch(r"(?:\.|attnbench)(?:\[([\w,-]+)\])?", word)
    if found:
        missing = [name for name in (found[1] or "").split(",") if name and name not in extras]
        assert not missing, f"pyproject.toml has no extra {', '.join(missing)}"
    return bool(found) or word in ("nox", "-e")


def is_of_pytest(word: str) -> bool:
    """An option, a mark or an expression of it, or a path that is there."""
    if "/" in word:
        assert (ROOT / word).exists(), f"{word} is not there"
    known = ("-m", "-k", "store", "gpu", "not slow", "--gate", "gate-cpu", "--benchmark-save=mine")
    return word in known or "/" in word


@pytest.mark.parametrize("line", SHOWN_LINES)
def test_a_command_that_is_only_shown_is_one_of_the_program(line: str) -> None:
    words = [w for w in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S+", w)]
    if words[:3] == ["python", "-m", "tests.gate_trial"]:
        gate_trial.settings_of(words[3:])
        return
    if words[:3] == ["python", "-m", "tests.tl.hopper_study"]:
        hopper_study.settings_of(words[3:])
        return
    words = words[3:] if words[:3] == ["python3", "-m", "harness.cli"] else words[1:]
    if words == ["--install-completion"]:
        return  # tests/test_completion.py has the scripts
    check_names(parse(words))


def check_names(values: dict[str, Any]) -> None:
    """What a command names is there: experiments, tasks, methods, sets, files; capitals are the reader's."""
    known_tasks = discover()
    named = values.get("task") or []
    for name in [named] if isinstance(named, str) else named:
        assert name in known_tasks or name in ("strided", "NAME"), f"no task {name}"
    for name in values.get("method") or []:
        assert name in METHODS, f"no method {name}"
    for name in values.get("workloads") or []:
        assert any(name in t.workloads for t in known_tasks.values()), f"no set {name}"
    experiment = values.get("experiment")
    assert experiment is None or experiment.isupper() or (SHIPPED / f"{experiment}.toml").exists(), experiment
    for value in values.values():
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path):
                mine = str(path).isupper() or path.parts[0] in OF_THE_READER
                assert mine or (ROOT / path).exists(), f"{path} is not there"


@pytest.mark.parametrize("step", RUN, ids=lambda s: s.line.removeprefix("attnbench "))
def test_a_command_is_run(step: Step, grounds: Grounds) -> None:
    if "--compile-only" in step.run or "--backend cuda" in step.run:
        pytest.importorskip("cuda.bindings.nvrtc", reason="CUDA's wheels are not installed")
    found = grounds.do(step)
    assert found.returncode == step.code, found.stdout + found.stderr
    assert step.says in found.stdout + found.stderr
    assert "Traceback" not in found.stderr


def test_the_ledger_has_no_line_that_no_page_has() -> None:
    shown = {line.text for page in PAGES for line in command_lines(page)}
    needed = {line for step in RUN for line in step.needs}
    stale = (RUN_LINES | set(SHOWN_LINES)) - shown - needed
    assert not stale, f"no page shows these any more; take them out of tests/docs/ledger.py: {sorted(stale)}"
    assert not RUN_LINES & set(SHOWN_LINES)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("    attnbench tasks   # the suite\n", ["attnbench tasks"]),
        ("para\n    attnbench tasks\n", []),
        ("```sh\n$ attnbench a && nox -s b\n```\n", ["attnbench a", "nox -s b"]),
        ("```python\nattnbench = 1\n```\n", []),
        ("Say `attnbench\ntl check` or `nox -s tests`.\n", ["attnbench tl check", "nox -s tests"]),
        ("1. so:\n\n       attnbench tasks\n", ["attnbench tasks"]),
        ("    X=0 attnbench eval cpu --out a & wait\n", ["X=0 attnbench eval cpu --out a"]),
        ("    attnbench tasks  # or `attnbench doctor`\n", ["attnbench tasks", "attnbench doctor"]),
        ("`attnbench` runs.\n", ["attnbench"]),
    ],
)
def test_commands_are_found_in_blocks_and_sentences(text: str, found: list[str], tmp_path: Path) -> None:
    from tests.docs.pages import _lines

    assert [line.text for line in _lines("page.md", text)] == found


@pytest.mark.parametrize(
    "text",
    [
        "attnbench eval cpu --candidate x",
        "attnbench evil",
        "attnbench tasks shwo",
        "python3 setup.py",
        "attnbench eval h100 --task mha",
    ],
)
def test_a_command_that_nobody_has_thought_of_is_noticed(text: str) -> None:
    assert not known(Line("docs/x.md", 1, text, inline=True))


def test_what_is_not_there_is_noticed() -> None:
    for text in ("nox -s eval-h1000", "pytest tests/nowhere", "python3 -m pip install -e '.[modles]'"):
        with pytest.raises(AssertionError):
            other_program(text)
    for words in (["eval", "h1000"], ["eval", "h100", "--task", "mhaa"], ["report", "reports/nowhere"]):
        with pytest.raises(AssertionError):
            check_names(parse(words))
