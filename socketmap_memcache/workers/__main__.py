"""Starts a worker: ``python -m socketmap_memcache.workers``. The parent does."""

import os
import sys
from fcntl import F_GETFL, F_SETFL, F_SETOWN, fcntl
from select import select

# On Linux the end of the parent, descriptor 0, is a SIGIO from now on, which ends this process until it can watch for
# itself. Or else it would keep the sockets while it imports and reads what follows, and nobody else could listen there.
fcntl(0, F_SETOWN, os.getpid())
fcntl(0, F_SETFL, fcntl(0, F_GETFL) | os.O_ASYNC)
if select([0], [], [], 0)[0]:
    sys.exit(1)

from socketmap_memcache.workers.worker import main  # noqa: E402 (takes half a second)

sys.exit(main(sys.argv[1:]))
