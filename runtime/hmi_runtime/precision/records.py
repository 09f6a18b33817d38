"""Where a choice is recorded: by the control plane for the pool, and in a file if that is not available."""

import asyncio
import json
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from hmi_api.durable_files import write_atomically
from hmi_api.errors import NotReady
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.internal.precision import PrecisionChoice, PrecisionKey, PrecisionRequest, RecordedPrecision

log = logging.getLogger(__name__)
T = TypeVar("T")
_ANSWER_SECONDS = 15.0
"""Longer than the client waits; it ends the wait of a thread whose event loop has stopped."""


class PoolRecords(Protocol):
    """The choices of a pool. Blocking; called from threads that load models.

    Both methods raise ``HmiError`` while the records cannot be reached.
    """

    def read(self, key: PrecisionKey) -> PrecisionChoice | None:
        """Return the recorded choice; None if there is none."""
        ...

    def record(self, key: PrecisionKey, proposal: PrecisionChoice) -> PrecisionChoice:
        """Record ``proposal`` unless a choice is recorded; return the one that is recorded then."""
        ...


class ControlPlaneRecords:
    """The records of the control plane, whose client runs on an event loop."""

    def __init__(self, client: ControlPlaneClient, runtime_id: str) -> None:
        self._client = client
        self._runtime_id = runtime_id
        self._loop: asyncio.AbstractEventLoop | None = None

    def use_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the client's calls on ``loop``, from now on."""
        self._loop = loop

    def read(self, key: PrecisionKey) -> PrecisionChoice | None:
        """Return the recorded choice; None if there is none."""
        return self._ask(PrecisionRequest(key=key)).choice

    def record(self, key: PrecisionKey, proposal: PrecisionChoice) -> PrecisionChoice:
        """Record ``proposal`` unless a choice is recorded; return the one that is recorded then."""
        return self._ask(PrecisionRequest(key=key, proposal=proposal)).choice or proposal

    def _ask(self, request: PrecisionRequest) -> RecordedPrecision:
        answer = self._run(self._client.record_precision(self._runtime_id, request))
        if answer is None:
            raise NotReady("ControlPlaneUnavailable", "The control plane is too old to record a precision.")
        return answer

    def _run(self, call: Coroutine[None, None, T]) -> T:
        if self._loop is None or self._loop.is_closed():
            call.close()
            raise NotReady("ControlPlaneUnavailable", "The runtime is starting or stopping.")
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop).result(_ANSWER_SECONDS)
        except (CancelledError, TimeoutError) as error:
            raise NotReady("ControlPlaneUnavailable", "The control plane did not answer.") from error


class ChoiceFile:
    """The choices that this runtime has used, in a JSON file by key. Thread-safe.

    A file that is damaged is taken for empty: it only saves a measurement.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def read(self, key: PrecisionKey) -> PrecisionChoice | None:
        """Return the choice that was written for ``key`` last."""
        with self._lock:
            found = self._entries().get(_name(key))
        try:
            return None if found is None else PrecisionChoice.model_validate(found)
        except ValidationError:
            return None

    def write(self, key: PrecisionKey, choice: PrecisionChoice) -> None:
        """Write a choice; if that fails, only log why."""
        with self._lock:
            entries = self._entries() | {_name(key): choice.model_dump(mode="json", by_alias=True)}
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, json.dumps(entries, indent=1, sort_keys=True).encode())
            except OSError as error:
                log.warning("%s could not be written: %s", self._path, error)

    def _entries(self) -> dict[str, object]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _name(key: PrecisionKey) -> str:
    return key.model_dump_json(by_alias=True)
