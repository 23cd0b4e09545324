# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What handlers are, and the answers that several of them give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from greylist_proxy.admin.state import State

Handler = Callable[[State, web.Request], Awaitable[web.StreamResponse]]
Route = tuple[str, str, Handler]  # method, path, handler

BEGUN = "begun"  # in a request: its answer's head has gone out


def problem(status: int, sentence: str) -> web.Response:
    """Return an answer that says what is wrong."""
    return web.json_response({"error": sentence}, status=status)


def has_begun(request: web.Request) -> bool:
    """Tell whether the answer has begun, so that it is too late for another one."""
    return BEGUN in request
