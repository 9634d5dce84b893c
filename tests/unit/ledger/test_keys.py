"""Keys: their form, and the store of them over a real SQLite."""

from __future__ import annotations

import hmac
import string
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import keys as form
from gateway.domain.errors import NotFound, StoreUnavailable, Unauthenticated
from gateway.domain.keys import ID_BYTES, SECRET_BYTES, Scopes, mint, parse
from gateway.domain.request import Endpoint
from gateway.ledger import keys as module
from gateway.ledger.keys import KeyStore, Pepper, ensure_first_admin, load_peppers
from gateway.ledger.store import Store
from gateway.runtime import ManualClock
from gateway.settings import SecretMissing

PEPPER = "correct horse battery staple and then some"
MESSAGE = "The API key is not valid."

# --- the form ---------------------------------------------------------------------------------


@given(st.binary(min_size=ID_BYTES, max_size=ID_BYTES), st.binary(min_size=32, max_size=32))
def test_what_is_minted_parses(id_entropy, secret_entropy):
    token = mint("live", id_entropy=id_entropy, secret_entropy=secret_entropy)
    text = str(token)
    assert parse(text) == token
    assert len(text) == 3 + 4 + 1 + 12 + 1 + 43 + 1 + 6
    assert token.secret not in repr(token)


TOKEN = str(mint("live", id_entropy=bytes(range(8)), secret_entropy=bytes(range(32))))


@given(st.integers(0, len(TOKEN) - 1), st.characters())
def test_one_wrong_character_is_noticed_offline(at, character):
    wrong = TOKEN[:at] + character + TOKEN[at + 1 :]
    assert parse(wrong) is None or wrong == TOKEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "wb_",
        TOKEN + "\n",
        " " + TOKEN,
        TOKEN + "\0",
        TOKEN[:-1],
        TOKEN.upper(),
        TOKEN.replace("wb_", "sk_"),
        TOKEN.replace("live", "LIVE"),
        TOKEN.replace("live", "lｉve"),
        "' OR '1'='1",
        "wb_live_'; DROP TABLE keys;--_x_000000",
        "\ud800" * 80,
        "Ⅷ" * 80,
        "\0" * 80,
        "a" * 1_000_000,
        "wb_live_" + "_" * 1_000_000,
    ],
)
def test_malformed_is_refused_by_its_form(text):
    assert parse(text) is None


@given(st.text(alphabet=string.printable, max_size=100))
def test_no_text_is_taken_for_a_key(text):
    assert parse(text) is None


def test_entropy_is_measured():
    with pytest.raises(ValueError, match="randomness"):
        mint("live", id_entropy=b"short", secret_entropy=bytes(SECRET_BYTES))
    with pytest.raises(ValueError, match="environment"):
        mint("Live!", id_entropy=bytes(ID_BYTES), secret_entropy=bytes(SECRET_BYTES))


def test_comparison_takes_the_same_time():
    with mock.patch.object(hmac, "compare_digest", wraps=hmac.compare_digest) as compare:
        stored = form.digest(b"p", "s")
        assert form.matches(b"p", "s", stored)
        assert not form.matches(b"q", "s", stored)
        assert not form.matches(b"p", "t", stored)
    assert compare.call_count == 3


# --- the store of them ---------------------------------------------------------------------------


class SwitchedStore:
    """The real store behind a switch, counting who asks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.down = False
        self.asked = 0

    async def key(self, key_id: str):
        self.asked += 1
        if self.down:
            raise StoreUnavailable("The database does not answer.", detail="down")
        return await self._store.key(key_id)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


@pytest.fixture
async def store(tmp_path):
    store = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield SwitchedStore(store)
    await store.close()


@pytest.fixture
def clock():
    return ManualClock(1_790_000_000.0)


@pytest.fixture
def keys(store, tmp_path, clock):
    return KeyStore(store, pepper=PEPPER, home=tmp_path, clock=clock)


async def refusal(keys: KeyStore, token: str) -> str:
    """Why, for the log; what the caller is told is checked here and is always the same."""
    with pytest.raises(Unauthenticated) as caught:
        await keys.verify(token)
    assert caught.value.message == MESSAGE
    assert keys.cached(token) is None
    return caught.value.detail


async def test_a_key_carries_its_scopes(keys):
    scopes = Scopes(
        name="search",
        aliases=frozenset({"fast", "smart"}),
        endpoints=frozenset({Endpoint.CHAT}),
        privacy_floor="internal",
        privacy_ceiling="secret",
        tags={"team": "search"},
        admin=True,
        debug=False,
    )
    _, token = await keys.create(scopes, environment="test")
    assert token.startswith("wb_test_")
    assert keys.cached(token) is None
    caller = await keys.verify(token)
    assert keys.cached(token) == caller
    assert caller.aliases == {"fast", "smart"}
    assert caller.endpoints == {Endpoint.CHAT}
    assert (caller.privacy_floor, caller.privacy_ceiling) == ("internal", "secret")
    assert (caller.tags, caller.admin, caller.debug) == ({"team": "search"}, True, False)
    (listed,) = await keys.list_all()
    assert listed.scopes == scopes


async def test_a_dump_of_the_database_verifies_nothing(store, keys, tmp_path):
    _, token = await keys.create(Scopes(name="a"))
    (row,) = await store.keys()
    parts = parse(token)
    assert parts.secret.encode() not in row["digest"]
    assert parts.secret not in repr(row)
    assert PEPPER not in repr(row)
    thief = KeyStore(store, pepper="", home=tmp_path / "elsewhere")
    assert "pepper" in await refusal(thief, token)


async def test_keys_that_begin_alike_are_not_confused(store, tmp_path):
    """A cache or a look-up by a part of the key would let the second one in."""
    randomness = [bytes(8), bytes(31) + b"\x01"]
    keys = KeyStore(store, pepper=PEPPER, home=tmp_path, entropy=lambda n: randomness.pop(0))
    _, token = await keys.create(Scopes(name="a"))
    other = str(mint("live", id_entropy=bytes(8), secret_entropy=bytes(31) + b"\x02"))
    assert other[:60] == token[:60]
    await keys.verify(token)
    assert keys.cached(other) is None
    assert "wrong secret" in await refusal(keys, other)
    assert keys.cached(token) is not None


async def test_the_environment_is_part_of_the_key(keys):
    _, token = await keys.create(Scopes(name="a"), environment="test")
    parts = parse(token)
    assert "wrong secret" in await refusal(keys, str(form.Token("live", parts.id, parts.secret)))


@pytest.mark.parametrize(
    "token", ["", "' OR 1=1 --", "\0", "ключ", "\ud800", "x" * 1_000_000, TOKEN[:-1] + "!"]
)
async def test_malformed_keys_cost_no_query(keys, store, token):
    assert await refusal(keys, token) == "malformed"
    assert store.asked == 0


async def test_an_unknown_key_is_asked_for_once_in_five_seconds(keys, store, clock):
    assert "unknown" in await refusal(keys, TOKEN)
    await refusal(keys, TOKEN)
    assert store.asked == 1
    clock.advance(5.1)
    await refusal(keys, TOKEN)
    assert store.asked == 2


async def test_a_revoked_key_is_refused_here_at_once_elsewhere_within_30_s(
    store, keys, clock, tmp_path
):
    elsewhere = KeyStore(store, pepper=PEPPER, home=tmp_path, clock=clock)
    made, token = await keys.create(Scopes(name="a"))
    for each in (keys, elsewhere):
        await each.verify(token)
    await keys.revoke(made.id)
    assert "revoked" in await refusal(keys, token)
    assert elsewhere.cached(token) is not None, "this is what the bound is about"
    clock.advance(30)
    assert "revoked" in await refusal(elsewhere, token)
    first = (await keys.revoke(made.id)).revoked_at_us
    clock.advance(100)
    assert (await keys.revoke(made.id)).revoked_at_us == first
    with pytest.raises(NotFound):
        await keys.revoke("nonesuch")


async def test_a_key_ends_on_time_even_if_cached(keys, clock):
    _, token = await keys.create(Scopes(name="a"), expires_at_us=int((clock.wall() + 10) * 1e6))
    await keys.verify(token)
    clock.advance(9)
    assert keys.cached(token) is not None
    clock.advance(1)
    assert keys.cached(token) is None
    assert "expired" in await refusal(keys, token)


async def test_rotation_keeps_scopes_and_the_old_key_for_the_grace_period(keys, clock):
    old, token = await keys.create(Scopes(name="a", aliases=frozenset({"fast"})))
    new, fresh = await keys.rotate(old.id, grace_s=3600)
    assert new.scopes == old.scopes
    assert (await keys.verify(fresh)).key_id == new.id
    clock.advance(3599)
    assert (await keys.verify(token)).key_id == old.id
    clock.advance(1)
    assert "expired" in await refusal(keys, token)
    assert (await keys.verify(fresh)).key_id == new.id
    with pytest.raises(NotFound):
        await keys.rotate(old.id, grace_s=1)


async def test_rotation_never_lengthens_a_life(keys, clock):
    end = int((clock.wall() + 60) * 1e6)
    old, _ = await keys.create(Scopes(name="a"), expires_at_us=end)
    new, _ = await keys.rotate(old.id, grace_s=3600)
    assert new.expires_at_us == end
    assert {key.expires_at_us for key in await keys.list_all()} == {end}


async def test_one_request_asks_again_while_the_others_go_on(keys, store, clock):
    _, token = await keys.create(Scopes(name="a"))
    await keys.verify(token)
    clock.advance(26)
    assert keys.cached(token) is None, "this one asks"
    assert all(keys.cached(token) is not None for _ in range(10))
    await keys.verify(token)
    assert keys.cached(token) is not None


async def test_with_the_store_down_known_keys_go_on_for_ten_minutes(keys, store, clock):
    _, token = await keys.create(Scopes(name="a"))
    await keys.verify(token)
    store.down = True
    with pytest.raises(StoreUnavailable):
        await keys.verify(TOKEN)
    served = 0
    for _ in range(590):
        clock.advance(1)
        caller = keys.cached(token) or await keys.verify(token)
        served += caller.name == "a"
    assert served == 590
    assert store.asked < 150, "it does not ask a dead store for each request"
    clock.advance(10)
    assert keys.cached(token) is None
    with pytest.raises(StoreUnavailable):
        await keys.verify(token)
    store.down = False
    await keys.verify(token)


async def test_a_key_that_ends_while_the_store_is_down_ends(keys, store, clock):
    _, token = await keys.create(Scopes(name="a"), expires_at_us=int((clock.wall() + 100) * 1e6))
    await keys.verify(token)
    store.down = True
    clock.advance(99)
    await keys.verify(token)
    clock.advance(1)
    assert keys.cached(token) is None
    with pytest.raises(StoreUnavailable):
        await keys.verify(token)


async def test_the_cache_is_bounded_and_a_flood_of_bad_keys_evicts_no_good_one(
    store, tmp_path, clock
):
    keys = KeyStore(store, pepper=PEPPER, home=tmp_path, clock=clock, entries_max=10)
    _, token = await keys.create(Scopes(name="a"))
    await keys.verify(token)
    for n in range(30):
        bad = mint("live", id_entropy=n.to_bytes(8, "big"), secret_entropy=bytes(32))
        await refusal(keys, str(bad))
    assert keys.cached(token) is not None
    assert len(keys._refused) == 10
    for n in range(12):
        _, other = await keys.create(Scopes(name=f"{n}"))
        await keys.verify(other)
    assert len(keys._verified) == 10


async def test_the_pepper_can_be_changed_under_living_keys(store, keys, tmp_path, clock):
    new = "a wholly other pepper of forty characters"
    made, token = await keys.create(Scopes(name="a"))
    both = KeyStore(store, pepper=f"{new},{PEPPER}", home=tmp_path, clock=clock)
    await both.verify(token)
    (row,) = await store.keys()
    assert row["pepper"] == Pepper.of(new).id
    only_new = KeyStore(store, pepper=new, home=tmp_path, clock=clock)
    assert (await only_new.verify(token)).key_id == made.id
    only_old = KeyStore(store, pepper=PEPPER, home=tmp_path, clock=clock)
    assert "pepper" in await refusal(only_old, token)


async def test_the_first_admin_is_made_once(keys):
    token = await ensure_first_admin(keys)
    assert token is not None
    assert (await keys.verify(token)).admin
    assert await ensure_first_admin(keys) is None
    assert len(await keys.list_all()) == 1


# --- the pepper -------------------------------------------------------------------------------


def test_the_pepper_is_made_once_and_is_the_owners_only(tmp_path):
    (first,) = load_peppers("", tmp_path / "home")
    (again,) = load_peppers("", tmp_path / "home")
    assert first == again
    path = tmp_path / "home" / "pepper"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["pepper"]
    assert load_peppers("", tmp_path / "other") != (first,)
    path.chmod(0o640)
    with pytest.raises(SecretMissing, match="chmod 600"):
        load_peppers("", tmp_path / "home")


def test_the_pepper_from_outside(tmp_path, monkeypatch):
    (tmp_path / "p").write_text(PEPPER + "\n")
    monkeypatch.setenv("A_PEPPER", PEPPER[::-1])
    found = load_peppers(f"env:A_PEPPER, file:{tmp_path / 'p'}", tmp_path)
    assert [p.value.decode() for p in found] == [PEPPER[::-1], PEPPER]
    for bad in ("short", "env:NOT_SET_ANYWHERE", f"file:{tmp_path / 'none'}"):
        with pytest.raises(SecretMissing):
            load_peppers(bad, tmp_path)


def test_bounds_are_as_promised():
    assert module.FRESH_S <= 30
    assert module.STALE_S_MAX == 600
