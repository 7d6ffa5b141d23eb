"""Owns the list of methods: every way in which a model may be asked for a kernel."""

from __future__ import annotations

from collections.abc import Mapping

from harness.generate.method import Method
from harness.generate.two_stage import tl, tl_compiled, tl_one_stage, tl_scheduled, tl_unguided
from harness.generate.vanilla import vanilla, vanilla_cot

METHODS: Mapping[str, Method] = {
    m.name: m
    for m in (
        Method("vanilla", "the task in, the kernel out", vanilla),
        Method("vanilla-cot", "the same, thinking step by step first", vanilla_cot),
        Method(
            "tl",
            "sketch, program in LLM-TL, translation by a model",
            tl,
            translates=True,
        ),
        Method(
            "tl-one-stage",
            "program in LLM-TL without a sketch, translation by a model",
            tl_one_stage,
            translates=True,
        ),
        Method(
            "tl-unguided",
            "as tl, but without the guide that the translation has: the ablation of the guide",
            tl_unguided,
            translates=True,
        ),
        Method("tl-compiled", "sketch, program in LLM-TL, the compiler", tl_compiled),
        Method("tl-scheduled", "as tl-compiled, and the model writes the schedule", tl_scheduled),
    )
}
