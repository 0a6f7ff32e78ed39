from __future__ import annotations

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import IPlugin, getPlugins
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.policies import registry
from socketmap_memcache.policies.interface import IPolicyType, PolicyContext
from socketmap_memcache.policies.registry import find_policy_type, policy_parameters
from socketmap_memcache.tables.registry import TableContext
from tests.unit.policies.fakes import ScriptedType


def use_plugins(monkeypatch: pytest.MonkeyPatch, *plugins: IPolicyType) -> None:
    monkeypatch.setattr("twisted.plugin.getPlugins", lambda interface: plugins if interface is IPolicyType else ())


@pytest.mark.parametrize("name", registry._BUILT_IN)
def test_built_in(name: str) -> None:
    """A built-in policy is found by its name."""
    found = find_policy_type(name)
    assert verifyObject(IPolicyType, found)
    assert found.name == name
    assert found.parameters.items() <= policy_parameters().items()


def test_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package may bring a policy, as a plugin, which tells its parameters; it cannot replace a built-in one."""
    theirs, false = ScriptedType("theirs", {"theirs_delay": "1s"}), ScriptedType("greylist", {"greylist_delay": "bad"})
    use_plugins(monkeypatch, theirs, false)
    assert find_policy_type("theirs").parameters is theirs.parameters
    assert find_policy_type("greylist").parameters != false.parameters
    parameters = policy_parameters()
    assert parameters["theirs_delay"] == "1s"
    assert parameters["greylist_delay"] == "300s"


def test_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown policy is refused, with those that are known, and the nearest of them."""
    use_plugins(monkeypatch, ScriptedType("theirs", {}))
    with pytest.raises(ConfigurationError) as caught:
        find_policy_type("graylist")
    text = "unknown policy 'graylist' (known: greylist, theirs); did you mean 'greylist'?"
    assert str(caught.value) == text


def test_plugins_of_this_package() -> None:
    """A policy type is a plugin of Twisted's without more; without any from elsewhere there is none."""
    assert IPlugin.providedBy(ScriptedType("x", {}))
    assert list(getPlugins(IPolicyType)) == []


def test_context() -> None:
    """The context of a policy has the reactor of its tables."""
    reactor = MemoryReactorClock()
    assert PolicyContext(TableContext(ClientPool(reactor))).reactor is reactor
