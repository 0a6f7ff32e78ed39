"""Lets the faults of the sites happen, and counts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from tests.integration.harness.policy import PolicyClient
from tests.integration.harness.processes import wait_until
from tests.integration.harness.socketmap import SocketmapClient

from .faults import FAULTS, Fault
from .load import PATIENCE, Load
from .report import EVIDENCE, Row
from .site import TIMEOUT, TTL, TTL_ROUNDING, Site
from .start import site

#: Bytes that the service may have more at the end: what it remembers of clients and of triplets.
MEMORY_LIMIT = 12_000_000

#: Seconds that it may take until descriptors are closed.
_CLOSING = 3.0


class Run:
    """Some faults, each so many times.

    :ivar rows: what was counted, by the name of the fault.
    :ivar errors: what ended a site before its time, by the name of each fault of the site.
    """

    def __init__(self, faults: Iterable[Fault], rounds: int, seconds: float, seed: int) -> None:
        """:param seconds: that a fault lasts."""
        self.rows: dict[str, Row] = {}
        self.errors: dict[str, str] = {}
        self._rounds = rounds
        self._seconds = seconds
        self._seed = seed
        self._sites: dict[tuple[tuple[str, Any], ...], list[Fault]] = {}
        for fault in faults:
            self._sites.setdefault(fault.site, []).append(fault)

    def run(self) -> None:
        """Let all sites, each in a thread of its own, have their faults, one after the other."""
        with ThreadPoolExecutor(max(len(self._sites), 1)) as threads:
            list(threads.map(self._run_site, self._sites))

    def _run_site(self, arguments: tuple[tuple[str, Any], ...]) -> None:
        faults = self._sites[arguments]
        try:
            with site(Random(self._seed), **dict(arguments)) as made:
                try:
                    SiteRun(made, self._rounds, self._seconds, self.rows).run(faults)
                except Exception as error:
                    raise AssertionError(f"{error!r}\n{made.service.log[-3000:]}") from error
        except Exception as error:  # noqa: BLE001 (the tests of all these faults have to fail)
            self.errors.update(dict.fromkeys([fault.name for fault in faults], str(error)))


class SiteRun:
    """The faults of one site."""

    def __init__(self, made: Site, rounds: int, seconds: float, rows: dict[str, Row]) -> None:
        self._site = made
        self._rounds = rounds
        self._seconds = seconds
        self._rows = rows
        self._descriptors = 0
        self._memory = 0

    def run(self, faults: list[Fault]) -> None:
        made = self._site
        for fault in faults:
            self._rows[fault.name] = self._new_row(fault)
        with Load(made, self._new_row(faults[0]), made.random.randrange(10**6)):
            time.sleep(1)
        made.wait_until_well()
        time.sleep(0.2)
        self._descriptors, self._memory = made.descriptors(), made.memory()
        for number in range(self._rounds):
            for fault in faults:
                self._let_happen(fault, self._rows[fault.name])
            if number == 0 and self._rounds > 1:
                self._memory = made.memory()  # all that is made once is there now
        time.sleep(made.delay + 1.1)
        self._settle(self._rows[faults[-1].name])

    def _new_row(self, fault: Fault) -> Row:
        return Row(
            fault=fault.name,
            place=FAULTS.index(fault),
            limit=fault.limit,
            policy_limit=fault.policy_limit,
            # What comes late to a memcached that was stopped may have been changed when that began.
            old_limit=TTL + TTL_ROUNDING + TIMEOUT + self._seconds,
            memory_limit=MEMORY_LIMIT,
        )

    def _let_happen(self, fault: Fault, row: Row) -> None:
        made = self._site
        logged = made.service.log_path.stat().st_size
        made.emptied, made.clock_is_right, made.ended = fault.empties, not fault.clock, 0
        with Load(made, row, made.random.randrange(10**6)) as load:
            time.sleep(0.3)
            fault.break_it(made, self._seconds)
            ended = time.monotonic()
            made.clock_is_right = True
            made.fill_cache()
            try:
                recovered = made.wait_until_well()
            except AssertionError as error:
                recovered = time.monotonic()
                row.evidence.append(str(error))
            made.emptied = False
            time.sleep(0.5)
        row.ended += made.ended
        row.recovery = max(row.recovery, recovered - ended, load.last_failure - ended)
        self._settle(row)
        self._measure(row)
        with made.service.log_path.open("rb") as file:
            file.seek(logged)
            new = file.read().decode(errors="replace")
        if "Traceback" in new or "Unhandled" in new:
            row.tracebacks += new.count("Traceback")
            row.evidence.append(new[max(new.find("Traceback") - 500, 0) :][:3000])
        del row.evidence[EVIDENCE:]

    def _settle(self, row: Row) -> None:
        """See whether all that was acknowledged is known."""
        made = self._site
        load = Load(made, row, 0)
        if made.writer is not None:
            with SocketmapClient(made.socketmap, PATIENCE) as client:
                load.ask(client, ("backup", made.changing))
        with PolicyClient(made.policy, PATIENCE) as client:
            for triplets in made.triplets:
                for triplet in [each for each in triplets if each.is_due(made.delay, time.monotonic())]:
                    load.mail(client, triplet)
                triplets[:] = [each for each in triplets if not each.passes]

    def _measure(self, row: Row) -> None:
        """See whether the service is as it was, now that it has no clients."""
        wait_until(self._site.all_workers_serve, "all workers are there")
        until = time.monotonic() + _CLOSING
        while (more := self._more_descriptors()) > 0 and time.monotonic() < until:
            time.sleep(0.05)
        row.descriptors = max(row.descriptors, more) if row.descriptors else more
        row.memory = self._site.memory() - self._memory

    def _more_descriptors(self) -> int:
        try:
            more = self._site.descriptors() - self._descriptors
        except OSError:  # a process has just ended
            return 1
        return more if more < 0 else max(more - self._site.spare_descriptors, 0)
