"""The plan of a batch: equal kinds are adjacent, each row occurs once, rows without adapter in no range."""

from hypothesis import given
from hypothesis import strategies as st

from hmi_runtime.adapters.batch_plan import LoraShape, plan_batch
from hmi_runtime.adapters.slot_pool import BottleneckTraits, SlotTraits

PARALLEL = BottleneckTraits(8, "relu", (("attention", "parallel"), ("ffn", "parallel")))
SEQUENTIAL = BottleneckTraits(16, "gelu", (("ffn", "sequential"),))
TRAITS = st.builds(
    SlotTraits,
    rank=st.sampled_from([0, 8, 16, 32]),
    bottleneck=st.sampled_from([None, PARALLEL, SEQUENTIAL]),
    own_bias=st.booleans(),
    own_norms=st.booleans(),
)


@given(traits=st.lists(TRAITS, min_size=1, max_size=6), data=st.data())
def test_every_row_is_in_exactly_the_ranges_of_its_kind(
    traits: list[SlotTraits], data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, len(traits) - 1), min_size=1, max_size=12))
    plan = plan_batch(places, traits)
    assert sorted(plan.order) == list(range(len(places)))
    assert [places[row] for row in plan.order] == list(plan.places)
    for position, place in enumerate(plan.places):
        shapes = [r.kind for r in plan.lora if r.start <= position < r.stop]
        kinds = [r.kind for r in plan.bottlenecks if r.start <= position < r.stop]
        shape = LoraShape(traits[place].rank, traits[place].own_bias)
        assert shapes == ([shape] if shape.rank or shape.own_bias else [])
        assert bool(shapes) == (position >= plan.without_lora)
        assert kinds == ([traits[place].bottleneck] if traits[place].bottleneck else [])
    assert plan.own_norms == any(traits[place].own_norms for place in places)


@given(st.lists(st.sampled_from([0, 8, 16]), min_size=1, max_size=20))
def test_there_are_as_many_ranges_as_ranks_not_as_rows(ranks: list[int]) -> None:
    plan = plan_batch(list(range(len(ranks))), [SlotTraits(rank=rank) for rank in ranks])
    assert len(plan.lora) == len(set(ranks) - {0})


def test_rows_of_one_kind_stay_in_their_order() -> None:
    plan = plan_batch([2, 0, 1], [SlotTraits(rank=8)] * 3)
    assert plan.in_order
    assert plan.places == (2, 0, 1)
