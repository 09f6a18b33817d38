"""The choice of the kernel for an engine's upper layers: the recorded one of the pool, else by measuring."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.internal.precision import (
    EngineReport,
    MeasuredCandidate,
    PrecisionChoice,
    PrecisionKey,
    PrecisionSetting,
    Source,
)
from hmi_runtime.adapters.executor import trial_executor
from hmi_runtime.adapters.kernels import Kernel, available_kernels, runs_model
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.precision.measurement import Trial, compare, reference_states, time_kernels
from hmi_runtime.precision.records import ChoiceFile, PoolRecords
from hmi_runtime.precision.sample import Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrozenLayers:
    """The upper layers that need a kernel."""

    base_uri: str
    base_digest: str
    encoder: Encoder
    upper: UpperLayers
    calibration: Callable[[], Tensor]
    """Returns the input (B, T, D) that quantisation is fitted to, equal on all replicas."""
    sample: Callable[[], Sample]
    """Returns the input on which kernels are timed and compared."""


@dataclass(frozen=True)
class KernelChooser:
    """Chooses kernels for the engines of one runtime, one at a time, so that measurements do not overlap."""

    device: torch.device
    requested: PrecisionSetting
    pool: str
    processor: str
    """Fingerprint of the processor (``processor_fingerprint``)."""
    records: PoolRecords | None
    """None: this runtime has no control plane, as in benchmarks."""
    file: ChoiceFile
    kernels: Callable[[torch.device], Sequence[Kernel]] = available_kernels
    measure_seconds: Callable[[Sequence[Kernel], Encoder, Tensor], list[float]] = time_kernels
    trial: Trial = trial_executor
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, layers: FrozenLayers) -> tuple[Kernel, EngineReport]:
        """Return the kernel of an engine, and what is reported of it.

        Raises ``InvalidInput`` PrecisionUnsupported if the machine cannot run the requested precision.
        """
        with self._lock:
            return self._choose(layers)

    def _choose(self, layers: FrozenLayers) -> tuple[Kernel, EngineReport]:
        kernels = [one for one in self.kernels(self.device) if runs_model(one, layers.upper)]
        kernels = select_kernels(kernels, self.requested)
        key = PrecisionKey(
            pool=self.pool,
            requested=self.requested,
            base_digest=layers.base_digest,
            split=layers.upper.split,
            processor=self.processor,
        )
        if len(kernels) == 1:  # nothing to measure or to record
            only = PrecisionChoice(precision=kernels[0].precision, kernel=kernels[0].library)
            return kernels[0], _report(key, layers, only, source="Only", recorded=False)
        found, records = self._read(key)
        kernel = _named(kernels, found)
        if found is not None and kernel is not None:
            source: Source = "Cache" if records is None else "Pool"
            return kernel, _report(key, layers, found, source=source, recorded=records is not None)
        if found is not None:
            log.warning("%s/%s is recorded, which cannot run here", found.precision, found.kernel)
            records = None  # leave it recorded: other replicas may be able to run it
        kernel, own = self._measure(kernels, layers)
        recorded = None if records is None else _record(records, key, own)
        following = _named(kernels, recorded)
        if recorded is None or following is None:
            self.file.write(key, own)
            return kernel, _report(key, layers, own, source="Measured", recorded=False)
        self.file.write(key, recorded)
        source = "Measured" if recorded == own else "Pool"
        return following, _report(key, layers, recorded, source=source, recorded=True)

    def _read(self, key: PrecisionKey) -> tuple[PrecisionChoice | None, PoolRecords | None]:
        """Return the pool's choice and its records; if these are not available, the file's choice."""
        if self.records is None:
            return self.file.read(key), None
        try:
            choice = self.records.read(key)
        except HmiError as error:
            log.warning("the pool's precision choice is not known: %s", error)
            return self.file.read(key), None
        if choice is not None:
            self.file.write(key, choice)
        return choice, self.records

    def _measure(self, kernels: Sequence[Kernel], layers: FrozenLayers) -> tuple[Kernel, PrecisionChoice]:
        """Return the fastest kernel that is accurate enough.

        If none is, return the fastest: this happens only if the settings ask for this precision alone.
        """
        started = time.monotonic()
        kernels = _worth_timing(kernels)
        sample = layers.sample()
        seconds = self.measure_seconds(kernels, layers.encoder, sample.hidden)
        order = sorted(range(len(kernels)), key=seconds.__getitem__)
        measured = {
            number: MeasuredCandidate(
                precision=kernels[number].precision,
                kernel=kernels[number].library,
                milliseconds=seconds[number] * 1000,
            )
            for number in order
        }
        reference = reference_states(layers.upper, sample.hidden)
        calibration = layers.calibration()
        taken = order[0]
        for number in order:
            executor = self.trial(layers.upper, kernels[number], calibration)
            accuracy = compare(executor, sample.hidden, reference)
            measured[number] = measured[number].model_copy(
                update={
                    "cosine": accuracy.cosine,
                    "agreement": accuracy.agreement,
                    "refused": accuracy.problem,
                }
            )
            if not accuracy.problem:
                taken = number
                break
        else:
            log.warning("%s misses the bound of accuracy: %s", self.requested, measured[taken].refused)
        log.info("%d kernels measured in %.2f s", len(kernels), time.monotonic() - started)
        choice = PrecisionChoice(
            precision=kernels[taken].precision,
            kernel=kernels[taken].library,
            candidates=list(measured.values()),
            sample=sample.source,
        )
        return kernels[taken], choice


def select_kernels(kernels: Sequence[Kernel], setting: PrecisionSetting) -> list[Kernel]:
    """Return those of the machine's ``kernels`` that ``setting``, HMI_PRECISION, allows.

    Raises ``InvalidInput`` PrecisionUnsupported if there is none.
    """
    allowed = [one for one in kernels if setting in ("auto", one.precision)]
    if not allowed:
        runs = ", ".join(dict.fromkeys(one.precision for one in kernels))
        raise InvalidInput(
            "PrecisionUnsupported",
            f"HMI_PRECISION is {setting}, which this machine cannot run; it runs {runs}. Set it to one of "
            "these, or to auto, which takes the fastest that is accurate enough.",
        )
    return allowed


def check_setting(setting: PrecisionSetting, device: torch.device) -> None:
    """Raise ``InvalidInput`` PrecisionUnsupported if ``device`` cannot run the precision of the settings."""
    if setting != "auto":
        select_kernels(available_kernels(device), setting)


def _worth_timing(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Return ``kernels`` without oneDNN's of a precision that has one of our own, which measured faster."""
    own = {one.precision for one in kernels if one.library == "native"}
    return [one for one in kernels if one.library != "onednn" or one.precision not in own]


def _record(records: PoolRecords, key: PrecisionKey, own: PrecisionChoice) -> PrecisionChoice | None:
    """Return the choice that is recorded after proposing ``own``; None if it could not be proposed."""
    try:
        return records.record(key, own)
    except HmiError as error:
        log.warning("the precision choice could not be recorded: %s", error)
        return None


def _named(kernels: Sequence[Kernel], choice: PrecisionChoice | None) -> Kernel | None:
    """Return the kernel that a choice names; None if this machine does not run it."""
    if choice is None:
        return None
    wanted = (choice.precision, choice.kernel)
    return next((one for one in kernels if (one.precision, one.library) == wanted), None)


def _report(
    key: PrecisionKey, layers: FrozenLayers, choice: PrecisionChoice, *, source: Source, recorded: bool
) -> EngineReport:
    """Return the report of an engine, after logging it."""
    report = EngineReport(
        base=layers.base_uri,
        base_digest=key.base_digest,
        split=key.split,
        requested=key.requested,
        source=source,
        recorded=recorded,
        choice=choice,
    )
    log.info("%s", summary(report))
    return report


def summary(report: EngineReport) -> str:
    """Return a report as one line of the log."""
    choice = report.choice
    candidates = "; ".join(_candidate_text(one) for one in choice.candidates)
    origin = f"HMI_PRECISION {report.requested}, {report.source}"
    recorded = "recorded" if report.recorded else "not recorded"
    return (
        f"base model {report.base} split at {report.split}: "
        f"upper layers in {choice.precision}/{choice.kernel} ({origin}, {recorded}); "
        f"{candidates or 'nothing measured'}; compared on {choice.sample or 'nothing'}"
    )


def _candidate_text(one: MeasuredCandidate) -> str:
    parts = [f"{one.precision}/{one.kernel}"]
    if one.milliseconds is not None:
        parts.append(f"{one.milliseconds:.2f} ms")
    if one.cosine is not None:
        parts.append(f"cosine {one.cosine:.4f}")
    if one.agreement is not None:
        parts.append(f"agreement {one.agreement:.3f}")
    if one.refused:
        parts.append(f"refused: {one.refused}")
    return " ".join(parts)
