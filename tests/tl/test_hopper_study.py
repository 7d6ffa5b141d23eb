"""The study of Hopper kernels, played without a GPU: which choices it compares, what it writes, where it goes on.

The device's part is a formula for the time of a choice; nothing here says anything about a GPU.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch

from baselines import CannotRun
from harness import tuning_clock, tuning_compile
from harness.tl import ir
from harness.tl.lower.gluon_choices import complete, unfit
from tasks import Task, Workload
from tests.tl.gluon_emulator import Device
from tests.tl.hopper_study import main
from tests.tl.study import device as device_module
from tests.tl.study import probe as probing
from tests.tl.study.cells import (
    ABLATION,
    AGAIN,
    BASE,
    GRID,
    SEARCHED,
    cell,
    chosen,
    settings,
    variants,
)  # fmt: skip
from tests.tl.study.device import Choice, GpuBench, Spaces
from tests.tl.study.figures import line, ratio, spread
from tests.tl.study.machine_code import loops
from tests.tl.study.probe import mean_rounds, metrics
from tests.tl.study.record import Deadline, Mismatch
from tests.tl.study.tables import tables
from tests.tl.study.weakest import ratios, weakest
from tests.tl.triton_trial import inputs, program, shape


class Killed(BaseException):
    """As a signal would: nothing is tidied up."""


class Played:
    """A device and its bench: times by a formula with a drift that all in a round share."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.timed: list[tuple[str, str]] = []
        self.wrongs: dict[str, str] = {}
        self.left = 10**9  # timings of all contenders until a kill
        self.tool: tuple[int, str] | None = None
        self.name = "a played GPU"

    def about(self) -> dict[str, str]:
        return {"device": self.name, "processors": "4", "triton": "3.6.0"}

    def bench(self, task: Task, program: ir.Program, spaces: Spaces) -> Self:
        self.known = {json.dumps(dict(c), sort_keys=True) for space in spaces.values() for c in space}
        return self

    def folders(self, task: Task, work: Sequence[Workload], folders: Mapping[str, Path]) -> PlayedFolders:
        return PlayedFolders(self, folders)

    def run(self, words: Sequence[str], limit_s: float) -> tuple[int, str]:
        if self.tool is None:
            raise FileNotFoundError(2, "no such file", words[0])
        return self.tool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def ready(self, calls: Iterable[tuple[Workload, Choice]]) -> None:
        self.compiled += [json.dumps(dict(c), sort_keys=True) for _, c in calls]

    def wrong(self, w: Workload, choice: Choice) -> str:
        assert json.dumps(dict(choice), sort_keys=True) in self.compiled
        return self.wrongs.get(str(choice["stages"]), "")

    def cost(self, w: Workload, choice: Choice) -> float:
        cost = {128: 1.0, 64: 1.15, 256: 1.6}.get(choice["BN"], 2.0) * (1.25 - 0.25 * choice["overlap"])
        cost *= {2: 1.0, 1: 1.04, 0: 1.1}[choice["persistent"]] * (1.0 + 0.03 * (choice["stages"] != 2))
        return cost * w.seq_k / 16384

    def time_ms(self, w: Workload, choice: Choice) -> float | None:
        assert json.dumps(dict(choice), sort_keys=True) in self.known
        self.timed.append((w.key, json.dumps(dict(choice), sort_keys=True)))
        return None if choice["stages"] == 4 else self.cost(w, choice)

    def together_ms(self, w: Workload, choices: Sequence[Choice]) -> list[float | None]:
        return [self.time_ms(w, choice) for choice in choices]

    def samples_ms(
        self, w: Workload, contenders: Mapping[str, Choice | str], rounds: int, step: float = 0.0
    ) -> dict[str, list[float]]:
        self.left -= 1
        if self.left < 0:
            raise Killed
        drawn = random.Random(1)
        drift = [drawn.uniform(0.9, 1.1) for _ in range(rounds)]
        own = {n: 1.2 if isinstance(c, str) else self.cost(w, c) for n, c in contenders.items()}
        if step:  # where maxima grow, rare rescaling is dear
            own = {n: cost * (1 + abs(step) * int(n)) for n, cost in own.items()}
        return {n: [cost * d for d in drift] for n, cost in own.items() if n != "flash-attn-4"}


class PlayedFolders:
    """What was compiled anew is a fifth faster, but one program of which a word says that it is wrong."""

    def __init__(self, played: Played, folders: Mapping[str, Path]) -> None:
        self.played, self.folders = played, folders
        for folder in folders.values():
            assert "attention" in (folder / "attention.py").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def samples_ms(
        self, w: Workload, humans: Sequence[str], rounds: int
    ) -> tuple[dict[str, list[float]], dict[str, str]]:
        self.played.left -= 1
        if self.played.left < 0:
            raise Killed
        problems = {n: self.played.wrongs[n] for n in self.folders if n in self.played.wrongs}
        times = {n: 0.8 if n.endswith("anew") else 1.0 for n in self.folders if n not in problems}
        return {n: [t] * rounds for n, t in {**times, "cudnn": 1.1, "flash-attn-4": 0.9}.items()}, problems


# --- which choices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRID)
def test_every_choice_of_the_ablation_fits_and_differs_by_its_feature(name: str) -> None:
    c = cell(name)
    base = chosen(c)
    found, left = variants(c, base)
    assert found[BASE] == base and unfit(c.program, base) is None
    for variant, choice in found.items():
        assert choice == complete(c.program, choice) and unfit(c.program, choice) is None
        assert variant == BASE or choice != base
    assert found["no overlap"]["overlap"] == found["no overlap"]["pingpong"] == 0
    assert [found[n]["persistent"] for n in ("a fixed stride", "a block a tile")] == [1, 0]
    assert found["one stage"]["stages"] == 1
    assert found["one consumer less"]["BM"] == base["BM"] - 64
    causal = c.task.name == "mha_causal"
    assert ("heads one by one" in found, "the grid's order" in found) == (causal, causal)
    apart = {"another stage", "no registers handed over", "two places for query rows"}
    assert all(why for why in left.values()) and set(left) <= apart
    assert any(choice.get("reuse") for choice in found.values())


def test_the_cells_are_of_the_grid_in_both_types() -> None:
    assert len(set(GRID)) == 24 and set(ABLATION) | set(SEARCHED) <= set(GRID)
    assert len(ABLATION) == len(SEARCHED) == 6
    assert {cell(n).task.name for n in ABLATION} == {"mha", "mha_causal"}
    assert cell("mha:2k:64", "bf16").workload.dtype == "bf16"
    with pytest.raises(ValueError, match="paper's grid"):
        cell("mha:2k:96")


def test_a_choice_in_words_has_the_rows_of_its_consumers() -> None:
    base = chosen(cell("mha:2k:64"))
    assert complete(cell("mha:2k:64").program, settings("consumers=2+BN=64", base))["BM"] == 128
    assert settings("stages=3", base) == {**base, "stages": 3}


def test_a_tuned_choice_is_the_one_of_its_length(tmp_path: Path) -> None:
    c = cell("mha_causal:2k:128")
    (tmp_path / "tl_mha_causal_gluon_tuned").mkdir()
    rows = [
        {"bytes": 2, "dim": dim, "seq": seq, "choice": [["BN", dim], ["stages", seq]]}
        for dim in (64, 128) for seq in (512, 2048)
    ]  # fmt: skip
    (tmp_path / "tl_mha_causal_gluon_tuned" / "tuning.json").write_text(json.dumps({"rows": rows}))
    assert chosen(c, tmp_path) == {"BN": 128, "stages": 2048}


# --- parts ---------------------------------------------------------------------------------------------------


def read(folder: Path, part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{part}.json").read_text())
    return found


def test_an_ablation_compares_what_is_right_and_says_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played = Played()
    played.wrongs["1"] = "wrong: out is off by 1"
    main(["ablation", "--out", str(tmp_path), "--choices", "BN=64"], played)
    record = read(tmp_path, "ablation")
    assert list(record["cells"]) == [
        f"{n} fp16" for task in ("mha_causal", "mha") for n in ABLATION if n.split(":")[0] == task
    ]
    entry = record["cells"]["mha_causal:2k:128 fp16"]
    assert entry["problems"]["one stage"] == "wrong: out is off by 1"
    assert "one stage" not in entry["samples_ms"] and "flash-attn-4" not in entry["samples_ms"]
    assert set(entry["samples_ms"]) >= {BASE, AGAIN, "cudnn", "no overlap", "BN=64"}
    assert ratio(entry["samples_ms"][BASE], entry["samples_ms"]["no overlap"]) == pytest.approx(0.8, rel=1e-3)
    assert record["about"]["device"] == "a played GPU" and len(record["date"]) == 10
    assert len(capsys.readouterr().out.splitlines()) == len(ABLATION)


def test_a_kill_loses_no_cell_and_the_part_goes_on(tmp_path: Path) -> None:
    played = Played()
    played.left = 2
    with pytest.raises(Killed):
        main(["ablation", "--out", str(tmp_path)], played)
    assert len(read(tmp_path, "ablation")["cells"]) == 2
    played.left, before = 4, read(tmp_path, "ablation")["cells"]
    main(["ablation", "--out", str(tmp_path)], played)
    after = read(tmp_path, "ablation")["cells"]
    assert len(after) == 6 and played.left == 0 and before.items() <= after.items()


def test_no_cell_begins_when_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ablation", "--out", str(tmp_path), "--minutes", "0"], Played())
    assert not (tmp_path / "ablation.json").exists()
    assert capsys.readouterr().out.count("no time left") == 6
    now = [0.0]
    deadline = Deadline(2, lambda: now[0])
    assert not deadline.over and deadline.left_s == 120
    now[0] = 120.5
    assert deadline.over


def test_a_file_of_another_device_is_not_gone_on_with(tmp_path: Path) -> None:
    main(["ablation", "--out", str(tmp_path), "--cells", "mha:2k:64"], Played())
    other = Played()
    other.name = "another"
    with pytest.raises(Mismatch, match="another --out"):
        main(["ablation", "--out", str(tmp_path)], other)


def test_a_search_is_recorded_with_every_timing_beside_all_choices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The formula is one that a search finds its way in: the best of all is found, with 15 % of the timings."""
    played = Played()
    main(["search", "--out", str(tmp_path)], played)
    cells = read(tmp_path, "search")["cells"]
    assert list(cells) == [f"{n} fp16" for n in SEARCHED]
    counts = Counter(key for key, _ in played.timed)
    for name, entry in cells.items():
        key = cell(name.split()[0]).workload.key
        assert entry["evaluations"] == len(entry["trail"]) <= 0.15 * entry["size"]
        assert len(entry["all_ms"]) == entry["size"] and None in entry["all_ms"]
        assert counts[key] == entry["evaluations"] + entry["size"] + 3
        assert set(entry["samples_ms"]) == {BASE, "found by the search", "best of all"}
    assert capsys.readouterr().out.count("+0.0 % from the best of all") == 6


def test_a_search_that_was_killed_is_not_searched_again(tmp_path: Path) -> None:
    played = Played()
    played.left = 1
    with pytest.raises(Killed):
        main(["search", "--out", str(tmp_path), "--cells", ",".join(SEARCHED[:3])], played)
    before = read(tmp_path, "search")["cells"]
    assert len(before) == 3 and sum("all_ms" in e for e in before.values()) == 1
    played.left, played.timed = 9, []
    main(["search", "--out", str(tmp_path), "--cells", ",".join(SEARCHED[:3])], played)
    after = read(tmp_path, "search")["cells"]
    assert all(after[n]["trail"] == before[n]["trail"] and "all_ms" in after[n] for n in after)
    assert len(played.timed) == 2 * (396 + 3)


# --- the bench of a GPU, with its clock played ---------------------------------------------------------------


def test_a_bench_compiles_compares_and_times_what_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel runs in Python; of the two baselines one is not there, and is left out."""
    task, prog = program("reference", "mha_causal")
    w = shape(task, 130, 130, "fp16")
    base = complete(prog, {"consumers": 1, "BN": 64})
    other = {**base, "stages": 3}
    jobs: list[Any] = []

    class Alone:
        def __init__(self, do: Any) -> None: ...
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...
        def answers(self, asked: Sequence[Any], done: Any) -> list[str]:
            jobs.extend(asked)
            return ["it spills" if job[3]["stages"] == 3 else "" for job in asked]

    @lru_cache
    def module(folder: str) -> Any:
        source = (Path(folder) / "attention.py").read_text()
        return ModuleOf(Device().module(source).attention.__globals__)

    def absent(*_: object) -> Any:
        raise CannotRun("not here")

    def human(plan: Any) -> Any:
        library = SimpleNamespace(missing="")
        return SimpleNamespace(library=lambda: library, unsupported=lambda *_: None, plan=plan)

    patch = monkeypatch.setattr
    patch(device_module, "Crew", Alone)
    patch(tuning_clock, "_module", module)
    patch(tuning_compile, "kernels_of", lambda folder, task, w, tensors, choice: str(choice))
    patch(tuning_compile, "empty", lambda task, w: {})
    patch(
        tuning_clock, "tensors_of", lambda task, w: {**inputs(task, w), "out": inputs(task, w)["q"].clone()}
    )
    patch(tuning_clock, "warm", lambda: None)
    patch(tuning_clock, "captured", lambda call: (call(), call)[1])
    patch(tuning_clock, "samples_ms", lambda graphs, rounds, rest_ms=0: (
        {n: [float(i) for i in range(rounds)] for n in graphs}))  # fmt: skip
    patch(torch.cuda, "synchronize", lambda: None)
    patch(
        device_module, "BASELINES", {"cudnn": human(lambda *_: lambda: None), "flash-attn-4": human(absent)}
    )
    tuning_clock._EXPECTED.clear()
    with GpuBench(task, prog, {(w.dim, w.dim_v): [base, other]}) as bench:
        bench.ready([(w, base), (w, other), (w, base)])
        assert len(jobs) == 2 and bench.wrong(w, other) == "it spills"
        assert bench.wrong(w, base) == ""
        assert bench.time_ms(w, other) is None and bench.time_ms(w, base) is not None
        found = bench.samples_ms(w, {"a": base, "cudnn": "cudnn", "flash-attn-4": "flash-attn-4"}, 4)
        assert found == {"a": [0, 1, 2, 3], "cudnn": [0, 1, 2, 3]}
        module(bench._folder).__dict__["attention"] = lambda **tensors: tensors["out"].zero_()
        assert "wrong: out is off" in bench.wrong(w, base)


class ModuleOf:
    """A module of these globals."""

    def __init__(self, known: dict[str, Any]) -> None:
        self.__dict__ = known


# --- the probe -------------------------------------------------------------------------------------------------


def test_fixed_and_round_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """4 multiprocessors, 6 us a tile and 1.5 a round; causal tiles end at their last row."""
    monkeypatch.setattr(probing, "_machine_code", lambda c, choice: {"missing": "not here"})
    played = Played()

    def samples(w: Workload, contenders: Mapping[str, Any], rounds: int) -> dict[str, list[float]]:
        choice = contenders["it"]
        tiles = -(-w.seq_q // choice["BM"]) * w.batch * w.heads
        each = 6 + 1.5 * mean_rounds(w, choice["BM"], choice["BN"], w.task == "mha_causal")
        return {"it": [tiles / 4 * each / 1e3] * rounds}

    monkeypatch.setattr(played, "samples_ms", samples)
    main(["probe", "--out", str(tmp_path), "--cells", "mha_causal:2k:128,mha:512:64"], played)
    for entry in read(tmp_path, "probe")["cells"].values():
        time = entry["time"]
        assert (time["fixed_us_a_tile"], time["us_a_round"]) == pytest.approx((6, 1.5), rel=1e-3)
        whole = 1.5 * time["rounds_a_tile"]
        assert time["fixed_share"] == pytest.approx(6 / (6 + whole), rel=1e-3)
        assert entry["ncu"] == {"missing": "ncu"} and entry["machine_code"] == {"missing": "not here"}


def test_rounds_are_counted_to_the_last_row() -> None:
    w = cell("mha_causal:512:128").workload
    assert mean_rounds(w, 128, 128, True) == 2.5 and mean_rounds(w, 128, 128, False) == 4
    assert mean_rounds(w, 192, 128, True) == (2 + 3 + 4) / 3
    assert mean_rounds(w.with_(seq_k=640), 128, 128, True) == 3.5
    assert line([(1, 7.5), (3, 10.5)]) == pytest.approx((6, 1.5))


NCU = """==PROF== Connected to process 1
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"sm__inst_executed_pipe_tensor.sum","dram__throughput.avg","launch__other"
"","","","","","","","","","","","inst","%",""
"0","1","python","here","mha_kernel","1","7","(384, 1, 1)","(132, 1, 1)","0","9.0","1,024","12.5","7"
"""


def test_what_ncu_says_is_kept_and_its_refusal_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert metrics(NCU)["sm__inst_executed_pipe_tensor.sum"] == "1,024 inst"
    assert metrics("==ERROR== ERR_NVGPUCTRPERM") == {}
    monkeypatch.setattr(probing, "_machine_code", lambda c, choice: {"missing": "not here"})
    played = Played()
    played.tool = (0, NCU)
    main(["probe", "--out", str(tmp_path), "--cells", "mha:512:64"], played)
    played.tool = (1, "==ERROR== ERR_NVGPUCTRPERM")
    main(["probe", "--out", str(tmp_path), "--cells", "mha:1k:64"], played)
    first, second = read(tmp_path, "probe")["cells"].values()
    assert first["ncu"]["metrics"] == {
        "sm__inst_executed_pipe_tensor.sum": "1,024 inst", "dram__throughput.avg": "12.5 %",
    }  # fmt: skip
    assert second["ncu"] == {"missing": "ncu ended with 1: ==ERROR== ERR_NVGPUCTRPERM"}


LISTING = """
.L_x_1:
        /*0010*/                   UIADD3 UR4, UR4, 0x1, URZ ;
.L_x_2:
        /*0020*/                   HGMMA.64x128x16.F32 R24, gdesc[UR36], RZ, !UPT ;
        /*0030*/              @!P0 MUFU.EX2 R1, R2 ;
        /*0040*/               @P0 BRA `(.L_x_2) ;
        /*0050*/                   MUFU.EX2 R1, R2 ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
.L_x_3:
        /*0070*/                   FADD R1, R2, R3 ;
        /*0080*/                   BRA `(.L_x_3) ;
"""


def test_the_inner_loop_with_products_is_found_in_machine_code() -> None:
    looped = LISTING.replace("/*0030*/              @!P0 MUFU.EX2 R1, R2 ;", "\n".join(
        f"/*{0x30 + n:04x}*/              @!P0 MUFU.EX2 R1, R2 ;" for n in range(16)
    ) + "\n        /*0040*/                   FMUL R1, R1, R2 ;").replace("/*0040*/               @P0", "/*0041*/               @P0")  # fmt: skip
    looped = looped.replace("FMUL R1, R1, R2 ;", "FMUL R1, R1, R2 ;" + "\n/*0040*/ FMUL R1, R1, R2 ;" * 3)
    (found,) = loops(looped)
    assert (found.start, found.end) == (0x20, 0x41)
    assert found.opcodes == {"HGMMA": 1, "MUFU": 16, "FMUL": 4, "BRA": 1}
    assert loops(LISTING) == []  # a wait: a branch in four instructions


# --- the weakest, and the tables ----------------------------------------------------------------------------


def result(task: str, seq: int, kind: str, backend: str, ms: float, **more: Any) -> dict[str, Any]:
    return {
        "task": task, "verdict": "ok", "candidate": {"kind": kind, "backend": backend},
        "workload": {"seq_q": seq, "seq_k": seq, "dim": 128, "dtype": "fp16"},
        "measurement": {"device_time": {"median_ms": ms}}, **more,
    }  # fmt: skip


def test_the_weakest_cells_are_those_least_over_the_best_human(tmp_path: Path) -> None:
    lines = [
        result("mha", 512, "baseline", "cudnn", 2.0), result("mha", 512, "baseline", "torch", 1.0),
        result("mha", 512, "candidate", "gluon", 1.25), result("mha", 512, "candidate", "gluon", 2.0),
        result("mha", 512, "candidate", "cuda", 0.1), result("mha", 2048, "baseline", "cudnn", 1.0),
        result("mha", 2048, "candidate", "gluon", 0.5), result("mha", 1000, "candidate", "gluon", 0.5),
        result("mha", 4096, "candidate", "gluon", 0.5),
        result("mha", 8192, "candidate", "gluon", 9.0, verdict="wrong_numerics", measurement=None),
    ]  # fmt: skip
    assert ratios(lines, "fp16") == {"mha:512:128": 0.8, "mha:2k:128": 2.0} and ratios(lines, "bf16") == {}
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert weakest(tmp_path / "results.jsonl", 1) == ["mha:512:128"]


def test_ratios_are_of_rounds_so_that_a_drift_does_not_show() -> None:
    drift = [1.0, 1.3, 0.8, 1.1]
    assert ratio([2 * d for d in drift], drift) == 2 and spread([2 * d for d in drift], drift) == 0


ABLATED = {
    "part": "ablation", "date": "2000-01-02", "about": {"device": "a GPU", "triton": "1"},
    "cells": {
        "x fp16": {
            "flops": 4e9, "choices": {BASE: {"BN": 128}, "one stage": {"BN": 128}}, "problems": {"turns": "no room"},
            "samples_ms": {BASE: [1.0, 2.0, 4.0], AGAIN: [1.0, 2.0, 4.0], "one stage": [2.0, 4.0, 8.0], "cudnn": [1.5, 3.0, 6.0]},
        },
    },
}  # fmt: skip
SEARCH = {
    "part": "search", "date": "2000-01-02", "about": {"device": "a GPU"},
    "cells": {
        "x fp16": {
            "size": 100, "evaluations": 15, "seconds": 2.0, "best": {"BN": 64}, "all_ms": [1.0],
            "samples_ms": {BASE: [2.0] * 3, "found by the search": [1.01] * 3, "best of all": [1.0] * 3},
        },
        "y fp16": {"size": 100, "evaluations": 10, "seconds": 1.0, "best": None},
    },
}  # fmt: skip
PROBED = {
    "part": "probe", "date": "2000-01-02", "about": {"device": "a GPU"},
    "cells": {
        "x fp16": {
            "choice": {}, "machine_code": {"registers": 168, "spill_bytes": 0, "shared_bytes": 9,
                                           "loops": [{"instructions": 3, "opcodes": {"MUFU": 2, "HGMMA": 1}}]},
            "time": {"tiles": 8, "rounds_a_tile": 2.5, "fixed_us_a_tile": 1.0, "us_a_round": 0.5, "fixed_share": 0.25},
            "ncu": {"missing": "ncu"},
        },
    },
}  # fmt: skip


def test_tables_say_what_was_measured_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in (ABLATED, SEARCH, PROBED):
        (tmp_path / f"{record['part']}.json").write_text(json.dumps(record))
    main(["tables", str(tmp_path)])
    text = capsys.readouterr().out
    assert text == tables([ABLATED, PROBED, SEARCH])
    assert "a GPU, 2000-01-02; triton 1." in text
    for line_ in (
        "|  | x fp16 |", "| TFLOP/s as chosen | 2 |", "| over cudnn | 1.500 (0) |", "| one stage | 0.500 (0) |",
        "| turns | - |", "- x fp16, turns: no room",
        "| x fp16 | 100 | 15 | 15.0 % | 2.0 | +1.0 % | 1.980 | BN=64 |", "| y fp16 | 100 | 10 | 10.0 % | 1.0 | - | - | - |",
        "1 of 1 within 2 % of the exhaustive best; at most 15.0 % of a cell's choices timed.",
        "| x fp16 | 8 | 2.5 | 1.00 | 0.500 | 25.0 % |", "| x fp16 | 168, 0, 9 | 1 | 3 | MUFU 2, HGMMA 1 |",
        "- x fp16, ncu: ncu",
    ):  # fmt: skip
        assert line_ in text.splitlines(), line_
