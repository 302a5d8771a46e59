"""Where something is served, who may log in to the page, and under which names it may be asked for."""

import errno
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_gui.errors import UserError

AUTH = "QLORA_GUI_AUTH"  # user:password in the environment
FIRST_PORT, PORTS = 7860, 40
LEAST_PASSWORD = 8


@dataclass(frozen=True)
class Address:
    """`port` None is the first free one from 7860. `auth` is user:password, or "" for a made one where it is needed.

    `hosts` are further names of this machine under which others reach the page. `token` False opens a page on this
    machine to all its users and programs.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    auth: str = ""
    hosts: Sequence[str] = ()
    token: bool = True

    @property
    def is_reachable(self) -> bool:
        """Whether others than programs of this machine can reach the page."""
        return self.share or not (self.host == "localhost" or self.host.startswith("127."))

    @property
    def has_guests(self) -> bool:
        """Whether others than who started it are meant to use the page: they may not do there all that the owner may."""
        return self.is_reachable or bool(self.auth) or bool(self.hosts)

    def login(self) -> tuple[str, str] | None:
        """User and password, None where none is needed. Raises UserError for a bad or a short one."""
        if not self.auth:
            return ("qlora", secrets.token_urlsafe(12)) if self.is_reachable else None
        user, colon, password = self.auth.partition(":")
        if not (user.strip() and colon and password):
            raise UserError("--auth needs a user and a password with a colon between them, like --auth me:secret.")
        if self.is_reachable and len(password) < LEAST_PASSWORD:
            raise UserError(
                f"The password is too short for a page that others can reach: use {LEAST_PASSWORD} characters."
            )
        return user.strip(), password

    def names(self) -> list[str]:
        """The host names under which the page may be asked for."""
        own = [] if is_number(self.host) else [self.host]
        if self.is_reachable:
            name = socket.gethostname()
            own += [name, f"{name}.local", socket.getfqdn()]
        return [*dict.fromkeys([*own, *self.hosts])]

    def free_port(self, first: int = FIRST_PORT) -> int:
        """The port asked for, or the first free one from `first`. Raises UserError."""
        if is_number(self.host) and ":" in self.host:
            raise UserError(f"The page cannot listen on '{self.host}': use an IPv4 address, or a name.")
        if self.port is not None:
            if not 0 < self.port < 65536:
                raise UserError(f"There is no port {self.port}: choose one from 1 to 65535 with --port.")
            if not _is_free(self.host, self.port):
                raise UserError(
                    f"Port {self.port} is in use: choose another with --port, or stop the program that has it."
                )
            return self.port
        for number in range(first, first + PORTS):
            if _is_free(self.host, number):
                return number
        raise UserError(f"No port from {first} to {first + PORTS - 1} is free: choose one with --port.")


def is_number(host: str) -> bool:
    """Whether a host is an address in numbers, and no name."""
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        return False


def _is_free(host: str, port: int) -> bool:
    """Whether the port can be bound. Raises UserError when the host is not an address of this machine."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError:
        raise UserError(f"The host '{host}' cannot be found: use 127.0.0.1, or an address of this machine.") from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except PermissionError:
            raise UserError(f"Port {port} needs an administrator: choose one above 1023 with --port.") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(f"The host '{host}' is no address of this machine: use 127.0.0.1.") from None
            return False
    return True
