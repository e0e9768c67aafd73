"""The `alm` command: parse, call, print."""
