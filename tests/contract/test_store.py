"""What the store promises, on both databases with the same tests."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import subprocess
import sys

import orjson
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.domain.errors import StoreUnavailable
from gateway.domain.keys import Scopes
from gateway.domain.outcome import AttemptRecord, RequestRecord
from gateway.ledger import connect as connecting
from gateway.ledger import partitions
from gateway.ledger import store as module
from gateway.ledger.journal import Journal
from gateway.ledger.keys import KeyStore, ensure_first_admin
from gateway.ledger.partitions import begin_us, following, present
from gateway.ledger.store import (
    RowsRefused,
    SchemaMismatch,
    Store,
    StoreUnreachable,
    current,
    normalise,
    upgrade,
)
from gateway.ledger.tables import recorded
from gateway.settings import bundled
from tests.unit.ledger.records import STARTED_US, attempt, request

pytest_plugins = ("tests.servers",)

FREE = {"rates_id": "free:vllm", "cost_nano_usd": 0}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deep' / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
async def store(url):
    store = await Store.connect(url)
    yield store
    await store.close()


def lines(*records: RequestRecord) -> list[bytes]:
    return [orjson.dumps(record) for record in records]


async def count(store: Store, table: sa.Table) -> int:
    (row,) = await store.select(sa.select(sa.func.count().label("n")).select_from(table))
    return row["n"]


# --- rows ---------------------------------------------------------------------------------------


def test_columns_are_the_fields_of_the_records():
    ours = [f.name for f in dataclasses.fields(RequestRecord)]
    assert [*(c.name for c in recorded(module.requests)), "attempts"] == ours
    ours = [f.name for f in dataclasses.fields(AttemptRecord)]
    assert [c.name for c in recorded(module.attempts)] == ours


async def test_a_record_comes_back_as_it_went(store):
    whole = request("req_1", attempts=[attempt(1, outcome="failed"), attempt(2, ttft_us=None)])
    bare = RequestRecord(id="req_2", started_at_us=1, endpoint="embeddings")
    await store.append(lines(whole, bare))
    assert await store.request("req_1") == whole
    assert await store.request("req_2") == bare
    assert await store.request("nonesuch") is None


async def test_lines_go_from_the_journal_as_they_are(store, tmp_path):
    journal = Journal(tmp_path / "journal", "0")
    record = request("req_1", alias='a "quoted" ; -- name\0', session="\\u0000")
    journal.close(record)
    batch = journal.read(10)
    await store.append(batch.lines)
    record.alias = 'a "quoted" ; -- name\ufffd'
    assert await store.request("req_1") == record


async def test_keys_of_the_line_in_peoples_own_words(store):
    """A decision is cut out of its line by the keys around it; tags may be called the same."""
    odd = {"decision": "x", "outcome": "y", ',"decision":{"a":1},"outcome":"z': "w"}
    nested = {"route": "r", "order": [], "facts": {"tags": odd}, "outcome": {"outcome": 1}}
    made = [
        request("tags", tags=odd),
        request("decision", decision=nested),
        request("both", tags={"decision": "x"}, decision=nested),
        request("none", tags=odd, decision=None),
        request("alias", alias=',"decision":null,"outcome":"ok"'),
        request("order", tags={"app": "a", "decision": "foo", "outcome": "bar"}, decision=None),
        request("order of both", tags={"a": "b", "decision": "c", "outcome": "d"}, decision=nested),
    ]
    await store.append(lines(*made))
    for record in made:
        assert await store.request(record.id) == record
        await store.append(lines(dataclasses.replace(record, id=f"alone-{record.id}")))
        alone = await store.request(f"alone-{record.id}")
        assert alone == dataclasses.replace(record, id=f"alone-{record.id}")


async def test_a_line_of_before_a_column_and_one_that_is_no_row(store):
    whole = request("old", route=None)
    line = orjson.loads(orjson.dumps(whole))
    del line["other_meters"], line["route"], line["attempts"][0]["service_tier"]
    await store.append([orjson.dumps(line)])
    assert await store.request("old") == whole
    for broken in (b"{", b"[]", b'{"id":"x"}', orjson.dumps(line | {"attempts": [1]})):
        with pytest.raises(RowsRefused):
            await store.append([orjson.dumps(request("new")), broken])
    with pytest.raises(RowsRefused):
        await store.append([orjson.dumps(line | {"id": "wrong", "output_tokens": "many"})])
    with pytest.raises(RowsRefused):
        await store.append([orjson.dumps(line | {"id": "twice", "attempts": line["attempts"] * 2})])
    assert await count(store, module.requests) == 1


async def test_a_decision_is_stored_small_and_in_a_form_that_says_its_own(store):
    record = request("req", decision={"route": "default", "order": [], "cut": ["a/b"] * 50})
    await store.append(lines(record))
    (row,) = await store.select(sa.select(module.request_facts.c.decision))
    assert (row["decision"][:1], len(row["decision"]) < 60) == (b"\x01", True)
    async with store._begin() as connection:
        plain = sa.update(module.request_facts).values(decision=b'{"route":"plain"}')
        await connection.execute(plain)
    assert (await store.request("req")).decision == {"route": "plain"}
    async with store._begin() as connection:
        await connection.execute(sa.update(module.request_facts).values(decision=b"\x07abc"))
    with pytest.raises(ValueError, match="format 7: a newer version"):
        await store.request("req")


async def test_a_snapshot_does_not_see_what_comes_later(store):
    await store.append(lines(request("one")))
    counted = sa.select(sa.func.count().label("n")).select_from(module.requests)
    async with store.snapshot() as snapshot:
        await store.append(lines(request("two")))
        assert await snapshot.select(counted) == [{"n": 1}]
        assert await snapshot.select(counted) == [{"n": 1}]
    assert await store.select(counted) == [{"n": 2}]
    async with store.snapshot() as snapshot:
        with pytest.raises(StoreUnavailable):
            await snapshot.select(sa.select(sa.text("nonsense")))
    assert await store.select(counted) == [{"n": 2}]


async def test_months_have_partitions_and_no_clock_makes_one(postgres_url):
    store = await Store.connect(postgres_url)
    await store.append(
        lines(
            request("october", started_at_us=begin_us(202610)),
            request("last of october", started_at_us=begin_us(202611) - 1),
            request("january", started_at_us=begin_us(202401)),
            request("no clock", started_at_us=7),
            request("far", started_at_us=begin_us(203002)),
            request("farther", started_at_us=2**60),
        )
    )
    where = sa.text("SELECT id, tableoid::regclass::text AS name FROM request_facts")
    async with store._begin() as connection:
        found = {row.id: row.name for row in await connection.execute(where)}
        attempts_too = await connection.execute(
            sa.text("SELECT count(*) FROM attempt_facts_202610 UNION ALL"
                    " SELECT count(*) FROM attempt_facts_default")
        )  # fmt: skip
        assert list(attempts_too.scalars()) == [2, 3]
    assert found == {
        "october": "request_facts_202610",
        "last of october": "request_facts_202610",
        "january": "request_facts_202401",
        "no clock": "request_facts_default",
        "far": "request_facts_default",
        "farther": "request_facts_default",
    }
    await store.close()


async def test_the_next_month_is_made_before_it_begins(postgres_url):
    store = await Store.connect(postgres_url)
    assert await store.compact() == 0
    async with store._begin() as connection:
        now = await connection.execute(
            sa.text("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMM')")
        )
        month = int(now.scalar_one())
        assert await connection.run_sync(present) == {month, following(month)}
    await store.close()


async def test_rows_that_came_before_their_month_move_into_it(postgres_url):
    """As when a clock was ahead, and its month has come."""
    store = await Store.connect(postgres_url)
    store._writer._months = {202609}  # it believes so: the row goes to the default partition
    early = request("early", started_at_us=begin_us(202609) + 5)
    await store.append(lines(early))
    other = Store(store._engine)
    later = request("later", started_at_us=begin_us(202609) + 6)
    await other.append(lines(later, early))
    assert await count(store, sa.table("request_facts_202609")) == 2
    assert await count(store, sa.table("request_facts_default")) == 0
    assert [await store.request(name) for name in ("early", "later")] == [early, later]
    assert (await store.rollups_agree()).differences == []
    await store.close()


IN = sa.text("SELECT id, tableoid::regclass::text AS name FROM request_facts ORDER BY id")


async def where(store: Store) -> dict[str, str]:
    async with store._begin() as connection:
        return {row.id: row.name for row in await connection.execute(IN)}


async def test_rows_do_not_wait_for_a_partition(postgres_url):
    """Somebody's report holds the table: rows go to the default partition, and move later."""
    store = await Store.connect(postgres_url)
    september = request("september", started_at_us=begin_us(202609))
    october = request("october", started_at_us=begin_us(202610))
    await store.append(lines(september))
    other = Store(store._engine)
    async with store._begin() as connection:
        await connection.execute(sa.text("SELECT count(*) FROM request_facts"))
        await other.append(lines(october, dataclasses.replace(september, id="another")))
        assert await other.request("october") == october
    assert (await where(store))["october"] == "request_facts_default"
    third = Store(store._engine)
    await third.append(lines(dataclasses.replace(october, id="third")))
    assert await where(store) == {
        "september": "request_facts_202609",
        "another": "request_facts_202609",
        "october": "request_facts_202610",
        "third": "request_facts_202610",
    }
    await store.close()


async def test_a_month_with_much_in_the_default_partition_stays_there(
    postgres_url, monkeypatch, caplog
):
    monkeypatch.setattr(partitions, "MOVED_MAX", 1)
    store = await Store.connect(postgres_url)
    store._writer._months = {202609}  # it believes so
    early = [request(f"r{n}", started_at_us=begin_us(202609) + n) for n in range(3)]
    await store.append(lines(*early))
    other = Store(store._engine)
    for n in range(3):
        other._ensure_at_s = 0.0
        more = request(f"more{n}", started_at_us=begin_us(202609) + 5)
        await other.append(lines(more, request(f"august{n}", started_at_us=begin_us(202608))))
    found = await where(store)
    assert {found[f"more{n}"] for n in range(3)} == {"request_facts_default"}
    assert {found[f"august{n}"] for n in range(3)} == {"request_facts_202608"}
    assert len([r for r in caplog.records if "202609" in r.getMessage()]) == 1
    await store.close()


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tags=st.dictionaries(TEXT, TEXT, max_size=4),
    decision=st.none() | st.dictionaries(TEXT, JSON, max_size=4),
    session=st.none() | TEXT,
    tokens=st.none() | st.integers(0, 2**62),
    tpot=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_content_round_trips(any_store, tags, decision, session, tokens, tpot):
    run, store = any_store
    record = request(
        "req", tags=tags, decision=decision, session=session, output_tokens=tokens, tpot_us=tpot
    )

    async def there_and_back() -> RequestRecord | None:
        async with store._begin() as connection:
            await connection.execute(sa.delete(module.request_facts))
            await connection.execute(sa.delete(module.attempt_facts))
        await store.append(lines(record))
        return await store.request("req")

    assert run(there_and_back()) == record


@pytest.fixture
def any_store(url):
    """For Hypothesis, which calls many times within one fixture: a loop that stays."""
    with asyncio.Runner() as runner:
        store = runner.run(Store.connect(url))
        yield runner.run, store
        runner.run(store.close())


async def test_writing_again_changes_nothing(store):
    first = request("req_1")
    await store.append(lines(first, first))
    await store.append(lines(request("req_1", alias="other", outcome="interrupted"), first))
    assert await store.request("req_1") == first
    assert (await count(store, module.requests), await count(store, module.attempts)) == (1, 1)


async def test_a_batch_is_written_whole_or_not_at_all(store):
    with pytest.raises(RowsRefused):
        await store.append(lines(request("req_1"), request("req_2", cost_nano_usd=None)))
    assert await count(store, module.requests) == await count(store, module.attempts) == 0
    bad = request("req_3", attempts=[attempt(1), attempt(2, cost_nano_usd=-1)])
    with pytest.raises(RowsRefused):
        await store.append(lines(bad))
    assert await count(store, module.requests) == await count(store, module.attempts) == 0


# --- never cost 0 ---------------------------------------------------------------------------------

UNPRICED = {"cost_nano_usd": None, "priced": False}
NO_TOKENS = {"uncached_tokens": 0, "cached_tokens": None, "output_tokens": 0}


@pytest.mark.parametrize(
    ("why", "record"),
    [
        ("priced without a cost", request("r", cost_nano_usd=None)),
        ("zero with tokens", request("r", cost_nano_usd=0)),
        (
            "zero with output only",
            request("r", cost_nano_usd=0, **NO_TOKENS | {"output_tokens": 1}),
        ),
        (
            "zero with cached only",
            request("r", cost_nano_usd=0, **NO_TOKENS | {"cached_tokens": 1}),
        ),
        ("zero, unpriced", request("r", cost_nano_usd=0, priced=False)),
        ("negative", request("r", cost_nano_usd=-1)),
        ("attempt: zero with tokens", request("r", attempts=[attempt(cost_nano_usd=0)])),
        (
            "attempt: zero with tokens and no rates",
            request("r", attempts=[attempt(cost_nano_usd=0, rates_id=None)]),
        ),
        (
            "attempt: free is a prefix, not a word in it",
            request("r", attempts=[attempt(cost_nano_usd=0, rates_id="vendor/free:x")]),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_refused_by_the_database(store, why, record):
    with pytest.raises(RowsRefused):
        await store.append(lines(record))
    assert await count(store, module.requests) == 0


@pytest.mark.parametrize(
    ("why", "record"),
    [
        ("priced", request("r")),
        ("not priced", request("r", **UNPRICED, attempts=[attempt(cost_nano_usd=None)])),
        ("declared free", request("r", cost_nano_usd=0, attempts=[attempt(**FREE)])),
        (
            "free at the second try",
            request(
                "r", cost_nano_usd=0, attempts=[attempt(1, cost_nano_usd=None), attempt(2, **FREE)]
            ),
        ),
        ("zero without tokens", request("r", cost_nano_usd=0, **NO_TOKENS)),
        ("refused before any attempt", request("r", **UNPRICED, **NO_TOKENS, attempts=[])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_taken_by_the_database(store, why, record):
    await store.append(lines(record))
    assert await store.request("r") == record


# --- reading ----------------------------------------------------------------------------------


async def test_requests_by_time_and_column(store):
    await store.append(
        lines(
            *(request(f"req_{n}", started_at_us=n, alias="ab"[n % 2]) for n in range(10)),
            request("bad", started_at_us=99, outcome="failed", backend="other", key_id="k"),
        )
    )

    async def ids(**wanted) -> list[str]:
        return [r.id for r in await store.requests(**wanted)]

    assert await ids(limit=3) == ["bad", "req_9", "req_8"]
    assert await ids(since_us=2, until_us=5) == ["req_4", "req_3", "req_2"]
    assert await ids(alias="a", until_us=5) == ["req_4", "req_2", "req_0"]
    assert (
        await ids(outcome="failed")
        == await ids(backend="other")
        == await ids(key_id="k")
        == ["bad"]
    )
    assert await ids(alias="' OR 1=1 --") == []


async def test_totals_add_up(store):
    dear = attempt(2, backend="dear", cost_nano_usd=9_000_000_000_000_000)
    await store.append(
        lines(
            *(request(f"req_{n}", alias="fast", started_at_us=STARTED_US + n) for n in range(10)),
            request(
                "two",
                alias="smart",
                cost_nano_usd=dear.cost_nano_usd + 120_000,
                attempts=[attempt(1), dear],
            ),
            request("unpriced", alias="odd", **UNPRICED, attempts=[attempt(cost_nano_usd=None)]),
            request("refused", alias=None, **UNPRICED, **NO_TOKENS, attempts=[]),
        )
    )
    by_alias = {t.name: t for t in await store.totals("alias")}
    assert by_alias["fast"].cost_nano_usd == 10 * 120_000
    assert by_alias["fast"].output_tokens == 500
    assert (by_alias["odd"].unpriced, by_alias["odd"].cost_nano_usd) == (1, 0)
    assert (by_alias[None].unpriced, by_alias[None].rows) == (0, 1)
    by_backend = {t.name: t for t in await store.totals("backend")}
    assert by_backend["dear"].cost_nano_usd == dear.cost_nano_usd
    assert by_backend["openai"].cost_nano_usd == 11 * 120_000
    assert [t.name for t in await store.totals("backend")] == ["dear", "openai"]
    (whole,) = await store.totals()
    assert whole.cost_nano_usd == sum(t.cost_nano_usd for t in by_backend.values())
    assert whole.rows == 13
    (some,) = await store.totals(since_us=STARTED_US + 1, until_us=STARTED_US + 4)
    assert some.rows == 3
    (none,) = await store.totals(since_us=STARTED_US + 10**9)
    assert (none.rows, none.cost_nano_usd) == (0, 0)


# --- the schema -----------------------------------------------------------------------------------


PARTITION = re.compile(r"(request|attempt)_facts_(default|\d{6})")


async def test_migrations_and_tables_agree(store):
    def difference(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [
            d
            for d in compare_metadata(context, module.metadata)
            if not (d[0] == "remove_table" and d[1].name == "weighbridge_schema")
            and not (d[0].startswith("remove_") and PARTITION.fullmatch(table_of(d[1]).name))
        ]

    def table_of(what: object) -> sa.Table:
        return what if isinstance(what, sa.Table) else what.table

    def described(connection: sa.Connection) -> dict[str, object]:
        inspector = sa.inspect(connection)
        return {
            table: (
                sorted((c["name"], c["sqltext"]) for c in inspector.get_check_constraints(table)),
                # Sorted: a migration can only append a column.
                sorted(
                    (c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)
                ),
                inspector.get_pk_constraint(table),
                sorted((i["name"], i["column_names"]) for i in inspector.get_indexes(table)),
            )
            for table in module.metadata.tables
        }

    def of_views(connection: sa.Connection) -> dict[str, list[str]]:
        inspector = sa.inspect(connection)
        return {
            v: [c["name"] for c in inspector.get_columns(v)] for v in inspector.get_view_names()
        }

    async with store._engine.begin() as connection:
        assert await connection.run_sync(difference) == []
        assert await connection.run_sync(of_views) == {
            "requests": module.requests.columns.keys(),
            "attempts": module.attempts.columns.keys(),
        }
        migrated = await connection.run_sync(described)
        for view in ("requests", "attempts"):
            await connection.execute(sa.text(f"DROP VIEW {view}"))
        await connection.run_sync(module.metadata.drop_all)
        await connection.run_sync(module.metadata.create_all)
        assert await connection.run_sync(described) == migrated
    assert len(migrated["request_facts"][0]) == 3
    assert len(migrated["attempt_facts"][0]) == 2


async def test_the_schema_in_the_code_is_the_last_migration(url):
    assert await current(url) is None if url.startswith("postgres") else True
    await upgrade(url)
    await upgrade(url)
    assert await current(url) == module.SCHEMA
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(bundled("migrations")))
    assert ScriptDirectory.from_config(config).get_current_head() == module.SCHEMA


async def test_starts_at_once_do_not_race(url):
    stores = await asyncio.gather(*(Store.connect(url) for _ in range(6)))
    for store in stores:
        await store.append(lines(request("req_1")))
    assert await count(stores[0], module.requests) == 1
    await asyncio.gather(*(store.close() for store in stores))


def test_processes_that_start_at_once_do_not_race(url):
    code = (
        "import asyncio, sys; from gateway.ledger.store import Store\n"
        "async def go():\n"
        "    store = await Store.connect(sys.argv[1]); await store.close()\n"
        "asyncio.run(go())"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    errors = [process.communicate(timeout=60)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0] * 4, errors


async def test_an_older_schema_of_a_postgres_is_left_to_its_operator(postgres_url, monkeypatch):
    await upgrade(postgres_url)
    monkeypatch.setattr(connecting, "SCHEMA", "9999")  # as if this program were a later one
    with pytest.raises(SchemaMismatch) as caught:
        await Store.connect(postgres_url)
    assert "weighbridge db upgrade" in caught.value.how_to_fix


async def test_a_newer_schema(url):
    store = await Store.connect(url)
    async with store._begin() as connection:
        await connection.execute(sa.text("UPDATE weighbridge_schema SET version_num = '9999'"))
    await store.close()
    with pytest.raises(SchemaMismatch) as caught:
        await Store.connect(url, auto_migrate=True)
    assert "9999" in caught.value.why


async def test_somebody_elses_tables_are_left_alone(url):
    store = await Store.connect(url)
    async with store._begin() as connection:
        await connection.execute(sa.text("CREATE TABLE theirs (id integer)"))
    await store.close()
    store = await Store.connect(url)
    await store.append(lines(request("req_1")))
    await store.close()


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgres://user:hunter2@127.0.0.1:1/x", "Start the database"),
        ("mysql://user:hunter2@host/x", "postgresql://"),
        ("not a url", "postgresql://"),
        ("sqlite:////proc/none/ledger.db", "writable"),
    ],
)
async def test_unreachable_says_what_to_do(url, says):
    with pytest.raises(StoreUnreachable) as caught:
        await Store.connect(url)
    assert says in caught.value.how_to_fix
    assert "hunter2" not in str(caught.value)


async def test_a_database_that_is_not_there(postgres_url):
    with pytest.raises(StoreUnreachable, match="createdb"):
        await Store.connect(postgres_url + "_none")


async def test_a_database_lost_on_the_way_is_unavailable(postgres_url):
    store = await Store.connect(postgres_url)
    await store.append(lines(request("req_1")))
    admin = await Store.connect(postgres_url)
    async with admin._begin() as connection:
        await connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    await store.append(lines(request("req_2")))  # a dead connection of the pool is not our caller's
    assert await count(store, module.requests) == 2
    async with admin._begin() as connection:
        await connection.execute(sa.text("ALTER TABLE request_facts RENAME TO gone"))
    with pytest.raises(StoreUnavailable):
        await store.append(lines(request("req_3")))
    await admin.close()
    await store.close()


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgres://u:p@h/d", "postgresql+asyncpg"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+asyncpg"),
        ("postgresql+asyncpg://h/d", "postgresql+asyncpg"),
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("sqlite+aiosqlite:////abs/x.db", "sqlite+aiosqlite"),
    ],
)
def test_urls_are_taken_as_people_write_them(given, driver):
    url = normalise(given)
    assert url.drivername == driver
    assert "sslmode" not in url.query


# --- keys ---------------------------------------------------------------------------------------


async def test_the_first_admin_is_made_by_one_start_only(url, tmp_path):
    stores = [await Store.connect(url) for _ in range(6)]
    made = await asyncio.gather(
        *(ensure_first_admin(KeyStore(store, pepper="", home=tmp_path)) for store in stores)
    )
    assert len([token for token in made if token]) == 1
    keys = KeyStore(stores[0], pepper="", home=tmp_path)
    assert len(await keys.list_all()) == 1
    for store in stores:
        await store.close()


async def test_a_key_row_comes_back_as_it_went(store, tmp_path):
    keys = KeyStore(store, pepper="", home=tmp_path)
    scopes = Scopes(name="ключ", aliases=frozenset({"a"}), tags={"t": "ü"}, privacy_floor="secret")
    made, token = await keys.create(scopes)
    assert await keys.list_all() == [made]
    assert (await keys.verify(token)).tags == {"t": "ü"}
    revoked = await keys.revoke(made.id)
    assert await keys.list_all() == [revoked]
