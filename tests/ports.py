"""Ports of this machine that nobody listens on."""

from __future__ import annotations

import socket


def free_pair() -> int:
    """A port that is free now, as the next one is: `voxbook up` takes both."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
