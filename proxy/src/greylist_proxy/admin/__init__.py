# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin side: health and metrics over HTTP on an address, and the same with the control of the proxy on a socket.

    sockets.py    the listening sockets: made before workers are forked, or taken from systemd
    access.py     who may ask: the bearer token, and the names that a request may call us by
    state.py      what handlers get: the parts of the running program
    server.py     accepts, with bounds on connections and time
    site.py       the routes that the address and the socket have
    monitoring.py health and metrics
    control.py    the routes that the socket has besides

It must not hurt mail: connections, requests and time have bounds, what can't be listened on is a warning, and the
library behind it (aiohttp) is loaded only where there is something to listen on. Of several workers the first one
serves; the one that takes its place takes this over too, and connections wait meanwhile.
"""
