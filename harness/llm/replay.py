"""Owns answering from recorded exchanges: reading a transcript, and a client that gives its answers again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from harness.llm.client import Completion, ErrorKind, ProviderError, Request, Stop
from harness.llm.nearest import differences, nearest
from harness.seals import RecordError
from harness.story import Exchange, read_line

FILE_NAME = "transcripts.jsonl"


class TranscriptError(ValueError):
    """A transcript that cannot be read; the text says where and what to do."""


class ReplayClient:
    """Gives recorded answers, each to its own request; nobody else is asked."""

    def __init__(self, exchanges: Iterable[Exchange], model: str) -> None:
        """Of two exchanges with one id the later counts. `model` is the one that the run asks for."""
        self._answers = {exchange.id: exchange for exchange in exchanges}
        self._model = model

    def __repr__(self) -> str:
        return f"ReplayClient({len(self._answers)} exchanges, {self._model!r})"

    @property
    def provider(self) -> str:
        """`replay`, whoever answered first."""
        return "replay"

    def complete(self, request: Request) -> Completion:
        """The recorded answer with its latency; raises ProviderError that shows the nearest request."""
        found = self._answers.get(request.key)
        if found is None:
            raise ProviderError(ErrorKind.MISS, self._miss(request))
        return Completion(
            text=found.text,
            stop=Stop(found.stop),
            tokens_in=found.tokens_in,
            tokens_out=found.tokens_out,
            latency_s=found.latency_s,
            model=found.reported_model,
            version=found.version,
            request_id=found.request_id,
        )

    def _miss(self, request: Request) -> str:
        lines = [f"replay: no answer is recorded to this request of {request.model}, sample {request.sample}"]
        near = nearest(request, list(self._answers.values()))
        if near is None:
            lines.append(f"no exchange is recorded at all; give a {FILE_NAME} that holds some")
            return "\n".join(lines)
        models = {exchange.model for exchange in self._answers.values()}
        if not models & {request.model, self._model}:
            lines.append(f"answers are recorded of {', '.join(sorted(models))}; ask replay: for one of these")
        lines.append(f"the nearest of {len(self._answers)} recorded requests, {near.id[:12]}, differs in:")
        return "\n".join(lines + differences(request, near))


def read_exchanges(path: Path) -> list[Exchange]:
    """The exchanges of a transcript, or of a run's folder that holds one; of two with one id the later.

    A last line that was cut off while it was written is left out. Raises TranscriptError.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise TranscriptError(
            f"{file}: {error.strerror}; give a {FILE_NAME}, or the folder of a run that holds one"
        ) from error
    found: dict[str, Exchange] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == len(lines) and _torn(line)):
            continue
        exchange = _read(line, f"{file}:{number}")
        found.pop(exchange.id, None)  # the later one stands where the later one stood
        found[exchange.id] = exchange
    return list(found.values())


def _read(line: bytes, where: str) -> Exchange:
    try:
        record = read_line(line.decode())
    except (RecordError, UnicodeDecodeError) as error:
        raise TranscriptError(f"{where}: {error}") from error
    if not isinstance(record, Exchange):
        raise TranscriptError(f"{where}: is no exchange but {record.kind!r}; give a {FILE_NAME}")
    return record


def _torn(line: bytes) -> bool:
    """Whether a line that does not end was cut off; a whole one that lacks its newline counts."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False
