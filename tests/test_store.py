"""Nothing recorded is lost, nothing is recorded twice, a torn line is done again."""

import errno
import os

import pytest

from harness.commands import as_toml, meaning_of
from harness.experiment import experiment_of
from harness.records import Identity, Result
from harness.store import Store, StoreError


@pytest.fixture
def results() -> list[Result]:
    return list(synthetic_results())


def synthetic_results():
    for n in range(3):
        identity = Identity(
            task="0" * 64, workload=f"w{n}", candidate="1" * 64, target="cpu", harness="0.1.0"
        )
        yield Result(
            id=identity.digest,
            identity=identity,
            task="mha",
            target="cpu",
            device="a CPU",
            environment="2" * 64,
            workload=synthetic_workload(f"w{n}"),
            candidate={
                "sha256": "1" * 64,
                "name": "k",
                "kind": "candidate",
                "method": "folder",
                "backend": "torch",
            },
            verdict="crash",
            reason="it fell over",
            recorded_at="2026-01-01T00:00:00+00:00",
        )


def synthetic_workload(key):
    sizes = dict.fromkeys(("batch", "heads", "kv_heads", "seq_q", "seq_k", "dim", "dim_v"), 8)
    return {"key": key, "dtype": "fp32", "scale": 1.0, "flops": 1, "bytes": 1, **sizes}


def test_results_are_there_again_after_closing(tmp_path, results):
    with Store(tmp_path / "run", resume=False) as store:
        for result in results:
            store.add(result)
            store.add(result)
    with Store(tmp_path / "run", resume=True) as store:
        assert [r.bare for r in store.results.values()] == results
        assert results[0].id in store
    assert len((tmp_path / "run" / "results.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_last_line_is_cut_off_and_kept_aside(tmp_path, results, cut):
    run = tmp_path / "run"
    with Store(run, resume=False) as store:
        for result in results:
            store.add(result)
    file = run / "results.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    with Store(run, resume=True) as store:
        assert [r.bare for r in store.results.values()] == results[:2]
        assert store.dropped
        store.add(results[2])
    assert file.read_bytes() == whole
    assert (run / "torn.txt").exists()


def test_a_broken_line_in_the_middle_is_an_error_that_changes_nothing(tmp_path, results):
    run = tmp_path / "run"
    with Store(run, resume=False) as store:
        for result in results:
            store.add(result)
    file = run / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    broken = lines[0] + b'{"schema_version": 1, "id": "x"}\n' + lines[2]
    file.write_bytes(broken)
    with pytest.raises(StoreError, match=r"results.jsonl:2: .*Nothing was changed"):
        Store(run, resume=True)
    assert file.read_bytes() == broken


def test_an_unknown_schema_version_says_what_to_do(tmp_path, results):
    run = tmp_path / "run"
    with Store(run, resume=False) as store:
        store.add(results[0])
        store.add(results[1])
    file = run / "results.jsonl"
    file.write_text(file.read_text().replace('"schema_version":2', '"schema_version":99', 1))
    with pytest.raises(StoreError, match="schema version 99"):
        Store(run, resume=True)


def test_two_writers_are_one_too_many(tmp_path):
    with Store(tmp_path / "run", resume=False), pytest.raises(StoreError, match="another attnbench"):
        Store(tmp_path / "run", resume=True)


def test_starting_over_a_run_and_resuming_nothing_are_refused(tmp_path, results):
    with pytest.raises(StoreError, match="no run to resume"):
        Store(tmp_path / "run", resume=True)
    with Store(tmp_path / "run", resume=False) as store:
        store.add(results[0])
    with pytest.raises(StoreError, match="--resume"):
        Store(tmp_path / "run", resume=False)


def test_another_experiment_does_not_go_on_with_this_run(tmp_path):
    with Store(tmp_path / "run", resume=False) as store:
        store.add_experiment('target = "cpu"\n')
        store.add_experiment('target = "cpu"\n')
        with pytest.raises(StoreError, match="differs"):
            store.add_experiment('target = "h100"\n')


def test_a_run_from_before_a_key_came_to_be_goes_on(tmp_path):
    """Its file stays as it is: hashes of it are on record."""
    new = as_toml(experiment_of({"target": "cpu", "tasks": "mha"}, "test"))
    old = new.replace("cold = true\n", "")
    assert old != new
    with Store(tmp_path / "run", resume=False) as store:
        store.add_experiment(old, meaning_of)
        store.add_experiment(new, meaning_of)
        assert (tmp_path / "run" / "experiment.toml").read_text() == old
        with pytest.raises(StoreError, match="differs"):
            store.add_experiment(new.replace("cold = true", "cold = false"), meaning_of)


def test_a_full_disk_keeps_what_was_recorded_and_the_file_whole(tmp_path, results, monkeypatch):
    run = tmp_path / "run"

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Store(run, resume=False) as store:
        store.add(results[0])
        before = (run / "results.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match=r"No space left on device.*--resume"):
                store.add(results[1])
        assert (run / "results.jsonl").read_bytes() == before
        assert results[1].id not in store
        store.add(results[1])
        store.add(results[2])
    with Store(run, resume=True) as store:
        assert [r.bare for r in store.results.values()] == results


def test_sources_lie_under_the_hash_of_their_content(tmp_path):
    with Store(tmp_path / "run", resume=False) as store:
        store.add_artifact("a" * 64, {"attention.py": b"x = 1\n", "candidate.toml": b""})
    assert (tmp_path / "run" / "artifacts" / ("a" * 64) / "attention.py").read_bytes() == b"x = 1\n"
