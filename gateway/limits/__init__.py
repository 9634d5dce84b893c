"""Budgets, rates and permits: held before the call, settled after it.

index = LimitIndex(limits, catalog, rates)          one per bundle and day
asks = index.asks_for(caller, request)              what this request has to hold
waiting = gate.begin(request_id, asks)              has left; shares a round trip with others
admission = await waiting
if admission.refused: raise refusal(admission, now)
... headers(admission), admission.spent, admission.priced_only ...
gate.settle(admission, Used(...)) or gate.release(admission), or gate.abandon(request_id)
gate.heard.alert = ...                              who is told when a share is reached
"""

from gateway.limits.answers import headers, refusal, refusal_record
from gateway.limits.asks import LimitIndex
from gateway.limits.gate import (
    LEASE_S,
    NOTHING,
    Admission,
    Ask,
    Gate,
    Standing,
    Unlimited,
    Used,
)
from gateway.limits.local import LocalGate
from gateway.limits.news import Alert, Event
from gateway.limits.shared import RedisGate

__all__ = [
    "LEASE_S",
    "NOTHING",
    "Admission",
    "Alert",
    "Ask",
    "Event",
    "Gate",
    "LimitIndex",
    "LocalGate",
    "RedisGate",
    "Standing",
    "Unlimited",
    "Used",
    "headers",
    "refusal",
    "refusal_record",
]
