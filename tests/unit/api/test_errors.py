"""The error table: every class has a row, every body is OpenAI's error object."""

from __future__ import annotations

import inspect

import orjson
import pytest

from gateway.api.errors import TABLE, error_body, error_event, error_headers, status_of
from gateway.domain import errors as e

CLASSES = [c for _, c in inspect.getmembers(e, inspect.isclass) if issubclass(c, e.GatewayError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_class_of_the_tree_has_a_row(kind: type[e.GatewayError]) -> None:
    assert kind in TABLE


def test_the_table_has_no_row_for_what_does_not_exist() -> None:
    assert set(TABLE) == set(CLASSES)


def test_the_tree_is_drawn_whole_in_its_docstring() -> None:
    assert e.__doc__ is not None
    assert [c.__name__ for c in CLASSES if c.__name__ not in e.__doc__] == []


def test_a_body_has_the_four_fields_and_no_detail() -> None:
    error = e.UpstreamBroken("It broke.", detail="secret address 10.0.0.1")
    body = error_body(error)
    assert orjson.loads(body) == {
        "error": {
            "message": "It broke.",
            "type": "upstream_error",
            "param": None,
            "code": "upstream_broken",
        }
    }
    assert b"10.0.0.1" not in error_event(error)


def test_a_rejection_keeps_the_vendors_status_and_code() -> None:
    error = e.UpstreamRejected("Too long.", status=422, upstream_code="context_length_exceeded")
    assert status_of(error) == 422
    assert orjson.loads(error_body(error))["error"]["code"] == "context_length_exceeded"


def test_when_all_failed_alike_their_status_stands() -> None:
    busy = e.UpstreamBusy("busy", status=429, retry_after_s=7.0)
    busier = e.UpstreamBusy("busy", status=429, retry_after_s=30.0)
    both = e.AllAttemptsFailed("all", failures=(busy, busier))
    assert status_of(both) == 429
    assert (b"retry-after", b"7") in error_headers(both)
    mixed = e.AllAttemptsFailed("all", failures=(busy, e.UpstreamBroken("x")))
    assert status_of(mixed) == 502


def test_after_our_own_retries_the_sdk_is_told_not_to() -> None:
    failed = e.AllAttemptsFailed("all", failures=(e.UpstreamBroken("x"),))
    assert (b"x-should-retry", b"false") in error_headers(failed)
