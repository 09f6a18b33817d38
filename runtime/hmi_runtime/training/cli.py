"""The command line of the training program."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.runs import RunFailure, RunSpec
from hmi_api.internal.trainer import EXIT_DONE, EXIT_FAILED, EXIT_TRY_AGAIN, EXIT_USAGE, TrainingSettings
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.internal.window_counts import WindowCounts
from hmi_api.settings import load_settings, trim_environment
from hmi_runtime.artifacts.http_store import HttpArtifactStore
from hmi_runtime.artifacts.store import ArtifactStore, Store
from hmi_runtime.outbound.guard import configure
from hmi_runtime.training.mounts import MountPathTranslator, TranslatingFormatter, TranslatingReporter
from hmi_runtime.training.peft import export_artifact
from hmi_runtime.training.precision import step_precision
from hmi_runtime.training.report import ControlPlaneReporter, LineReporter, Reporter
from hmi_runtime.training.run import execute_run, load_run_spec
from hmi_runtime.training.run_context import RunContext

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_DESCRIPTION = """
Without --spec the run is fetched from the control plane that the environment names, and reported there.
With it, progress is printed as JSON lines and the result written to result.json in the work folder. Exit
status: 0 done, 1 failed (and reported), 2 wrong usage, 75 the control plane did not answer for too long.
A program that is started again resumes where it was.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name, None) for name in ("artifacts", "work_dir")}
    try:
        trim_environment(os.environ)
        settings = load_settings(TrainingSettings, **{name: value for name, value in given.items() if value})
    except InvalidInput as error:
        print(error.message, file=sys.stderr)
        return EXIT_USAGE
    _configure_logging(settings)
    configure(settings.address_policy(), mounts=settings.mounts)
    if settings.training_threads:
        torch.set_num_threads(settings.training_threads)
    try:
        if options.command == "export":
            print(export_artifact(options.artifact, options.artifacts, options.out))
            return EXIT_DONE
        if settings.work_dir is None:
            parser.error("give --work-dir, or set HMI_WORK_DIR")
        run_it = _run_from_control_plane if options.spec is None else _run_from_file
        return run_it(parser, options, settings, settings.work_dir)
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
    parser: argparse.ArgumentParser, options: argparse.Namespace, settings: TrainingSettings, work_dir: Path
) -> int:
    try:
        run = load_run_spec(options.spec, options.command)
    except (OSError, ValidationError) as error:
        parser.error(f"--spec: {error}")
    if settings.artifacts is None:
        parser.error("give --artifacts, or set HMI_ARTIFACTS")
    return _execute(run, settings, work_dir, ArtifactStore(settings.artifacts), LineReporter())


def _run_from_control_plane(
    parser: argparse.ArgumentParser, options: argparse.Namespace, settings: TrainingSettings, work_dir: Path
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
        view = client.run()
        if view.spec.kind != options.command:
            parser.error(f"run {view.id} is of kind {view.spec.kind}, not {options.command}")
        # Without a store of its own, the program reaches artifacts through the control plane.
        store = ArtifactStore(settings.artifacts) if settings.artifacts else HttpArtifactStore(client)
        return _execute(
            view.spec, settings, work_dir, store, ControlPlaneReporter(client), client.window_counts
        )


def _execute(
    run: RunSpec,
    settings: TrainingSettings,
    work_dir: Path,
    store: Store,
    reporter: Reporter,
    window_counts: Callable[[int], WindowCounts] | None = None,
) -> int:
    if settings.mounts is not None:
        reporter = TranslatingReporter(reporter, MountPathTranslator(settings.mounts))
    context = RunContext(
        work_dir,
        store,
        reporter,
        settings.training_checkpoint_seconds,
        mounts=settings.mounts,
        window_counts=window_counts,
        limits=settings.limits(),
        precision=step_precision(settings.training_precision),
    )
    return EXIT_FAILED if isinstance(execute_run(run, context), RunFailure) else EXIT_DONE


def _configure_logging(settings: TrainingSettings) -> None:
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if settings.mounts is not None:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(TranslatingFormatter(_LOG_FORMAT, MountPathTranslator(settings.mounts)))
