"""The settings of greylisting: parameters of main.cf, with their defaults, bounds and errors."""

from __future__ import annotations

import re
from socket import gethostname

import attrs

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import excerpt, suggestion
from socketmap_memcache.tables.folding import valid

#: Every parameter of greylisting, with its default as it would be written in the file.
PARAMETERS = {
    "greylist_table": "lmdb:/var/lib/socketmap-memcache/greylist",
    "greylist_delay": "300s",
    "greylist_retry_window": "2d",
    "greylist_max_age": "35d",
    "greylist_ipv4_prefix": "24",
    "greylist_ipv6_prefix": "64",
    "greylist_lookup_by_host": "no",
    "greylist_auto_whitelist_clients": "5",
    "greylist_action": "DEFER_IF_PERMIT",
    "greylist_text": "Greylisted, see http://postgrey.schweikert.ch/help/%r.html",
    "greylist_header": "X-Greylist: delayed %t seconds by socketmap-memcache-%v at %h; %d",
    "greylist_hostname": "",
    "greylist_privacy": "no",
    "greylist_normalize_srs": "no",
    "greylist_normalize_hex": "no",
    "greylist_client_whitelist": "",
    "greylist_recipient_whitelist": "",
    "greylist_sender_whitelist": "",
    "greylist_never_auto_whitelist": "",
    "greylist_recipient_access": "",
    "greylist_fail_action": "DUNNO",
    "greylist_training_mode": "no",
}

# What access(5) knows; the names of restrictions are not here, as they take no text after them.
_ACTIONS = (
    *("BCC", "DEFER", "DEFER_IF_PERMIT", "DEFER_IF_REJECT", "DISCARD", "DUNNO", "FILTER", "HOLD", "INFO", "OK"),
    *("PERMIT", "PREPEND", "REDIRECT", "REJECT", "RELAY", "WARN"),
)
_CODE = re.compile(rb"[45][0-9][0-9]")
_HEADER = re.compile(rb"[!-9;-~]+:.*")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


@attrs.frozen
class Settings:
    """How to greylist. Times are in seconds.

    :ivar delay: how long the first attempts of a triplet are deferred.
    :ivar retry_window: how long after its first attempt a triplet has to pass; then it counts as new.
    :ivar max_age: how long a triplet that passed, or a client, is known after it was last seen.
    :ivar lookup_by_host: whether the exact address of the client is in the key, and not its network.
    :ivar auto_whitelist_clients: after how many triplets that passed a client is not greylisted any more; 0: never.
    :ivar action: what is answered while a triplet is deferred; ``text`` follows it.
    :ivar header: the header of a message that was delayed; empty for none.
    :ivar hostname: the ``%h`` in it.
    :ivar privacy: whether keys are hashed.
    :ivar normalize_srs: whether the hashes and dates in SRS addresses are left out of the key.
    :ivar normalize_hex: whether hexadecimal numbers in addresses of senders are left out, as decimal ones always are.
    :ivar fail_action: the answer when the table, or another one that is asked, fails.
    :ivar training_mode: whether to let through what would be deferred.
    """

    delay: int = 300
    retry_window: int = 2 * 24 * 3600
    max_age: int = 35 * 24 * 3600
    ipv4_prefix: int = 24
    ipv6_prefix: int = 64
    lookup_by_host: bool = False
    auto_whitelist_clients: int = 5
    action: bytes = PARAMETERS["greylist_action"].encode()
    text: bytes = PARAMETERS["greylist_text"].encode()
    header: bytes = PARAMETERS["greylist_header"].encode()
    hostname: bytes = b""
    privacy: bool = False
    normalize_srs: bool = False
    normalize_hex: bool = False
    fail_action: bytes = PARAMETERS["greylist_fail_action"].encode()
    training_mode: bool = False


_DEFAULT = Settings()


def read_settings(parameters: Parameters) -> Settings:
    """Read what this module knows of; what cannot be used is noted in ``parameters``, and its default returned."""
    settings = Settings(
        delay=int(parameters.time("greylist_delay", _DEFAULT.delay)),
        retry_window=int(parameters.time("greylist_retry_window", _DEFAULT.retry_window)),
        max_age=int(parameters.time("greylist_max_age", _DEFAULT.max_age)),
        ipv4_prefix=parameters.integer("greylist_ipv4_prefix", _DEFAULT.ipv4_prefix, minimum=1, maximum=32),
        ipv6_prefix=parameters.integer("greylist_ipv6_prefix", _DEFAULT.ipv6_prefix, minimum=1, maximum=128),
        lookup_by_host=parameters.boolean("greylist_lookup_by_host", _DEFAULT.lookup_by_host),
        auto_whitelist_clients=parameters.integer(
            "greylist_auto_whitelist_clients", _DEFAULT.auto_whitelist_clients, minimum=0
        ),
        action=_action(parameters, "greylist_action"),
        text=_line(parameters, "greylist_text"),
        header=_header(parameters),
        hostname=_line(parameters, "greylist_hostname") or gethostname().encode(),
        privacy=parameters.boolean("greylist_privacy", _DEFAULT.privacy),
        normalize_srs=parameters.boolean("greylist_normalize_srs", _DEFAULT.normalize_srs),
        normalize_hex=parameters.boolean("greylist_normalize_hex", _DEFAULT.normalize_hex),
        fail_action=_action(parameters, "greylist_fail_action"),
        training_mode=parameters.boolean("greylist_training_mode", _DEFAULT.training_mode),
    )
    for name, limit in (("greylist_retry_window", settings.retry_window), ("greylist_max_age", settings.max_age)):
        if settings.delay >= limit:
            text = f"greylist_delay = {settings.delay}s: must be less than {name} ({limit}s), or no mail ever passes"
            parameters.error("greylist_delay", text)
    if _CODE.fullmatch(settings.action) and not settings.text:
        parameters.error("greylist_text", f"greylist_text is empty: {excerpt(settings.action)} alone is OK to Postfix")
    if _CODE.fullmatch(settings.fail_action):
        text = (
            f"greylist_fail_action = {excerpt(settings.fail_action)}: alone it is OK to Postfix; write a text after it"
        )
        parameters.error("greylist_fail_action", text)
    return settings


def _action(parameters: Parameters, name: str) -> bytes:
    """Read an action of access(5): a known word or an SMTP code, and perhaps more."""
    action = _line(parameters, name)
    words = action.split()
    if not words:
        parameters.error(name, f"{name}: must not be empty: write an action of access(5)")
    elif words[0].upper().decode(errors="replace") not in _ACTIONS and not _CODE.fullmatch(words[0]):
        hint = suggestion(excerpt(words[0]).upper(), _ACTIONS)
        parameters.error(name, f"{name} = {excerpt(action)}: {excerpt(words[0])} is not an action of access(5){hint}")
    else:
        return action
    return PARAMETERS[name].encode()


def _header(parameters: Parameters) -> bytes:
    header = _line(parameters, "greylist_header")
    if not header or _HEADER.fullmatch(header):
        return header
    text = f"greylist_header = {excerpt(header)}: a header is a name without blanks, a colon, and a text"
    parameters.error("greylist_header", text)
    return _DEFAULT.header


def _line(parameters: Parameters, name: str) -> bytes:
    """Read text that Postfix gets as part of an action."""
    text = parameters.text(name, PARAMETERS[name]).encode(errors="surrogateescape")
    if not _CONTROL.search(text) and valid(text):
        return text
    parameters.error(name, f"{name} = {excerpt(text)}: must be one line of UTF-8 without control characters")
    return PARAMETERS[name].encode()
