"""Makes ``twistd socketmap-memcache`` known."""

from twisted.application.service import ServiceMaker

serviceMaker = ServiceMaker(
    "socketmap-memcache",
    "socketmap_memcache.tap",
    "Answers Postfix: look-ups out of memcached with a persistent backup, and greylisting.",
    "socketmap-memcache",
)
