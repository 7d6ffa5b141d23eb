"""Human baselines: what experts wrote, one file per library, behind the interface of `base`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from baselines.base import Baseline, Call, CannotRun, Library
from baselines.flash_attn import FLASH_ATTN_2, FLASH_ATTN_4
from baselines.flex import Flex
from baselines.naive import Naive
from baselines.sdpa import CUDNN, SDPA_EFFICIENT, SDPA_FLASH, SDPA_MATH

__all__ = ["BASELINES", "Baseline", "BaselineError", "Call", "CannotRun", "Library", "find_baseline"]


class BaselineError(ValueError):
    """A baseline's name that is unknown; the text lists the names."""


_ALL: tuple[Baseline, ...] = (
    CUDNN,
    FLASH_ATTN_4,
    FLASH_ATTN_2,
    SDPA_FLASH,
    SDPA_EFFICIENT,
    Flex(),
    SDPA_MATH,
    Naive(),
)

# In display order: competitors first, reference points last.
BASELINES: Mapping[str, Baseline] = {baseline.name: baseline for baseline in _ALL}


def find_baseline(name: str) -> Baseline:
    """The baseline by name; raises BaselineError that names the nearest ones and lists all."""
    if name in BASELINES:
        return BASELINES[name]
    near = difflib.get_close_matches(name, BASELINES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BaselineError(f"unknown baseline {name!r}; {hint}There are: {', '.join(BASELINES)}")
