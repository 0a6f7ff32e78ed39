"""``test``: what greylisting would do with a request, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Mapping
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from socketmap_memcache.commands.greylist_display import time_shown
from socketmap_memcache.commands.greylist_session import Session
from socketmap_memcache.commands.greylist_show import client_shown, triplet_shown
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.commands.map_streams import STDIN, Lines, Source
from socketmap_memcache.errors import TableError
from socketmap_memcache.policies.greylist.explain import Explanation, explain
from socketmap_memcache.policies.greylist.lists import open_lists
from socketmap_memcache.policies.greylist.log_line import printable
from socketmap_memcache.policies.greylist.record import Client, Triplet, format_record
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.protocols.policy import PolicyProtocolError, parse_request

_REQUEST = (b"request", b"smtpd_access_policy")


@inlineCallbacks
def test(session: Session, _options: argparse.Namespace) -> Generator[Deferred[Any], Any, int]:
    """Read a request from standard input, and print the decision and what led to it. Nothing is stored.

    :raises FatalError: it is no request.
    :raises ConfigurationError: a list cannot be opened.
    :raises TableError: a table failed; what the service would answer then has been printed.
    """
    settings = session.settings
    lists = open_lists(session.parameters, settings, session.context)
    try:
        session.check()
        request = yield _read_request(Source(STDIN, session.context.reactor))
        now = _time(request, session.now)
        try:
            explanation = yield explain(request, now, settings, lists, session.table)
        except TableError:
            yield session.sink.write(f"answer     {printable(settings.fail_action)}\nreason     no store\n".encode())
            raise
        yield session.sink.write("".join(f"{line}\n" for line in describe(explanation, now, settings)).encode())
    finally:
        lists.close()
    return 0


@inlineCallbacks
def _read_request(source: Source) -> Generator[Deferred[Any], Any, Mapping[bytes, bytes]]:
    lines = Lines(source)
    request: list[bytes] = []
    while not lines.ended:
        found = yield lines.next()
        for line in (each.rstrip(b"\r") for each in found):
            if not line:
                return _parse(request)
            request.append(line)
    return _parse(request)


def _parse(lines: list[bytes]) -> Mapping[bytes, bytes]:
    if not any(line.startswith(b"request=") for line in lines):
        lines = [b"=".join(_REQUEST), *lines]
    try:
        return parse_request(b"\n".join(lines))
    except PolicyProtocolError as error:
        raise FatalError(str(error)) from error


def _time(request: Mapping[bytes, bytes], now: int) -> int:
    """Give the time of the decision: postgrey's attribute for tests sets it."""
    text = request.get(b"policy_test_time")
    if text is None:
        return now
    if not text.isdigit() or len(text) > 11:
        raise FatalError(f"policy_test_time={printable(text)}: not a number of seconds")
    return int(text)


def describe(explanation: Explanation, now: int, settings: Settings) -> list[str]:
    """Say in words what would happen, and what it follows from.

    :return: lines without their ends.
    """
    decision = explanation.decision
    deferred = decision is not None and not decision.passed
    lines = [
        f"answer     {printable(explanation.answer)}",
        f"decision   {'greylist' if deferred else 'pass'}{' (training mode)' if settings.training_mode else ''}",
        f"reason     {printable(explanation.reason)}",
        f"time       {time_shown(now)}",
    ]
    if explanation.client is not None:
        client = explanation.client
        lines.append(f"client     {printable(client.text)}, in triplets {printable(client.network)}")
    lines += [f"asked      {printable(name)}: {'yes' if holds else 'no'}" for name, holds in explanation.exemptions]
    delay = explanation.delay
    if decision is None or delay is None:
        return lines
    lines.append(f"delay      {delay} s")
    if not explanation.may_auto_whitelist:
        lines.append("client     is never auto-whitelisted")
    triplet_key, client_key = printable(explanation.triplet_key or b""), printable(explanation.client_key or b"")
    lines += [
        f"triplet    {triplet_key}",
        f"           {triplet_shown(explanation.triplet_value, now, settings, delay)}",
        f"client     {client_key}",
        f"           {client_shown(explanation.client_value, now, settings)}",
    ]
    stored: list[tuple[str, Triplet | Client | None, int]] = [
        (triplet_key, decision.triplet, decision.triplet_ttl),
        (client_key, decision.client, decision.client_ttl),
    ]
    for key, record, ttl in stored:
        if record is not None:
            lines.append(f"would store {key} = {format_record(record).decode()} for {ttl} s")
    return lines
