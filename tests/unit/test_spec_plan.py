"""Plans say what changes, field by field, and refuse what would lose or repeat records."""

from dataclasses import replace

from sluiceway.common.specs.documents import Source, parse, to_record
from sluiceway.common.specs.models import Document
from sluiceway.common.specs.plan import Action, Applied, Current, FieldChange, Plan, plan
from sluiceway.common.specs.references import SpecKey

CLUSTER = "kind: Cluster\nmetadata: {name: main}\nspec: {bootstrap: ['kafka:9092']}\n"
TOPIC = "kind: Topic\nmetadata: {name: orders}\nspec: {cluster: main}\n"
PIPELINE = "kind: Pipeline\nmetadata: {name: sales}\nspec: {topics: [orders], sink: {url: 's3://lake/sales'}}\n"
ALL = "---\n".join([CLUSTER, TOPIC, PIPELINE])
PROGRESS = frozenset({("sales", "orders")})


def documents(text: str, current: Current | None = None) -> list[Document]:
    return parse([Source("a.yaml", text.encode())], current.records() if current else {})


def having(text: str, progressed: frozenset[tuple[str, str]] = frozenset()) -> Current:
    records = [to_record(document) for document in documents(text)]
    specs = {
        SpecKey(record.kind, record.name): Applied(record=record, mod_revision=10 + number)
        for number, record in enumerate(records)
    }
    return Current(specs=specs, progressed=progressed)


def actions(made: Plan) -> list[tuple[Action, str]]:
    return [(change.action, str(change.key)) for change in made.changes]


def test_new_specs_are_created_in_the_order_they_need_each_other() -> None:
    made = plan(Current(), documents("---\n".join([PIPELINE, TOPIC, CLUSTER])))
    assert actions(made) == [
        (Action.CREATE, "Cluster main"),
        (Action.CREATE, "Topic orders"),
        (Action.CREATE, "Pipeline sales"),
    ]
    assert made.refusals == ()


def test_the_same_specs_again_change_nothing() -> None:
    made = plan(having(ALL), documents(ALL))
    assert {change.action for change in made.changes} == {Action.UNCHANGED}
    assert made.effective() == ()


def test_an_update_tells_each_field_from_old_to_new() -> None:
    current = having(ALL, PROGRESS)
    text = PIPELINE.replace("topics: [orders]", "topics: [orders], cut: {max_age_s: 5}, placement: {worker_class: big}")
    (change,) = plan(current, documents(text, current)).changes
    assert change.action is Action.UPDATE
    assert change.mod_revision == 12
    assert change.fields == (
        FieldChange(path="spec.cut.max_age_s", old=60.0, new=5.0),
        FieldChange(path="spec.placement.worker_class", old=None, new="big"),
    )


def test_the_hash_names_the_inputs() -> None:
    current = having(ALL)
    assert plan(current, documents(ALL)).hash == plan(current, documents(ALL)).hash
    later = Current(specs={key: Applied(record=each.record, mod_revision=99) for key, each in current.specs.items()})
    assert plan(later, documents(ALL)).hash != plan(current, documents(ALL)).hash


def test_a_pipeline_with_progress_keeps_its_place() -> None:
    text = PIPELINE.replace("lake/sales", "lake/elsewhere")
    current = having(ALL, PROGRESS)
    (refusal,) = plan(current, documents(text, current)).refusals
    assert str(refusal) == (
        "Pipeline sales: it has delivered to s3://lake/sales, and its progress counts only for that place; "
        "give the pipeline for the new place a new name, or delete this one with "
        "`sluiceway delete pipeline sales --forget` first, which delivers everything again"
    )
    unstarted = having(ALL)
    assert plan(unstarted, documents(text, unstarted)).refusals == ()


def test_a_topic_with_progress_stays_what_it_is() -> None:
    current = having(ALL, PROGRESS)
    renamed = TOPIC.replace("cluster: main", "cluster: main, physical: orders.v2")
    assert [str(r.key) for r in plan(current, documents(renamed, current)).refusals] == ["Topic orders"]
    spelled_out = TOPIC.replace("cluster: main", "cluster: main, physical: orders")
    assert plan(current, documents(spelled_out, current)).refusals == ()


def test_what_is_still_used_is_not_deleted() -> None:
    current = having(ALL)
    (refusal,) = plan(current, [], [SpecKey("Topic", "orders")]).refusals
    assert str(refusal) == (
        "Topic orders: still used by Pipeline sales; delete or change those first, or together with it"
    )


def test_all_deleted_together_go_in_the_order_that_needs_nothing() -> None:
    current = having(ALL, PROGRESS)
    made = plan(current, [], [SpecKey("Cluster", "main"), SpecKey("Topic", "orders"), SpecKey("Pipeline", "sales")])
    assert made.refusals == ()
    assert actions(made) == [
        (Action.DELETE, "Pipeline sales"),
        (Action.DELETE, "Topic orders"),
        (Action.DELETE, "Cluster main"),
    ]
    assert made.changes[0].note == "its progress is kept: applied again, it continues there"


def test_deleting_what_is_not_there_is_nothing() -> None:
    assert plan(Current(), [], [SpecKey("Topic", "orders")]).changes == ()


def test_a_successor_of_a_deleted_pipeline_must_fit_the_progress_it_left() -> None:
    before = having(ALL)
    sales = SpecKey("Pipeline", "sales")
    current = Current(
        specs={key: applied for key, applied in before.specs.items() if key != sales},
        retired={sales: before.specs[sales].record},
        progressed=PROGRESS,
    )
    again = plan(current, documents(PIPELINE, current))
    assert again.refusals == ()
    assert again.changes[0].note == "continues from the progress that an earlier spec of this name left"
    elsewhere = plan(current, documents(PIPELINE.replace("lake/sales", "lake/other"), current))
    assert [str(refusal.key) for refusal in elsewhere.refusals] == ["Pipeline sales"]


def test_progress_is_forgotten_only_when_nobody_can_write_it_again() -> None:
    sales = SpecKey("Pipeline", "sales")
    running = having(ALL, PROGRESS)
    assert [str(refusal.key) for refusal in plan(running, [], [sales], forget=True).refusals] == ["Pipeline sales"]
    paused = having(ALL.replace("topics: [orders]", "topics: [orders], paused: true"), PROGRESS)
    assert plan(paused, [], [sales], forget=True).refusals == ()
    held = replace(paused, leased={"sales"})
    assert [str(refusal.key) for refusal in plan(held, [], [sales], forget=True).refusals] == ["Pipeline sales"]


def test_what_was_deleted_before_can_still_be_forgotten() -> None:
    sales = SpecKey("Pipeline", "sales")
    gone = Current(retired={sales: having(ALL).specs[sales].record}, progressed=PROGRESS)
    assert plan(gone, [], [sales]).changes == ()
    (change,) = plan(gone, [], [sales], forget=True).changes
    assert (change.action, change.mod_revision) == (Action.DELETE, 0)
