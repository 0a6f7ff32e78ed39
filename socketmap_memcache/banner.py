"""What the log says at the start: what is served, and how to try it."""

from __future__ import annotations

from socketmap_memcache.config.service import ServiceConfig
from socketmap_memcache.listeners.endpoints import ListenAddress, TcpAddress, UnixAddress
from socketmap_memcache.protocols.netstring import encode

#: A request to a policy server, for printf(1).
_POLICY_REQUEST = (
    r"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\nclient_name=mail.example.com\n"
    r"sender=alice@example.com\nrecipient=bob@example.org\n\n"
)


def banner(config: ServiceConfig) -> list[str]:
    """Give the lines that describe what is served, and how to try it."""
    tables, policies = config.tables, config.policies.policies
    lines = [f"serving {name} = {table.name}" for name, table in tables.items()]
    lines += [f"asking policy {getattr(policy, 'description', policy.name)}" for policy in policies]
    for address in config.socketmap_listen:
        lines.append(f"listening on {address.text} (socketmap)")
        lines += _to_try(address, next(iter(tables)))
    for name, address in config.tcp_table_listen:
        lines.append(f"listening on {address.text} (tcp_table, {name})")
        if isinstance(address, TcpAddress):
            lines.append(f"try: postmap -q alice@example.com tcp:{_host(address)}:{address.port}")
    for address in config.policy_listen:
        lines.append(f"listening on {address.text} (policy)")
        lines += _with_nc(_POLICY_REQUEST, address)
    return lines


def _host(address: TcpAddress) -> str:
    return f"[{address.host}]" if ":" in address.host else address.host


def _to_try(address: ListenAddress, name: str) -> list[str]:
    """Give two command lines that ask for a key, with Postfix and without."""
    request = encode(f"{name} alice@example.com".encode()).decode()
    if isinstance(address, TcpAddress):
        postfix_address = f"inet:{_host(address)}:{address.port}"
    elif isinstance(address, UnixAddress):
        postfix_address = f"unix:{address.path}"
    else:
        return []
    return [f"try: postmap -q alice@example.com socketmap:{postfix_address}:{name}", *_with_nc(request, address)]


def _with_nc(request: str, address: ListenAddress) -> list[str]:
    """Give a command line that sends a request, as printf(1) takes it."""
    if isinstance(address, TcpAddress):
        return [f"try: printf '{request}' | nc -N {address.host} {address.port}"]
    if isinstance(address, UnixAddress):
        return [f"try: printf '{request}' | nc -N -U {address.path}"]
    return []
