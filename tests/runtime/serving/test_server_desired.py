"""The pure parts of the control loop: what is wanted, and what still has to be told."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.runtimes import AdapterServing, DesiredState, LoadFailure
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.cache import AdapterId
from hmi_runtime.server.desired import Wanted
from hmi_runtime.server.report import Report

KEYS = ["a/x", "a/y", "b/x", "c/z"]


def serving(key: str, version: int) -> AdapterServing:
    return AdapterServing(
        key=key,
        version=version,
        task_type=TaskType.SEQUENCE_CLASSIFICATION,
        labels=["no", "yes"],
        artifact=ArtifactRef(kind=ArtifactKind.ADAPTER, uri=f"{key}/{version}", digest="sha256:0", bytes=1),
        domain="d/d",
        domain_version=1,
    )


STATES = st.lists(
    st.builds(
        lambda full, versions, removed: (full, versions, [key for key in removed if key not in versions]),
        st.booleans(),
        st.dictionaries(st.sampled_from(KEYS), st.integers(1, 3)),
        st.lists(st.sampled_from(KEYS), unique=True),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(states=STATES)
def test_following_the_changes_arrives_at_what_is_wanted(
    states: list[tuple[bool, dict[str, int], list[str]]],
) -> None:
    wanted = Wanted()
    loaded: dict[str, int] = {}
    truth: dict[str, int] = {}
    for revision, (full, versions, removed) in enumerate(states, start=1):
        changes = wanted.apply(
            DesiredState(
                revision=revision,
                full=full,
                adapters=[serving(key, version) for key, version in versions.items()],
                removed_adapters=[] if full else removed,
            )
        )
        truth = dict(versions) if full else {k: v for k, v in truth.items() if k not in removed} | versions
        for key in changes.remove:
            del loaded[key]
        for adapter in changes.load:
            assert loaded.get(adapter.key) != adapter.version  # nothing is loaded twice
            loaded[adapter.key] = adapter.version
        assert loaded == truth
        assert wanted.revision == revision


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["ready", "gone", "failed", "beat", "lost", "reset"]), st.integers(0, 3)),
        max_size=40,
    )
)
def test_what_was_told_adds_up_to_what_is_served(steps: list[tuple[str, int]]) -> None:
    """Heartbeats may be lost before they arrive, or with their answer; the control plane may forget all."""
    report = Report()
    told: set[AdapterId] = set()
    for action, number in [*steps, ("beat", 0)]:
        adapter = AdapterId(KEYS[number], 1)
        match action:
            case "ready":
                report.ready(adapter)
            case "gone":
                report.gone(adapter)
            case "failed":
                report.failed(adapter, LoadFailure(adapter=adapter.key, version=1, reason="R", message="m"))
            case "reset":
                told = set()
                report.tell_all_again()
            case _:
                delta = report.news()
                told = (told | delta.ready) - delta.gone
                if action == "beat":
                    report.told(delta)
    assert told == report.served
    assert not report.has_news
