"""Real servers for the integration tests: memcached, a private Postfix, and the service itself.

All of them listen on the loopback or on UNIX sockets below one scratch directory, are stopped by their process id, and
write what they say into files there. A server that cannot be started is an error, never a reason to skip a test.
"""
