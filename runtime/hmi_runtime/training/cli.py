"""The command line of the training program, and its settings."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.runs import RunFailure
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.security.address_policy import AddressPolicySettings
from hmi_api.security.bearer import TokenSource
from hmi_api.settings import load_settings, trim_environment
from hmi_runtime.artifacts.http_store import HttpArtifactStore
from hmi_runtime.artifacts.store import ArtifactStore, Store
from hmi_runtime.outbound.guard import configure
from hmi_runtime.training.mounts import MountPathTranslator, TranslatingFormatter, TranslatingReporter
from hmi_runtime.training.peft import export_artifact
from hmi_runtime.training.report import ControlPlaneReporter, LineReporter, Reporter
from hmi_runtime.training.run import execute_run, load_run_spec
from hmi_runtime.training.run_context import RunContext

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_TRY_AGAIN = 0, 1, 2, 75
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_DESCRIPTION = """
Without --spec the run is fetched from the control plane that the environment names, and reported there.
With it, progress is printed as JSON lines and the result written to result.json in the work folder. Exit
status: 0 done, 1 failed (and reported), 2 wrong usage, 75 the control plane did not answer for too long.
A program that is started again resumes where it was.
"""


class TrainingSettings(AdapterLimits, AddressPolicySettings):
    """Settings of the training program; each is read from ``HMI_`` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="HMI_", extra="ignore", frozen=True)

    control_plane_url: str | None = Field(
        default=None, description="Where runs are fetched and reported; none: runs are read from --spec."
    )
    internal_token: SecretStr | None = Field(
        default=None, min_length=16, description="Bearer token for the control plane."
    )
    internal_token_file: Path | None = Field(
        default=None, description="File with the bearer token; read again when it is rotated."
    )
    artifacts: str | None = Field(
        default=None,
        description="Root of the artifact store, any fsspec address; none: through the control plane.",
    )
    run_id: str | None = Field(default=None, description="Id of the run to execute.")
    work_dir: Path | None = Field(
        default=None, description="Checkpoints and unfinished files; kept over restarts."
    )
    mounts: Path | None = Field(
        default=None,
        description="Where the ConfigMaps and volume claims are mounted that configmap:// and pvc:// name.",
    )
    training_threads: int = Field(
        default=0,
        ge=0,
        description="CPU threads; 0 for all cores. A run gives the same bits only on "
        "the same number of threads.",
    )
    training_checkpoint_seconds: float = Field(
        default=30.0, ge=0, description="Least time between checkpoints."
    )
    training_report_patience_seconds: float = Field(
        default=3600.0,
        ge=0,
        description="How long a finished run tries to hand in its result before it exits.",
    )

    def token_source(self) -> TokenSource | None:
        """Return the source of the token for the control plane, None when none is set."""
        if self.internal_token_file is not None:
            return TokenSource(file=self.internal_token_file)
        return TokenSource(self.internal_token.get_secret_value()) if self.internal_token else None


def limit_threads(count: int) -> None:
    """Let torch use ``count`` threads, or all cores for 0."""
    if count:
        torch.set_num_threads(count)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        trim_environment(os.environ)
        settings = load_settings(TrainingSettings)
    except InvalidInput as error:
        print(error.message, file=sys.stderr)
        return EXIT_USAGE
    _configure_logging(settings)
    configure(settings.address_policy(), mounts=settings.mounts)
    limit_threads(settings.training_threads)
    try:
        if options.command == "export":
            print(export_artifact(options.artifact, options.artifacts, options.out))
            return EXIT_DONE
        if options.spec is not None:
            return _run_from_file(parser, options, settings)
        return _run_from_control_plane(parser, options, settings)
    except NotReady as error:
        print(error.message, file=sys.stderr)
        return EXIT_TRY_AGAIN
    except HmiError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hmi_runtime.training", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    for kind in ("domain", "adapter"):
        command = commands.add_parser(kind, help=f"train a {kind}")
        command.add_argument(
            "--spec", type=Path, help="JSON file with the run, for use without a control plane"
        )
        command.add_argument("--work-dir", type=Path, help="HMI_WORK_DIR when absent")
        command.add_argument(
            "--artifacts",
            help="root of the artifact store; HMI_ARTIFACTS when absent, else the control plane's",
        )
    export = commands.add_parser("export", help="write an adapter as a PEFT folder")
    export.add_argument("--artifact", required=True, help="the artifact's uri in the store, or its digest")
    export.add_argument("--artifacts", required=True, help="root of the artifact store")
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser


def _run_from_file(
    parser: argparse.ArgumentParser, options: argparse.Namespace, settings: TrainingSettings
) -> int:
    try:
        run = load_run_spec(options.spec, options.command)
    except (OSError, ValidationError) as error:
        parser.error(f"--spec: {error}")
    reporter = LineReporter()
    artifacts = options.artifacts or settings.artifacts
    if artifacts is None:
        parser.error("give --artifacts, or set HMI_ARTIFACTS")
    store = ArtifactStore(artifacts)
    return _exit_status(execute_run(run, _workplace(parser, options, settings, store, reporter)))


def _run_from_control_plane(
    parser: argparse.ArgumentParser, options: argparse.Namespace, settings: TrainingSettings
) -> int:
    token = settings.token_source()
    if settings.control_plane_url is None or token is None or settings.run_id is None:
        parser.error(
            "give --spec, or set HMI_CONTROL_PLANE_URL, HMI_RUN_ID and HMI_INTERNAL_TOKEN_FILE "
            "(or HMI_INTERNAL_TOKEN)"
        )
    with TrainerClient(
        settings.control_plane_url,
        token,
        settings.run_id,
        report_patience=settings.training_report_patience_seconds,
    ) as client:
        reporter = ControlPlaneReporter(client)
        view = client.run()
        if view.spec.kind != options.command:
            parser.error(f"run {view.id} is of kind {view.spec.kind}, not {options.command}")
        artifacts = options.artifacts or settings.artifacts
        # Without a store of its own, the program reaches artifacts through the control plane.
        store = ArtifactStore(artifacts) if artifacts else HttpArtifactStore(client)
        return _exit_status(execute_run(view.spec, _workplace(parser, options, settings, store, reporter)))


def _workplace(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    settings: TrainingSettings,
    store: Store,
    reporter: LineReporter | ControlPlaneReporter,
) -> RunContext:
    work_dir = options.work_dir or settings.work_dir
    if work_dir is None:
        parser.error("give --work-dir, or set HMI_WORK_DIR")
    translating: Reporter = reporter
    if settings.mounts is not None:
        translating = TranslatingReporter(reporter, MountPathTranslator(settings.mounts))
    return RunContext(
        work_dir,
        store,
        translating,
        settings.training_checkpoint_seconds,
        mounts=settings.mounts,
        limits=settings.limits(),
    )


def _configure_logging(settings: TrainingSettings) -> None:
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if settings.mounts is not None:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(TranslatingFormatter(_LOG_FORMAT, MountPathTranslator(settings.mounts)))


def _exit_status(outcome: object) -> int:
    return EXIT_FAILED if isinstance(outcome, RunFailure) else EXIT_DONE
