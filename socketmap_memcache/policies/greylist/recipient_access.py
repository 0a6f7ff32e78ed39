"""``greylist_recipient_access``: tables that say for recipients and their domains whether to greylist, and how long.

A table is asked as Postfix asks those of check_recipient_access: for the address, its domain and the domains above, and
``user@``; other ``partial_keys`` can be given with the table. What it may say is ``greylist``, ``skip``, which lets the
mail pass, or ``delay=60``, in the units of main.cf. With ``static:skip`` as the last table, only recipients that an
earlier one knows are greylisted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile, excerpt, split_list, strip_braces
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.log_limit import LogLimit
from socketmap_memcache.policies.greylist.key import ATTRIBUTE_LIMIT
from socketmap_memcache.policies.greylist.settings import PARAMETERS, Settings
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.options import open_with_options
from socketmap_memcache.tables.registry import TableContext

# Types that Postfix asks for the whole address only.
_PATTERNS = ("cidr:", "pcre:", "regexp:")


def open_recipient_access(
    name: str, parameters: Parameters, settings: Settings, context: TableContext
) -> RecipientAccess | None:
    """Open the tables that a parameter names; ``None`` if there are none. What is wrong is noted in ``parameters``."""
    tables: list[ITable] = []
    for spec in parameters.words(name, PARAMETERS[name]):
        try:
            tables.append(open_with_options(_with_partial_keys(spec), context))
        except ConfigurationError as error:
            parameters.adopt(name, error.problems)
    return RecipientAccess(tables, settings, context.reactor) if tables else None


def _with_partial_keys(spec: str) -> str:
    """Add ``partial_keys = access`` as an option; what is written there comes later, and counts."""
    try:
        table, *options = split_list(strip_braces(spec)) if spec.startswith("{") else [spec]
    except ValueError:
        return spec  # it is reported when it is opened
    if table.startswith(_PATTERNS):
        return spec
    return "{ " + ", ".join([table, "partial_keys=access", *options]) + " }"


class RecipientAccess:
    """Asks tables, of which the first that knows a recipient counts."""

    _log = Logger()

    def __init__(self, tables: Sequence[ITable], settings: Settings, clock: IReactorTime) -> None:
        """:param tables: are closed with this."""
        self._tables = tables
        self._settings = settings
        self._log_limit = LogLimit(clock)

    def delay(self, recipient: bytes) -> Deferred[int | None]:
        """Give the seconds that mail to a recipient has to wait; ``None`` where it is not to be greylisted.

        It fails with :class:`~socketmap_memcache.errors.TableError` when a table fails. A value that is none of those
        allowed is logged and counts as ``greylist``.
        """
        if not 0 < len(recipient) <= ATTRIBUTE_LIMIT:
            return succeed(self._settings.delay)
        return self._ask(0, recipient)

    def close(self) -> None:
        """Close the tables."""
        for table in self._tables:
            table.close()

    def _ask(self, place: int, recipient: bytes) -> Deferred[int | None]:
        found: Deferred[bytes | None] = self._tables[place].lookup(recipient)
        return found.addCallback(self._found, place, recipient)

    def _found(self, value: bytes | None, place: int, recipient: bytes) -> Deferred[int | None] | int | None:
        if value is None:
            following = place + 1
            return self._ask(following, recipient) if following < len(self._tables) else self._settings.delay
        try:
            return parse_access(value, self._settings)
        except ValueError as error:
            if self._log_limit.due():
                text = "{table}: for {recipient}: {error}; taken as greylist{more}"
                fields = {"table": self._tables[place].name, "recipient": excerpt(recipient), "error": error}
                self._log.error(text, more=self._log_limit.more(), **fields)
            return self._settings.delay


@lru_cache(maxsize=1000)
def parse_access(value: bytes, settings: Settings) -> int | None:
    """Read what a table says.

    :return: seconds of delay; ``None`` for ``skip``.
    :raises ValueError: it is something else, or a delay that no mail survives; the text says so.
    """
    text = value.decode(errors="replace").strip()
    if text.lower() == "greylist":
        return settings.delay
    if text.lower() == "skip":
        return None
    name, equals, time = text.partition("=")
    if equals and name.strip().lower() == "delay":
        delay = int(Parameters(ParsedFile("", {"delay": Entry("delay", time.strip())})).time("delay", -1))
        if 0 <= delay < min(settings.retry_window, settings.max_age):
            return delay
    raise ValueError(f"{excerpt(value)!r} is not greylist, skip or delay=TIME, less than greylist_retry_window")
