"""The command line of the training programs."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.runs import RunFailure
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.settings import load_settings, trim_environment
from hmi_runtime.artifacts import ArtifactStore, HttpArtifactStore, Store
from hmi_runtime.outbound import configure
from hmi_runtime.training.export import export_artifact
from hmi_runtime.training.mounts import MountNames, MountNamesFormatter, MountNamesReporter
from hmi_runtime.training.program import do_run, read_run
from hmi_runtime.training.report import ControlPlaneReporter, LineReporter, Reporter
from hmi_runtime.training.settings import TrainingSettings, limit_threads
from hmi_runtime.training.workplace import Workplace

DONE, FAILED, WRONG_USAGE, TRY_AGAIN = 0, 1, 2, 75
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_DESCRIPTION = """
Without --spec the run is fetched from the control plane that the environment names, and reported there.
With it, progress is printed as JSON lines and the result written to result.json in the work folder. Exit
status: 0 done, 1 failed (and reported), 2 wrong usage, 75 the control plane was away too long; started
again, the program goes on where it was.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        trim_environment(os.environ)
        settings = load_settings(TrainingSettings)
    except InvalidInput as error:
        print(error.message, file=sys.stderr)
        return WRONG_USAGE
    _configure_logging(settings)
    configure(settings.address_policy(), mounts=settings.mounts)
    limit_threads(settings.training_threads)
    try:
        if options.command == "export":
            print(export_artifact(options.artifact, options.artifacts, options.out))
            return DONE
        if options.spec is not None:
            return _run_from_file(parser, options, settings)
        return _run_from_control_plane(parser, options, settings)
    except NotReady as error:
        print(error.message, file=sys.stderr)
        return TRY_AGAIN
    except HmiError as error:
        print(error, file=sys.stderr)
        return FAILED


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
        run = read_run(options.spec, options.command)
    except (OSError, ValidationError) as error:
        parser.error(f"--spec: {error}")
    reporter = LineReporter()
    artifacts = options.artifacts or settings.artifacts
    if artifacts is None:
        parser.error("give --artifacts, or set HMI_ARTIFACTS")
    store = ArtifactStore(artifacts)
    return _finish(do_run(run, _workplace(parser, options, settings, store, reporter)))


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
        return _finish(do_run(view.spec, _workplace(parser, options, settings, store, reporter)))


def _workplace(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    settings: TrainingSettings,
    store: Store,
    reporter: LineReporter | ControlPlaneReporter,
) -> Workplace:
    work_dir = options.work_dir or settings.work_dir
    if work_dir is None:
        parser.error("give --work-dir, or set HMI_WORK_DIR")
    told: Reporter = reporter
    if settings.mounts is not None:
        told = MountNamesReporter(reporter, MountNames(settings.mounts))
    return Workplace(
        work_dir,
        store,
        told,
        settings.training_checkpoint_seconds,
        mounts=settings.mounts,
        limits=settings.limits(),
    )


def _configure_logging(settings: TrainingSettings) -> None:
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if settings.mounts is not None:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(MountNamesFormatter(_LOG_FORMAT, MountNames(settings.mounts)))


def _finish(ended: object) -> int:
    return FAILED if isinstance(ended, RunFailure) else DONE
