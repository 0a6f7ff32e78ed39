"""The subcommands of socketmap-memcache."""
