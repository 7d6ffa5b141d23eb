"""What pytest-benchmark saved, read back: torn, foreign and whole files, and which one is the latest."""

from __future__ import annotations

import json

import pytest

from harness.records import Block, Telemetry
from reports.gate.saved import SavedError, clock_state, read_saved
from reports.gate.storage import AGAIN, REFERENCE, WHOLE, NoMeasurement, NoReference, Storage
from tests.gates import OWN, anchor, case, content, saved, write


def test_what_was_saved_comes_back(tmp_path):
    found = saved(tmp_path, "x", [anchor(), case()], {"a/b/c": "crash: it died"})
    assert found.cases[OWN] == case()
    assert found.failed == {"a/b/c": "crash: it died"}
    assert found.benchmark(OWN)["stats"]["median"] == 0.002


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SavedError, match=r"gone\.json: No such file"):
        read_saved(tmp_path / "gone.json")


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_torn_file_is_refused_with_what_to_do(tmp_path, cut):
    file = write(tmp_path / "torn.json", [case()])
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(SavedError, match=r"torn\.json is torn or no JSON .* attnbench gate"):
        read_saved(file)


def without_extra(data):
    data["benchmarks"][0]["extra_info"] = {}


def later_schema(data):
    data["benchmarks"][0]["extra_info"]["attnbench"]["schema_version"] = 9


def no_number(data):
    data["benchmarks"][0]["extra_info"]["attnbench"]["ratio"]["median"] = "fast"


def twice(data):
    data["benchmarks"] *= 2


def no_reasons(data):
    data["attnbench"] = {"failed": [1]}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_extra, "no case of the gate"),
        (later_schema, "schema_version"),
        (no_number, "ratio.median"),
        (twice, "twice"),
        (no_reasons, "no table of reasons"),
        (lambda data: data.pop("benchmarks"), "no file of pytest-benchmark"),
    ],
)
def test_a_foreign_file_is_refused_with_the_place(tmp_path, spoil, says):
    data = content([case()])
    spoil(data)
    file = tmp_path / "foreign.json"
    file.write_text(json.dumps(data))
    with pytest.raises(SavedError, match=says):
        read_saved(file)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"benchmarks": {}}', '{"benchmarks": [1]}'])
def test_other_json_is_no_measurement(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SavedError, match="no file of pytest-benchmark"):
        read_saved(tmp_path / "x.json")


def test_the_latest_of_each_is_found_and_what_was_measured_again_belongs_to_the_whole_run_before(tmp_path):
    storage = Storage(tmp_path, "Linux-CPython", "cpu")
    with pytest.raises(NoReference, match="no reference for cpu"):
        storage.reference()
    with pytest.raises(NoMeasurement, match="attnbench gate"):
        storage.runs()
    for n, kind in enumerate((REFERENCE, WHOLE, AGAIN, REFERENCE, WHOLE, AGAIN, AGAIN), 1):
        write(tmp_path / "Linux-CPython" / f"{n:04}_{kind}-cpu.json", [case(time_ms=n)])
    write(tmp_path / "Linux-CPython" / "0008_gate-h100.json", [])
    assert storage.reference().cases[OWN].time_ms == 4
    assert [run.cases[OWN].time_ms for run in storage.runs()] == [5, 6, 7]
    with pytest.raises(NoReference):
        Storage(tmp_path, "Linux-PyPy", "cpu").reference()


def test_a_torn_reference_is_no_reason_to_go_back_to_one_before_it(tmp_path):
    storage = Storage(tmp_path, "m", "cpu")
    write(tmp_path / "m" / "0001_reference-cpu.json", [case()])
    (tmp_path / "m" / "0002_reference-cpu.json").write_text("{")
    with pytest.raises(SavedError, match="0002_reference"):
        storage.reference()


def test_a_new_file_has_the_next_number_of_all_and_is_whole_or_not_there(tmp_path):
    storage = Storage(tmp_path, "m", "cpu")
    write(tmp_path / "m" / "0041_other.json", [])
    file = storage.save(REFERENCE, lambda path: write(path, [case()]))
    assert file.name == "0042_reference-cpu.json"

    def dies(path):
        path.write_text("{")
        raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        storage.save(REFERENCE, dies)
    assert storage.reference().path == file


def test_clocks_are_medians_and_a_reason_counts_where_it_holds_most_of_the_time():
    def block(mhz, *throttle):
        telemetry = Telemetry(sm_mhz=mhz, memory_mhz=2619, throttle=throttle)
        return Block(round=0, started_s=0, iterations=1, median_ms=1, telemetry=telemetry)

    found = clock_state(
        [block(1900, "sw_power_cap"), block(1800, "sw_power_cap"), block(1000, "hw_slowdown")]
    )
    assert (found.sm_mhz, found.memory_mhz, found.held_back) == (1800, 2619, ("sw_power_cap",))
    assert clock_state([]).sm_mhz is None
