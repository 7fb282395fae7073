"""Which hosts are crawled, and to which addresses a crawl may connect.

A whitelist comes from outside, and so do the redirects and the DNS answers of the hosts on it: none of them may lead a
crawl to this machine or into its network (server-side request forgery). What a name resolves to is looked at each time
that a connection is made, and the connection goes to the address that was looked at: see pinned.py.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import idna

from dailies.errors import BadInput, Missing, Transient

LARGEST_WHITELIST = 8 << 20
PATIENCE_S = 20.0
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# As browsers have it: a name that ends like this is an IPv4 address, and a resolver may read it as one.
NUMERIC = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)")
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

log = logging.getLogger("dailies.catalog")


def read_whitelist(source: str) -> list[str]:
    """The hosts of a whitelist, from an http(s) address or a file: each once, in its order, in one spelling."""
    shown = _without_credentials(source)
    if not source.strip():
        raise BadInput("no whitelist is named: give a URL or a file")
    try:
        found = json.loads(_fetched(source, shown) if "://" in source else _read(source))
    except (ValueError, RecursionError):
        raise BadInput(f"the whitelist {shown} is not JSON: it must be a list of hosts") from None
    entries = found.get("data") if isinstance(found, dict) else found
    if not isinstance(entries, list):
        raise BadInput(f'the whitelist {shown} is neither {{"data": [{{"host": …}}]}} nor a list of hosts')
    if not entries:
        raise BadInput(f"the whitelist {shown} is empty: there is nothing to crawl")
    total = found.get("total") if isinstance(found, dict) else None
    if isinstance(total, int) and total > len(entries):
        log.warning("action=whitelist source=%s: it states %d hosts and names %d", shown, total, len(entries))
    return list(dict.fromkeys(_host_of(entry, number, shown) for number, entry in enumerate(entries, 1)))


def host_name(value: str) -> str:
    """``host`` or ``host:port`` in its one spelling: lower case, IDNA, without the port that https has anyway."""
    text = value.strip()
    for sign, what in (("://", "is a URL"), ("@", "holds a name or a password"), ("/", "has a path")):
        if sign in text:
            raise BadInput(f"the host {_clipped(text)} {what}: write it like video.example.org")
    name, port = _port(text)
    name = _literal(name) or _ascii(name, text)
    return name if port in (None, 443) else f"{name}:{port}"


def split_host(host: str) -> tuple[str, int | None]:
    """The name without brackets, as a socket takes it, and the port if there is one. ``host`` is one of ours."""
    name, port = _port(host)
    return name.strip("[]"), port


def refuse_private(hosts: Iterable[str], allow_private: bool) -> None:
    """Before a crawl begins: a host that is by its very name this machine or its network was never meant for it."""
    for host in hosts:
        name, _ = split_host(host)
        address = _address(name)
        wrong = not_public(address) if address else "this machine" if _names_this_machine(name) else None
        if wrong and not allow_private:
            raise BadInput(f"the host {host} is {wrong}: only public hosts are crawled (allow_private)")


def check_address(host: str, allow_private: bool) -> list[str]:
    """The addresses of ``host`` that may be connected to. One that is not public condemns the whole host: a name with
    both kinds is set up to pass a look and to be connected to at another moment."""
    name, _ = split_host(host)
    found = [name] if _address(name) else _resolved(name)
    for text in found:
        address = _address(text.partition("%")[0])
        wrong = "no address" if address is None else not_public(address)
        if wrong and not allow_private:
            raise BadInput(f"{host} leads to {text}, which is {wrong}: only public hosts are crawled")
    return found


def not_public(address: Address) -> str | None:
    """What an address is, where it is none of the public internet's. One inside another counts as well."""
    inner = _carried(address)
    if inner is not None and (wrong := not_public(inner)):
        return wrong
    kinds = {
        "a loopback address": address.is_loopback,
        "a link-local address": address.is_link_local,
        "a multicast address": address.is_multicast,
        "an unspecified address": address.is_unspecified,
        "a private address": address.is_private and not _is_mapped(address),
        "a reserved address": (address.is_reserved or not address.is_global) and inner is None,
    }
    return next((kind for kind, is_it in kinds.items() if is_it), None)


def _is_mapped(address: Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None


def _carried(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address is a way to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    tunnel = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or tunnel


def _resolved(name: str) -> list[str]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Transient(f"the name {name} cannot be resolved") from None
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _names_this_machine(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _host_of(entry: Any, number: int, shown: str) -> str:
    host = entry.get("host") if isinstance(entry, dict) else entry
    if not isinstance(host, str) or not host.strip():
        raise BadInput(f"entry {number} of the whitelist {shown} names no host: {_clipped(entry)}")
    return host_name(host)


def _port(text: str) -> tuple[str, int | None]:
    closing = text.rfind("]")
    if text.count(":") > 1 and closing < 0:  # an IPv6 address without brackets
        return text, None
    name, colon, digits = text.rpartition(":") if text.rfind(":") > closing else (text, "", "")
    if not colon:
        return text, None
    if not re.fullmatch(r"[0-9]{1,5}", digits) or not 0 < int(digits) < 65536:
        raise BadInput(f"the host {_clipped(text)} has no port from 1 to 65535 after its colon")
    return name, int(digits)


def _literal(name: str) -> str | None:
    address = _address(name.strip("[]") if name.startswith("[") and name.endswith("]") else name)
    if address is None or (isinstance(address, ipaddress.IPv6Address) and address.scope_id):
        return None
    return f"[{address}]" if address.version == 6 else str(address)


def _ascii(name: str, text: str) -> str:
    illegal = BadInput(f"the host {_clipped(text)} is no name of a host: write it like video.example.org")
    try:
        plain = idna.encode(name.rstrip("."), uts46=True).decode() if not name.isascii() else name.rstrip(".").lower()
    except (idna.IDNAError, UnicodeError):
        raise illegal from None
    if len(plain) > 253 or not all(LABEL.fullmatch(label) for label in plain.split(".")) or NUMERIC.fullmatch(plain):
        raise illegal
    return plain


def _read(source: str) -> bytes:
    path = Path(source)
    try:
        if path.stat().st_size > LARGEST_WHITELIST:
            raise BadInput(f"the whitelist {source} is larger than {LARGEST_WHITELIST >> 20} MB")
        return path.read_bytes()
    except FileNotFoundError:
        raise Missing(f"there is no whitelist at {source}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"the whitelist {source} cannot be read: {getattr(error, 'strerror', error)}") from None


def _fetched(source: str, shown: str) -> bytes:
    """Whoever runs the update gives this address, so that it may lie in their own network."""
    if not source.lower().startswith(("http://", "https://")):
        raise BadInput(f"the whitelist {shown} is neither a file nor an http(s) address")
    body = bytearray()
    try:
        with httpx.stream("GET", source, timeout=PATIENCE_S, headers={"Accept-Encoding": "identity"}) as answer:
            if answer.is_redirect:
                raise BadInput(f"the whitelist {shown} has moved: give its address, {answer.headers.get('location')}")
            if answer.status_code != 200:
                kind = Transient if answer.status_code >= 500 or answer.status_code == 429 else BadInput
                raise kind(f"the whitelist {shown} cannot be had: it answers {answer.status_code}")
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > LARGEST_WHITELIST:
                    raise BadInput(f"the whitelist {shown} is larger than {LARGEST_WHITELIST >> 20} MB")
    except httpx.InvalidURL:
        raise BadInput(f"the whitelist {shown} is no address") from None
    except (httpx.HTTPError, UnicodeError) as error:
        said = str(error) or type(error).__name__
        raise Transient(f"the whitelist {shown} cannot be fetched ({said}): is the address right?") from None
    return bytes(body)


def _without_credentials(source: str) -> str:
    try:
        parts = urlsplit(source)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else source
    except ValueError:
        return source


def _clipped(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
