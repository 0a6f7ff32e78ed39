"""The load generator, which is load.c, and what a measurement gives."""

from __future__ import annotations

import subprocess
from pathlib import Path

import attrs

HERE = Path(__file__).parent


@attrs.frozen
class Result:
    """One measurement.

    :ivar rate: look-ups a second, all connections together.
    :ivar p50_us: half of the look-ups took less; ``None`` where it was not measured, as are those below.
    :ivar p99_us: all but one in a hundred took less.
    :ivar cpu_us: processor time of the server a look-up.
    """

    name: str
    connections: int
    rate: float
    p50_us: float | None = None
    p99_us: float | None = None
    cpu_us: float | None = None


@attrs.frozen
class Load:
    """The load generator, with the keys that it asks for in turn."""

    keys: Path
    seconds: float

    def run(
        self,
        name: str,
        mode: str,
        address: str,
        connections: int,
        pid: int,
        table: str = "bench",
        requests: int = 0,
        expected: str = "hit",
        strays: float = 0.0,
    ) -> Result:
        """Measure a server, whose process is ``pid``.

        :param mode: the protocol, as load.c names it.
        :param table: the name of the map.
        :param requests: how many, instead of for how long.
        :param expected: what all answers have to be, as load.c counts them: ``hit`` or ``miss``.
        :param strays: the part of them that may be the other, for a server that errs by design.
        :raises RuntimeError: a request failed, or had another answer.
        """
        length = ["-n", str(requests)] if requests else ["-t", str(self.seconds)]
        options = ["-c", str(connections), *length, "-p", str(pid), "-m", table]
        argv = [str(HERE / "load"), *options, mode, address, str(self.keys)]
        ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=self.seconds + 60)
        figures = dict(word.split("=") for word in ran.stdout.split()[1:])
        others = "miss" if expected == "hit" else "hit"
        if ran.returncode or int(figures[others]) > strays * int(figures["done"]):
            raise RuntimeError(f"{' '.join(argv)}: {ran.stdout}{ran.stderr}")
        rate, p50, p99, cpu = (float(figures[figure]) for figure in ("rate", "p50", "p99", "cpu_us"))
        return Result(name, connections, rate, p50, p99, cpu)
