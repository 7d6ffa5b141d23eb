"""Owns what is done with each command of the pages: it is run in a small form, or shown with the reason why not.

A page that gains a command fails `tests/docs/test_commands.py` until the command has its line here. Names in
capitals (DIR, FILE, RUN, ...) are the reader's own; a step says what stands in their place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A command that is run. `ground`: the folder it is run in, see `ground.py`."""

    line: str  # as the pages have it
    ground: str = "anywhere"
    words: str = ""  # what is run, where that is not `line`
    code: int = 0
    says: str = ""  # stands in what it prints
    needs: tuple[str, ...] = ()  # lines that are run before it, on the same ground

    @property
    def run(self) -> str:
        return self.words or self.line


EVAL = "attnbench eval cpu --candidates my_kernels"
ASK = "attnbench generate h100-generation --out runs/gen"
EXPORT = "attnbench answers export --run runs/gen --out questions"
IMPORT = "attnbench answers import questions --run runs/gen"
NUMBA = "attnbench tl lower first.tl --backend numba --out kernels/first_cpu"
MERGE = "attnbench merge h100 runs/a runs/b --out runs/whole"
GENERATION = "reports/published/h100-2026-11-25-generation"

RUN = (
    Step("attnbench doctor", says="baseline naive"),
    Step("python3 -m harness.cli doctor", words="attnbench doctor"),  # one program: tests/test_cli.py
    # tasks
    Step("attnbench tasks", says="sliding_window"),
    Step("attnbench tasks --json", says='"name": "sliding_window"'),
    Step("attnbench tasks show mha_causal", says="def attention(q, k, v, out, *, scale: float) -> None"),
    Step("attnbench tasks show sliding_window", says="Mistral 7B"),
    Step("attnbench tasks show strided --tasks my_tasks", "kernels", says="stride: int"),
    # kernels of one's own
    Step(EVAL, "kernels", says="report.html"),
    Step("attnbench eval cpu --candidates DIR", "kernels", words=EVAL),
    Step("attnbench eval cpu", "kernels", words=EVAL),  # the small experiment has these candidates anyway
    Step("attnbench eval cpu --json", "kernels", words="attnbench eval cpu --json --out runs/NAME --resume",
         says='"format": "attnbench-digest-1"', needs=(EVAL,)),
    Step("attnbench eval cpu --out runs/NAME --resume", "kernels", says="are recorded already", needs=(EVAL,)),
    Step("attnbench report runs/NAME", "kernels", says="report.html", needs=(EVAL,)),
    Step("attnbench report runs/NAME --json", "kernels", says='"headline"', needs=(EVAL,)),
    Step("attnbench verify runs/NAME", "kernels", says="nothing found", needs=(EVAL,)),
    Step("attnbench verify RUN", "kernels", words="attnbench verify runs/NAME", says="nothing found", needs=(EVAL,)),
    Step("attnbench eval cpu --candidates my_kernels/plain --task mha_causal --baseline sdpa-flash", "kernels",
         words="attnbench eval cpu --candidates my_kernels/plain --task mha_causal --baseline sdpa-flash",
         says="plain: "),
    Step("attnbench eval cpu --tasks my_tasks --task strided --candidates my_kernels", "kernels", says="strided"),
    Step("attnbench eval cpu --task mha --baseline NAME", "kernels",
         words="attnbench eval cpu --task mha --baseline naive --out runs/NAIVE --candidates my_kernels/strider",
         says="naive"),
    Step("attnbench eval mine.toml", "kernels", says="plain: "),
    Step("attnbench eval t4 --compile-only", "kernels", says="1 kernels for sm_75"),
    Step("attnbench eval a100 --compile-only --task mha_causal --candidates my_kernels", "kernels",
         says="left out plain"),
    # a site of runs
    Step("attnbench publish reports/published/* --out site", "kernels",
         words="attnbench publish runs/NAME --out site", says="index.html", needs=(EVAL,)),
    # two runs, and other tools
    Step("attnbench compare RUN_A RUN_B", "published", words=f"attnbench compare {GENERATION} runs/gen",
         says="The same in all 285 results"),
    Step("attnbench compare RUN_A RUN_B --markdown", "published",
         words=f"attnbench compare {GENERATION} runs/gen --markdown", says="## Verdicts"),
    Step("attnbench compare RUN_A RUN_B --json", "published",
         words=f"attnbench compare {GENERATION} runs/gen --json", says='"matched"'),
    Step("attnbench export RUN --format csv", "published", words=f"attnbench export {GENERATION} --format csv",
         says="mha_causal,h100"),
    Step("attnbench export RUN --format flashinfer --out DIR", "published",
         words=f"attnbench export {GENERATION} --format flashinfer --out traces", says="traces"),
    Step("attnbench export RUN --format csv --format json --format parquet --out DIR", "published",
         words=f"attnbench export {GENERATION} --format csv --format json --out figures", says="figures"),
    # the language
    Step("attnbench tl check first.tl", "language", says="first.tl: no error"),
    Step("attnbench tl check FILE", "language", words="attnbench tl check first.tl"),
    Step("attnbench tl check first.tl --target a100", "language", says="first.tl: no error"),
    Step("attnbench tl check harness/tl/corpus/lenient/01_paper_style.tl --notes", "language", says="note TL004"),
    Step("attnbench tl run first.tl", "language", says="right: largest error"),
    Step("attnbench tl run first.tl --seq-q 100 --heads 2", "language", says="right: largest error"),
    Step("attnbench tl run FILE --task NAME --workload smoke:1 --tile BM=32,BN=16 --seed 7", "language",
         words="attnbench tl run first.tl --task mha --workload smoke:1 --tile BM=32,BN=16 --seed 7", says="right: largest error"),
    Step("attnbench tl lower first.tl", "language", says="@triton.jit"),
    Step("attnbench tl lower first.tl --compile", "language", says="registers"),
    Step(NUMBA, "language", says="attnbench eval cpu --candidates kernels/first_cpu"),
    Step("attnbench eval cpu --candidates kernels/first_cpu", "language", says="report.html", needs=(NUMBA,)),
    Step("attnbench tl lower FILE --backend triton --target h100 --tile BM=128,BN=64,warps=8 --out DIR", "language",
         words="attnbench tl lower --task mha --backend triton --target h100 --tile BM=128,BN=64,warps=8 --out written",
         says="attnbench eval h100 --candidates written"),
    Step("attnbench tl lower first.tl --backend cuda --target a100", "language", says="__global__"),
    Step("attnbench tl lower first.tl --backend gluon --target h100", "language", says="@gluon.jit"),
    Step("attnbench tl lower first.tl --backend gluon --compile", "language", says="registers"),
    Step("attnbench tl space first.tl --target a100", "language", says="fit"),
    Step("attnbench tl space --task mha_causal --target a100", "language", says="fit"),
    Step("attnbench tl format --task gqa_causal", "language", says="Kernel"),
    Step("attnbench tl format --task mha", "language", says="Kernel"),
    Step("attnbench tl codes", "language", says="TL401"),
    Step("attnbench tl explain TL401", "language", says="TL401"),
    Step("attnbench tl explain TL501", "language", says="TL501"),
    # models
    Step(ASK, "asking", code=75, says="2 questions wait for answers"),
    Step(EXPORT, "asking", says="2 questions in questions", needs=(ASK,)),
    Step(IMPORT, "asking", says="2 answers taken, 0 questions still wait", needs=(ASK, EXPORT)),
    Step(f"{ASK} --resume", "asking", says="2 trials wait for a device", needs=(ASK, EXPORT, IMPORT)),
    Step("attnbench generate h100-cuda --out runs/cuda", "asking", code=75, says="1 questions wait for answers"),
    # runs
    Step("attnbench show mha_causal/tl-claude-0", "published", says="the end"),
    Step("attnbench show --run runs/gen", "published", says="mla_prefill"),
    Step("attnbench show mha_causal/tl-claude-0 --run runs/gen", "published", says="the end"),
    Step(MERGE, "published", says="225 results"),
    Step("attnbench merge h100 RUN RUN --out DIR", "published", words=MERGE),
    Step(f"attnbench report {GENERATION} --out my_report", "published", says="my_report/report.html"),
    Step(f"attnbench verify {GENERATION}", "published", says="nothing found"),
    Step(f"attnbench show mha_causal/tl-claude-0 --run {GENERATION}", "published", says="the end"),
)  # fmt: skip

# Reason -> commands that are only shown. Their words are parsed, and what they name has to be there.
SHOWN = {
    "needs the target's GPU": (
        "attnbench eval h100",
        "python3 -m harness.cli eval h100",
        "attnbench eval h100 --task mha_causal --workloads paper",
        "attnbench eval h100 --task mha --out runs/NAME --resume",
        "CUDA_VISIBLE_DEVICES=0 attnbench eval h100 --task mha --out runs/a",
        "CUDA_VISIBLE_DEVICES=1 attnbench eval h100 --task mha_causal --out runs/b",
        "attnbench eval h100 --out runs/whole --resume",
        "attnbench eval h100-generation --out runs/gen --resume",
        "attnbench eval h100-cuda --out runs/cuda --resume",
        "attnbench eval a100 --task mha --task mha_causal --workloads paper",
        "attnbench eval t4 --prove-on h100",
        "attnbench tl tune --task mha_causal --backend cuda --out tuned",
        "attnbench tl tune --out DIR",
        "attnbench tl tune --task mha_causal --workloads paper --backend gluon --out tuned",
        "attnbench tl tune --task mha --workloads paper --backend gluon --out tuned",
        "attnbench eval h100-hopper --candidates tuned --out runs/hopper",
        "python -m tests.tl.hopper_study search --out study",
        "python -m tests.tl.hopper_study ablation --tuned tuned --out study",
        "python -m tests.tl.hopper_study probe --tuned tuned --results runs/hopper/results.jsonl --out study",
        "python -m tests.tl.hopper_study maxima --out study",
        "python -m tests.tl.hopper_study anew --run reports/published/h100-2026-11-27-gluon-generation --out study",
        "attnbench tl tune --task gqa_causal --backend gluon --out tuned",
        "attnbench tl tune --task mqa_causal --backend gluon --out tuned",
        "attnbench tl tune --task mla_prefill --backend gluon --out tuned",
        "attnbench tl tune --task sliding_window --backend gluon --out tuned",
        "attnbench tl tune --task softcap --backend gluon --out tuned",
        "attnbench tl tune --task cross --backend gluon --out tuned",
        "attnbench eval h100-hopper-models --candidates tuned --out runs/hopper-models",
        "python -m tests.tl.hopper_study tables study",
    ),
    "needs a GPU, and a key of a provider": (
        "attnbench eval h100 --model anthropic:MODEL",
        "attnbench eval h100 --model anthropic:MODEL --samples 3",
        "attnbench eval a100 --workloads models --model anthropic:MODEL --samples 3 --out runs/paper",
    ),
    "needs a key of a provider": (
        "attnbench eval cpu --task mha_causal --method vanilla --model anthropic:MODEL",
    ),
    "takes minutes: it measures, and tests/test_gate_commands.py runs it on kernels of its own": (
        "attnbench gate",
        "attnbench gate --reference",
        "attnbench gate accept",
        "attnbench gate accept --replace",
        "attnbench gate --against DIR",
        "attnbench gate --candidates DIR --storage DIR",
        "attnbench gate --experiment FILE",
    ),
    "takes half an hour, and says how long on its page; tests/test_gate_trial.py runs its parts": (
        "python -m tests.gate_trial --out trial.json --cap-s 7 --half-width 0.015 --days 1 --tiles 1",
    ),
    "changes the reader's shell": ("attnbench --install-completion",),
}  # fmt: skip
