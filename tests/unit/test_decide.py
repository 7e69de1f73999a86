"""Decisions as whole plans."""

from __future__ import annotations

from collections import Counter

import pytest

from scheduling import KEYS, Fleet, partition
from sluiceway.common.records import Condition, FailureKind, LeaseState
from sluiceway.scheduler.grants.decide import Policy, decide
from sluiceway.scheduler.grants.failures import quarantine_reason, wait_s
from sluiceway.scheduler.grants.plan import Plan
from sluiceway.scheduler.grants.sightings import Ages, Sightings
from sluiceway.scheduler.placement.reasons import Why
from sluiceway.scheduler.source_view import SourceView, TopicView

POLICY = Policy()


def granted(plan: Plan) -> dict[int, str]:
    return {grant.partition.number: grant.worker for grant in plan.grants}


def why_unplaced(plan: Plan) -> dict[int, Why]:
    return {p.number: reason.why for p, reason in plan.unplaced.items()}


def test_partitions_spread_over_unequal_workers_by_their_capacity() -> None:
    fleet = Fleet(partitions=12)
    fleet.worker("large", cpu=2.0)
    fleet.worker("small", cpu=1.0)
    plan = decide(fleet.view(), POLICY)
    assert Counter(granted(plan).values()) == {"large": 8, "small": 4}
    assert {grant.reason.why for grant in plan.grants} == {Why.FITS}
    assert (plan.revokes, plan.deletions, plan.unplaced) == ((), (), {})


def test_a_grant_names_the_session_that_the_plan_saw() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("w")
    (grant,) = decide(fleet.view(), POLICY).grants
    assert (grant.session, grant.etcd_lease) == (fleet.revision, fleet.session("w"))


def test_holders_are_kept() -> None:
    fleet = Fleet(partitions=2)
    fleet.worker("a")
    fleet.worker("b")
    fleet.lease(partition(0), "a")
    fleet.lease(partition(1), "b")
    plan = decide(fleet.view(), POLICY)
    assert not plan.moves_something
    assert plan.states["p"].condition is Condition.RUNNING


def test_a_hot_partition_gets_the_large_worker_and_small_ones_the_rest() -> None:
    fleet = Fleet(partitions=9)
    fleet.worker("large", cpu=4.0)
    fleet.worker("small", cpu=1.0)
    fleet.load(partition(3), 2.5)
    placed = granted(decide(fleet.view(), POLICY))
    assert placed.pop(3) == "large"
    assert set(placed.values()) == {"small"}


def test_a_partition_larger_than_any_worker_is_placed_and_reported() -> None:
    fleet = Fleet(partitions=3)
    fleet.worker("a")
    fleet.worker("b", cpu=2.0)
    fleet.load(partition(0), 5.0)
    plan = decide(fleet.view(), POLICY)
    by_number = {grant.partition.number: (grant.worker, grant.reason.why) for grant in plan.grants}
    assert by_number == {0: ("b", Why.LARGER_THAN_ANY_WORKER), 1: ("a", Why.FITS), 2: ("a", Why.FITS)}


def test_a_full_fleet_takes_what_is_left_and_says_so() -> None:
    fleet = Fleet(partitions=3)
    fleet.worker("a")
    for number in range(3):
        fleet.load(partition(number), 0.35)
    reasons = Counter(grant.reason.why for grant in decide(fleet.view(), POLICY).grants)
    assert reasons == {Why.FITS: 2, Why.OVERCOMMITTED: 1}


def test_a_cordoned_worker_keeps_what_it_has_and_gets_nothing() -> None:
    fleet = Fleet(partitions=2)
    fleet.worker("a")
    fleet.worker("b")
    fleet.lease(partition(0), "a")
    fleet.cordon("a")
    plan = decide(fleet.view(), POLICY)
    assert (granted(plan), plan.revokes) == ({1: "b"}, ())


def test_a_draining_worker_gives_its_leases_up_a_few_at_a_time() -> None:
    fleet = Fleet(partitions=5)
    fleet.worker("a")
    fleet.worker("b")
    for number in range(5):
        fleet.lease(partition(number), "a")
    fleet.cordon("a", drain=True)
    plan = decide(fleet.view(), Policy(moves_in_flight=2))
    assert [(r.lease.partition.number, r.reason.why) for r in plan.revokes] == [(0, Why.DRAINING), (1, Why.DRAINING)]


def test_a_revoked_lease_is_deleted_after_its_deadline_and_not_before() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.lease(partition(0), "a", state=LeaseState.REVOKING)
    early = decide(fleet.view(ages=Ages(revoking={partition(0): 29.0})), POLICY)
    assert (early.deletions, early.wake_in_s) == ((), 1.0)
    assert why_unplaced(early) == {0: Why.BEING_RELEASED}
    (deletion,) = decide(fleet.view(ages=Ages(revoking={partition(0): 30.0})), POLICY).deletions
    assert deletion.reason.why is Why.DEADLINE_PASSED


def test_a_lease_of_an_earlier_session_of_its_holder_is_deleted() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.lease(partition(0), "a", session=77)
    (deletion,) = decide(fleet.view(), POLICY).deletions
    assert deletion.reason.why is Why.SESSION_GONE


@pytest.mark.parametrize(("change", "why"), [("paused", Why.PIPELINE_PAUSED), ("deleted", Why.PIPELINE_DELETED)])
def test_leases_of_a_paused_or_deleted_pipeline_are_revoked(change: str, why: Why) -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.lease(partition(0), "a")
    if change == "paused":
        fleet.pipeline("p", paused=True)
    else:
        del fleet.items[KEYS.spec("pipelines", "p")]
    plan = decide(fleet.view(), POLICY)
    assert [revoke.reason.why for revoke in plan.revokes] == [why]
    assert plan.grants == ()


@pytest.mark.parametrize(
    "key",
    [KEYS.spec("pipelines", "p"), KEYS.spec("topics", "t"), KEYS.worker("a")],
    ids=["pipeline", "topic", "worker"],
)
def test_what_only_a_newer_version_can_read_is_left_alone_instead_of_taken_for_gone(key: str) -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.lease(partition(0), "a")
    fleet.failure(partition(1), "a")
    fleet.put(key, b'{"new":1}', lease=fleet.session("a"))
    plan = decide(fleet.view(), POLICY)
    assert (plan.revokes, plan.deletions, plan.forgets) == ((), (), ())


def test_what_is_left_of_a_deleted_pipeline_is_forgotten_except_its_progress() -> None:
    fleet = Fleet(partitions=1, pipelines=())
    fleet.failure(partition(0), "a")
    (forget,) = decide(fleet.view(), POLICY).forgets
    assert forget.key == KEYS.failure(partition(0))


def test_a_failed_partition_waits_longer_each_time_and_then_goes_elsewhere() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a", cpu=8.0)
    fleet.worker("b")
    fleet.failure(partition(0), "a", count=2)
    early = decide(fleet.view(ages=Ages(failures={partition(0): 0.5})), POLICY)
    assert (early.grants, early.wake_in_s, why_unplaced(early)) == ((), 1.5, {0: Why.BACKING_OFF})
    late = decide(fleet.view(ages=Ages(failures={partition(0): 2.0})), POLICY)
    assert granted(late) == {0: "b"}


def test_a_partition_that_failed_on_every_worker_may_go_back() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.failure(partition(0), "a", count=2)
    assert granted(decide(fleet.view(ages=Ages(failures={partition(0): 9.0})), POLICY)) == {0: "a"}


def test_three_failed_workers_quarantine_a_partition_and_only_it() -> None:
    fleet = Fleet(partitions=2)
    for name in "abcd":
        fleet.worker(name)
    fleet.failure(partition(0), "a", "b", "c", count=3)
    plan = decide(fleet.view(ages=Ages(failures={partition(0): 1000.0})), POLICY)
    assert [(q.partition.number, q.revision) for q in plan.quarantines] == [(0, fleet.revision)]
    assert list(granted(plan)) == [1]
    assert why_unplaced(plan) == {0: Why.QUARANTINED}


def test_three_failures_on_the_only_worker_quarantine_a_partition() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.failure(partition(0), "a", count=3)
    assert len(decide(fleet.view(), POLICY).quarantines) == 1


@pytest.mark.parametrize("kind", [FailureKind.SOURCE, FailureKind.SINK])
def test_an_outage_backs_off_and_never_quarantines(kind: FailureKind) -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.failure(partition(0), "a", "b", "c", count=99, kind=kind)
    plan = decide(fleet.view(), POLICY)
    assert (plan.quarantines, plan.wake_in_s) == ((), 30.0)
    expected = Condition.SOURCE_UNAVAILABLE if kind is FailureKind.SOURCE else Condition.SINK_UNAVAILABLE
    assert (plan.states["p"].condition, plan.states["p"].message) == (expected, "boom")


def test_lost_offsets_quarantine_at_once() -> None:
    failure = Fleet(partitions=1)
    failure.failure(partition(0), "a", kind=FailureKind.OFFSET)
    record = failure.snapshot().failures[partition(0)].record
    assert quarantine_reason(record, {"a", "b"}) is not None


def test_waits_double_up_to_a_limit() -> None:
    fleet = Fleet(partitions=1)
    waits = []
    for count in (1, 2, 3, 9, 10, 10**9):
        fleet.failure(partition(0), "a", count=count)
        waits.append(wait_s(fleet.snapshot().failures[partition(0)].record))
    assert waits == [1.0, 2.0, 4.0, 256.0, 300.0, 300.0]


def test_the_constraint_that_forbids_a_placement_is_named() -> None:
    fleet = Fleet(partitions=1)
    fleet.pipeline("p", placement={"worker_class": "big", "labels": {"disk": "fast"}})
    fleet.worker("a")
    fleet.worker("b", worker_class="big")
    plan = decide(fleet.view(), POLICY)
    assert str(plan.unplaced[partition(0)]) == "no_suitable_worker: 1 x class is not big; 1 x lacks disk=fast"
    assert plan.states["p"].condition is Condition.PENDING


def test_workers_that_all_refuse_a_pipeline_make_its_sink_unavailable() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a", refuses={"p": "the bucket ignores If-None-Match"})
    state = decide(fleet.view(), POLICY).states["p"]
    assert state.condition is Condition.SINK_UNAVAILABLE
    assert "the bucket ignores If-None-Match" in state.message


def test_a_missing_topic_is_the_pipelines_state_and_takes_no_lease() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.lease(partition(0), "a")
    fleet.sources = SourceView(topics={"t": TopicView(partitions=1, problem="topic t does not exist")})
    plan = decide(fleet.view(), POLICY)
    assert plan.states["p"].condition is Condition.SOURCE_UNAVAILABLE
    assert not plan.moves_something


def test_a_new_leader_places_what_it_knows_before_the_cluster_answers() -> None:
    fleet = Fleet(partitions=0)
    fleet.sources = SourceView()
    fleet.worker("a")
    fleet.lease(partition(2), "a")
    plan = decide(fleet.view(), POLICY)
    assert (granted(plan), plan.revokes) == ({0: "a", 1: "a"}, ())


def test_an_idle_worker_gets_its_share() -> None:
    fleet = Fleet(partitions=8)
    fleet.worker("a")
    fleet.worker("b")
    for number in range(8):
        fleet.lease(partition(number), "a")
    plan = decide(fleet.view(), POLICY)
    assert {revoke.reason.why for revoke in plan.revokes} == {Why.SPREAD}
    assert len(plan.revokes) == 4


def test_an_overloaded_worker_gives_up_what_another_has_room_for() -> None:
    fleet = Fleet(partitions=5)
    fleet.worker("a")
    fleet.worker("b", cpu=2.0)
    for number in range(4):
        fleet.lease(partition(number), "a")
        fleet.load(partition(number), 0.4)
    fleet.lease(partition(4), "b")
    fleet.load(partition(4), 0.7)
    plan = decide(fleet.view(), POLICY)
    assert [(r.lease.partition.number, r.reason.why) for r in plan.revokes] == [
        (0, Why.OVER_CAPACITY),
        (1, Why.OVER_CAPACITY),
    ]


def test_no_moves_are_planned_while_a_lease_is_being_released() -> None:
    fleet = Fleet(partitions=8)
    fleet.worker("a")
    fleet.worker("b")
    for number in range(8):
        fleet.lease(partition(number), "a", state=LeaseState.REVOKING if number == 0 else LeaseState.GRANTED)
    assert decide(fleet.view(), POLICY).revokes == ()


def test_an_unreadable_key_is_reported_and_harms_no_other() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.put(KEYS.worker("b"), b"{broken", lease=5)
    fleet.put(KEYS.leases + "nonsense", b"{}", lease=5)
    fleet.put(KEYS.spec("pipelines", "q"), b'{"kind":"Pipeline","name":"q","hash":"","document":{"spec":{}}}')
    assert granted(decide(fleet.view(), POLICY)) == {0: "a"}
    assert len(fleet.snapshot().problems) == 3


def test_sightings_count_from_the_first_look_at_a_state_and_anew_for_a_new_one() -> None:
    fleet, sightings = Fleet(partitions=1), Sightings()
    fleet.failure(partition(0), "a")
    fleet.lease(partition(0), "a", state=LeaseState.REVOKING)
    sightings.observe(fleet.snapshot(), 100.0)
    assert sightings.observe(fleet.snapshot(), 107.0) == Ages(
        revoking={partition(0): 7.0}, failures={partition(0): 7.0}
    )
    fleet.failure(partition(0), "a", count=2)
    assert sightings.observe(fleet.snapshot(), 108.0).failures == {partition(0): 0.0}
