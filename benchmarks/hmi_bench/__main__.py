"""``python -m hmi_bench NAME``, or ``run`` for all of them: see docs/benchmarks.md."""

import argparse
import logging
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import torch

from hmi_api.internal.trainer import TrainingPrecision
from hmi_bench.accuracy.benchmark import METHODS
from hmi_bench.accuracy.tasks import folder_of_most_tasks
from hmi_bench.base_models import CHOICES, MINILM

_DEFAULT_OUT = Path(".bench")
_QUICK_SCALE = ["--count", "1", "--count", "100", "--count", "1000", "--host", "200", "--disk", "500",
                "--requests", "1000", "--registered", "10000"]  # fmt: skip


def main() -> None:
    """Parse the command line and run one benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for chatty in ("httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    print(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hmi_bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=_DEFAULT_OUT, help="folder for JSON and plots")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    accuracy = commands.add_parser("accuracy", help="full fine-tuning, adapters, hPLM on labelled tasks")
    accuracy.add_argument("--data", type=Path, required=True, help="folder of task folders")
    _add_accuracy_options(accuracy)
    accuracy.add_argument("--base", default=MINILM)
    accuracy.add_argument(
        "--training-precision",
        choices=get_args(TrainingPrecision),
        default="auto",
        help="of the hPLM's training steps; full fine-tuning is in float32",
    )
    accuracy.add_argument("--task", action="append", default=[], help="only tasks whose path begins so")
    accuracy.add_argument(
        "--method", action="append", default=[], choices=METHODS, help="only these; repeatable"
    )
    accuracy.set_defaults(run=_accuracy)
    serving = commands.add_parser(
        "serving", help="this runtime, PEFT, model swapping, ONNX Runtime and OpenVINO"
    )
    serving.add_argument("--batch", type=int, action="append", help="batch size; may be repeated")
    serving.add_argument("--rounds", type=int, default=7)
    serving.set_defaults(run=_serving)
    _add_training(commands)
    fanout = commands.add_parser("fanout", help="six tasks over one text, in one request and otherwise")
    _add_runtime_options(fanout)
    fanout.add_argument(
        "--length", type=int, action="append", dest="lengths", help="tokens of the text; may be repeated"
    )
    fanout.add_argument("--rounds", type=int, help="default: 21")
    fanout.set_defaults(run=_fanout)
    scale = commands.add_parser("scale", help="up to 10,000 registered adapters, few of them popular")
    _add_runtime_options(scale)
    scale.add_argument(
        "--count", type=int, action="append", dest="counts", help="registered adapters; may be repeated"
    )
    scale.add_argument("--slots", type=int, help="adapters that fit in device slots; default: 64")
    scale.add_argument("--host", type=int, help="adapters that fit in host memory; default: 2000")
    scale.add_argument("--disk", type=int, help="adapters that fit on the local disk; default: 5000")
    scale.add_argument("--clients", type=int, help="clients that send one request at a time; default: 32")
    scale.add_argument("--requests", type=int, help="requests at each number of adapters; default: 2000")
    scale.add_argument(
        "--registered", type=int, help="adapters registered without their weights; default: 100000"
    )
    scale.add_argument("--exponent", type=float, help="of the Zipf law of popularity; default: 1")
    scale.set_defaults(run=_scale)
    _add_tables(commands)
    _add_churn(commands)
    _add_gateway(commands)
    _add_mixed_pools(commands)
    _add_refresh(commands)
    gpu = commands.add_parser("gpu", help="agreement, peers, 10,000 adapters and copies, on a GPU")
    gpu.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the program")
    gpu.set_defaults(run=_gpu)
    everything = commands.add_parser("run", help="all of them, one after another")
    everything.add_argument("--quick", action="store_true", help="fewer rounds, at most 1,000 adapters")
    everything.add_argument("--data", type=Path, help="folder of task folders; no accuracy without it")
    _add_accuracy_options(everything)
    _add_runtime_options(everything)
    everything.set_defaults(run=_everything)
    return parser


def _add_training(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    training = commands.add_parser(
        "training", help="training steps in float32 and bfloat16; with --data, accuracy in both instead"
    )
    training.add_argument("--base", choices=CHOICES, default="minilm", help="all but minilm are random")
    training.add_argument("--rounds", type=int, default=15, help="of the timed steps")
    training.add_argument("--data", type=Path, help="folder of task folders: train pairs, and time nothing")
    training.add_argument("--domains", type=Path, help="JSON file that maps task paths to domains")
    training.add_argument(
        "--task", action="append", dest="tasks", help="only tasks whose path begins so; may be repeated"
    )
    training.add_argument("--seed", type=int, action="append", dest="seeds", help="default: 0, 1 and 2")
    training.add_argument("--rows", type=int, help="training rows of a task; default: 400")
    training.add_argument("--test-rows", type=int, help="at most so many of the unused rows; default: 2000")
    training.add_argument("--epochs", type=int, help="default: 6")
    training.add_argument("--steps", type=int, help="distillation steps of a Domain; default: 50")
    training.add_argument("--teacher", action="store_true", help="train each adapter with a teacher")
    training.add_argument("--rank", type=int, help="of all adapters; by default compression chooses it")
    training.set_defaults(run=_training)


def _add_refresh(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    refresh = commands.add_parser("refresh", help="the cost of refreshing a table, and a topic that shifts")
    refresh.add_argument("--windows", type=int, help="windows of the timed tables; default: 100,000")
    refresh.add_argument("--before", type=Path, help="texts on the old topic; default: the demonstration's")
    refresh.add_argument("--after", type=Path, help="texts on the new topic")
    refresh.set_defaults(run=_refresh)
    load = commands.add_parser("refresh-load", help="throughput and latency beside refreshes")
    load.add_argument("--windows", type=int, help="windows of the table that is refreshed; default: 10,000")
    load.add_argument("--rounds", type=int, help="of each kind; default: 5")
    load.set_defaults(run=_refresh_load)
    tree = commands.add_parser("tree", help="what children save, and lose, that share their parent's layers")
    tree.add_argument("--data", type=Path, required=True, help="folder of children, each a task folder")
    tree.add_argument("--rows", type=int, help="training rows of an adapter; default: 400")
    tree.add_argument("--epochs", type=int, help="of an adapter; default: 6")
    tree.add_argument("--steps", type=int, help="distillation steps of layers; default: 100")
    tree.add_argument("--seed", type=int, action="append", dest="seeds", help="trains all again; default: 0")
    tree.set_defaults(run=_tree)


def _add_gateway(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    gateway = commands.add_parser("gateway", help="the time that the gateway adds to a request")
    gateway.add_argument("--requests", type=int, default=2_000, help="at each rate")
    gateway.add_argument("--rate", type=float, action="append", help="requests a second; may be repeated")
    gateway.set_defaults(run=_gateway)


def _add_mixed_pools(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    pools = commands.add_parser("mixed-pools", help="runtimes in int8 and in float32 behind one gateway")
    pools.add_argument("--data", type=Path, help="folder of task folders; default: the demonstration's")
    pools.add_argument("--clients", type=int, help="of a tenant on both runtimes; default: 8")
    pools.add_argument("--texts", type=int, help="of a request; default: 8")
    pools.add_argument("--seconds", type=float, help="of a measurement; default: 4")
    pools.add_argument("--rounds", type=int, help="measurements of each pool; default: 3")
    pools.set_defaults(run=_mixed_pools)


def _add_churn(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    churn = commands.add_parser("churn", help="every answer checked while adapters come, change and go")
    churn.add_argument("--rows", type=int, help="rows to answer and check; default: 1000000")
    churn.add_argument("--adapters", type=int, help="default: 500")
    churn.add_argument("--cached", type=int, help="adapters that host memory holds; default: 20")
    churn.add_argument("--slots", type=int, help="default: 40")
    churn.add_argument("--clients", type=int, help="default: 32")
    churn.set_defaults(run=_churn)


def _add_accuracy_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=["quick", "standard", "full"], default="quick")
    parser.add_argument("--domains", type=Path, help="JSON file that maps task paths to domains")


def _add_tables(commands: Any) -> None:
    tables = commands.add_parser("tables", help="a table with a tenth of it in memory, and with all of it")
    tables.add_argument("--windows", type=int, help="of the table; default: 2,000,000, 9.2 GB twice on disk")
    tables.add_argument("--share", type=float, help="part of the rows that is in memory; default: 0.1")
    tables.add_argument("--precision", choices=["float32", "bfloat16", "int8"], help="default: int8")
    tables.add_argument("--batches", type=int, help="of a round; default: 12")
    tables.add_argument("--rounds", type=int, help="default: 5")
    tables.add_argument("--folder", type=Path, help="where to write the table; default: a temporary folder")
    tables.add_argument("--keep", action="store_true", help="leave the table there for the next run")
    tables.set_defaults(run=_tables)


def _add_runtime_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", choices=CHOICES, default="minilm", help="all but minilm are random")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32")


def _accuracy(arguments: argparse.Namespace) -> str:
    from hmi_bench.accuracy.benchmark import run_accuracy  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_accuracy(
        arguments.data,
        arguments.out,
        preset_name=arguments.preset,
        base_uri=arguments.base,
        domains=arguments.domains,
        only_tasks=arguments.task,
        only_methods=arguments.method,
        training_precision=arguments.training_precision,
    )


def _serving(arguments: argparse.Namespace) -> str:
    from hmi_bench.serving.benchmark import run_serving  # noqa: PLC0415 - each benchmark imports only its own peers

    batches = tuple(arguments.batch or (1, 8, 32))
    return run_serving(arguments.out, batch_sizes=batches, rounds=arguments.rounds, threads=arguments.threads)


def _training(arguments: argparse.Namespace) -> str:
    from hmi_bench.accuracy.precisions import PrecisionPlan, run_precisions  # noqa: PLC0415 - only its own peers
    from hmi_bench.training import run_training  # noqa: PLC0415 - each benchmark imports only its own peers

    if arguments.data is not None:
        return run_precisions(arguments.out, PrecisionPlan(**_given(arguments, PrecisionPlan)))
    return run_training(arguments.out, base_name=arguments.base, rounds=arguments.rounds)


def _fanout(arguments: argparse.Namespace) -> str:
    from hmi_bench.fanout import FanoutPlan, run_fanout  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_fanout(arguments.out, FanoutPlan(**_given(arguments, FanoutPlan)))


def _scale(arguments: argparse.Namespace) -> str:
    from hmi_bench.scale.benchmark import ScalePlan, run_scale  # noqa: PLC0415 - each benchmark imports only its own peers

    plan = ScalePlan(**_given(arguments, ScalePlan))
    most = max(plan.counts)
    catalog_counts = tuple(count for count in plan.catalog_counts if count <= most) or (most,)
    return run_scale(arguments.out, replace(plan, catalog_counts=catalog_counts))


def _churn(arguments: argparse.Namespace) -> str:
    from hmi_bench.churn.benchmark import ChurnPlan, run_churn  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_churn(arguments.out, ChurnPlan(**_given(arguments, ChurnPlan)))


def _given(arguments: argparse.Namespace, plan: type[Any]) -> dict[str, Any]:
    """Return the given options that are fields of ``plan``."""
    options = {field.name: getattr(arguments, field.name, None) for field in fields(plan)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }


def _tables(arguments: argparse.Namespace) -> str:
    from hmi_bench.tables.benchmark import run_tables  # noqa: PLC0415 - each benchmark imports only its own peers
    from hmi_bench.tables.contender import TablesPlan  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_tables(arguments.out, TablesPlan(**_given(arguments, TablesPlan)))


def _gateway(arguments: argparse.Namespace) -> str:
    from hmi_bench.gateway.benchmark import run_gateway  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_gateway(
        arguments.out, requests=arguments.requests, rates=arguments.rate or (25.0, 50.0, 100.0)
    )


def _mixed_pools(arguments: argparse.Namespace) -> str:
    from hmi_bench.mixed_pools.benchmark import MixedPoolsPlan, run_mixed_pools  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_mixed_pools(arguments.out, MixedPoolsPlan(**_given(arguments, MixedPoolsPlan)))


def _refresh(arguments: argparse.Namespace) -> str:
    from hmi_bench.refresh import RefreshPlan, run_refresh  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_refresh(arguments.out, RefreshPlan(**_given(arguments, RefreshPlan)))


def _refresh_load(arguments: argparse.Namespace) -> str:
    from hmi_bench.refresh_load import LoadPlan, run_load  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_load(arguments.out, LoadPlan(**_given(arguments, LoadPlan)))


def _tree(arguments: argparse.Namespace) -> str:
    from hmi_bench.tree import TreePlan, run_tree  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_tree(arguments.out, TreePlan(**_given(arguments, TreePlan)))


def _gpu(arguments: argparse.Namespace) -> str:
    from hmi_bench.gpu.benchmark import GpuPlan, run_gpu  # noqa: PLC0415 - each benchmark imports only its own peers

    return run_gpu(arguments.out, GpuPlan(device=arguments.device))


def _everything(arguments: argparse.Namespace) -> str:
    """Run every benchmark, with its default options, and print its report."""
    chosen = ["--out", str(arguments.out), "--threads", str(arguments.threads)]
    on_runtime = ["--base", arguments.base, "--device", arguments.device, "--precision", arguments.precision]
    quick = arguments.quick
    benchmarks = [
        ["serving", *(["--rounds", "3"] if quick else [])],
        ["training", *(["--rounds", "5"] if quick else [])],
        ["gateway", *(["--requests", "500"] if quick else [])],
        ["fanout", *on_runtime, *(["--rounds", "7"] if quick else [])],
        ["scale", *on_runtime, *(_QUICK_SCALE if quick else [])],
        ["refresh", *(["--windows", "20000"] if quick else [])],
        ["churn", *(["--rows", "20000"] if quick else [])],
    ]
    if arguments.data is not None:
        domains = ["--domains", str(arguments.domains)] if arguments.domains else []
        benchmarks.insert(
            0, ["accuracy", "--data", str(arguments.data), "--preset", arguments.preset, *domains]
        )
        if tree := folder_of_most_tasks(arguments.data):
            benchmarks.append(["tree", "--data", str(tree)])
    for benchmark in benchmarks:
        given = _parser().parse_args([*chosen, *benchmark])
        print(f"## {benchmark[0]}\n\n{given.run(given)}\n", flush=True)  # at once: the next may take long
    if arguments.data is None:
        return "Accuracy was not measured: it needs --data, a folder of task folders."
    return f"JSON and plots are in {arguments.out}."


if __name__ == "__main__":
    main()
