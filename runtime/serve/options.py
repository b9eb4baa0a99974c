"""What a server may be told: where it listens, who may ask, and how much of everything it takes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from torchless.arguments import check_count
from torchless.errors import InputError


@dataclass(frozen=True)
class Options:
    """Settings of a server; a wrong one is an InputError.

    host, port: where it listens; 0 takes a free port. allow_remote: without it only addresses of this machine are
    taken. allow_hosts: names that a request's Host header may give besides them; allow_origins: web pages that may
    ask, as the browser's Origin header has them ("*": all). api_key: what every request but /health must bring.

    batch_size: texts of a model that are continued together. queue: texts that may wait for a place; a request for
    more gets 503 with Retry-After. max_body: bytes. max_connections: at once. header_timeout, body_timeout,
    write_timeout: seconds that a peer may take to send a request's head or its body, or to read what is sent.
    stop_timeout: seconds that answers have to end when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 0
    allow_remote: bool = False
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    api_key: str | None = None
    batch_size: int = 8
    queue: int = 64
    max_body: int = 8 << 20
    max_connections: int = 256
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    stop_timeout: float = 5.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "queue", "max_body", "max_connections"):
            check_count(name, getattr(self, name))
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 0 <= self.port <= 65535:
            raise InputError(f"port={self.port!r}: give a number from 0 (a free one) to 65535")
        for name in ("header_timeout", "body_timeout", "write_timeout", "stop_timeout"):
            if not 0 < getattr(self, name) < 1e6:
                raise InputError(f"{name}={getattr(self, name)!r}: give seconds, above 0")
        if self.api_key is not None and (not self.api_key.isascii() or not self.api_key.strip()):
            raise InputError("api_key is empty, or not ASCII, which is all that a header can bring")
        if not self.host or (not self.local and not self.allow_remote):
            raise InputError(
                f"host={self.host!r} can be reached from other machines: pass allow_remote=True if you want that, "
                "with api_key="
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return loopback(self.host)


def loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if host == "localhost":
        return True
    address = address_of(host)
    return address is not None and address.is_loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a text is, with or without the brackets of a URL; None for a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
