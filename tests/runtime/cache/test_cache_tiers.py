"""Invariants of the pure indexes: no budget is exceeded, and pinned or used entries are never evicted."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hmi_runtime.cache.tiers import Budget, LruIndex, OverBudget, SlotIndex

KEYS = st.integers(0, 9)
LIMIT, PIN_LIMIT = 100, 50


class LruMachine(RuleBasedStateMachine):
    """An index compared with a simple model of it: a list in order of use, and sets."""

    def __init__(self) -> None:
        super().__init__()
        self.index: LruIndex[int] = LruIndex(LIMIT, pin_limit=PIN_LIMIT)
        self.order: list[int] = []
        self.sizes: dict[int, int] = {}
        self.uses: dict[int, int] = {}
        self.pinned: set[int] = set()

    def idle(self) -> list[int]:
        return [key for key in self.order if not self.uses[key] and key not in self.pinned]

    def unregister(self, key: int) -> None:
        self.order.remove(key)
        self.pinned.discard(key)
        del self.sizes[key], self.uses[key]

    def use(self, key: int) -> None:
        self.order.remove(key)
        self.order.append(key)

    @rule(key=KEYS, size=st.integers(0, 60))
    def add(self, key: int, size: int) -> None:
        if key in self.sizes:
            with pytest.raises(KeyError):
                self.index.add(key, size)
            return
        room = LIMIT - sum(self.sizes.values()) + sum(self.sizes[k] for k in self.idle())
        assert self.index.has_room(size) == (size <= room)
        if size > room:
            with pytest.raises(OverBudget):
                self.index.add(key, size)
            return
        expected = []
        while sum(self.sizes.values()) + size > LIMIT:
            oldest = self.idle()[0]
            expected.append(oldest)
            self.unregister(oldest)
        assert self.index.add(key, size) == expected
        self.order.append(key)
        self.sizes[key], self.uses[key] = size, 0

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.order))
        self.index.acquire(key)
        self.uses[key] += 1
        self.use(key)

    @precondition(lambda self: any(self.uses.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key, uses in self.uses.items() if uses]))
        self.index.release(key)
        self.uses[key] -= 1

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.order))
        fits = sum(self.sizes[k] for k in self.pinned | {key}) <= PIN_LIMIT
        assert self.index.pin(key) == (fits or key in self.pinned)
        if fits:
            self.pinned.add(key)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.order))
        self.index.unpin(key)
        self.pinned.discard(key)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.order))
        if self.uses[key]:
            with pytest.raises(ValueError, match="in use"):
                self.index.remove(key)
        else:
            self.index.remove(key)
            self.unregister(key)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert list(self.index) == self.order
        assert self.index.used == sum(self.sizes.values()) <= LIMIT
        for key in self.order:
            assert self.index.size(key) == self.sizes[key]
            assert self.index.uses(key) == self.uses[key]


class SlotMachine(RuleBasedStateMachine):
    """No two keys have one slot, and a used or pinned key keeps its slot."""

    SLOTS = 4

    def __init__(self) -> None:
        super().__init__()
        self.index: SlotIndex[int] = SlotIndex(self.SLOTS)
        self.used: dict[int, list[int]] = {}
        self.slot_of: dict[int, int] = {}

    @rule(key=KEYS, pinned=st.booleans())
    def assign(self, key: int, pinned: bool) -> None:
        place = self.index.assign(key, pinned=pinned)
        if place is None:
            assert key not in self.slot_of
            return
        if place.evicted is not None:
            assert place.evicted not in self.used
            assert self.slot_of.pop(place.evicted) == place.slot
        assert place.is_new == (key not in self.slot_of)
        assert self.slot_of.get(key, place.slot) == place.slot
        self.slot_of[key] = place.slot
        self.used.setdefault(key, []).append(place.slot)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.used)))
        self.index.release(key)
        self.used[key].pop()
        if not self.used[key]:
            del self.used[key]

    @precondition(lambda self: set(self.slot_of) - set(self.used))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(set(self.slot_of) - set(self.used))))
        self.index.free(key)
        del self.slot_of[key]

    @rule()
    def enough_slots_for_a_batch_once_none_is_in_use(self) -> None:
        for key in list(self.used):
            while key in self.used:
                self.index.release(key)
                self.used[key].pop()
                if not self.used[key]:
                    del self.used[key]
        others = range(100, 100 + self.index.max_at_once)
        for key in others:
            self.assign(key, pinned=False)
            assert key in self.used
        for key in others:
            self.index.release(key)
            del self.used[key]
            self.index.free(key)
            del self.slot_of[key]

    @invariant()
    def every_key_has_a_slot_of_its_own(self) -> None:
        assert set(self.index) == set(self.slot_of)
        assert len(set(self.slot_of.values())) == len(self.slot_of) <= self.SLOTS


LruMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
SlotMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLruIndex = LruMachine.TestCase
TestSlotIndex = SlotMachine.TestCase


def test_a_budget_is_never_exceeded() -> None:
    budget = Budget(10)
    budget.reserve(7)
    with pytest.raises(OverBudget):
        budget.reserve(4)
    budget.release(7)
    with pytest.raises(OverBudget):
        budget.release(1)
    with pytest.raises(ValueError, match="negative"):
        Budget(-1)
