"""Plots are the same text for the same records, and can stand beside each other in one page."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from reports.dataset import Dataset, load_run
from reports.plots import for_page, looks, panel_svg, panels
from tests.reports import synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_run(synthetic.h100_run(tmp_path_factory.mktemp("runs") / "large"))


def test_one_panel_for_each_task_head_dim_mask_and_dtype(data: Dataset) -> None:
    found = [p for group in data.groups for p in panels(data, *group)]
    assert len(found) == 2 * 2 * 2
    assert len({p.slug for p in found}) == 8
    assert all(len(p.cells) == 6 for p in found)


def test_svg_is_deterministic_well_formed_and_undated(data: Dataset) -> None:
    panel = panels(data, "h100", "mha_causal")[0]
    svg = panel_svg(panel, looks(data))
    assert svg == panel_svg(panel, looks(data))
    ElementTree.fromstring(svg)
    assert not re.search(r"20\d\d-|<dc:|DOCTYPE", svg)


def test_panels_share_no_id(data: Dataset) -> None:
    first, second = (panel_svg(p, looks(data)) for p in panels(data, "h100", "mha")[:2])
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', first))
    assert used and used <= ids[0]


def test_a_contender_looks_the_same_everywhere_and_like_no_other(data: Dataset) -> None:
    found = looks(data)
    assert len(set(found.values())) == len(data.contenders) == 9


def test_a_contender_without_a_point_is_named_with_its_verdict(data: Dataset) -> None:
    panel = next(p for p in panels(data, "h100", "mha") if "d64" in p.title and "bf16" in p.title)
    svg = panel_svg(panel, looks(data))
    assert "triton-tma (wrong_numerics)" in svg and "flash-attn (skipped)" in svg


def test_page_form_takes_its_ink_from_the_theme(data: Dataset) -> None:
    svg = for_page(panel_svg(panels(data, "h100", "mha")[0], looks(data)))
    assert "currentColor" in svg and "#111213" not in svg and "http" not in svg
    assert re.match(r'<svg viewBox="[\d. ]+"', svg)


def test_a_single_length_gives_bars(tmp_path: Path) -> None:
    run = load_run(synthetic.cpu_run(tmp_path / "cpu"))
    (panel,) = panels(run, "cpu", "mha_causal")
    assert "GFLOP/s, length 512" in panel_svg(panel, looks(run))
