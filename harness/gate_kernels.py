"""Owns the sources of kernels that were measured, so that a later version can be timed beside them.

`<storage>/kernels/<sha256>/`, by content: the same sources lie there once, and what is read back has that
hash or is not used. Nothing is ever removed: an older reference may need it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.build.manifest import CandidateError, Manifest, read_candidate


class Damaged(ValueError):
    """Sources that are not what was kept; the text says where they lie."""


@dataclass(frozen=True)
class Kernels:
    """The sources kept in a storage."""

    storage: Path

    @property
    def folder(self) -> Path:
        return self.storage / "kernels"

    def keep(self, manifest: Manifest) -> Path:
        """Its folder, which is there whole or not at all. A damaged one is put right. Raises OSError."""
        sha256 = manifest.sha256
        place = self.folder / sha256
        try:
            if self.find(sha256) is not None:
                return place
        except Damaged:
            shutil.rmtree(place)
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{sha256[:12]}-", dir=self.folder))
        try:
            for name, content in manifest.files.items():
                file = unfinished / name
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as handle:
                    handle.write(content)
                    handle.flush()
                    os.fsync(handle.fileno())
            unfinished.chmod(0o755)  # mkdtemp made it for nobody else
            unfinished.rename(place)
        except OSError:
            if not place.is_dir():  # else another gate was faster, with the same content
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return place

    def find(self, sha256: str) -> Path | None:
        """The folder of these sources, None where they were not kept. Raises Damaged."""
        place = self.folder / sha256
        if not place.is_dir():
            return None
        try:
            found = read_candidate(place).sha256
        except (CandidateError, OSError) as error:
            raise Damaged(f"{place} is damaged and not used: {str(error).splitlines()[0]}") from error
        if found != sha256:
            raise Damaged(f"{place} is damaged and not used: its content has another hash, {found[:12]}")
        return place
