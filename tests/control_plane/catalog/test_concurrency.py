"""Concurrent writers on both databases, and long polls that wait for their changes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event
from typing import Any

from sqlalchemy import select, update

from hmi_api.internal.precision import PrecisionChoice, PrecisionKey
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.catalog import runtimes, tenants
from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database, utc_now
from hmi_control_plane.catalog.tables import Artifact, RecordedChoice, Runtime, Tenant
from hmi_control_plane.settings import Settings
from hmi_control_plane.sweeper import Sweeper

_WRITERS = 8


def test_concurrent_writers_all_succeed(database: Database) -> None:
    with database.write() as session:
        tenants.create_tenant(session, "acme", "0")

    def add_one(_: int) -> None:
        with database.write() as session:
            # Read, then write: the pattern that fails at once on SQLite unless the lock is taken first.
            row = session.get_one(Tenant, "acme", with_for_update=True)
            row.display_name = str(int(row.display_name) + 1)

    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(add_one, range(5 * _WRITERS)))
    with database.read() as session:
        assert session.get_one(Tenant, "acme").display_name == str(5 * _WRITERS)


def test_a_tenant_ensured_concurrently_is_created_once(database: Database) -> None:
    def ensure(_: int) -> str:
        with database.write() as session:
            return tenants.ensure_tenant(session, "acme").name

    with ThreadPoolExecutor(_WRITERS) as pool:
        assert set(pool.map(ensure, range(_WRITERS))) == {"acme"}


def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    with database.write() as session:
        tenants.create_tenant(session, "acme", "before")
    with database.write() as writer:
        writer.get_one(Tenant, "acme").display_name = "after"
        writer.flush()
        with database.read() as reader:
            assert reader.get_one(Tenant, "acme").display_name == "before"


def test_adapters_completed_concurrently_are_all_in_the_desired_state(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    names = [f"task-{index}" for index in range(_WRITERS)]
    for name in names:
        cluster.declare_adapter(name)
    made = [cluster.adapter_run(name) for name in names]
    since = cluster.desired()["revision"]
    with ThreadPoolExecutor(_WRITERS) as pool:
        assert {run["state"] for run in pool.map(cluster.complete_adapter, made)} == {"Succeeded"}
    news = cluster.desired(since=since)
    assert {item["key"] for item in news["adapters"]} == {f"acme/{name}" for name in names}
    assert news["revision"] == since + _WRITERS


def test_a_run_completed_twice_concurrently_makes_one_version(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.declare_adapter("spam")
    run = cluster.adapter_run("spam")
    with ThreadPoolExecutor(_WRITERS) as pool:
        answers = list(pool.map(cluster.complete_adapter, [run] * _WRITERS))
    assert all(answer == answers[0] for answer in answers)
    assert cluster.view("spam")["current"]["version"] == 1
    assert cluster.internal("GET", "/adapters/acme/spam")["current"]["version"] == 1


def test_a_run_requested_concurrently_is_created_once(cluster: Any) -> None:
    cluster.declare_domain("trade")
    with ThreadPoolExecutor(_WRITERS) as pool:
        found = list(pool.map(lambda _: cluster.domain_run("trade")["id"], range(_WRITERS)))
    assert len(set(found)) == 1


def test_the_first_of_concurrent_choices_of_precision_is_kept(database: Database) -> None:
    key = PrecisionKey(pool="cpu", requested="auto", base_digest="sha256:b", split=3, processor="avx2")

    def propose(number: int) -> str:
        with database.write() as session:
            own = PrecisionChoice(precision="int8", kernel=f"kernel-{number}")
            found = runtimes.record_choice(session, f"r{number}", key, own)
        assert found is not None
        return found.kernel

    with ThreadPoolExecutor(_WRITERS) as pool:
        taken = set(pool.map(propose, range(_WRITERS)))
    assert len(taken) == 1
    with database.read() as session:
        kept = session.scalars(select(RecordedChoice)).one()
        assert {kept.choice["kernel"]} == taken
        assert kept.runtime_id == kept.choice["kernel"].replace("kernel-", "r")


def test_a_long_poll_waits_for_a_change(cluster: Any) -> None:
    cluster.runtime()
    cluster.domain()
    cluster.declare_adapter("spam")
    run = cluster.adapter_run("spam")
    since = cluster.desired()["revision"]
    requested = Event()

    def poll() -> Any:
        requested.set()
        return cluster.desired(since=since, wait=30)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(poll)
        requested.wait(timeout=30)
        cluster.complete_adapter(run)
        assert [item["key"] for item in answer.result(timeout=30)["adapters"]] == ["acme/spam"]


def test_a_long_poll_without_a_change_ends(cluster: Any) -> None:
    cluster.runtime()
    since = cluster.desired()["revision"]
    answer = cluster.desired(since=since, wait=0.05)
    assert (answer["revision"], answer["adapters"], answer["full"]) == (since, [], False)


def test_sweepers_of_several_processes_do_each_job_once(cluster: Any, settings: Settings) -> None:
    for runtime_id in ("r1", "r2", "r3"):
        cluster.runtime(runtime_id)
    cluster.domain()
    names = [f"task-{index}" for index in range(6)]
    for name in names:
        cluster.adapter(name, replicas=2)
    cluster.internal("DELETE", "/adapters/acme/task-0")
    database = Database(settings.database_url)
    with database.write() as session:
        silent = update(Runtime).where(Runtime.id == "r1").values(heartbeat_at=utc_now() - timedelta(hours=1))
        session.execute(silent)
    moments = iter(range(10_000))
    sweepers = [
        Sweeper(
            database,
            ArtifactGarbageCollector(database, settings.artifacts),
            ArtifactFiles(settings.artifacts),
            lost_after=timedelta(seconds=60),
            forgotten_after=timedelta(minutes=2),
            every_seconds=1.0,
            notify=lambda: None,
            clock=lambda: next(moments),
        )
        for _ in range(4)
    ]

    def sweep(sweeper: Sweeper) -> None:
        sweeper.sweep_fleet()
        sweeper.sweep_store()
        sweeper.sweep_usage()

    with ThreadPoolExecutor(len(sweepers)) as pool:
        for _ in range(8):
            list(pool.map(sweep, sweepers))
    for name in names[1:]:
        assert cluster.view(name)["scheduledOn"] == ["r2", "r3"]
    with database.read() as session:
        assert session.get(Runtime, "r1") is None
        assert session.query(Artifact).filter(Artifact.refcount <= 0).count() == 0
    database.close()
