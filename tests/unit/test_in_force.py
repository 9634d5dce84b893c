"""What is in force: which change of the files makes which version, and what changes nothing."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.bundle import Bundle, digest
from gateway.in_force import FILES, VERSION, FileWatch, Folder, InForce, Unloadable, load_version
from gateway.ledger.store import Store
from gateway.ledger.versions import Change, Origin, Version, Versions, start
from tests.gateway_process import _yaml, vendor_catalog

CATALOG = _yaml(vendor_catalog({"a": "http://127.0.0.1:9/v1", "b": "http://127.0.0.1:9/v1"}))
PLAIN = "version: 1\nname: plain\ndescription: {}\ndefault: {{by: order}}\n"
FIRST = {"catalog.yaml": CATALOG, "routing/plain.yaml": PLAIN.format("first")}


class Seen:
    """A consumer that remembers. `broken`: its next install fails."""

    def __init__(self) -> None:
        self.installed: list[str] = []
        self.versions: list[int] = []
        self.failures: list[str] = []
        self.broken = False

    async def install(self, bundle: Bundle, *, anew: bool = False) -> None:
        if self.broken:
            raise RuntimeError("no room")
        self.installed.append(bundle.policy.description)

    def in_force(self, version: Version) -> None:
        self.versions.append(version.number)

    def failed(self, what: str) -> None:
        self.failures.append(what)


class Rig:
    """One worker's part of it over a database in `folder`, and its policy folder."""

    def __init__(self, store: Store, path: Path) -> None:
        self.store = store
        self.versions = Versions(store)
        self.path = path
        self.present: set[str] = set()
        self.folder = Folder(path=path, secret_present=lambda name: name in self.present)
        self.seen = Seen()

    async def begin(self, *, watch: bool = True) -> None:
        version = await self.versions.newest()
        if version is None:
            version = await start(self.versions, change(FIRST, Origin.START))
        bundle = await load_version(self.versions, version, self.folder)
        self.in_force = InForce(
            self.versions, version, bundle, folder=self.folder, consumer=self.seen
        )
        self.watch = FileWatch(self.in_force, on=watch)
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self.in_force.follow()), loop.create_task(self.watch.run())]

    async def end(self) -> None:
        async with self.in_force.asking:
            for task in self.tasks:
                assert not task.done(), task
                task.cancel()
        await asyncio.wait(self.tasks)

    def write(self, path: str, text: str) -> None:
        """As editors do that write beside it and rename."""
        fresh = self.path / f"{path}.new"
        fresh.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text)
        fresh.replace(self.path / path)

    async def number(self, wanted: int) -> None:
        await eventually(lambda: self.in_force.version.number == wanted)

    async def history(self) -> list[tuple[int, str]]:
        return [(v.number, v.origin.value) for v in await self.versions.history()]


def change(files: dict[str, str], origin: Origin, **fields: object) -> Change:
    made = Change(digest=digest(files), policy="plain", origin=origin, author="test", files=files)
    return replace(made, **fields)


def applied(files: dict[str, str]) -> Change:
    return change(files, Origin.APPLY)


async def eventually(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def ticks(rig: Rig) -> None:
    """Long enough for both loops to have looked, seen by what they ask of the database."""
    for _ in range(3):
        rig.watch.reread()
        before = len(rig.seen.installed)
        await eventually(lambda before=before: len(rig.seen.installed) > before)


@pytest.fixture
async def rig(tmp_path):
    store = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
    rig = Rig(store, tmp_path / "policies")
    for path, text in FIRST.items():
        rig.write(path, text)
    await rig.begin()
    yield rig
    await rig.end()
    await store.close()


async def test_a_change_of_a_file_becomes_a_version_that_says_which(rig):
    rig.write("routing/plain.yaml", PLAIN.format("second"))
    await rig.number(2)
    assert rig.in_force.bundle.policy.description == "second"
    newest = await rig.versions.newest()
    assert (newest.origin, newest.note) == (Origin.FILE, "routing/plain.yaml")
    assert rig.seen.versions == [1, 2]
    assert not rig.watch.differs


async def test_files_that_loosen_privacy_are_said_to(rig, caplog):
    cleared = vendor_catalog(
        {"a": "http://127.0.0.1:9/v1", "b": "http://127.0.0.1:9/v1"},
        b={"cleared_for": "restricted"},
    )
    rig.write("catalog.yaml", _yaml(cleared))
    await rig.number(2)
    assert "looser than version 1 (plain@" in caplog.text
    assert "backend b: cleared for restricted data now, it was for public" in caplog.text


async def test_a_file_more_and_a_file_less_are_changes(rig):
    rig.write("limits.yaml", "version: 1\n")
    await rig.number(2)
    assert "limits.yaml" in rig.in_force.bundle.files
    (rig.path / "limits.yaml").unlink()
    await rig.number(3)
    assert rig.in_force.bundle.digest == digest(FIRST)


async def test_what_does_not_load_changes_nothing_and_is_said_until_it_is_mended(rig, caplog):
    rig.write("routing/plain.yaml", "version: 1\nname: plain\ndefault: {by: oder}\n")
    await eventually(lambda: FILES in rig.in_force.errors)
    assert (
        f"{rig.path}/routing/plain.yaml:3:15: default.by: unknown value 'oder'"
        in rig.in_force.errors[FILES]
    )
    assert "version 1 (plain@" in caplog.text
    assert rig.seen.failures == [FILES]
    rig.write("routing/plain.yaml", FIRST["routing/plain.yaml"])
    await eventually(lambda: not rig.in_force.errors)
    assert await rig.history() == [(1, "start")]


async def test_a_file_that_goes_is_said_and_a_touch_is_nothing(rig):
    os.utime(rig.path / "catalog.yaml", (1, 1))
    (rig.path / "routing" / "plain.yaml").rename(rig.path / "routing" / "away")
    await ticks(rig)
    assert not rig.in_force.errors
    (rig.path / "catalog.yaml").unlink()
    await eventually(lambda: "No such file" in rig.in_force.errors.get(FILES, ""))
    assert await rig.history() == [(1, "start")]
    rig.write("catalog.yaml", FIRST["catalog.yaml"])
    rig.write("routing/plain.yaml", PLAIN.format("back"))
    await rig.number(2)
    assert rig.in_force.bundle.policy.description == "back"


async def test_only_what_changed_on_disk_is_changed_in_what_was_put_by_command(rig):
    other = {**FIRST, "routing/plain.yaml": PLAIN.format("applied")}
    await rig.versions.put(change(other, Origin.APPLY), expected=1)
    await rig.number(2)
    assert rig.watch.differs
    rig.write("catalog.yaml", CATALOG + "# more\n")
    await rig.number(3)
    assert rig.in_force.bundle.policy.description == "applied"
    assert rig.in_force.bundle.files["catalog.yaml"].endswith("# more\n")
    assert rig.watch.differs


async def test_another_policy_in_force_is_no_change_of_its_file(rig):
    mine = PLAIN.format("on disk").replace("plain", "mine")
    rig.write("routing/mine.yaml", mine)
    files = {"catalog.yaml": CATALOG, "routing/mine.yaml": mine.replace("on disk", "applied")}
    await rig.versions.put(change(files, Origin.APPLY, policy="mine"), expected=1)
    await rig.number(2)
    rig.write("routing/plain.yaml", PLAIN.format("not in force"))
    await ticks(rig)
    assert (rig.in_force.version.number, rig.in_force.bundle.policy.description) == (2, "applied")
    rig.write("routing/mine.yaml", mine.replace("on disk", "changed"))
    await rig.number(3)
    assert rig.in_force.bundle.policy.description == "changed"


async def test_two_that_see_one_change_make_one_version(rig, tmp_path):
    store = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
    beside = Rig(store, rig.path)
    await beside.begin()
    for text in ("second", "third", "fourth"):
        rig.write("routing/plain.yaml", PLAIN.format(text))
        number = rig.in_force.version.number + 1
        await rig.number(number)
        await beside.number(number)
    await ticks(beside)
    assert [number for number, _ in await rig.history()] == [4, 3, 2, 1]
    await beside.end()
    await store.close()


async def test_who_starts_later_takes_what_is_in_force_not_the_files(rig, tmp_path):
    await rig.versions.put(
        change({**FIRST, "routing/plain.yaml": PLAIN.format("applied")}, Origin.APPLY), expected=1
    )
    store = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
    later = Rig(store, rig.path)
    await later.begin()
    await ticks(later)
    assert later.in_force.bundle.policy.description == "applied"
    assert later.watch.differs
    assert len(await rig.history()) == 2
    await later.end()
    await store.close()


async def test_a_change_that_nobody_saw_counts_one_that_was_taken_back_does_not(rig, tmp_path):
    await rig.end()
    await rig.versions.put(
        change({**FIRST, "routing/plain.yaml": PLAIN.format("second")}, Origin.FILE), expected=1
    )
    # The files are those of version 1: somebody else's were newer.
    await rig.begin()
    await ticks(rig)
    assert await rig.history() == [(2, "file"), (1, "start")]
    await rig.end()
    rig.write("routing/plain.yaml", PLAIN.format("third"))
    await rig.begin()
    await rig.number(3)


async def test_a_version_that_does_not_load_here_is_not_followed_and_not_put_over(rig):
    bad = {**FIRST, "routing/plain.yaml": "version: 2\nname: plain\ndefault: {}\n"}
    await rig.versions.put(change(bad, Origin.APPLY), expected=1)
    await eventually(lambda: VERSION in rig.in_force.errors)
    assert "version 2 (plain@" in rig.in_force.errors[VERSION]
    assert rig.in_force.version.number == 1
    assert rig.seen.failures == [VERSION]
    rig.write("catalog.yaml", CATALOG + "# more\n")
    await eventually(lambda: "not put over" in rig.in_force.errors.get(FILES, ""))
    assert len(await rig.history()) == 2
    await rig.versions.put(change(FIRST, Origin.ROLLBACK), expected=2)
    await rig.number(3)
    assert VERSION not in rig.in_force.errors
    with pytest.raises(Unloadable, match="version: unknown value the number 2"):
        await load_version(rig.versions, await rig.versions.get(2), rig.folder)


async def test_texts_that_are_not_what_their_digest_says_are_not_used(rig):
    await rig.versions.put(change(FIRST, Origin.APPLY, digest="d" * 64), expected=1)
    await eventually(lambda: "tampered" in rig.in_force.errors.get(VERSION, ""))
    assert rig.in_force.version.number == 1


async def test_who_cannot_install_a_version_stays_with_the_present_one(rig):
    rig.seen.broken = True
    files = {**FIRST, "routing/plain.yaml": PLAIN.format("second")}
    await rig.versions.put(change(files, Origin.APPLY), expected=1)
    await eventually(lambda: rig.in_force.errors.get(VERSION) == "RuntimeError: no room")
    assert rig.in_force.bundle.digest == digest(FIRST)


async def test_told_to_it_reads_secrets_again_and_files_that_nobody_watches(rig):
    await rig.end()
    with_secret = vendor_catalog({"a": "http://127.0.0.1:9/v1"}, a={"secret": "env:A_KEY"})
    files = {**FIRST, "catalog.yaml": _yaml(with_secret)}
    rig.write("catalog.yaml", files["catalog.yaml"])
    await rig.versions.put(change(files, Origin.FILE), expected=1)
    await rig.begin(watch=False)
    assert not rig.in_force.bundle.catalog.backends["a"].configured
    rig.present.add("env:A_KEY")
    rig.watch.reread()
    await eventually(lambda: rig.in_force.bundle.catalog.backends["a"].configured)
    rig.write("routing/plain.yaml", PLAIN.format("unwatched"))
    await asyncio.sleep(1)  # three looks, had it been watched
    assert rig.in_force.version.number == 2
    rig.watch.reread()
    await rig.number(3)


class Outrun(Versions):
    """Somebody applies another policy whenever a change of the files is to be put, twice."""

    lost = 0

    async def put(self, change: Change, *, expected: int) -> Version:
        if change.origin is Origin.FILE and self.lost < 2:
            self.lost += 1
            files = {**FIRST, "routing/plain.yaml": PLAIN.format(f"applied {self.lost}")}
            await super().put(applied(files), expected=expected)
        return await super().put(change, expected=expected)


async def test_who_is_outrun_puts_the_change_on_top_of_theirs(rig):
    await rig.end()
    rig.versions = Outrun(rig.store)
    await rig.begin()
    rig.write("catalog.yaml", CATALOG + "# more\n")
    await rig.number(4)
    assert rig.in_force.bundle.policy.description == "applied 2"
    assert rig.in_force.bundle.files["catalog.yaml"].endswith("# more\n")
