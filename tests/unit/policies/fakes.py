"""Policies that do as they are told."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred
from zope.interface import implementer

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.policies.interface import DUNNO, IPolicy, IPolicyType, PolicyContext, Request


@implementer(IPolicy)
class ScriptedPolicy:
    """Gives the answers of a list, in their order, and then the last one again and again.

    :ivar asked: the requests.
    """

    fail_action = DUNNO

    def __init__(self, *answers: bytes | Deferred[bytes] | Exception, name: str = "scripted") -> None:
        self.name = name
        self.asked: list[Request] = []
        self.closed = 0
        self._answers = list(answers)

    def decide(self, request: Request) -> bytes | Deferred[bytes]:
        self.asked.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed += 1


@implementer(IPolicyType)
class ScriptedType:
    """Opens policies of one answer.

    :ivar texts: its parameters as they were when the last policy was opened. Those named ..._delay are times.
    :ivar opened: that policy.
    """

    def __init__(self, name: str, parameters: Mapping[str, str], answer: bytes | Deferred[bytes] = b"OK") -> None:
        self.name = name
        self.parameters = parameters
        self.texts: dict[str, str] = {}
        self.opened: ScriptedPolicy | None = None
        self._answer = answer

    def open(self, parameters: Parameters, context: PolicyContext) -> IPolicy:
        self.texts = {name: parameters.text(name, "?") for name in self.parameters}
        for name in self.parameters:
            if name.endswith("_delay"):
                parameters.time(name, 0)
        self.opened = ScriptedPolicy(self._answer, name=self.name)
        return self.opened
