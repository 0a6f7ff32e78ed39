"""The options that any table may have: in a ``.cf`` file, or after its name in ``tables``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile, parse, read_file, split_list, split_option, strip_braces
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext

if TYPE_CHECKING:
    # At run time they are imported where they are used: few tables do, and a map command may be over before they are.
    from socketmap_memcache.tables.match_list import MatchList
    from socketmap_memcache.tables.partial_keys import PartialKeys


def read_cf(kind: str, name: str) -> Parameters:
    """Read the ``.cf`` file of a table.

    :param name: the file; as with Postfix, its name begins with ``/`` or ``.``.
    :raises ConfigurationError: it does not, or the file cannot be read.
    """
    if not name.startswith(("/", ".")):
        text = (
            f"table '{kind}:{name}': write the name of a file that begins with / or ./ "
            "(Postfix would look for parameters in its own main.cf, which are not read here)"
        )
        raise ConfigurationError([Problem(text)])
    return Parameters(parse(read_file(name), name))


def finish(parameters: Parameters, context: TableContext, *opened: MatchList | PartialKeys | ITable | None) -> None:
    """Hand on what is wrong with a file.

    :param opened: what was opened because of it; closed where there are errors.
    :raises ConfigurationError: with all of them.
    """
    try:
        parameters.finish(context.warnings)
    except ConfigurationError:
        for each in opened:
            if each is not None:
                each.close()
        raise


def read_partial_keys(parameters: Parameters, context: TableContext) -> PartialKeys | None:
    """Read ``partial_keys`` (default: none) and what belongs to it.

    ``recipient_delimiter``, ``local_domains``, ``parent_domain_matches_subdomains`` and
    ``propagate_unmatched_extensions`` mean what they mean in Postfix's main.cf, but the last two are yes or no.

    :return: ``None`` where only full keys are to be looked up.
    """
    kind = parameters.text("partial_keys", "none")
    delimiters = parameters.text("recipient_delimiter", "").encode(errors="surrogateescape")
    local_domains = read_match_list(parameters, "local_domains", context)
    kinds: Mapping[str, bool] = {}
    if kind != "none":
        from socketmap_memcache.tables.partial_keys import KINDS, PartialKeys

        kinds = KINDS
    subdomains_match = parameters.boolean("parent_domain_matches_subdomains", kinds.get(kind, True))
    propagate = parameters.boolean("propagate_unmatched_extensions", True)
    if kind in kinds:
        return PartialKeys(kind, delimiters, local_domains, subdomains_match, propagate)
    if kind != "none":
        parameters.error("partial_keys", f"partial_keys = {kind}: write one of none, {', '.join(kinds)}")
    if local_domains is not None:
        local_domains.close()
    return None


def with_partial_keys(table: ITable, partial_keys: PartialKeys | None) -> ITable:
    """Give a table that tries partial keys, if there is something to try."""
    if partial_keys is None:
        return table
    from socketmap_memcache.tables.partial_keys import PartialKeysTable

    return PartialKeysTable(table, partial_keys)


def open_with_options(spec: str, context: TableContext, create: bool = False) -> ITable:
    """Open ``type:table``, or with options ``{ type:table, name=value, ... }``.

    The options are those of :func:`read_partial_keys`, and ``timeout`` (default: 10s) for an operation on a table that
    can hang; a memcache: table has its own in its file.

    :param create: see :meth:`TableContext.open_table`.
    :raises ConfigurationError: an unknown option, a bad value, or whatever is wrong with the table.
    """
    if not spec.startswith("{"):
        return context.open_table(spec, create)
    parsed = ParsedFile(spec)
    try:
        name, *options = split_list(strip_braces(spec)) or [""]
        for option in options:
            entry = Entry(*split_option(option))
            parsed.entries[entry.name] = entry
    except ValueError as error:
        raise ConfigurationError([Problem(str(error))]) from None
    parameters = Parameters(parsed)
    partial_keys = read_partial_keys(parameters, context)
    timeout = parameters.time("timeout", context.timeout)
    if not timeout:
        parameters.error("timeout", "timeout = 0: a time limit is needed")
    parameters.unknown(fatal=True)
    usual, context.timeout = context.timeout, timeout
    try:
        parameters.finish(context.warnings)
        return with_partial_keys(context.open_table(name, create), partial_keys)
    except ConfigurationError:
        if partial_keys is not None:
            partial_keys.close()
        raise
    finally:
        context.timeout = usual


def read_match_list(parameters: Parameters, name: str, context: TableContext) -> MatchList | None:
    """Read a list of domains; ``None`` where it is empty."""
    spec = parameters.text(name, "")
    if not spec:
        return None
    from socketmap_memcache.tables.match_list import MatchList

    try:
        return MatchList.parse(spec, context)
    except ConfigurationError as error:
        parameters.adopt(name, error.problems)
        return None
