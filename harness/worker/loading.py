"""Owns what a worker has loaded: candidates, baselines, and what candidates launch. Hostile side."""

from __future__ import annotations

import base64
import dataclasses
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.worker.protocol import RequestFailed


@dataclass
class Loaded:
    """A kernel as loaded: a candidate's function, or a baseline."""

    function: Callable[..., object] | None = None
    baseline: Any = None
    interpreted: bool = False


@dataclass
class State:
    """What a worker remembers between requests."""

    device: Any = None
    image: Any = None
    answers: Any = None
    clock: Any = None
    slots: Any = None
    task: Any = None
    workload: Any = None
    scalars: dict[str, float] = field(default_factory=dict)
    loaded: dict[str, Loaded] = field(default_factory=dict)
    timed: dict[str, Any] = field(default_factory=dict)
    results: dict[tuple[str, int], Any] = field(default_factory=dict)
    static: dict[tuple[str, int], Any] = field(default_factory=dict)  # of captured graphs
    block_sizes: list[tuple[str, int]] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)  # of memory, before each iteration of those blocks
    planned: dict[str, Callable[..., object]] = field(default_factory=dict)  # asked for launches only
    recording: bool = False
    idle_bytes: int = 0  # device memory that an idle worker may hold


Handler = Callable[[State, Mapping[str, Any], list[int]], dict[str, Any]]


def load(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Import a candidate's entry, or take a baseline by name."""
    if "baseline" in args:
        from baselines import find_baseline

        state.loaded[args["kernel"]] = Loaded(baseline=find_baseline(args["baseline"]))
        return {"interpreted": False}
    from harness.build.loader import BuildError
    from harness.build.loader import load as build

    for variable, value in args.get("environment", {}).items():
        os.environ[variable] = value
    try:
        built = build(unpacked(args["source"]), args["entry"], args["backend"], state.device)
    except BuildError as error:
        raise RequestFailed("build", str(error), traceback.format_exc()) from error
    state.loaded[args["kernel"]] = Loaded(function=built.function, interpreted=built.interpreted)
    return {"interpreted": built.interpreted}


def packed(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """A candidate's sources as they are sent: a worker need not see the folder that they lie in."""
    return {
        "name": name,
        "files": {file: base64.b64encode(content).decode() for file, content in files.items()},
    }


def unpacked(source: Mapping[str, Any]) -> Path:
    """Where the sources lie in this process's own folder, written there at the first call."""
    folder = Path(tempfile.gettempdir()) / "candidates" / str(source["name"])
    for name, content in source["files"].items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_bytes(base64.b64decode(content))
    return folder


def launches(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """What a candidate's `attention` would launch, of CUDA: it is called with tensors that hold nothing."""
    import torch

    from harness.build.launches import planning
    from harness.build.loader import BuildError, entry_point
    from tasks import DTYPES

    key = f"{args['source']['name']}/{args['entry']}"
    if key not in state.planned:
        try:
            state.planned[key] = entry_point(unpacked(args["source"]), args["entry"])
        except BuildError as error:
            raise RequestFailed("build", str(error), traceback.format_exc()) from error
    tensors = [torch.empty(shape, dtype=DTYPES[dtype], device="meta") for shape, dtype in args["tensors"]]
    with planning(args["arch"]) as found:
        state.planned[key](*tensors, **args["scalars"])
    return {"launches": [dataclasses.asdict(launch) for launch in found]}
