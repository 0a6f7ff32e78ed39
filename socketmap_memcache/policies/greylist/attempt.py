"""One request on its way through the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from socketmap_memcache.asker import Asker
from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.errors import LookupTimeout, PermanentError, TableError
from socketmap_memcache.policies.greylist.decide import NEW, Decision, decide
from socketmap_memcache.policies.greylist.key import ATTRIBUTE_LIMIT, ClientAddress, client_key, triplet_key
from socketmap_memcache.policies.greylist.log_line import printable
from socketmap_memcache.policies.greylist.record import (
    Client,
    RecordError,
    Triplet,
    format_record,
    parse_client,
    parse_triplet,
)
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.policies.greylist.texts import greylist_reply, header_reply
from socketmap_memcache.policies.interface import DUNNO, Request
from socketmap_memcache.prompt_writer import WRITES_TOGETHER

if TYPE_CHECKING:
    from socketmap_memcache.policies.greylist.policy import GreylistPolicy

FORGOTTEN = b"forgotten by the store"


class Attempt:
    """A request that the table has to decide. It hears of the records; see :class:`~socketmap_memcache.asker.Asker`."""

    __slots__ = (
        "_asker",
        "_client",
        "_client_key",
        "_client_record",
        "_delay",
        "_finished",
        "_key",
        "_policy",
        "_request",
        "_settings",
        "_token",
        "_triplet",
        "_waiting",
    )

    def __init__(
        self,
        policy: GreylistPolicy,
        request: Request,
        client: ClientAddress,
        settings: Settings,
        delay: int,
        asker: Asker,
        token: Any,
    ) -> None:
        """Make an attempt; nothing is asked.

        :param settings: without auto-whitelisting for a client that is never to be.
        :param delay: that of the recipient.
        :param asker: hears of the action.
        """
        self._policy = policy
        self._request = request
        self._client = client
        self._settings = settings
        self._delay = delay
        self._key = triplet_key(client, request[b"sender"], request[b"recipient"], settings)
        self._client_key = client_key(client, settings)
        self._triplet: Triplet | None = None
        self._client_record: Client | None = None
        self._waiting = 0
        self._finished = False
        self._asker = asker
        self._token = token

    def start(self) -> Attempt | None:
        """Ask for the records, both at the same time.

        :return: the attempt itself, where the asker is told later.
        """
        policy, key = self._policy, self._key
        policy.begun()
        if self._settings.auto_whitelist_clients:
            self._waiting = 2
            client_key = self._client_key
            with WRITES_TOGETHER:
                policy.lookup_for(client_key, self, client_key)
                policy.lookup_for(key, self, key)
        else:
            self._waiting = 1
            policy.lookup_for(key, self, key)
        return None if self._finished else self

    def cancel(self) -> None:
        """Hear that the time is over: the fail action was the answer."""
        self._finished = True
        self._policy.fail(self._request, Failure(LookupTimeout(f"{self._policy.table.name}: no answer in time")))
        self._policy.done()

    def answered(self, value: bytes | None, key: bytes) -> None:
        """Hear what the table has. A record that cannot be read counts as none, so that it is written anew."""
        if value is not None:
            try:
                if key is self._key:
                    self._triplet = parse_triplet(value)
                else:
                    self._client_record = parse_client(value)
            except RecordError as error:
                self._policy.complain("{key}: {error}; taken as unseen", key=excerpt(key), error=error)
        self._waiting -= 1
        if not self._waiting and not self._finished:
            try:
                self._decide()
            except Exception:  # noqa: BLE001 (whoever waits must hear of it, whatever it is)
                self._break(Failure())

    def failed(self, failure: Failure, key: bytes | None = None) -> None:
        """Hear that a table does not work."""
        if self._finished:
            return
        if failure.check(TableError) is None:
            self._break(failure)
        else:
            self._finish(self._policy.fail(self._request, failure))

    def _decide(self) -> None:
        policy = self._policy
        now = int(policy.seconds())
        decision = decide(self._triplet, self._client_record, now, self._settings, self._delay)
        if decision.reason == NEW:
            decision = self._remember(decision, now)
        if decision.corrected:
            policy.log_line("correcting date for first seen in the future!")
        if decision.passed:
            self._finish(self._pass(decision, now))
            return
        assert decision.triplet is not None
        record = format_record(decision.triplet)
        policy.update_for(self._key, record, decision.triplet_ttl, _DEFERRAL, (self, decision))

    def _remember(self, decision: Decision, now: int) -> Decision:
        """Note that a mail is about to be deferred as new, unless the table has forgotten it too often."""
        first = self._policy.deferrals.add(self._key, now, self._delay)
        if first is None:
            return decision
        text = "{table} forgets what was deferred, which passes now; is it emptied, or too small?"
        self._policy.complain(text, table=self._policy.table.name)
        decision = decide(Triplet(first, first), self._client_record, now, self._settings, self._delay)
        return decision._replace(reason=FORGOTTEN)

    def _pass(self, decision: Decision, now: int) -> bytes:
        """Let a mail pass. It does not wait for the updates."""
        policy, request = self._policy, self._request
        triplet, client = decision.triplet, decision.client
        if triplet is not None and triplet != self._triplet:  # not twice in a second
            policy.update_for(self._key, format_record(triplet), decision.triplet_ttl, _PASSED, policy)
        if client is not None:
            policy.update_for(self._client_key, format_record(client), decision.client_ttl, _PASSED, policy)
        if decision.whitelisted:
            name, address = printable(request[b"client_name"][:ATTRIBUTE_LIMIT]), self._client.text.decode()
            policy.log_line(f"whitelisted: {name}[{address}]" if name else f"whitelisted: {address}")
        if decision.delayed is None:
            return policy.let_pass(request, decision.reason)
        policy.deferrals.discard(self._key)
        if not policy.is_new_message(request.get(b"instance")):
            return policy.let_pass(request, decision.reason)
        policy.let_pass(request, decision.reason, decision.delayed)
        return header_reply(self._settings, decision.delayed, now)

    def remembered(self, stored: bool, decision: Decision) -> None:
        """Hear that the table has, or has not, stored a triplet that is to be deferred."""
        if self._finished:
            return
        policy, request = self._policy, self._request
        if not stored:
            text = f"{policy.table.name}: does not take the keys of greylisting; has it a domain list?"
            self.failed(Failure(PermanentError(text)))
            return
        policy.log_deferral(request, decision.reason)
        training = self._settings.training_mode
        self._finish(DUNNO if training else greylist_reply(self._settings, request, decision.missing))

    def _finish(self, action: bytes) -> None:
        self._finished = True
        self._asker.answered(action, self._token)
        self._policy.done()

    def _break(self, failure: Failure) -> None:
        self._finished = True
        self._asker.failed(failure, self._token)
        self._policy.done()


class _Deferral:
    """Hears whether the table remembers a deferral, without which it must not be told."""

    def answered(self, stored: bool, token: tuple[Attempt, Decision]) -> None:
        attempt, decision = token
        attempt.remembered(stored, decision)

    def failed(self, failure: Failure, token: tuple[Attempt, Decision]) -> None:
        token[0].failed(failure)


class _Passed:
    """Hears whether the table remembers what has passed, which no mail waits for."""

    def answered(self, stored: bool, policy: GreylistPolicy) -> None:
        pass

    def failed(self, failure: Failure, policy: GreylistPolicy) -> None:
        policy.complain("{error}; what passed is not remembered", error=failure.value)


_DEFERRAL, _PASSED = _Deferral(), _Passed()
