"""Fixtures of the whole suite: real servers and real engines, each started once per run."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.servers", "tests.engines.fixtures"]

# Two busy cores make any example slow now and then; that says nothing about the code.
settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("shared machine")
