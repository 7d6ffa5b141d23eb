"""Owns the names of models and providers: reading `provider:model`, settings, and making a client."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.llm.anthropic import AnthropicClient
from harness.llm.client import Client, Sampling
from harness.llm.deferred import DeferredClient
from harness.llm.keys import KEY_VARIABLES, address_problem
from harness.llm.openai import OpenAIClient
from harness.llm.replay import ReplayClient
from harness.story import Exchange

KNOWN = ("openai", "anthropic", "replay", "deferred")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
# What a model's name gives away of its provider, for a hint.
_HINTS = {"claude": "anthropic", "gpt": "openai", "o1": "openai", "o3": "openai", "o4": "openai"}


class ModelError(ValueError):
    """A model or provider that is not written right, or not known; the text says what to write."""


@dataclass(frozen=True)
class ModelSpec:
    """A model and who answers for it."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


class ProviderSettings(BaseModel):
    """A provider of one's own: `[providers.NAME]` of an experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["openai", "anthropic"] = Field(description="the protocol that it speaks")
    base_url: str | None = Field(None, description="where it answers; None: where the kind's own does")
    key_env: str = Field("", description="variable that holds its key; empty: it needs none")

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None and (problem := address_problem(value)):
            raise ValueError(problem)
        return value

    @field_validator("key_env")
    @classmethod
    def _is_variable(cls, value: str) -> str:
        # the value is not repeated: it may be the key itself
        if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value):
            raise ValueError("is no name of a variable; put the key into one, and name that here")
        return value


class Asking(BaseModel):
    """How models are asked: the same for every model of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    concurrency: int = Field(4, ge=1, le=64, description="questions in flight at once")
    timeout_s: float = Field(600.0, gt=0, description="how long a provider may be silent")
    max_retries: int = Field(4, ge=0, le=100, description="of one question, after limits and failed servers")
    max_tokens: int = Field(16_000, ge=1, description="of one answer, thinking included")
    temperature: float | None = Field(None, ge=0, description="None: the provider's own")
    top_p: float | None = Field(None, gt=0, le=1, description="None: the provider's own")

    @property
    def sampling(self) -> Sampling:
        """The part that makes a request what it is."""
        return Sampling(self.max_tokens, self.temperature, self.top_p)


def parse_model(text: str, providers: Iterable[str] | None = None) -> ModelSpec:
    """`provider:model`; the model's name may hold colons of its own.

    `providers` are the names of one's own; None: whether the provider is known is not asked. Raises
    ModelError.
    """
    provider, colon, model = (part.strip() for part in text.partition(":"))
    if not colon or not model or not _NAME.fullmatch(provider):
        hint = next((p for start, p in _HINTS.items() if text.strip().startswith(start)), "")
        example = f"{hint}:{text.strip()}" if hint and not colon else "anthropic:MODEL"
        raise ModelError(f"{text.strip()!r} is no model; write provider:model, as in {example}")
    spec = ModelSpec(provider, model)
    if providers is not None:
        check_provider(spec, providers)
    return spec


def parse_models(text: str, providers: Iterable[str] | None = None) -> tuple[ModelSpec, ...]:
    """One model, or two of which the first thinks and the second translates: `openai:a -> anthropic:b`."""
    parts = text.split("->")
    if len(parts) > 2:
        raise ModelError(f"{text!r} names {len(parts)} models; one thinks, and one may translate: A -> B")
    known = None if providers is None else tuple(providers)
    return tuple(parse_model(part, known) for part in parts)


def check_provider(spec: ModelSpec, providers: Iterable[str]) -> None:
    """Raises ModelError for a provider that is neither known here nor among one's own."""
    names = [*KNOWN, *providers]
    if spec.provider not in names:
        near = difflib.get_close_matches(spec.provider, names, n=2) or names
        raise ModelError(
            f"{spec}: unknown provider {spec.provider!r}; did you mean {', '.join(near)}? One of your own is "
            f'named in the experiment: [providers.{spec.provider}] with kind = "openai" and base_url = "..."'
        )


def make_client(
    spec: ModelSpec,
    asking: Asking,
    providers: Mapping[str, ProviderSettings],
    exchanges: Iterable[Exchange],
) -> Client:
    """A client for a model; raises ModelError for a provider that is not known.

    A missing key or SDK is told when it is asked first, or by its `check()`: a run that has all its
    answers needs neither.
    """
    if taken := set(providers) & set(KNOWN):
        raise ModelError(f"[providers.{min(taken)}]: this name is taken; give your provider another one")
    check_provider(spec, providers)
    if spec.provider == "replay":
        return ReplayClient(exchanges, spec.model)
    if spec.provider == "deferred":
        return DeferredClient()
    settings = providers.get(spec.provider) or _own(spec.provider)
    make = OpenAIClient if settings.kind == "openai" else AnthropicClient
    return make(
        spec.provider,
        base_url=settings.base_url,
        key_env=settings.key_env,
        timeout_s=asking.timeout_s,
        max_retries=asking.max_retries,
    )


def key_variables(providers: Mapping[str, ProviderSettings]) -> frozenset[str]:
    """All variables that may hold a key, with those of one's own providers: for a worker to be kept from."""
    return KEY_VARIABLES | {settings.key_env for settings in providers.values() if settings.key_env}


def _own(provider: str) -> ProviderSettings:
    """Settings of the two providers that need none; their SDKs' variables for the address count too."""
    if provider == "openai":
        url = os.environ.get("OPENAI_BASE_URL") or None
        return ProviderSettings.model_construct(kind="openai", base_url=url, key_env="OPENAI_API_KEY")
    url = os.environ.get("ANTHROPIC_BASE_URL") or None
    return ProviderSettings.model_construct(kind="anthropic", base_url=url, key_env="ANTHROPIC_API_KEY")
