"""How often a password may be tried: apart by address, and together for all whom nobody knows.

A try that comes too early is held back until its turn, not refused, where that is no more than half a minute away.
"""

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass

FREE_TRIES, LONGEST_PAUSE = 3, 30.0  # of one address
ALL_FREE, ALL_PAUSE = 20, 1.0  # of all addresses: at most 86,400 tries a day
_FORGOTTEN = 900.0  # seconds after which an address begins anew
_MOST_LANES = 4096


@dataclass
class _Lane:
    """Wrong tries of an address, and when its next one may be."""

    failures: int = 0
    free_at: float = 0.0


class Throttle:
    """Every try counts as wrong until it was right, so that many at once gain nothing."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._all_at = 0.0  # when as many tries as came would be used up at the pace of all

    def ask(self, address: str) -> float | None:
        """Seconds to hold back a try from this address; None where it is too many and must be refused."""
        now = time.monotonic()
        lane = self._lanes.get(address) or _Lane()
        wait = max(lane.free_at, self._all_at - ALL_FREE * ALL_PAUSE, now) - now
        if wait > LONGEST_PAUSE:
            return None
        lane.failures += 1
        lane.free_at = now + wait + _pause(lane.failures)
        self._all_at = max(self._all_at, now) + ALL_PAUSE
        self._lanes[address] = lane
        if len(self._lanes) > _MOST_LANES:
            self._forget(now)
        return wait

    def right(self, address: str) -> None:
        """The try from this address was right: its wrong ones are forgotten."""
        if self._lanes.pop(address, None):
            self._all_at -= ALL_PAUSE

    def _forget(self, now: float) -> None:
        """Drop the addresses that have been quiet the longest: those long forgotten, or, if there are none, half."""
        order = sorted(self._lanes, key=lambda address: self._lanes[address].free_at)
        old = [address for address in order if self._lanes[address].free_at < now - _FORGOTTEN]
        for address in old or order[: _MOST_LANES // 2]:
            del self._lanes[address]


def _pause(failures: int) -> float:
    return 0.0 if failures < FREE_TRIES else min(2.0 ** min(failures - FREE_TRIES, 10), LONGEST_PAUSE)


def whose(client: str, forwarded: Sequence[str]) -> str:
    """The address that a request counts for, of IPv6 its /64: that of the client, or what a proxy of this machine wrote.

    `client` is the peer as the server sees it, `forwarded` the X-Forwarded-For headers. A tunnel and a reverse proxy
    connect from this machine and add the address they saw at the end, behind whatever the client made up: of a chain the
    last public address counts. It makes a difference only to who waits for whom; all addresses share one pace.
    """
    chain = [hop.strip() for line in forwarded for hop in line.split(",")][-16:]
    if client in chain or _parsed(client) is None or getattr(_parsed(client), "is_loopback", False):
        client = next((hop for hop in reversed(chain) if getattr(_parsed(hop), "is_global", False)), client)
    address = _parsed(client)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address or "unknown")


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
