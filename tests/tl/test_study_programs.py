"""The study's parts on growing maxima and on programs compiled anew, played without a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from harness.tl.lower.gluon import lower_gluon
from tasks import Workload, find
from tests.tl.gluon_emulator import Device
from tests.tl.hopper_study import main
from tests.tl.study import device as device_module
from tests.tl.study import maxima
from tests.tl.study.cells import (
    cell,
    chosen,
    growing,
)  # fmt: skip
from tests.tl.study.device import Choice
from tests.tl.study.figures import ratio
from tests.tl.study.tables import tables
from tests.tl.test_gluon import moves
from tests.tl.test_hopper_study import Killed, Played
from tests.tl.triton_trial import inputs, text_of

# --- growing maxima -----------------------------------------------------------------------------------------


def test_growing_maxima_are_timed_by_each_way_and_gone_on_with(tmp_path: Path) -> None:
    played = Played()
    played.left = 2
    words = ["maxima", "--out", str(tmp_path), "--cells", "mha:2k:128,mha_causal:512:64"]
    with pytest.raises(Killed):
        main(words, played)
    played.left, played.wrongs = 10**9, {}
    main(words, played)
    entries = json.loads((tmp_path / "maxima.json").read_text())["cells"]
    assert list(entries) == ["mha:2k:128 fp16", "mha_causal:512:64 fp16"] and played.left == 10**9 - 2
    for entry in entries.values():
        assert {n: c["rescale"] for n, c in entry["choices"].items()} == {"0": 0, "1": 1, "2": 2}
        step = maxima.GROWTH / entry["choices"]["0"]["BN"]
        own, grown = entry["samples_ms"][maxima.OWN], entry["samples_ms"][maxima.GROWING]
        assert ratio(own["0"], own["2"]) == 1 and ratio(grown["0"], grown["2"]) == pytest.approx(
            1 / (1 + 2 * step), rel=1e-3
        )
    text = tables([json.loads((tmp_path / "maxima.json").read_text())])
    step = maxima.GROWTH / entries["mha:2k:128 fp16"]["choices"]["0"]["BN"]
    shown = [f"{1 / (1 + n * step):.3f} (0)" for n in (1, 2)]
    assert f"| mha:2k:128 fp16 | 1.000 (0) | 1.000 (0) | {shown[0]} | {shown[1]} |" in text.splitlines()


def test_who_is_wrong_is_not_timed_and_said(tmp_path: Path) -> None:
    played = Played()
    c = cell("mha:2k:128")
    played.wrongs = {str(chosen(c)["stages"]): "wrong by 3"}
    main(["maxima", "--out", str(tmp_path), "--cells", c.name], played)
    record = json.loads((tmp_path / "maxima.json").read_text())
    assert record["cells"]["mha:2k:128 fp16"]["samples_ms"] == {maxima.OWN: {}, maxima.GROWING: {}}
    assert "- mha:2k:128 fp16, rescale = 2: wrong by 3" in tables([record]).splitlines()


@pytest.mark.parametrize("name", ["mha:2k:128", "mha_causal:2k:128", "mha:2k:64"])
def test_maxima_grow_in_every_round_of_the_kernel(name: str) -> None:
    """In the order in which it runs them; with a cell's own inputs they hardly do."""
    c = cell(name)
    choice = {"consumers": 2, "BN": 64, "overlap": 1, "rescale": 2}
    w = c.workload.with_(batch=1, heads=1, kv_heads=1, seq_q=256, seq_k=512)
    given = inputs(c.task, w)
    for step, least, most in ((-maxima.GROWTH / 64, 0.9, 1.0), (0.0, 0.0, 0.1)):
        module = Device().module(lower_gluon(c.program, c.task, choice=choice).files["attention.py"])
        seen = moves(module)
        tensors = growing(c.task, w, given, step) if step else given
        module.attention(**tensors, out=torch.empty_like(given["q"]), **c.task.scalars(w))
        later = [share for share in seen if share is not None]
        assert later and least <= sum(later) / len(later) <= most, (step, later)


def test_the_steps_that_are_asked_for_are_such(tmp_path: Path) -> None:
    asked: list[float] = []

    class Listening(Played):
        def samples_ms(
            self, w: Workload, contenders: Mapping[str, Choice | str], rounds: int, step: float = 0.0
        ) -> dict[str, list[float]]:
            asked.append(step)
            return super().samples_ms(w, contenders, rounds, abs(step))

    main(["maxima", "--out", str(tmp_path), "--cells", "mha:2k:128"], Listening())
    assert asked == [0.0, -maxima.GROWTH / chosen(cell("mha:2k:128"))["BN"]]


def test_where_nobody_can_run_nothing_is_timed() -> None:
    assert device_module._in_turns({}, 3) == {}


# --- a run's programs, compiled anew ------------------------------------------------------------------------


def models_run(folder: Path) -> Path:
    """Two programs of one task, two workloads, one of which no set has."""
    for name in ("tl-compiled-x-0", "tl-compiled-x-1"):
        where = folder / "artifacts" / name
        where.mkdir(parents=True)
        (where / "program.tl").write_text(text_of("reference", "mha_causal"))
        (where / "candidate.toml").write_text(f'name = "{name}"\ntask = "mha_causal"\nbackend = "gluon"\n')
        (where / "attention.py").write_text("def attention(): ...")
    (folder / "artifacts" / "vanilla").mkdir()
    known = [w.key for w in find("mha_causal").workload_set("models")]
    keys = [known[0], known[1], "b1-h1-n1-d1-fp16"]
    lines = [{"task": "mha_causal", "workload": {"key": k}} for k in keys]
    (folder / "results.jsonl").write_text("".join(json.dumps(line_) + "\n" for line_ in lines))
    return folder


def test_programs_are_compiled_anew_and_timed_beside_what_they_were(tmp_path: Path) -> None:
    run, played = models_run(tmp_path / "run"), Played()
    words = ["anew", "--run", str(run), "--out", str(tmp_path / "out")]
    played.left = 1
    with pytest.raises(Killed):
        main(words, played)
    played.left, played.wrongs = 1, {"tl-compiled-x-1 anew": "off by 3"}
    main(words, played)
    record = json.loads((tmp_path / "out" / "anew.json").read_text())
    (first, whole), (second, cut) = record["cells"].items()
    assert len(whole["samples_ms"]) == 6 and len(cut["samples_ms"]) == 5
    lines = tables([record]).splitlines()
    both = f"{first.split()[1]} 1.250 (0), {second.split()[1]} 1.250 (0)"
    assert f"| mha_causal tl-compiled-x-0 | 2 | 0.900, least 0.900 | 1.125, least 1.125 | {both} |" in lines
    one = f"{first.split()[1]} 1.250 (0)"
    assert f"| mha_causal tl-compiled-x-1 | 1 | 0.900, least 0.900 | 1.125, least 1.125 | {one} |" in lines
    assert f"- {second}, tl-compiled-x-1 anew: off by 3" in lines
    assert record["about"]["run"] == "run"
    played.left = 0
    main(words, played)  # nothing is left, so nothing is timed


def test_a_program_that_the_compiler_refuses_now_is_named_and_the_others_timed(tmp_path: Path) -> None:
    run = models_run(tmp_path / "run")
    odd = run / "artifacts" / "tl-compiled-x-1" / "program.tl"
    odd.write_text(
        odd.read_text().replace("i = ceil(seq_q / BM)", "i = seq_q").replace("[L = i]", "[L = i / BM]")
    )
    main(["anew", "--run", str(run), "--out", str(tmp_path / "out")], Played())
    record = json.loads((tmp_path / "out" / "anew.json").read_text())
    for entry in record["cells"].values():
        assert list(entry["problems"]) == ["tl-compiled-x-1 anew"] and len(entry["samples_ms"]) == 5
    assert "counts no tiles of query rows" in tables([record])
