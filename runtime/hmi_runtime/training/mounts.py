"""Addresses of what is mounted into a training Job, as the paths under which it is mounted."""

from pathlib import Path
from typing import TypeVar

from hmi_api.common import DataSource
from hmi_api.data_addresses import mounted
from hmi_api.errors import InvalidInput
from hmi_api.task_adapter import ImportSource
from hmi_api.wire import DomainRunSpec, RunSpec

SourceT = TypeVar("SourceT", DataSource, ImportSource)


def with_mounts(run: RunSpec, mounts: Path | None) -> RunSpec:
    """Return the run with every ``configmap://`` and ``pvc://`` address as a path below ``mounts``.

    Raises ``InvalidInput``: AddressMalformed; CorpusNotFound where nothing is mounted (``mounts`` None), and
    where the ConfigMap or claim has no such key or path.
    """
    if isinstance(run, DomainRunSpec):
        corpus = [_at_mount(source, mounts) for source in run.spec.corpus]
        return run.model_copy(update={"spec": run.spec.model_copy(update={"corpus": corpus})})
    spec, changes = run.spec, {}
    if spec.data is not None:
        data = spec.data
        named = {"train": data.train, "evaluation": data.evaluation, "unlabelled": data.unlabelled}
        read = {name: _at_mount(source, mounts) for name, source in named.items() if source is not None}
        changes["data"] = data.model_copy(update=read)
    if spec.source is not None:
        return run.model_copy(
            update={"spec": spec.model_copy(update={"source": _at_mount(spec.source, mounts)})}
        )
    return run.model_copy(update={"spec": spec.model_copy(update=changes)})


def _at_mount(source: SourceT, mounts: Path | None) -> SourceT:
    named = mounted(source.uri)
    if named is None:
        return source
    if mounts is None:
        raise InvalidInput(
            "CorpusNotFound",
            f"{source.uri} is read in a cluster only; give a path, file://, s3:// or https:// here.",
        )
    path = mounts / named.path
    if not path.exists():
        raise InvalidInput(
            "CorpusNotFound",
            f"{source.uri} does not exist: there is no {named.inside or 'such volume'} in {named.name}. "
            "Correct the address, or put it there.",
        )
    return source.model_copy(update={"uri": str(path)})
