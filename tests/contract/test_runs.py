"""Training runs, their artifacts and the versions that they publish."""

from typing import Any

import pytest

from hmi_api.artifacts import MANIFEST_FILE, ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput
from hmi_api.internal.catalog import PublishAgain
from hmi_api.internal.client import Refused
from hmi_api.internal.runs import ArtifactCommit, RunFailure, RunPod, RunProgress, RunResult, RunState
from hmi_api.names import digest_bytes

pytestmark = pytest.mark.anyio

HOTEL, TOPIC = "shop/hotel", "shop/topic"
EMPTY = RunFailure(reason="CorpusEmpty", message="There is no text.")
HALF = RunProgress(stage="training", step=5, total=10, metrics={"loss": 0.5})


async def test_the_same_request_gives_the_same_run(plane: Any) -> None:
    await plane.declare_domain()
    run = await plane.domain_run()
    assert (run.state, run.uid, run.spec_digest, run.attempt) == (RunState.PENDING, "uid-hotel", "1", 0)
    assert await plane.domain_run() == run
    others = [await plane.domain_run(attempt=1), await plane.domain_run(spec="2")]
    assert len({one.id for one in [run, *others]}) == 3
    assert await plane.client.run(run.id) == run


async def test_a_run_of_an_unknown_tenant_is_refused(plane: Any) -> None:
    with pytest.raises(Refused) as caught:
        await plane.domain_run()
    assert (caught.value.status, caught.value.reason) == (404, "UnknownTenant")


async def test_an_unknown_run_is_none_and_404_to_its_trainer(plane: Any) -> None:
    assert await plane.client.run("00ff") is None
    await plane.client.record_pods("00ff", [])
    await plane.client.fail_run("00ff", EMPTY)
    with pytest.raises(Refused) as caught:
        plane.trainer("00ff").report_progress(HALF)
    assert (caught.value.status, caught.value.reason) == (404, "UnknownRun")
    with pytest.raises(Refused) as caught:
        await plane.client.run("nobody")
    assert caught.value.status == 422


async def test_progress_is_read_and_complete_at_the_end(plane: Any) -> None:
    await plane.declare_domain()
    run = await plane.domain_run()
    plane.trainer(run).report_progress(HALF)
    found = plane.trainer(run).run()
    assert (found.state, found.progress) == (RunState.RUNNING, HALF)
    ended = plane.finish(run)
    assert ended.state is RunState.SUCCEEDED
    assert ended.progress == HALF.model_copy(update={"step": 10})


async def test_a_failed_run_keeps_its_first_reason_and_publishes_nothing(plane: Any) -> None:
    await plane.declare_domain()
    run = await plane.domain_run()
    trainer = plane.trainer(run)
    trainer.fail_run(EMPTY)
    trainer.fail_run(EMPTY.model_copy(update={"reason": "Other"}))
    trainer.report_progress(HALF)
    trainer.complete_run(RunResult(artifacts=[], base_digest="sha256:b"))
    found = await plane.client.run(run.id)
    assert (found.state, found.failure, found.result) == (RunState.FAILED, EMPTY, None)
    assert (await plane.domain()).current is None
    with pytest.raises(Refused) as caught:
        trainer.commit_artifact(ArtifactCommit(manifest="{}"))
    assert (caught.value.status, caught.value.reason) == (409, "RunFinished")


async def test_a_run_that_has_succeeded_cannot_fail(plane: Any) -> None:
    await plane.declare_domain()
    run = plane.finish(await plane.domain_run())
    with pytest.raises(Refused) as caught:
        plane.trainer(run).fail_run(EMPTY)
    assert (caught.value.status, caught.value.reason) == (409, "RunFinished")
    await plane.client.fail_run(run.id, EMPTY)  # for the operator that is no error
    assert await plane.client.run(run.id) == run


async def test_a_domain_version_has_what_its_run_published(plane: Any) -> None:
    await plane.declare_domain()
    run = plane.finish(await plane.domain_run())
    current = (await plane.domain()).current
    assert (current.version, current.spec_digest, current.base.uri) == (1, "1", "wheel://m")
    assert [current.layers, *current.tables] == run.result.artifacts
    assert (current.split, current.entries, current.coverage) == (3, 5, 0.5)
    assert current.metrics == {"accuracy": 0.9}


async def test_a_child_domain_reads_its_own_table_before_its_parents(plane: Any) -> None:
    parent = (await plane.published_domain()).current
    await plane.declare_domain("shop/inn", parent=HOTEL)
    run = await plane.domain_run("shop/inn", parent=parent.model_dump(mode="json", by_alias=True))
    table = plane.publish(run, ArtifactKind.TABLE, b'"own"')
    plane.trainer(run).complete_run(RunResult(artifacts=[table], base_digest="sha256:b"))
    current = (await plane.domain("shop/inn")).current
    assert (current.layers, current.tables) == (parent.layers, [table, *parent.tables])


async def test_a_domain_run_without_layers_is_refused_and_stays_open(plane: Any) -> None:
    await plane.declare_domain()
    run = await plane.domain_run()
    with pytest.raises(Refused) as caught:
        plane.trainer(run).complete_run(RunResult(artifacts=[], base_digest="sha256:b"))
    assert (caught.value.status, caught.value.reason) == (400, "IncompleteResult")
    assert (await plane.client.run(run.id)).state is RunState.PENDING


async def test_an_adapter_version_has_what_its_run_published(plane: Any) -> None:
    domain = await plane.published_domain()
    await plane.declare_adapter()
    run = plane.finish(await plane.adapter_run())
    current = (await plane.adapter()).current
    assert (current.version, current.spec_digest, current.labels) == (1, "1", ["no", "yes"])
    assert [current.artifact] == run.result.artifacts
    assert (current.layers_digest, current.gate_passed) == (domain.current.layers.digest, True)


async def test_an_adapter_on_layers_that_its_domain_does_not_have_is_refused(plane: Any) -> None:
    await plane.published_domain()
    await plane.declare_adapter()
    run = await plane.adapter_run()
    with pytest.raises(Refused) as caught:
        plane.finish(run, layers_digest="sha256:other")
    assert (caught.value.status, caught.value.reason) == (400, "UnknownLayers")
    with pytest.raises(Refused) as caught:
        plane.finish(run, artifacts=[])
    assert (caught.value.status, caught.value.reason) == (400, "IncompleteResult")


async def test_completing_again_changes_nothing(plane: Any) -> None:
    await plane.declare_domain()
    run = plane.finish(await plane.domain_run())
    plane.trainer(run).complete_run(run.result.model_copy(update={"split": 9}))
    assert await plane.client.run(run.id) == run
    assert ((await plane.domain()).current.version, (await plane.domain()).current.split) == (1, 3)


async def test_a_version_that_fails_its_gate_does_not_become_current_but_takes_a_number(plane: Any) -> None:
    await plane.register()
    await plane.published_domain()
    await plane.published_adapter()
    served = await plane.client.desired_state("r1", 0, 0.0)
    await plane.declare_adapter(spec="2")
    run = plane.finish(
        await plane.adapter_run(spec="2"), artifacts=[], gate_passed=False, gate_message="0.4 is under 0.8."
    )
    assert (run.state, run.result.gate_message) == (RunState.SUCCEEDED, "0.4 is under 0.8.")
    assert (await plane.adapter()).current.version == 1
    assert (await plane.client.desired_state("r1", served.revision, 0.0)).adapters == []
    assert (await plane.published_adapter(spec="3")).current.version == 3


async def test_a_late_run_of_an_older_spec_does_not_replace_the_declared_one(plane: Any) -> None:
    await plane.published_domain()
    await plane.declare_adapter()
    late = await plane.adapter_run()
    newer = await plane.published_adapter(spec="2")
    assert plane.finish(late).state is RunState.SUCCEEDED
    assert (await plane.adapter()).current == newer.current


async def test_the_first_run_to_end_serves_while_the_declared_spec_is_trained(plane: Any) -> None:
    await plane.published_domain()
    await plane.declare_adapter()
    early = await plane.adapter_run()
    await plane.declare_adapter(spec="2")
    plane.finish(early)
    assert (await plane.adapter()).current.spec_digest == "1"


async def test_a_deleted_resource_ends_its_runs(plane: Any) -> None:
    await plane.declare_domain()
    done = plane.finish(await plane.domain_run())
    under_way = await plane.domain_run(spec="2")
    await plane.client.delete("Domain", HOTEL)
    assert await plane.client.run(done.id) is None
    found = await plane.client.run(under_way.id)
    assert (found.state, found.failure.reason) == (RunState.FAILED, "ResourceDeleted")


async def test_the_run_of_a_replaced_resource_publishes_nothing(plane: Any) -> None:
    await plane.declare_domain()
    run = await plane.domain_run(uid="uid-of-another-object")
    assert plane.finish(run).failure.reason == "ResourceDeleted"
    assert (await plane.domain()).current is None


async def test_pods_of_a_run_are_recorded_again_and_again(plane: Any) -> None:
    await plane.declare_domain()
    run = await plane.domain_run()
    for pods in ([RunPod(uid="p1")], [RunPod(uid="p1"), RunPod(uid="p2")], []):
        await plane.client.record_pods(run.id, pods)
    assert await plane.client.run(run.id) == run


# --- artifacts --------------------------------------------------------------------------------------


async def test_an_artifact_is_made_of_uploaded_files(plane: Any, tmp_path: Any) -> None:
    await plane.declare_domain()
    run, content = await plane.domain_run(), b'"layers"'
    trainer = plane.trainer(run)
    ref = plane.publish(run, ArtifactKind.LAYERS, content)
    text = trainer.read_file(ref, MANIFEST_FILE)
    assert (ref.kind, ref.digest, ref.bytes) == (ArtifactKind.LAYERS, digest_bytes(text), len(text) + 8)
    assert ref.uri == f"layers/{ref.digest.removeprefix('sha256:')}"
    assert trainer.read_file(ref, "content.json") == content
    assert trainer.commit_artifact(ArtifactCommit(manifest=text.decode())).artifact == ref
    with pytest.raises(FileNotFoundError):
        trainer.read_file(ref, "other.json")


async def test_files_that_were_not_uploaded_are_named(plane: Any) -> None:
    await plane.declare_domain()
    run = await plane.domain_run()
    ref = plane.publish(run, ArtifactKind.LAYERS, b'"layers"')
    text = plane.trainer(run).read_file(ref, MANIFEST_FILE).decode()
    other = await plane.domain_run(attempt=1)
    with pytest.raises(FileNotFoundError):
        plane.trainer(other).read_file(ref, "content.json")
    wanted = text.replace(digest_bytes(b'"layers"'), digest_bytes(b'"others"'))
    answer = plane.trainer(other).commit_artifact(ArtifactCommit(manifest=wanted))
    assert (answer.artifact, answer.missing) == (None, [digest_bytes(b'"others"')])


async def test_a_file_of_another_digest_is_refused(plane: Any, tmp_path: Any) -> None:
    await plane.declare_domain()
    path = tmp_path / "damaged"
    path.write_bytes(b"damaged")
    with pytest.raises(InvalidInput) as caught:
        plane.trainer(await plane.domain_run()).upload_file(digest_bytes(b"whole"), path)
    assert caught.value.reason == "DigestMismatch"


async def test_a_run_reads_the_artifacts_of_its_domain(plane: Any) -> None:
    domain = await plane.published_domain(name="rooms")
    await plane.declare_adapter()
    trainer = plane.trainer(await plane.adapter_run())
    for ref, content in (
        (domain.current.layers, b'"Layers rooms"'),
        (domain.current.tables[0], b'"Table rooms"'),
    ):
        assert trainer.read_file(ref, "content.json") == content


# --- publishing again -------------------------------------------------------------------------------


async def test_an_earlier_version_of_the_declared_spec_is_published_again(plane: Any) -> None:
    first = await plane.published_domain()
    await plane.published_domain(spec="2")
    wanted = PublishAgain(uid="uid-hotel", spec_digest="1")
    assert await plane.client.publish_again("Domain", HOTEL, wanted) is None, "it is not declared"
    await plane.declare_domain()
    for _ in range(2):
        assert await plane.client.publish_again("Domain", HOTEL, wanted) == 3
    current = (await plane.domain()).current
    assert current == first.current.model_copy(update={"version": 3})


async def test_an_earlier_adapter_is_published_again_only_if_it_passed_its_gate(plane: Any) -> None:
    await plane.published_domain()
    first = await plane.published_adapter()
    await plane.declare_adapter(spec="2")
    plane.finish(await plane.adapter_run(spec="2"), gate_passed=False)
    missed = PublishAgain(uid="uid-topic", spec_digest="2")
    assert await plane.client.publish_again("TaskAdapter", TOPIC, missed) is None
    await plane.published_adapter(spec="3")
    await plane.declare_adapter()
    wanted = PublishAgain(uid="uid-topic", spec_digest="1")
    assert await plane.client.publish_again("TaskAdapter", TOPIC, wanted) == 4
    assert (await plane.adapter()).current == first.current.model_copy(update={"version": 4})


async def test_nothing_is_published_again_for_another_object_or_without_its_artifacts(plane: Any) -> None:
    await plane.published_domain()
    other = PublishAgain(uid="another", spec_digest="1")
    assert await plane.client.publish_again("Domain", HOTEL, other) is None
    assert await plane.client.publish_again("Domain", "shop/none", other) is None
    await plane.declare_domain("shop/inn")
    lost = ArtifactRef(kind=ArtifactKind.LAYERS, uri="layers/0", digest="sha256:0", bytes=9)
    plane.finish(await plane.domain_run("shop/inn"), artifacts=[lost])
    await plane.published_domain("shop/inn", spec="2")
    await plane.declare_domain("shop/inn")
    wanted = PublishAgain(uid="uid-inn", spec_digest="1")
    assert await plane.client.publish_again("Domain", "shop/inn", wanted) is None
