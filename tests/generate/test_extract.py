"""Claims about taking code out of an answer: whatever its form, the code comes out whole or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.generate.extract import blocks, kernel_of, program_of

KERNEL = "import torch\n\n\ndef attention(q, k, v, out, *, scale):\n    out.zero_()\n"
PROGRAM = (
    "Kernel x\nCopy Q from global to shared\nCompute GEMM Q, K^T and get S\nCopy O from register to global\n"
)


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{KERNEL}```",
        f"Here it is.\n\n```python\n{KERNEL}```\n\nIt walks over the keys.",
        f"```\n{KERNEL}```",
        f"~~~py\n{KERNEL}~~~",
        f"````python\n{KERNEL}````",
        f'``` python title="attention.py"\n{KERNEL}```',
        f"**attention.py**\n```python\n{KERNEL}```",
        f"```python\r\n{KERNEL.replace(chr(10), chr(13) + chr(10))}```\r\n",
        f"  ```python\n{KERNEL}  ```",
        KERNEL,
        f"\n\n{KERNEL}\n",
    ],
)
def test_one_file_comes_out_whole(answer: str) -> None:
    found = kernel_of(answer)
    assert not found.problem
    assert found.files.keys() == {"attention.py"}
    assert found.files["attention.py"].strip() == KERNEL.strip()


def test_the_last_of_several_versions_counts() -> None:
    draft = KERNEL.replace("zero_", "fill_")
    found = kernel_of(f"A draft:\n```python\n{draft}```\nThat was wrong. Corrected:\n```python\n{KERNEL}```")
    assert found.files["attention.py"] == KERNEL


def test_a_usage_example_after_the_kernel_does_not_replace_it() -> None:
    usage = "from attention import attention\nattention(q, k, v, out, scale=1.0)\n"
    found = kernel_of(f"```python\n{KERNEL}```\nUse it so:\n```python\n{usage}```")
    assert found.files == {"attention.py": KERNEL}


@pytest.mark.parametrize(
    "second",
    [
        "```python tiles.py\nBLOCK = 64\n```",
        "```python\n# tiles.py\nBLOCK = 64\n```",
        "`tiles.py`:\n```python\nBLOCK = 64\n```",
        "### tiles.py\n\n```python\nBLOCK = 64\n```",
    ],
)
def test_files_that_are_named_come_along(second: str) -> None:
    found = kernel_of(f"```python\n{KERNEL}```\n\n{second}\n")
    assert set(found.files) == {"attention.py", "tiles.py"}
    assert "BLOCK = 64" in found.files["tiles.py"]


def test_a_file_name_cannot_leave_the_folder() -> None:
    found = kernel_of(f"```python\n{KERNEL}```\n```python ../../etc/evil.py\nx = 1\n```")
    assert all(not name.startswith(("/", ".")) and ".." not in name for name in found.files)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("I cannot help with that.", "no fenced block"),
        ("```python\nx = 1\n```", "defines `attention`"),
        (f"```python\n{KERNEL}    y = (1,\n", "cut off"),
        ("def attention(q, k", "no fenced block"),
    ],
)
def test_no_code_says_why(answer: str, says: str) -> None:
    found = kernel_of(answer)
    assert not found.files
    assert says in found.problem


def test_a_block_that_is_not_closed_but_whole_counts() -> None:
    assert kernel_of(f"```python\n{KERNEL}").files["attention.py"].strip() == KERNEL.strip()


def test_a_fence_inside_a_longer_fence_is_text() -> None:
    found = blocks("````md\n```python\nx\n```\n````\n")
    assert len(found) == 1 and "```python" in found[0].text


@pytest.mark.parametrize(
    "answer",
    [
        f"```tl\n{PROGRAM}```",
        f"Think first.\n\n```tl\n{PROGRAM}```\nThe loop ends at the diagonal.",
        f"```\n{PROGRAM}```",
        f"```text\n{PROGRAM}```",
        f"```LLM-TL\n{PROGRAM}```",
        f"```tl\nKernel draft\nCopy A from global to shared\nCopy B from global to shared\n```\n```tl\n{PROGRAM}```",
        f"```tl\n{PROGRAM}```\nIn Python:\n```python\n{KERNEL}```",
        PROGRAM,
    ],
)
def test_the_program_comes_out(answer: str) -> None:
    found = program_of(answer)
    assert found is not None and found.strip() == PROGRAM.strip()


@pytest.mark.parametrize(
    "answer",
    ["", "no", f"```python\n{KERNEL}```", "Copy the keys to shared memory, then compute the scores."],
)
def test_no_program_is_none(answer: str) -> None:
    assert program_of(answer) is None


CUDA = "#include <cuda_fp16.h>\n__global__ void k(half* x) {}\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{KERNEL}```\n\n```cuda\n{CUDA}```",
        f"```cuda\n{CUDA}```\nand\n```python\n{KERNEL}```",
        f"### `kernel.cu`\n```cpp\n{CUDA}```\n### `attention.py`\n```python\n{KERNEL}```",
        f"A first try:\n```cuda\nint x;\n```\nBetter:\n```cuda\n{CUDA}```\n```python\n{KERNEL}```",
        f"```cuda kernel.cu\n{CUDA}```\n```python attention.py\n{KERNEL}```",
    ],
)
def test_a_cuda_kernel_comes_out_beside_its_host_side(answer: str) -> None:
    assert kernel_of(answer).files == {"attention.py": KERNEL, "kernel.cu": CUDA}


def test_a_cuda_block_may_name_itself_and_a_header_that_it_includes_is_not_its_name() -> None:
    named = "// attn.cu: flash attention\n" + CUDA
    header = "/* tiles.cuh */\n#pragma once\n"
    answer = f"```python\n{KERNEL}```\n```cuda\n{named}```\n```cpp\n{header}```"
    assert kernel_of(answer).files == {"attention.py": KERNEL, "attn.cu": named, "tiles.cuh": header}


def test_a_cuda_block_alone_is_no_kernel() -> None:
    assert kernel_of(f"```cuda\n{CUDA}```").problem == "no fenced block defines `attention`"


@given(st.text(max_size=400))
def test_no_answer_breaks_it(answer: str) -> None:
    kernel_of(answer)
    program_of(answer)


@given(
    st.text(st.characters(blacklist_characters="`~\r", blacklist_categories=("Cs",)), max_size=200),
    st.text(st.characters(blacklist_characters="`~\r", blacklist_categories=("Cs",)), max_size=200),
)
def test_prose_around_changes_nothing(before: str, after: str) -> None:
    found = kernel_of(f"{before}\n\n\n```python\n{KERNEL}```\n{after}")
    assert found.files.get("attention.py") == KERNEL
