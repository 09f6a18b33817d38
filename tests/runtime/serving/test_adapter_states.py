"""The states of adapters: what is loaded and removed, and what is reported to the control plane."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import NotReady
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.runtimes import AdapterServing, DesiredState, DomainServing
from hmi_api.resources.domain import BaseModelRef, OnMiss
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.cache.adapter_cache import AdapterId
from hmi_runtime.server.adapter_states import AdapterStates, Report
from hmi_runtime.serving.loaded import EngineKey, LoadedAdapter

KEYS = ["a/x", "a/y", "b/x", "c/z"]
KEY = st.sampled_from(KEYS[:2])


def serving(key: str, version: int, digest: str = "sha256:0") -> AdapterServing:
    return AdapterServing(
        key=key,
        version=version,
        task_type=TaskType.SEQUENCE_CLASSIFICATION,
        labels=["no", "yes"],
        artifact=ArtifactRef(kind=ArtifactKind.ADAPTER, uri=f"{key}/{version}", digest=digest, bytes=1),
        domain="d/d",
        domain_version=1,
    )


def loaded(adapter: AdapterServing) -> LoadedAdapter:
    return LoadedAdapter(
        AdapterId.of(adapter),
        EngineKey("sha256:base", 2),
        None,  # type: ignore[arg-type]
        adapter.task_type,
        tuple(adapter.labels),
        adapter.artifact,
    )


def desire(states: AdapterStates, *adapters: AdapterServing) -> None:
    """Schedule exactly these, and remove the others."""
    state = DesiredState(revision=states.revision + 1, full=True, adapters=list(adapters))
    for key in states.apply(state).remove:
        states.remove(key)


DESIRED_STATES = st.lists(
    st.builds(
        lambda full, versions, removed: (full, versions, [key for key in removed if key not in versions]),
        st.booleans(),
        st.dictionaries(st.sampled_from(KEYS), st.integers(1, 3)),
        st.lists(st.sampled_from(KEYS), unique=True),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(desired_states=DESIRED_STATES)
def test_applying_changes_leads_to_the_desired_state(
    desired_states: list[tuple[bool, dict[str, int], list[str]]],
) -> None:
    states = AdapterStates()
    loaded_versions: dict[str, int] = {}
    truth: dict[str, int] = {}
    for revision, (full, versions, removed) in enumerate(desired_states, start=1):
        changes = states.apply(
            DesiredState(
                revision=revision,
                full=full,
                adapters=[serving(key, version) for key, version in versions.items()],
                removed_adapters=[] if full else removed,
            )
        )
        truth = dict(versions) if full else {k: v for k, v in truth.items() if k not in removed} | versions
        for key in changes.remove:
            del loaded_versions[key]
            states.remove(key)
        for adapter in changes.load:
            assert loaded_versions.get(adapter.key) != adapter.version  # nothing is loaded twice
            loaded_versions[adapter.key] = adapter.version
        assert loaded_versions == truth
        assert all(states.is_desired(serving(key, version)) for key, version in truth.items())
        assert not any(states.is_desired(serving(key, 1)) for key in KEYS if key not in truth)
        assert states.revision == revision


class Reports(RuleBasedStateMachine):
    """Heartbeats or their answers may be lost, and the control plane may forget everything."""

    def __init__(self) -> None:
        super().__init__()
        self.states = AdapterStates()
        self.desired: dict[str, AdapterServing] = {}
        self.in_memory: set[AdapterId] = set()
        self.serves: dict[str, AdapterId] = {}
        self.replaced: list[AdapterId] = []
        self.failures: dict[str, str] = {}
        self.known: set[str] = set()
        self.known_failures: dict[str, str] = {}
        self.sent: Report | None = None

    @rule(key=KEY, version=st.integers(1, 2), digest=st.sampled_from("AB"))
    def desire(self, key: str, version: int, digest: str) -> None:
        self.desired[key] = serving(key, version, f"sha256:{digest}")
        desire(self.states, *self.desired.values())

    @rule(key=KEY)
    def load(self, key: str) -> None:
        if key in self.desired:
            one = loaded(self.desired[key])
            self.in_memory.add(one.id)
            self.serves[key] = one.id
            self.failures.pop(key, None)
            old = self.states.record_loaded(one)
            self.replaced += [old] if old else []

    @rule(key=KEY, reason=st.sampled_from(["One", "Other"]))
    def fail(self, key: str, reason: str) -> None:
        if key in self.desired:
            self.states.record_failure(self.desired[key], NotReady(reason, "m"))
            self.failures[key] = reason

    @rule(key=KEY)
    def remove(self, key: str) -> None:
        if self.desired.pop(key, None):
            state = DesiredState(revision=self.states.revision + 1, full=False, removed_adapters=[key])
            assert self.states.apply(state).remove == [key]
            gone = self.states.remove(key)
            assert (gone.id if gone else None) == self.serves.pop(key, None)
            self.in_memory -= {gone.id} if gone else set()
            self.failures.pop(key, None)

    @rule()
    def retire(self) -> None:
        if self.replaced:
            one = self.replaced.pop(0)
            expected = one in self.in_memory and self.serves.get(one.key) != one
            assert (self.states.retire(one) is not None) == expected
            self.in_memory -= {one} if expected else set()

    @rule()
    def register_again(self) -> None:
        self.known, self.known_failures, self.sent = set(), {}, None
        self.states.report_all_again()

    @rule()
    def receive_heartbeat(self) -> None:
        self.sent = self.states.next_report()
        self.known = (self.known | set(map(str, self.sent.ready))) - set(map(str, self.sent.gone))
        for failure in self.sent.failed:
            assert failure.reason == self.failures[failure.adapter]
            assert not failure.serves or failure.adapter in self.serves
            self.known_failures[failure.adapter] = failure.reason

    @rule()
    def receive_answer(self) -> None:
        if self.sent is not None:
            self.states.acknowledge(self.sent)
            self.sent = None

    @rule()
    def check(self) -> None:
        """One heartbeat that arrives reports everything, whatever was lost before."""
        self.receive_heartbeat()
        self.receive_answer()
        assert set(map(str, self.serves.values())) <= self.known <= set(map(str, self.in_memory))
        assert self.known_failures.items() >= self.failures.items()
        rest = self.states.next_report()
        assert not (rest.ready | rest.gone)
        assert not rest.failed

    def teardown(self) -> None:
        while self.replaced:
            self.retire()
        self.check()
        assert self.known == set(map(str, self.in_memory))


TestReports = Reports.TestCase
TestReports.settings = settings(deadline=None, stateful_step_count=50)


def test_an_adapter_that_is_removed_and_reported_leaves_no_state() -> None:
    states = AdapterStates()
    adapter = serving("a/x", 1)
    desire(states, adapter)
    states.record_loaded(loaded(adapter))
    desire(states)
    states.acknowledge(states.next_report())
    assert not states._states


def domain_serving(version: int) -> DomainServing:
    layers = ArtifactRef(kind=ArtifactKind.LAYERS, uri="layers", digest="sha256:l", bytes=1)
    view = DomainVersionView(
        version=version,
        spec_digest="sha256:s",
        base=BaseModelRef(uri="file:///base"),
        base_digest="sha256:base",
        split=2,
        layers=layers,
        tables=[],
        on_miss=OnMiss.COMPUTE,
        entries=0,
        coverage=0.0,
    )
    return DomainServing(key="d/d", version=view)


def test_versions_of_a_domain_are_forgotten_once_no_adapter_needs_them() -> None:
    states = AdapterStates()
    moving, staying = serving("a/x", 1), serving("a/y", 1)
    both = DesiredState(revision=1, full=True, domains=[domain_serving(1)], adapters=[moving, staying])
    states.apply(both)
    for version in range(2, 5):
        moving = moving.model_copy(update={"domain_version": version})
        changed = {"domains": [domain_serving(version)], "adapters": [moving]}
        states.apply(DesiredState(revision=version, full=False, **changed))
    assert sorted(states._domains) == [("d/d", 1), ("d/d", 4)]
    assert states.domain_of(staying) is not None
    states.apply(DesiredState(revision=5, full=False, removed_adapters=["a/x", "a/y"]))
    assert not states._domains


def test_an_adapter_that_comes_for_another_that_goes_finds_their_domain() -> None:
    states = AdapterStates()
    old, new = serving("a/x", 1), serving("a/y", 1)
    states.apply(DesiredState(revision=1, full=True, domains=[domain_serving(1)], adapters=[old]))
    states.apply(DesiredState(revision=2, full=False, adapters=[new], removed_adapters=["a/x"]))
    assert states.domain_of(new) == domain_serving(1)


def test_changes_during_a_heartbeat_are_in_the_next_one() -> None:
    states = AdapterStates()
    one, other = serving("a/x", 1), serving("a/y", 1)
    desire(states, one, other)
    states.record_loaded(loaded(one))
    states.record_failure(other, NotReady("Before", "m"))
    report = states.next_report()
    desire(states, other)
    states.record_failure(other, NotReady("After", "m"))
    states.acknowledge(report)
    following = states.next_report()
    assert following.gone == {AdapterId.of(one)}
    assert [failure.reason for failure in following.failed] == ["After"]


def test_a_version_that_serves_again_is_not_retired() -> None:
    states = AdapterStates()
    first, second = serving("a/x", 1, "sha256:1"), serving("a/x", 2, "sha256:2")
    for version in (first, second, first):
        desire(states, version)
        states.record_loaded(loaded(version))
    assert states.retire(AdapterId.of(first)) is None
    assert states.retire(AdapterId.of(second)) is not None


def test_a_version_that_moves_to_another_table_is_reported_again_only_after_a_failure() -> None:
    states = AdapterStates()
    adapter = serving("a/x", 1)
    desire(states, adapter)
    states.record_loaded(loaded(adapter))
    states.acknowledge(states.next_report())
    moved = adapter.model_copy(update={"domain_version": 2})
    desire(states, moved)
    assert states.record_loaded(loaded(moved)) is None
    report = states.next_report()
    assert not [*report.ready, *report.gone, *report.failed]
    again = adapter.model_copy(update={"domain_version": 3})
    desire(states, again)
    assert states.record_failure(again, NotReady("TableBudgetFull", "m")) == 1
    report = states.next_report()
    assert [(failure.reason, failure.serves) for failure in report.failed] == [("TableBudgetFull", True)]
    assert not [*report.ready, *report.gone]
    states.acknowledge(report)
    assert states.record_loaded(loaded(again)) is None
    assert states.next_report().ready == {AdapterId.of(adapter)}, "which takes the failure back"
