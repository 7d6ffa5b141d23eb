from __future__ import annotations
from typing import Any
def check_types(*a: Any, **k: Any) -> list[Any]:
    return []
