"""Run twistd as its own command does, and save what coverage has measured before it ends.

At SIGTERM, twistd stops its services and then lets the signal kill it, so that nothing registered with atexit runs.
"""

from __future__ import annotations

import signal
import sys

# As a script this file's directory comes first on the path, where names like "memcached" are not meant to be found.
sys.path.pop(0)

from coverage import Coverage
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorCore
from twisted.scripts.twistd import run

# A test run that was started in the background ignores this signal, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
if (measuring := Coverage.current()) is not None:
    IReactorCore(reactor).addSystemEventTrigger("after", "shutdown", measuring.save)
sys.argv[0] = "twistd"
run()
