"""Claims about loading: fresh modules, siblings, and failures that carry their traceback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.build.backends import BACKENDS
from harness.build.loader import BuildError, load

CPU = torch.device("cpu")


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "candidate.toml").write_text("")
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(text)
    return folder


def test_an_entry_imports_its_siblings_and_leaves_the_path_as_it_was(tmp_path: Path) -> None:
    folder = write(tmp_path, part="X = 7", attention="from part import X\ndef attention(): return X")
    before = list(sys.path)
    assert load(folder, "attention.py", "torch", CPU).function() == 7
    assert sys.path == before


def test_two_candidates_with_siblings_of_one_name_keep_them_apart(tmp_path: Path) -> None:
    entry = "from part import X\ndef attention(): return X"
    folders = [write(tmp_path / str(n), part=f"X = {n}", attention=entry) for n in (1, 2)]
    functions = [load(folder, "attention.py", "torch", CPU).function for folder in folders]
    assert [function() for function in functions] == [1, 2]


def test_a_sibling_of_a_candidate_whose_folder_is_gone_or_has_changed_is_not_taken(tmp_path: Path) -> None:
    """A tile search loads kernels from folders that it throws away: the next one had the last one's fallback."""
    entry = "from part import X\ndef attention(): return X"
    gone = write(tmp_path / "gone", part="X = 1", attention=entry)
    assert load(gone, "attention.py", "torch", CPU).function() == 1
    shutil.rmtree(gone)
    stays = write(tmp_path / "stays", part="X = 2", attention=entry)
    assert load(stays, "attention.py", "torch", CPU).function() == 2
    write(stays, part="X = 3 + 0", attention=entry)
    assert load(stays, "attention.py", "torch", CPU).function() == 3


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nowhere_to_be_found", "nowhere_to_be_found"),
        ("def attention(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("x = 1", "defines no function attention"),
        ("attention = 3", "defines no function attention"),
    ],
)
def test_a_source_that_is_no_kernel_is_a_build_error(tmp_path: Path, source: str, says: str) -> None:
    with pytest.raises(BuildError, match=says):
        load(write(tmp_path, attention=source), "attention.py", "torch", CPU)


def test_a_missing_entry_and_a_wrong_device_are_build_errors(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"other\.py"):
        load(write(tmp_path), "other.py", "torch", CPU)
    with pytest.raises(BuildError, match="does not run on cuda"):
        load(write(tmp_path), "attention.py", "numba", torch.device("cuda"))


def test_triton_on_a_cpu_is_interpreted_and_nothing_else_is() -> None:
    assert BACKENDS["triton"].interpreted("cpu")
    assert not BACKENDS["triton"].interpreted("cuda")
    assert not any(BACKENDS[name].interpreted("cpu") for name in ("torch", "numba"))
    script = (
        "import sys, torch; from pathlib import Path; from harness.build.loader import load\n"
        "built = load(Path(sys.argv[1]), 'full.py', 'triton', torch.device('cpu'))\n"
        "import triton; assert built.interpreted and triton.knobs.runtime.interpret"
    )
    root = Path(__file__).parents[2]
    folder = root / "examples" / "candidates" / "triton_flash"
    subprocess.run([sys.executable, "-c", script, str(folder)], cwd=root, check=True, timeout=120)


def test_triton_imported_for_the_compiler_is_not_turned_into_the_interpreter(tmp_path: Path) -> None:
    script = (
        "import sys, torch, triton; from pathlib import Path; from harness.build.loader import load\n"
        "load(Path(sys.argv[1]), 'attention.py', 'triton', torch.device('cpu'))"
    )
    root = Path(__file__).parents[2]
    folder = write(tmp_path, attention="def attention(): ...")
    ran = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 1
    assert "needs a fresh process" in ran.stderr
