"""The policy ``greylist``: what postgrey does, over any table.

A mail passes or is deferred by what the table has of its triplet (client, sender and recipient) and of its client; see
:mod:`.decide`. Both are looked up at the same time. A mail is deferred only when the table has acknowledged that it
remembers: what no table remembers would be deferred for ever. When the table fails, the fail action is the answer.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.asker import Asker, is_known, tell
from socketmap_memcache.clock import time_of_day
from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.errors import ConfigurationError, LookupTimeout, TableError
from socketmap_memcache.log_limit import LogLimit
from socketmap_memcache.policies.asked import deferred
from socketmap_memcache.policies.greylist.attempt import Attempt
from socketmap_memcache.policies.greylist.cleaner import Cleaner
from socketmap_memcache.policies.greylist.decision_log import DecisionLog
from socketmap_memcache.policies.greylist.deferrals import Deferrals
from socketmap_memcache.policies.greylist.key import ATTRIBUTE_LIMIT, ClientAddress, parse_client
from socketmap_memcache.policies.greylist.lists import NEEDED, NO_ADDRESS, RECIPIENT_ACCESS, Lists, open_lists
from socketmap_memcache.policies.greylist.log_line import GREYLIST, PASS, decision_line
from socketmap_memcache.policies.greylist.settings import PARAMETERS, Settings, read_settings
from socketmap_memcache.policies.interface import (
    DUNNO,
    IAskedPolicy,
    IPolicy,
    IPolicyType,
    PolicyContext,
    Promise,
    Request,
)
from socketmap_memcache.tables.asked import lookup_for, update_for
from socketmap_memcache.tables.fail import FailTable
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.options import open_with_options
from socketmap_memcache.tables.read_only import refusal_of
from socketmap_memcache.tables.registry import TableContext

NO_STORE = b"no store"

#: Messages of which it is remembered that they have their header already; as many as in postgrey.
INSTANCES = 10

# Fail actions with which mail goes on its way.
_PASSING = {
    *(b"BCC", b"DUNNO", b"FILTER", b"HOLD", b"INFO", b"OK", b"PERMIT", b"PREPEND"),
    *(b"REDIRECT", b"RELAY", b"WARN"),
}


@implementer(IPolicyType)
class GreylistType:
    """Opens the policy."""

    name = "greylist"
    parameters = PARAMETERS

    def open(self, parameters: Parameters, context: PolicyContext) -> IPolicy:
        """Open the tables and lists that the parameters name; see :class:`IPolicyType`."""
        settings = read_settings(parameters)
        lists = open_lists(parameters, settings, context.tables)
        table = _open_table(parameters, context.tables)
        return GreylistPolicy(settings, lists, table, context.reactor, context.tables.kept)


def _open_table(parameters: Parameters, context: TableContext) -> ITable:
    name = "greylist_table"
    spec = parameters.text(name, PARAMETERS[name])
    apart = len(context.apart)
    try:
        table = open_with_options(spec, context, create=True)
    except ConfigurationError as error:
        parameters.adopt(name, error.problems)
        return FailTable("fail:greylist_table")
    if context.workers > 1 and len(context.apart) > apart:
        text = f"{name} = {spec}: each of the {context.workers} workers would have a greylist of its own in memory"
        parameters.error(name, f"{text}; use a table that they can share, such as lmdb:, or workers = 1")
    refusal = refusal_of(table, "update")
    if refusal is not None:
        parameters.error(name, f"{name} = {spec}: {refusal}")
    return table


greylist_type = GreylistType()


@implementer(IAskedPolicy)
class GreylistPolicy:
    """Greylisting."""

    name = "greylist"
    _log = Logger()

    def __init__(
        self, settings: Settings, lists: Lists, table: ITable, reactor: Any, kept: dict[str, Any] | None = None
    ) -> None:
        """Make a policy; nothing happens before the first request.

        :param lists: are closed with the policy.
        :param table: the same. Keys in it that begin with ``t/`` and ``c/`` are the policy's.
        :param kept: what this process remembers is left there, for the policy that takes the place of this one.
        """
        self.fail_action = DUNNO if settings.training_mode else settings.fail_action
        training = ", in training mode" if settings.training_mode else ""
        self.description = f"greylist: what is new waits {settings.delay} s, records in {table.name}{training}"
        self.table = table
        self.lookup_for = lookup_for(table)
        self.update_for = update_for(table)
        self.seconds = time_of_day(reactor)
        kept = {} if kept is None else kept
        window = min(settings.retry_window, settings.max_age)
        self.deferrals: Deferrals = kept.setdefault("greylist deferrals", Deferrals(window))
        self.deferrals.window = window
        self._settings = settings
        self._without_awl = attrs.evolve(settings, auto_whitelist_clients=0)
        self._lists = lists
        self._exemptions = lists.exemptions()
        self._reactor = reactor
        self._lines = DecisionLog(reactor, self._log)
        self.log_line = self._lines.add
        self._log_limits: dict[str, LogLimit] = {}
        self._instances: deque[bytes] = kept.setdefault("greylist instances", deque(maxlen=INSTANCES))
        self._cleaner: Cleaner | None = None
        self._under_way = 0
        self._closed = False

    def decide(self, request: Request) -> Deferred[bytes]:
        """Decide; see :class:`IPolicy`."""
        return deferred(partial(self.decide_for, request))

    def decide_for(self, request: Request, asker: Asker, token: Any) -> Promise | None:
        """Decide; see :class:`IAskedPolicy`."""
        if self._cleaner is None:
            # Not when the policy is opened: that may be in a thread, and perhaps no reactor will run.
            self._cleaner = Cleaner(self.table, self._settings, self._reactor)
        for name in NEEDED:
            if name not in request:
                self.log_line(f"attribute missing: {name.decode()}")
                asker.answered(DUNNO, token)
                return None
        client = parse_client(request[b"client_address"][:ATTRIBUTE_LIMIT], self._settings)
        if client is None:
            asker.answered(self.let_pass(request, NO_ADDRESS), token)
            return None
        for reason, holds in self._exemptions:
            if holds(request):
                asker.answered(self.let_pass(request, reason), token)
                return None
        access = self._lists.recipient_access
        if access is None:
            return self._attempt(self._settings.delay, request, client, asker, token)
        delay: Deferred[Any] = access.delay(request[b"recipient"])
        if is_known(delay):
            known: Any = delay.result
            return self._accessed(known, request, client, asker, token)
        self.begun()
        answer = delay.addCallbacks(
            lambda found: deferred(partial(self._accessed, found, request, client)),
            self._access_failed,
            errbackArgs=(request,),
        )
        tell(answer.addBoth(self._access_done), asker, token)
        return answer

    def close(self) -> None:
        """Close the lists and the table when the requests under way have their answers; see :class:`IPolicy`."""
        if not self._closed:
            self._closed = True
            if self._cleaner is not None:
                self._cleaner.stop()
            self._let_go()

    def _attempt(self, delay: int, request: Request, client: ClientAddress, asker: Asker, token: Any) -> Attempt | None:
        """Ask the table."""
        settings = self._settings if self._lists.may_auto_whitelist(request) else self._without_awl
        return Attempt(self, request, client, settings, delay, asker, token).start()

    def _accessed(
        self, delay: int | None, request: Request, client: ClientAddress, asker: Asker, token: Any
    ) -> Attempt | None:
        """Ask the table, unless the recipient wants no greylisting."""
        if delay is not None:
            return self._attempt(delay, request, client, asker, token)
        asker.answered(self.let_pass(request, RECIPIENT_ACCESS), token)
        return None

    def _access_failed(self, failure: Failure, request: Request) -> bytes:
        if failure.check(CancelledError):
            failure = Failure(LookupTimeout("greylist_recipient_access: no answer in time"))
        failure.trap(TableError)
        return self.fail(request, failure)

    def _access_done(self, result: Any) -> Any:
        self.done()
        return result

    def _let_go(self) -> None:
        if not self._under_way:
            self._lines.flush()
            self._lists.close()
            self.table.close()

    # What attempts need.

    def begun(self) -> None:
        """Hear that a request is under way, which needs the table."""
        self._under_way += 1

    def done(self) -> None:
        """Hear that it does not need it any more."""
        self._under_way -= 1
        if self._closed:
            self._let_go()

    def let_pass(self, request: Request, reason: bytes, delayed: int | None = None) -> bytes:
        """Log that a mail passes, and return the action."""
        self.log_line(decision_line(request, PASS, reason, delayed, self._settings.training_mode))
        return DUNNO

    def log_deferral(self, request: Request, reason: bytes) -> None:
        """Log that a mail is deferred."""
        self.log_line(decision_line(request, GREYLIST, reason, training=self._settings.training_mode))

    def is_new_message(self, instance: bytes | None) -> bool:
        """Say whether a message has no header yet, as far as is known; it is known from now on."""
        if instance is None:
            return True
        instance = instance[:ATTRIBUTE_LIMIT]
        if instance in self._instances:
            return False
        self._instances.appendleft(instance)
        return True

    def fail(self, request: Request, failure: Failure) -> bytes:
        """Log that a table has failed, and return the action."""
        action = self.fail_action
        self.complain("{error}; answered {action}", error=failure.value, action=action.decode())
        if action.split()[0].upper() in _PASSING:
            self.let_pass(request, NO_STORE)
        else:
            self.log_deferral(request, NO_STORE)
        return action

    def complain(self, text: str, **fields: object) -> None:
        """Log something that may happen with each request, but not each time."""
        limit = self._log_limits.get(text)
        if limit is None:
            limit = self._log_limits[text] = LogLimit(self._reactor)
        if limit.due():
            self._log.warn(text + "{more}", more=limit.more(), **fields)
