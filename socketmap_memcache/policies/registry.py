"""Finds policy types by their names."""

from __future__ import annotations

from importlib import import_module

from socketmap_memcache.config.syntax import suggestion
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.policies.interface import IPolicyType

# Imported when first asked for: a site that serves tables only does not pay for policies.
_BUILT_IN = {
    "greylist": "socketmap_memcache.policies.greylist.policy:greylist_type",
}


def find_policy_type(name: str) -> IPolicyType:
    """Return the policy type of a name, built in or else from a plugin.

    :raises ConfigurationError: there is none.
    """
    if name in _BUILT_IN:
        return _built_in(name)
    plugins = _plugins()
    if name in plugins:
        return plugins[name]
    known = sorted({*_BUILT_IN, *plugins})
    text = f"unknown policy {name!r} (known: {', '.join(known)}){suggestion(name, known)}"
    raise ConfigurationError([Problem(text)])


def policy_parameters() -> dict[str, str]:
    """Return the parameters of all policy types that there are, with their defaults as they would be written."""
    types = {**_plugins(), **{name: _built_in(name) for name in _BUILT_IN}}
    return {name: default for kind in types.values() for name, default in kind.parameters.items()}


def _built_in(name: str) -> IPolicyType:
    module, _, attribute = _BUILT_IN[name].partition(":")
    policy_type: IPolicyType = getattr(import_module(module), attribute)
    return policy_type


def _plugins() -> dict[str, IPolicyType]:
    from twisted.plugin import getPlugins

    return {plugin.name: plugin for plugin in getPlugins(IPolicyType)}
