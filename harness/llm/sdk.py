"""Owns the connection to a provider by its official SDK: made when it is first needed, shared by threads."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

from harness.llm.client import Completion, ErrorKind, ProviderError
from harness.llm.keys import Access, find_access

CONNECT_S = 20.0  # a host that does not take the connection by then is not there


@dataclass(frozen=True)
class Connection:
    """An SDK, a client of it, and what it was made with."""

    sdk: ModuleType
    access: Access
    client: Any = field(repr=False)  # its types are the SDK's own, and known only where that is installed

    def without_keys(self, answer: Completion) -> Completion:
        """The answer with no key in it: some servers send the headers of a request back."""
        clean = self.access.clean
        return replace(
            answer,
            text=clean(answer.text),
            model=clean(answer.model),
            version=clean(answer.version),
            request_id=clean(answer.request_id),
        )


class SdkClient(ABC):
    """What the clients of both SDKs share. Importing an SDK takes seconds, so it waits until it is asked."""

    package: ClassVar[str]
    official: ClassVar[str]  # where the provider itself answers

    def __init__(
        self, provider: str, *, base_url: str | None, key_env: str, timeout_s: float, max_retries: int
    ) -> None:
        """`key_env` names the variable that holds the key; "": the server needs none.

        Answers are streamed: `timeout_s` bounds how long the server may be silent, not the whole answer.
        """
        self._provider, self._key_env = provider, key_env
        self._base_url = base_url or self.official
        self._timeout_s, self._max_retries = timeout_s, max_retries
        self._lock = threading.Lock()
        self._connected: Connection | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._provider!r})"

    @property
    def provider(self) -> str:
        """The name it was made with."""
        return self._provider

    def check(self) -> None:
        """Raises ProviderError where the SDK or the key is missing; asks nobody."""
        self._connect()

    def _connect(self) -> Connection:
        with self._lock:
            if self._connected is None:
                sdk = load(self.package, self._provider)
                access = find_access(self._provider, self._base_url, self._key_env)
                timeout = sdk.Timeout(self._timeout_s, connect=min(self._timeout_s, CONNECT_S))
                options = {"base_url": access.base_url, "timeout": timeout, "max_retries": self._max_retries}
                self._connected = Connection(sdk, access, self._make(sdk, access, options))
            return self._connected

    @abstractmethod
    def _make(self, sdk: ModuleType, access: Access, options: dict[str, Any]) -> object:
        """The SDK's own client."""


def load(package: str, provider: str) -> ModuleType:
    """An SDK; raises ProviderError that says how to install it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise  # it is there, and broken
    raise ProviderError(
        ErrorKind.MISSING,
        f"{provider}: the package {package} is not installed; python3 -m pip install 'attnbench[models]'",
    )


def plain(value: object) -> object:
    """The JSON of an SDK's object, unchecked: the SDK builds its objects from whatever came."""
    return value.to_dict(mode="python", warnings=False) if hasattr(value, "to_dict") else value
