"""Policies change while requests run: by files, by command, half of them broken, under kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.bundle import Files, digest
from gateway.ledger.store import Store
from gateway.ledger.versions import Change, Origin, Version, Versions
from tests.chaos.audit import check_rows, prices
from tests.chaos.load import Answer, Load, call, chat, client
from tests.chaos.proxy import ChaosProxy
from tests.gateway_process import CLI, GatewayProcess, _yaml, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, until, vendor_in_loop

CLIENTS = 50
RELOADS = 200
SWITCH_S_MAX = 5.0  # of a machine that is busy with something else; at rest it is under a second
WAIT_S_MAX = 20.0

pytestmark = pytest.mark.xdist_group("chaos_reload")

TERMS = {
    "kind": "self_hosted",
    "cleared_for": "confidential",
    "data": {"region": "here", "retention_days": 0, "trains_on_data": False, "source": "a test"},
}

# Nobody may have what is restricted, and that is meant: else a check would not let it pass.
CASES = """\
version: 1
at: 2026-11-23T10:00Z
tests:
  - name: nobody may have what is restricted
    given: {alias: chat, privacy: restricted}
    expect: {refused: privacy}
"""


def policy(number: int, *, first: str = "a") -> str:
    return (
        f"version: 1\nname: plain\ndescription: number {number}\n"
        "behaviour: {attempts_max: 3, backends_max: 3}\n"
        f"default: {{prefer: [[{first}]]}}\n"
    )


# --- looking at a gateway -----------------------------------------------------------------------


class Ops:
    """What an operator does to a running gateway, and what they see of it."""

    def __init__(self, running: GatewayProcess, catalog: dict[str, Any]) -> None:
        self.running = running
        self.catalog = catalog
        self.policies = running.home / "policies"
        self.plain = self.policies / "routing" / "plain.yaml"

    def log(self, pattern: str) -> int:
        """How many lines say so; each worker says what it does once."""
        return sum(re.search(pattern, line) is not None for line in self.running.output)

    async def said(self, pattern: str, count: int) -> None:
        deadline = time.monotonic() + WAIT_S_MAX
        while self.log(pattern) < count:
            assert time.monotonic() < deadline, (pattern, count, "".join(self.running.output[-30:]))
            await asyncio.sleep(0.005)

    async def switched(self, number: int, workers: int = 2) -> None:
        """Until every worker has said that this version is in force."""
        await self.said(rf"policy: version {number} \(.* is in force", workers)

    def propose(self, name: str, text: str) -> str:
        """A policy that is not in the policy folder, with its tests; where it is."""
        file = self.running.home / f"{name}.yaml"
        file.write_text(text)
        file.with_suffix(".tests.yaml").write_text(CASES)
        return str(file)

    def hangup(self) -> None:
        os.kill(self.running.process.pid, signal.SIGHUP)

    async def ready(self) -> dict[str, Any]:
        async with client(self.running.url) as http:
            answer = await http.get("/readyz")
            assert answer.status_code == 200
            found: dict[str, Any] = answer.json()
            return found

    async def versions(self) -> list[Version]:
        async with self.store() as versions:
            return await versions.history(limit=1000)

    @asynccontextmanager
    async def store(self):
        from gateway.settings import Settings

        store = await Store.connect(Settings.load(self.running.environment).ledger_url)
        try:
            yield Versions(store)
        finally:
            await store.close()

    async def cli(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        done = await asyncio.to_thread(
            subprocess.run,
            [*CLI, "policy", *arguments, "--json"],
            env=self.running.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    async def put(self, versions: Versions, files: Files, expected: int) -> Version:
        """What `policy apply` does after its checks: the way to have a version that is broken."""
        change = Change(
            digest=digest(files), policy="plain", origin=Origin.APPLY, author="test", files=files
        )
        return await versions.put(change, expected=expected)


def labels(answers: list[Answer]) -> set[str]:
    return {a.headers["x-weighbridge-policy"] for a in answers if a.status == 200}


@asynccontextmanager
async def serving(environment: Mapping[str, str], workers: int = 2):
    """A gateway over two vendors that answer in 60 ms, and what its catalog says."""
    async with vendor_in_loop({"m": Script(tokens=4, ttft_s=0.03, itl_s=0.01)}) as vendor:
        catalog = vendor_catalog(
            {"a": f"{vendor.url}/v1", "b": f"{vendor.url}/v1"}, a=TERMS, b=TERMS
        )
        async with gateway_beside(
            catalog,
            prices=prices("a", "b"),
            routing=policy(0),
            workers=workers,
            environment=environment,
        ) as running:
            ops = Ops(running, catalog)
            await until(lambda: len(running.children()) == workers, WAIT_S_MAX)
            yield ops


def streams(key: str) -> Callable[[int], tuple[dict[str, Any], dict[str, str]]]:
    return lambda n: (chat(f"call {n}", stream=n % 2 == 0), {"authorization": f"Bearer {key}"})


# --- I-12 ---------------------------------------------------------------------------------------


class Reloads:
    """Change after change by three ways, each broken first, then mended with something new.

    `disk` and `force` are the texts as they should be there and in force; `valid` the labels of
    everything that ever was in force, `took_s` how long each switch took in all workers.
    """

    def __init__(self, ops: Ops, versions: Versions, catalog: dict[str, Any], files: Files) -> None:
        self.ops = ops
        self.versions = versions
        self.catalog = catalog
        self.disk = dict(files)
        self.force = dict(files)
        self.number = 1  # of the newest version
        self.digests = {digest(files)}
        self.took_s: list[float] = []

    def good(self, at: int) -> tuple[str, str]:
        """Another order, another price list, another bound of a backend."""
        if at % 3 == 1:
            return "prices/test.yaml", self.disk["prices/test.yaml"] + f"# {at}\n"
        if at % 3 == 2:
            self.catalog["backends"]["a"]["limits"] = {"concurrency_max": 100 + at}
            return "catalog.yaml", _yaml(self.catalog)
        return "routing/plain.yaml", policy(at, first="ab"[at % 2])

    def bad(self, at: int) -> tuple[str, str]:
        """As people break them: syntax, a key twice, nobody's name, a hole, a price."""
        routing, catalog = self.force["routing/plain.yaml"], self.force["catalog.yaml"]
        cleared = "cleared_for: confidential"
        hole = catalog.replace("  chat:\n", "  chat:\n    privacy_floor: restricted\n")
        return [
            ("routing/plain.yaml", routing + "routes: [\n"),
            ("routing/plain.yaml", routing + "name: twice\n"),
            ("routing/plain.yaml", policy(at, first="nonesuch")),
            ("catalog.yaml", catalog.replace(cleared, "cleared_for: secret", 1)),
            ("catalog.yaml", hole),
            ("prices/test.yaml", self.force["prices/test.yaml"].replace("'1.", "'1,", 1)),
        ][at % 6]

    async def by_files(self, at: int, *, told: bool) -> None:
        """An editor saves, then SIGHUP; or nothing but the save."""
        failed = self.ops.log("stays in force")
        path, text = self.bad(at)
        mended = self.disk[path]
        self.save(path, text, told=told)
        await self.ops.said("stays in force", failed + 2)
        if path != self.good(at)[0]:
            self.save(path, mended, told=False)
        path, text = self.good(at)
        self.disk[path] = text
        await self.comes(path, text, lambda: self.save(path, text, told=told))

    def save(self, path: str, text: str, *, told: bool) -> None:
        (self.ops.policies / path).write_text(text)
        if told:
            self.ops.hangup()

    async def by_command(self, at: int) -> None:
        """Somebody elsewhere; what is broken is put by a program that knows other words."""
        failed = self.ops.log("stays in force")
        path, text = self.bad(at)
        await self.ops.put(self.versions, {**self.force, path: text}, self.number)
        self.number += 1
        await self.ops.said("stays in force", failed + 2)
        path, text = self.good(at)
        files = {**self.force, path: text}
        await self.comes(path, text, lambda: self.ops.put(self.versions, files, self.number))

    async def comes(self, path: str, text: str, do: Callable[[], Any]) -> None:
        """Do it, and measure until it is in force in every worker."""
        self.force[path] = text
        self.digests.add(digest(self.force))
        since = time.monotonic()
        done = do()
        if done is not None:
            await done
        self.number += 1
        await self.ops.switched(self.number)
        self.took_s.append(time.monotonic() - since)


async def test_reloads_under_load(postgres_url: str) -> None:
    async with serving({"WEIGHBRIDGE_DATABASE_URL": postgres_url}) as ops:
        pids = ops.running.children()
        async with (
            ops.store() as versions,
            Load(ops.running.url, CLIENTS, streams(ops.running.key), pause_s=0.2) as load,
        ):
            first = await versions.newest()
            assert first is not None
            reloads = Reloads(ops, versions, ops.catalog, await versions.files(first.digest))
            for at in range(1, RELOADS // 2 + 1):
                if at % 4 == 3:
                    await reloads.by_command(at)
                else:
                    await reloads.by_files(at, told=at % 40 != 1)
            trouble = await ops.ready()
            await until(lambda: len(load.history) > 1000, WAIT_S_MAX)
        answers = load.history
        failed = [a for a in answers if not a.ok]
        assert not failed, (len(failed), failed[:3])
        assert "policy_error" not in trouble
        assert ops.running.children() == pids, "a worker was replaced"
        assert labels(load.history) <= {f"plain@{d[:12]}" for d in reloads.digests}
        assert len(labels(load.history)) > RELOADS // 4
        assert {v.number for v in await ops.versions()} == set(range(1, reloads.number + 1))
        rows = await ops.running.ledger(len(answers))
        check_rows(rows)
        assert {row["policy_digest"] for row in rows} <= reloads.digests
        took = reloads.took_s
        assert max(took) < SWITCH_S_MAX, sorted(took)[-5:]
    promise(
        "I-12",
        f"0 of {len(answers)} failed, {RELOADS} reloads, half of them broken; in force everywhere "
        f"after {statistics.median(took):.2f} s, at most {max(took):.2f} s",
    )


async def test_commands_switch_traffic_and_of_two_at_once_one_wins(postgres_url: str) -> None:
    async with serving({"WEIGHBRIDGE_DATABASE_URL": postgres_url}) as ops:
        async with Load(ops.running.url, 10, streams(ops.running.key), pause_s=0.05) as load:
            for name, number in (("one", 1), ("two", 2)):
                ops.propose(name, policy(number, first="b"))
            results = await asyncio.gather(
                *(
                    ops.cli("apply", str(ops.running.home / f"{name}.yaml"), "--expect", "1")
                    for name in ("one", "two")
                )
            )
            assert sorted(status for status, _ in results) == [0, 1], results
            (lost,) = (said for status, said in results if status)
            assert lost["in_force"]["number"] == 2
            await ops.switched(2)
            status, back = await ops.cli("rollback")
            assert (status, back["version"]["origin"]) == (0, "rollback")
            await ops.switched(3)
            answered = len(load.history)
            await until(lambda: len(load.history) > answered + 40, WAIT_S_MAX)
        assert all(a.ok for a in load.history)
        made = await ops.versions()
        assert [v.origin for v in made] == [Origin.ROLLBACK, Origin.APPLY, Origin.START]
        assert made[0].digest == made[2].digest
        assert labels(load.history) == {f"plain@{v.digest[:12]}" for v in made}


async def test_a_worker_killed_amidst_a_change_comes_back_to_what_is_in_force(
    postgres_url: str,
) -> None:
    async with serving({"WEIGHBRIDGE_DATABASE_URL": postgres_url}) as ops:
        async with Load(ops.running.url, 10, streams(ops.running.key), pause_s=0.05) as load:
            first, second = ops.running.children()
            ops.plain.write_text(policy(1, first="b"))
            ops.hangup()
            os.kill(first, signal.SIGKILL)
            await ops.switched(2, workers=1)
            # What is on disk is broken when the next one starts: it takes what is in force.
            ops.plain.write_text("version: [\n")
            os.kill(second, signal.SIGKILL)
            deadline = time.monotonic() + WAIT_S_MAX
            while ops.log("ended with status -9") < 2 or len(ops.running.children()) < 2:
                assert time.monotonic() < deadline, "".join(ops.running.output[-30:])
                await asyncio.sleep(0.05)
            for _ in range(20):  # told to read again before it can heed it: it must not die of it
                ops.hangup()
                await asyncio.sleep(0.1)
            answered = len(load.history)
            await until(lambda: len(load.history) > answered + 100, WAIT_S_MAX)
            await ops.said("stays in force", 2)
            assert ops.log("ended with status") == 2
        newest = (await ops.versions())[0]
        assert newest.number == 2
        assert labels(load.history[-20:]) == {f"plain@{newest.digest[:12]}"}
        odd = [a for a in load.history if not (a.ok or a.broken)]
        assert not odd, odd[:3]


async def test_changes_wait_for_a_database_that_is_away(postgres_url: str) -> None:
    url = urlsplit(postgres_url)
    async with ChaosProxy(url.hostname, url.port) as link:
        through = url._replace(netloc=f"postgres@127.0.0.1:{link.port}").geturl()
        async with (
            serving({"WEIGHBRIDGE_DATABASE_URL": through}) as ops,
            Load(ops.running.url, 10, streams(ops.running.key), pause_s=0.05) as load,
        ):
            await until(lambda: len(load.history) > 100, WAIT_S_MAX)  # both know the key
            await link.down()
            ops.plain.write_text(policy(1, first="b"))
            await ops.said("changed files wait for the database", 2)
            assert (await ops.ready())["policy_version"] == 1
            answered = len(load.history)
            await until(lambda: len(load.history) > answered + 100, WAIT_S_MAX)
            await link.up()
            await ops.switched(2)
            found = await ops.ready()
            assert "policy_error" not in found or "wait" in found["policy_error"]
        assert all(a.ok for a in load.history)
        assert [v.origin for v in await ops.versions()] == [Origin.FILE, Origin.START]


async def test_a_secret_a_place_and_a_bound_follow_the_files(tmp_path) -> None:
    """One worker, a switched off watch: nothing moves before SIGHUP, everything after it."""
    secret = tmp_path / "secret"
    async with vendor_in_loop() as old, vendor_in_loop() as new:
        catalog = vendor_catalog({"a": f"{old.url}/v1"}, a={"secret": f"file:{secret}"})
        async with (
            gateway_beside(
                catalog,
                routing=policy(0),
                prices=prices("a"),
                environment={"WEIGHBRIDGE_POLICY_WATCH": "0"},
            ) as running,
            client(running.url, running.auth) as http,
        ):
            ops = Ops(running, catalog)
            assert (await call(http, chat())).error["code"] == "no_eligible_backend"
            secret.write_text("first")
            ops.hangup()
            await ops.said("no file has changed", 1)
            assert (await call(http, chat())).ok
            secret.write_text("second")
            catalog["backends"]["a"]["base_url"] = f"{new.url}/v1"
            (ops.policies / "catalog.yaml").write_text(_yaml(catalog))
            assert (await call(http, chat())).ok
            assert (await ops.ready())["policy_version"] == 1
            ops.hangup()
            await ops.switched(2, workers=1)
            assert (await call(http, chat())).ok
            keys = [[seen.headers["authorization"] for seen in v.log] for v in (old, new)]
            assert keys == [["Bearer first"] * 2, ["Bearer second"]]


async def test_after_a_restart_what_was_put_by_command_wins_over_the_files(
    postgres_url: str,
) -> None:
    async with serving({"WEIGHBRIDGE_DATABASE_URL": postgres_url}) as ops:
        status, said = await ops.cli("apply", ops.propose("mine", policy(1, first="b")))
        assert status == 0, said
        await ops.switched(2)
        await asyncio.to_thread(ops.running.stop)
        ops.plain.write_text(policy(2))
        await asyncio.to_thread(ops.running.restart)
        await ops.said(r"version 2 .*wins over the files in .*policies \(plain@", 1)
        found = await ops.ready()
        assert found["policy_version"] == 2
        assert found["policy_files"] == "differ from the version in force"
        # Back to the files: by command, too.
        (ops.policies / "routing" / "plain.tests.yaml").write_text(CASES)
        status, said = await ops.cli("apply", "--note", "back to the files")
        assert (status, said["version"]["number"]) == (0, 3)
        await ops.switched(3)
        assert "policy_files" not in await ops.ready()


async def test_a_broken_file_does_not_keep_what_was_in_force_from_starting(tmp_path) -> None:
    async with serving({}, workers=1) as ops:
        await asyncio.to_thread(ops.running.stop)
        good = ops.plain.read_text()
        ops.plain.write_text(good.replace("default:", "defalt:"))
        await asyncio.to_thread(ops.running.restart)
        await ops.said("the files do not load; version 1 ", 1)
        found = await ops.ready()
        while "policy_error" not in found:
            found = await ops.ready()
        assert "defalt" in found["policy_error"]
        async with client(ops.running.url, ops.running.auth) as http:
            answer = await call(http, chat(model="chat"))
        assert answer.ok
        ops.plain.write_text(good)
        async with asyncio.timeout(WAIT_S_MAX):
            while "policy_error" in await ops.ready():
                await asyncio.sleep(0.05)
