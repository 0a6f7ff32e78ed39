from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile, parse
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.policies.greylist.policy import greylist_type
from socketmap_memcache.policies.greylist.settings import PARAMETERS
from socketmap_memcache.policies.interface import IPolicyType, PolicyContext
from socketmap_memcache.policies.registry import find_policy_type
from socketmap_memcache.tables.registry import TableContext

from .policy_tests import DEFERRED, REQUEST


class TestType(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.context = PolicyContext(TableContext(ClientPool(self.reactor)))

    def parameters(self, **values: str) -> Parameters:
        named = {f"greylist_{name}": value for name, value in values.items()}
        return Parameters(ParsedFile("main.cf", {name: Entry(name, value, 7) for name, value in named.items()}))

    def test_registered(self) -> None:
        """The type is found by its name, and knows its parameters."""
        verifyObject(IPolicyType, greylist_type)
        found: object = find_policy_type("greylist")
        assert found is greylist_type
        assert greylist_type.parameters == PARAMETERS

    def test_open(self) -> None:
        """A policy is opened with what the parameters say, and does nothing before it is asked."""
        parameters = self.parameters(table="memory:x", fail_action="DEFER")
        policy = greylist_type.open(parameters, self.context)
        parameters.finish([])
        assert policy.fail_action == b"DEFER"
        assert not self.reactor.getDelayedCalls()
        answer = policy.decide(REQUEST)
        assert isinstance(answer, Deferred)
        assert self.successResultOf(answer) == DEFERRED
        policy.close()

    def test_reload(self) -> None:
        """What a process has deferred, and which messages have a header, is known to the policy after a reload, too."""
        policies: list[Any] = []
        for window in ("2d", "3d"):
            parameters = self.parameters(table="memory:x", retry_window=window)
            policies.append(greylist_type.open(parameters, self.context))
        before, after = policies
        before.deferrals.add(b"k", 0, 300)
        assert len(after.deferrals) == 1
        assert after.deferrals.window == 3 * 24 * 3600
        assert before.is_new_message(b"i")
        assert not after.is_new_message(b"i")

    def test_table_is_made(self) -> None:
        """The file of the table is made if there is none."""
        with TemporaryDirectory() as directory:
            for table in (f"lmdb:{directory}/a", f"{{ lmdb:{directory}/b, timeout=1s }}"):
                parameters = self.parameters(table=table)
                greylist_type.open(parameters, self.context).close()
                parameters.finish([])
            assert sorted(path.name for path in Path(directory).iterdir()) == ["a.lmdb", "b.lmdb"]

    def test_read_only_table(self) -> None:
        """A table that cannot be changed is of no use: that is said at the start."""
        for table in ("static:x", "fail:x"):
            parameters = self.parameters(table=table)
            greylist_type.open(parameters, self.context).close()
            caught = self.assertRaises(ConfigurationError, parameters.finish, [])
            assert list(map(str, caught.problems)) == [
                f"greylist_table = {table}: table {table}: update operation is not supported"
            ]

    def test_errors(self) -> None:
        """All that is wrong is noted; the policy is there to be closed."""
        parameters = self.parameters(table="bogus:x", delay="soon", recipient_access="bogus:y")
        greylist_type.open(parameters, self.context).close()
        caught = self.assertRaises(ConfigurationError, parameters.finish, [])
        assert len(caught.problems) == 3

    def test_missing_files(self) -> None:
        """A file that cannot be read is told with the line of main.cf that names it."""
        lines = (
            "greylist_table = memcache:/nope.cf",
            "greylist_recipient_access = memcache:/nope.cf",
            "greylist_sender_whitelist = /nope",
        )
        parameters = Parameters(parse("\n".join(lines).encode(), "main.cf"))
        greylist_type.open(parameters, self.context).close()
        caught = self.assertRaises(ConfigurationError, parameters.finish, [])
        text = "cannot be read: No such file or directory"
        assert list(map(str, caught.problems)) == [
            f"main.cf:1: greylist_table: /nope.cf: {text}",
            f"main.cf:2: greylist_recipient_access: /nope.cf: {text}",
            f"main.cf:3: greylist_sender_whitelist: /nope: {text}",
        ]
