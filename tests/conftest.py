"""Fixtures of the whole suite: real servers and real engines, each started once per run."""

pytest_plugins = ["tests.servers", "tests.engines.fixtures"]
