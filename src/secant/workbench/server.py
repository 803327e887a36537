"""The workbench's server: its routes, each of which calls the session, and the events that report jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from secant.analyses.stages import STAGES
from secant.errors import SecantError
from secant.results.page import embedded
from secant.text import named
from secant.workbench.asked import Asked
from secant.workbench.assets import index, script, style
from secant.workbench.choices import choices
from secant.workbench.guard import Guard, TooLong
from secant.workbench.jobs import DONE
from secant.workbench.session import Busy, Message, Session

EVENTS = 10_000
"""The most events that wait for a browser; beyond this number, its stream ends."""

SANDBOXED = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
"""The content security policy of the offline page if a browser shows it instead of saving it."""

Answer = Callable[[Session, Request], Awaitable[Response]]


def said(data: Any, status: int = 200) -> Response:
    """Returns a response with JSON that contains no character with a meaning in HTML.

    Args:
        data: The data.
        status: The status.

    """
    return Response(embedded(data), status, media_type="application/json")


async def _page(session: Session, request: Request) -> Response:
    return HTMLResponse(index())


async def _script(session: Session, request: Request) -> Response:
    return Response(script(), media_type="text/javascript")


async def _style(session: Session, request: Request) -> Response:
    return Response(style(request.path_params["name"]), media_type="text/css")


async def _choices(session: Session, request: Request) -> Response:
    return said(choices(session))


async def _runs(session: Session, request: Request) -> Response:
    """The runs that are kept, newest first."""
    works = reversed(session.works.items())
    return said([{"run": run, "asked": asdict(work.asked), "answered": "answer" in work.parts} for run, work in works])


async def _open(session: Session, request: Request) -> Response:
    run = session.open(Asked.of(await _given(request)))
    return said(_state(session, run), 201)


async def _run(session: Session, request: Request) -> Response:
    return said(_state(session, request.path_params["run"]))


async def _part(session: Session, request: Request) -> Response:
    work = session.works[request.path_params["run"]]
    return said(work.parts[request.path_params["name"]])


async def _ask(session: Session, request: Request) -> Response:
    job = session.ask(request.path_params["run"], request.path_params["kind"], await _given(request))
    return said(job.public(), 202)


async def _job(session: Session, request: Request) -> Response:
    job = session.jobs[request.path_params["job"]]
    return said({**job.public(), "result": job.result if job.kind != "page" else None})


async def _cancel(session: Session, request: Request) -> Response:
    session.cancel(request.path_params["job"])
    return said(session.jobs[request.path_params["job"]].public())


async def _saved(session: Session, request: Request) -> Response:
    """The offline page that a job has written."""
    job = session.jobs[request.path_params["job"]]
    if job.kind != "page" or job.state != DONE:
        raise KeyError(job.id)
    headers = {"content-disposition": 'attachment; filename="report.html"', "content-security-policy": SANDBOXED}
    return HTMLResponse(job.result, headers=headers)


async def _events(session: Session, request: Request) -> Response:
    """Server-sent events: all jobs first, and then each change of a job."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Message | None](EVENTS)

    def listener(told: Message) -> None:
        loop.call_soon_threadsafe(_put, events, told)

    async def each() -> AsyncIterator[dict[str, str]]:
        now, end = session.listen(listener)
        try:
            yield {"event": "jobs", "data": json.dumps(now)}
            while (told := await events.get()) is not None:
                yield {"event": "job", "data": json.dumps(told)}
        finally:
            end()

    return EventSourceResponse(each(), ping=15)


def _put(events: asyncio.Queue[Message | None], told: Message) -> None:
    """Adds an event. If nobody reads the events, all are dropped, and one that ends the stream replaces them."""
    if events.full():
        while not events.empty():
            events.get_nowait()
        events.put_nowait(None)
    else:
        events.put_nowait(told)


def _state(session: Session, run: str) -> dict[str, Any]:
    """The state of a run: the request, the stages, and which of them are done."""
    work = session.works[run]
    names = [{"name": stage.name, "label": stage.label} for stage in STAGES.values()]
    jobs = [job.public() for job in work.jobs.values()]
    layers = 0 if work.case is None else work.case.depth
    asked = {**asdict(work.asked), "named": named(work.asked.model)}
    return {"run": run, "asked": asked, "stages": names, "jobs": jobs, "parts": [*work.parts], "layers": layers}


async def _given(request: Request) -> Any:
    """The JSON of a request."""
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise SecantError("A request is JSON", "something else", "Send a JSON object.") from error


ROUTES: dict[str, tuple[str, Answer]] = {
    "/": ("GET", _page),
    "/workbench.js": ("GET", _script),
    "/style/{name}.css": ("GET", _style),
    "/api/choices": ("GET", _choices),
    "/api/events": ("GET", _events),
    "/api/runs": ("GET", _runs),
    "/api/explain": ("POST", _open),
    "/api/runs/{run}": ("GET", _run),
    "/api/runs/{run}/parts/{name}": ("GET", _part),
    "/api/runs/{run}/{kind}": ("POST", _ask),
    "/api/jobs/{job:int}": ("GET", _job),
    "/api/jobs/{job:int}/cancel": ("POST", _cancel),
    "/api/jobs/{job:int}/report.html": ("GET", _saved),
}
"""Every address, its HTTP method, and the function that answers."""


def application(session: Session, *, token: str, host: str, port: int) -> Starlette:
    """Returns the workbench as an ASGI application.

    Args:
        session: The session, whose worker starts and ends with the application.
        token: The token of its address.
        host: The host that it listens on.
        port: The port.

    """
    hosts = ["127.0.0.1", "localhost"] if host in ("127.0.0.1", "localhost") else ["127.0.0.1", "localhost", host]
    origins = [f"http://{name}:{port}" for name in hosts]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        session.start()
        yield
        session.end()

    routes = [Route(path, _answering(session, answer), methods=[method]) for path, (method, answer) in ROUTES.items()]
    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        Middleware(Guard, token=token, port=port, origins=origins),
    ]
    return Starlette(routes=routes, middleware=guards, lifespan=lifespan)


def _answering(session: Session, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    """A route that answers errors with one line for people."""

    async def route(request: Request) -> Response:
        try:
            return await answer(session, request)
        except Busy as error:
            return said({"error": str(error)}, 429)
        except SecantError as error:
            return said({"error": str(error)}, 400)
        except TooLong:
            return said({"error": "A request has a bounded size; got more. Shorten the prompt."}, 413)
        except KeyError:
            return JSONResponse({"error": "What is asked for must be there; got nothing of that name."}, 404)

    return route
