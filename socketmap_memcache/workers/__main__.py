"""Starts a worker: ``python -m socketmap_memcache.workers``. The parent does."""

import sys

from socketmap_memcache.workers.worker import main

sys.exit(main(sys.argv[1:]))
