"""Fixtures of several tests of data."""

from tests.conversations import hard

__all__ = ["hard"]
