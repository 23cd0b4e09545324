# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP applications: which routes there are, and what is checked before any of their handlers runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from greylist_proxy.admin import control, monitoring
from greylist_proxy.admin.answers import BEGUN, Route, has_begun, problem
from greylist_proxy.admin.state import State

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY = 16 << 10  # bytes of a request; the largest is an entry with its note
ANSWER_WITHIN = 45.0  # seconds, for the handler; server.LIFETIME is for the slow reader

# What the address and the control socket have in common.
ROUTES: tuple[Route, ...] = monitoring.ROUTES


def make_site(state: State) -> web.Application:
    """Return what is served on the admin address: for whom `state.access` lets in."""
    return _application(state, ROUTES, [_answers(state), _lets_in(state)])


def make_control(state: State) -> web.Application:
    """Return what is served on the control socket. Who may use it, its file's permissions say."""
    return _application(state, (*ROUTES, *control.ROUTES), [_answers(state)])


def _application(state: State, routes: Iterable[Route], checks: Iterable[Middleware]) -> web.Application:
    application = web.Application(middlewares=checks, client_max_size=MAX_BODY)
    for method, path, handler in routes:
        application.router.add_route(method, path, partial(handler, state))
    application.on_response_prepare.append(_finish_headers)
    return application


def _answers(state: State) -> Middleware:
    @web.middleware
    async def answer(request: web.Request, handler: Next) -> web.StreamResponse:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                return await handler(request)
        except web.HTTPException as error:
            # The router's own (404, 405) and a body that is too large (413).
            response = problem(error.status, f"{error.reason}: {request.method} {request.path}")
            response.headers.update({name: error.headers[name] for name in (hdrs.ALLOW,) if name in error.headers})
        except ConnectionError:
            raise
        except TimeoutError:
            response = problem(504, f"no answer within {ANSWER_WITHIN:g} seconds")
        except Exception as error:  # whatever it is, it is told, and mail goes on
            state.log.exception("an admin request failed", error)
            response = problem(500, "something unexpected happened; the log has it")
        if has_begun(request):
            # What has gone out is no whole answer, and must not look like one.
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the answer broke off")
        return response

    return answer


def _lets_in(state: State) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Next) -> web.StreamResponse:
        if request.path in monitoring.OPEN:
            return await handler(request)
        if not state.access.may(request.headers.get(hdrs.AUTHORIZATION, "")):
            response = problem(401, "the token of admin.token_file is wanted, as Authorization: Bearer TOKEN")
            response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
            return response
        if not state.access.is_ours(request.headers.get(hdrs.HOST, "")):
            return problem(421, "Host names somebody else: use the address, localhost, or smtp.hostname")
        return await handler(request)

    return check


async def _finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    request[BEGUN] = True
    # One request for each connection: none is idle, and the bound on their number is one on the work.
    response.force_close()
    for name, value in (
        (hdrs.CACHE_CONTROL, "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
        ("Referrer-Policy", "no-referrer"),
    ):
        response.headers.setdefault(name, value)
    response.headers.pop(hdrs.SERVER, None)
