"""The memcached client."""
