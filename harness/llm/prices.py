"""Owns what tokens cost: the shipped price list, and one's own over it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

SHIPPED = Path(__file__).parent / "prices.toml"

# What may follow a model's name in the name of a version: -2024-08-06, -20240806, -0613. A single digit is
# another model: claude-sonnet-4-5 is no version of claude-sonnet-4.
_DATE = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|\d{4})")


class PricesError(ValueError):
    """A price list that cannot be used, or a price that is missing; the text says where and what to do."""


class Price(BaseModel):
    """USD per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def usd(self, tokens_in: int, tokens_out: int) -> float:
        """What an answer costs."""
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


class _List(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, Price] = {}

    @field_validator("models")
    @classmethod
    def _names(cls, value: dict[str, Price]) -> dict[str, Price]:
        for name in value:
            if not name.strip() or "*" in name:
                raise ValueError(f"{name!r} names no model; a price for all is not meant: list each")
        return value


@dataclass(frozen=True)
class Prices:
    """Prices by model. `path` is the user's own file, where there is one."""

    by_model: Mapping[str, Price]
    path: Path | None = None

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """The shipped list, overlaid with a user's; raises PricesError."""
        own = _read(path) if path is not None else {}
        return cls({**_read(SHIPPED), **own}, path)

    def usd(self, model: str, tokens_in: int, tokens_out: int) -> float | None:
        """What an answer of the model costs; None where its price is not known.

        `model` may have its provider in front, as in "openai:gpt-4o"; a price for that name comes first.
        """
        price = self._of(model) or self._of(model.partition(":")[2])
        return None if price is None else price.usd(tokens_in, tokens_out)

    def how_to_add(self, model: str) -> str:
        """What to write where, so that the model has a price."""
        entry = f'[models."{model}"] with input = ... and output = ..., in USD per million tokens'
        if self.path is not None:
            return f"add to {self.path}: {entry}"
        return f'write a file prices.toml with {entry}, and name it in the experiment: prices = "prices.toml"'

    def _of(self, model: str) -> Price | None:
        """The price of exactly this model, or of the one of which it is a dated version."""
        if model in self.by_model:
            return self.by_model[model]
        names = (n for n in self.by_model if model.startswith(n) and _DATE.fullmatch(model[len(n) :]))
        name = next(names, None)  # no date ends with another, so there is one at most
        return None if name is None else self.by_model[name]


def _read(path: Path) -> dict[str, Price]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PricesError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PricesError(f"{path}: not TOML: {error}") from error
    try:
        return _List.model_validate(data).models
    except ValidationError as error:
        example = '[models."NAME"] with input = ... and output = ...'
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
            lines.append(f"{path}: {key}: {message.removeprefix('Value error, ')}; right is {example}")
        raise PricesError("\n".join(lines)) from error
