"""Owns the settings of generation that an experiment may hold: budgets and refinement."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrialBudget(_Section):
    """What one trial may use, the same for every method."""

    turns: int = Field(6, ge=1, description="questions to a model, all stages together")
    verifications: int = Field(3, ge=1, description="kernels that are built and verified")
    tokens: int | None = Field(120_000, ge=1, description="in and out, all questions together")
    usd: float | None = Field(None, gt=0)


class RunBudget(_Section):
    """What the run may use; a question that could exceed it is not asked."""

    tokens: int | None = Field(None, ge=1)
    usd: float | None = Field(None, gt=0)


class Refinement(_Section):
    """The last phase of a method, the same for all."""

    rounds: int = Field(0, ge=0, le=20, description="how often the measured time goes back to the model")
    search: bool = Field(False, description="search the tiles of compiled programs by measuring")
