"""Weighbridge: the gateway every model call of a company passes through, and is weighed on."""

__version__ = "0.1.0"
