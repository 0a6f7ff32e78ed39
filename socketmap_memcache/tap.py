"""What ``twistd socketmap-memcache`` needs: options, and the service made of them."""

from __future__ import annotations

import gc
from pathlib import Path

from twisted.application.service import IService
from twisted.python import usage

from socketmap_memcache.busy_poll import BUSY_POLL
from socketmap_memcache.clock import use_steady_clock
from socketmap_memcache.config.service import DEFAULT_PATH, worker_count
from socketmap_memcache.descriptors import keep_standard
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.name_resolver import use_own_resolver
from socketmap_memcache.service import SocketmapMemcacheService


class Options(usage.Options):
    """The command line."""

    synopsis = "[--config FILE] [--set name=value]..."
    optParameters = [["config", "c", DEFAULT_PATH, "The configuration file."]]  # noqa: RUF012 (Twisted's way)

    def __init__(self) -> None:
        super().__init__()
        self["set"] = []

    def opt_set(self, override: str) -> None:
        """Replace a parameter of the file, as in --set name=value; may be given many times."""
        self["set"].append(override)


def makeService(options: Options) -> IService:
    """Make the service.

    :raises SystemExit: with all that is wrong with the configuration: the process ends and says just that. (Of a
        UsageError, twistd would show a traceback.)
    """
    keep_standard()  # before there is a reactor
    from twisted.internet import reactor

    use_steady_clock(reactor)
    use_own_resolver(reactor)
    BUSY_POLL.use(reactor)
    # As it is now: twistd goes to another directory (--rundir) before the service is started.
    path, overrides = str(Path(options["config"]).absolute()), options["set"]
    try:
        if worker_count(path, overrides) == 1:
            service: IService = SocketmapMemcacheService(path, overrides, reactor)
        else:
            from socketmap_memcache.workers.parent import WorkersService

            service = WorkersService(path, overrides, reactor)
    except ConfigurationError as error:
        raise SystemExit(f"socketmap-memcache: the configuration has errors:\n{error}") from None
    # What there is now stays to the end. To go through it again and again cost a tenth of all look-ups or more.
    gc.collect()
    gc.freeze()
    return service
