"""Several processes that serve the same sockets."""
