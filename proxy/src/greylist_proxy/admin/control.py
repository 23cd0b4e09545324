# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control of the running proxy: what it is and how it does, and the entries that are made at run time.

    GET    /v1/info                     the program, its mode, store and backends
    GET    /v1/counts                   how much is remembered; may take seconds with millions of triplets
    GET    /v1/entries                  all entries, one JSON object a line
    GET    /v1/entry?kind=K&value=V     one, as {"kind", "value", "entry": the entry or null}; the value as it is kept
    PUT    /v1/entry                    make one (lists/operator.py says of what), as {"changed", "before", "after"}
    DELETE /v1/entry?kind=K&value=V     remove one, with the same answer

With `?dry_run=true` PUT and DELETE say what they would do. What they have done counts in all workers when the answer
comes; `"effective": false` in it says that one of them has not taken it in yet, which it will as soon as it can. What
can't be meant is answered with 400, a store that fails with 503, each with a sentence in `error`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from aiohttp import web

from greylist_proxy import __version__
from greylist_proxy.admin.answers import Handler, has_begun, problem
from greylist_proxy.admin.state import State
from greylist_proxy.lists.entries import EntryError
from greylist_proxy.lists.operator import as_json, count_entries, find_entry, read_wish, subject
from greylist_proxy.log import json_line
from greylist_proxy.moments import iso_time
from greylist_proxy.store import Entry, StoreError

FLUSH_EVERY = 1 << 16  # bytes of a listing that are gathered before they go out


def _answering(handler: Handler) -> Handler:
    """Make answers of what goes wrong with an entry or the store."""

    async def answer(state: State, request: web.Request) -> web.StreamResponse:
        try:
            return await handler(state, request)
        except EntryError as error:
            return problem(400, str(error))
        except StoreError as error:
            if has_begun(request):
                raise
            return problem(503, str(error))

    return answer


@_answering
async def info(state: State, request: web.Request) -> web.StreamResponse:
    """Tell what this is and how it does; asks nobody."""
    store = state.config.store
    return web.json_response(
        {
            "version": __version__,
            "hostname": state.config.smtp.hostname,
            "mode": str(state.judgement.gate.rules.mode),
            "started": iso_time(state.started),
            "uptime_seconds": round(time.time() - state.started),
            "workers": state.workers,
            "connections": state.services.connections.total,
            "store": {
                "address": str(store.url),
                "prefix": store.prefix,
                "working": state.judgement.gate.store_works,
                "on_failure": store.on_failure,
            },
            "backends": [
                {"address": address, "state": health} for address, health in state.services.backends.health().items()
            ],
        }
    )


@_answering
async def counts(state: State, request: web.Request) -> web.StreamResponse:
    """Count what is remembered."""
    remembered = await state.store.counts()
    return web.json_response({"store": asdict(remembered), "entries": dict(await count_entries(state.store.entries()))})


@_answering
async def list_entries(state: State, request: web.Request) -> web.StreamResponse:
    """Give all entries, as they come. Where the store fails in the middle, the answer has no end (site.py)."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    entries = aiter(state.store.entries())
    first = await anext(entries, None)  # a store that fails says so before the answer has begun
    await response.prepare(request)
    lines = bytearray(_line(first) if first is not None else b"")
    if first is not None:
        async for entry in entries:
            lines += _line(entry)
            if len(lines) > FLUSH_EVERY:
                await response.write(bytes(lines))
                lines.clear()
    await response.write(bytes(lines))
    return response


@_answering
async def show_entry(state: State, request: web.Request) -> web.StreamResponse:
    """Give one entry."""
    kind, value = subject(request.query)
    found = await find_entry(state.store, kind, value)
    return web.json_response({"kind": str(kind), "value": value, "entry": found and as_json(found)})


@_answering
async def put_entry(state: State, request: web.Request) -> web.StreamResponse:
    """Make or replace an entry, where there is none that says the same."""
    try:
        data = json.loads(await request.read())
    except (ValueError, RecursionError):  # also what is not UTF-8
        return problem(400, "the body is not JSON")
    wish = read_wish(data)
    entry = wish.entry
    before = await find_entry(state.store, entry.kind, entry.value)
    if wish.is_met_by(before):
        return _changed(before, before)
    if not _is_dry(request):
        if not await state.store.put_entry(entry):
            return problem(409, f"{entry.kind} {entry.value}: the store keeps another entry of an operator")
        state.log.event("entry", state="put", by="control socket", **as_json(entry))
        return _changed(before, entry, effective=await state.news.ring())
    return _changed(before, entry)


@_answering
async def remove_entry(state: State, request: web.Request) -> web.StreamResponse:
    """Remove an entry, where there is one."""
    kind, value = subject(request.query)
    before = await find_entry(state.store, kind, value)
    if before is None:
        return _changed(None, None)
    if not _is_dry(request):
        await state.store.remove_entry(kind, value)
        state.log.event("entry", state="removed", by="control socket", **as_json(before))
        return _changed(before, None, effective=await state.news.ring())
    return _changed(before, None)


def _changed(before: Entry | None, after: Entry | None, *, effective: bool = True) -> web.Response:
    return web.json_response(
        {
            "changed": before is not after,
            "before": before and as_json(before),
            "after": after and as_json(after),
            "effective": effective,
        }
    )


def _is_dry(request: web.Request) -> bool:
    given = request.query.get("dry_run", "false")
    if given not in ("true", "false"):
        raise EntryError("dry_run: allowed is true or false")
    return given == "true"


def _line(entry: Entry) -> bytes:
    return f"{json_line(as_json(entry))}\n".encode()


ROUTES = (
    ("GET", "/v1/info", info),
    ("GET", "/v1/counts", counts),
    ("GET", "/v1/entries", list_entries),
    ("GET", "/v1/entry", show_entry),
    ("PUT", "/v1/entry", put_entry),
    ("DELETE", "/v1/entry", remove_entry),
)
