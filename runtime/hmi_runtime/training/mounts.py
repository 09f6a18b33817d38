"""Addresses of mounted ConfigMaps and volume claims: to paths for reading, and back for messages and logs.

A reader of a message knows ``pvc://corpora/hotel``, and not the path where a Job has it mounted.
"""

import logging
import re
from pathlib import Path
from typing import TypeVar

from hmi_api.errors import InvalidInput
from hmi_api.internal.runs import DomainRunSpec, RunFailure, RunProgress, RunResult, RunSpec
from hmi_api.resources.common import DataSource
from hmi_api.resources.data_addresses import SCHEMES_BY_MOUNT, mounted
from hmi_api.resources.task_adapter import ImportSource, TaskData
from hmi_runtime.training.report import Reporter

SourceT = TypeVar("SourceT", DataSource, ImportSource)
ReportT = TypeVar("ReportT", RunProgress, RunResult, RunFailure)


def resolve_mounts(run: RunSpec, mounts: Path | None) -> RunSpec:
    """Return the run with every ``configmap://`` and ``pvc://`` address as a path below ``mounts``.

    A refresh reads no data, and nothing is mounted for it.

    Raises ``InvalidInput``: AddressMalformed; CorpusNotFound if nothing is mounted (``mounts`` None), or if
    the ConfigMap or claim has no such key or path.
    """
    if isinstance(run, DomainRunSpec):
        if run.refresh is not None:
            return run
        corpus = [_at_mount(source, mounts) for source in run.spec.corpus]
        return run.model_copy(update={"spec": run.spec.model_copy(update={"corpus": corpus})})
    spec = run.spec
    changes: dict[str, TaskData | ImportSource] = {}
    if spec.data is not None:
        data = spec.data
        named = {"train": data.train, "evaluation": data.evaluation, "unlabelled": data.unlabelled}
        read = {name: _at_mount(source, mounts) for name, source in named.items() if source is not None}
        changes["data"] = data.model_copy(update=read)
    if spec.source is not None:
        changes["source"] = _at_mount(spec.source, mounts)
    return run.model_copy(update={"spec": spec.model_copy(update=changes)})


def _at_mount(source: SourceT, mounts: Path | None) -> SourceT:
    named = mounted(source.uri)
    if named is None:
        return source
    if mounts is None:
        raise InvalidInput(
            "CorpusNotFound",
            f"{source.uri} can be read in a cluster only; give a path, file://, s3:// or https:// here.",
        )
    path = mounts / named.path
    if not path.exists():
        raise InvalidInput(
            "CorpusNotFound",
            f"{source.uri} does not exist: there is no {named.inside or 'such volume'} in {named.name}. "
            "Correct the address, or put it there.",
        )
    return source.model_copy(update={"uri": str(path)})


class MountPathTranslator:
    """Replaces paths below ``mounts`` in a text by the addresses of a spec."""

    def __init__(self, mounts: Path) -> None:
        folders = "|".join(SCHEMES_BY_MOUNT)
        self._path = re.compile(rf"{re.escape(str(mounts))}/+({folders})/+(?=[a-z0-9])")

    def __call__(self, text: str) -> str:
        return self._path.sub(lambda found: f"{SCHEMES_BY_MOUNT[found[1]]}://", text)


class TranslatingReporter:
    """A reporter that replaces the Job's paths in progress, failures and results by addresses."""

    def __init__(self, reporter: Reporter, translate: MountPathTranslator) -> None:
        self._reporter = reporter
        self._translate = translate

    def progress(self, progress: RunProgress) -> None:
        self._reporter.progress(self._translated(progress))

    def complete(self, result: RunResult) -> None:
        self._reporter.complete(self._translated(result))

    def fail(self, failure: RunFailure) -> None:
        self._reporter.fail(self._translated(failure))

    def _translated(self, report: ReportT) -> ReportT:
        text = report.model_dump_json(by_alias=True)
        return type(report).model_validate_json(self._translate(text))


class TranslatingFormatter(logging.Formatter):
    """Formats log records by ``form``, and replaces the Job's paths by addresses."""

    def __init__(self, form: str, translate: MountPathTranslator) -> None:
        super().__init__(form)
        self._translate = translate

    def format(self, record: logging.LogRecord) -> str:
        return self._translate(super().format(record))
