"""Owns what a compilation gives, in memory and on disk: entries are whole or not there, and never change."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Set by whoever runs candidates: where products are kept, where finished ones are found that this process
# may only read, and which architecture is compiled for.
CACHE_VARIABLE, READY_VARIABLE = "ATTNBENCH_CUDA_CACHE", "ATTNBENCH_CUDA_READY"
ARCH_VARIABLE = "ATTNBENCH_CUDA_ARCH"


@dataclass(frozen=True)
class Product:
    """What a compilation gives: machine code where the architecture is a real one, PTX, and the log."""

    arch: str
    cubin: bytes
    ptx: str
    lowered: Mapping[str, str]  # C++ name of a kernel -> its symbol
    log: str = ""
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def code(self) -> bytes:
        """What the driver loads."""
        return self.cubin or self.ptx.encode()


def keep(product: Product, folder: Path) -> None:
    """Whole or not at all: other processes may read and write the same entry."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "entry"
        write(product, fresh)
        if folder.exists() and read(folder) is None:
            folder.rename(Path(scratch) / "broken")  # by a power cut, say; gone with the scratch folder
        try:
            fresh.rename(folder)
        except OSError:  # another process was faster, with the same content
            if read(folder) is None:
                raise


def write(product: Product, folder: Path) -> None:
    """Into a folder that is not there yet."""
    folder.mkdir(parents=True)
    (folder / "code.cubin").write_bytes(product.cubin)
    (folder / "code.ptx").write_text(product.ptx, encoding="utf-8")
    rest = {k: v for k, v in asdict(product).items() if k not in ("cubin", "ptx")}
    rest["sha256"] = _digest(product.cubin, product.ptx)
    (folder / "product.json").write_text(json.dumps(rest), encoding="utf-8")


def read(folder: Path) -> Product | None:
    """None where there is nothing whole."""
    try:
        rest = json.loads((folder / "product.json").read_text(encoding="utf-8"))
        cubin = (folder / "code.cubin").read_bytes()
        ptx = (folder / "code.ptx").read_text(encoding="utf-8")
        if rest.pop("sha256") != _digest(cubin, ptx):
            return None
        return Product(cubin=cubin, ptx=ptx, **rest)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def to_json(product: Product) -> str:
    """In one line."""
    return json.dumps({**asdict(product), "cubin": base64.b64encode(product.cubin).decode()})


def from_json(text: str) -> Product:
    """Raises ValueError or TypeError for anything else."""
    told = json.loads(text)
    if not isinstance(told, dict) or not isinstance(told.get("cubin"), str):
        raise ValueError("no product")
    return Product(**{**told, "cubin": base64.b64decode(told["cubin"])})


def _digest(cubin: bytes, ptx: str) -> str:
    return hashlib.sha256(cubin + b"\0" + ptx.encode()).hexdigest()
