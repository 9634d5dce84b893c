"""The anthropic SDK before `/v1/messages` is spoken: it must be told so in a way it understands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.client import Client
from tests.gateway_process import GatewayProcess

pytestmark = [pytest.mark.clients, pytest.mark.xdist_group("clients")]

MESSAGE = {"model": "chat", "max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def app(clients: Callable[[str], Client]) -> Client:
    return clients("anthropic")


@pytest.mark.parametrize("stream", [False, True])
def test_messages_are_not_spoken_yet_and_it_is_told_so(app: Client, stream: bool) -> None:
    """To be replaced by tests of `/v1/messages` when that is there."""
    error = app.run(call="messages.create", arguments={**MESSAGE, "stream": stream})["error"]
    assert (error["type"], error["status"]) == ("NotFoundError", 404)
    assert error["body"]["error"]["code"] == "not_found"
    assert error["body"]["error"]["message"] == "There is no /v1/messages here."


def test_counting_tokens_is_not_spoken_yet_either(app: Client) -> None:
    arguments = {"model": "chat", "messages": MESSAGE["messages"]}
    error = app.run(call="messages.count_tokens", arguments=arguments)["error"]
    assert (error["type"], error["status"]) == ("NotFoundError", 404)


@pytest.mark.parametrize("header", [None, "x-api-key"])
def test_its_key_opens_models(app: Client, served: GatewayProcess, header: str | None) -> None:
    """The SDK's own way, and the header that older ones use."""
    key = served.new_key("--alias", "chat")
    saw = app.run(call="models.list", key=key, header=header)
    assert [one["id"] for one in saw["value"]["data"]] == ["chat"]


@pytest.mark.parametrize("header", [None, "x-api-key"])
def test_a_wrong_key_is_an_authentication_error(app: Client, header: str | None) -> None:
    error = app.run(call="models.list", key="wb_live_wrong", header=header)["error"]
    assert (error["type"], error["status"]) == ("AuthenticationError", 401)
