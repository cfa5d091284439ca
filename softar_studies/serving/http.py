"""The answers over HTTP, by tornado: one computation at a time, in a thread of its own."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from .answers import GET, POST
from .fields import BadRequest, finite
from .served import Served

MOST_BYTES = 16 * 2**20  # of a request
log = logging.getLogger(__name__)
END = object()  # behind the last chunk


def parsed(body: bytes) -> Any:
    """The JSON of a request.

    Raises:
        BadRequest: where it is none, or too long.
    """
    if len(body) > MOST_BYTES:
        raise BadRequest("body", f"{len(body)} bytes are more than {MOST_BYTES}")
    try:
        return json.loads(body, parse_constant=finite)
    except BadRequest:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRequest("body", f"is no JSON ({error})") from None


def error_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body of an error, in OpenAI's format."""
    if isinstance(error, BadRequest):
        status, kind, field = 400, "invalid_request_error", error.field
    elif isinstance(error, HTTPError):
        status, kind, field = error.status_code, "invalid_request_error", None
    else:
        status, kind, field = 500, "server_error", None
        log.error("an answer failed", exc_info=error)
    about = {"message": str(error), "type": kind, "param": field, "code": None}
    return status, {"error": about}


class Endpoint(RequestHandler):
    """One address: the function that answers it runs in the server's own thread."""

    def initialize(
        self, served: Served, worker: ThreadPoolExecutor, post: Any = None, get: Any = None
    ):
        """Take what the address is made of."""
        self.served, self.worker, self.answers = served, worker, {"POST": post, "GET": get}
        self.gone = Event()

    async def post(self):
        """Answer a request with a body."""
        await self._answer()

    async def get(self):
        """Answer a request without one."""
        await self._answer()

    def on_connection_close(self):
        """The client is gone: what it asked for need not be finished."""
        self.gone.set()

    async def _answer(self) -> None:
        function = self.answers[self.request.method]
        if function is None:
            self._send(*error_of(HTTPError(405, reason="this address is for the other method")))
            return
        try:
            body = parsed(self.request.body) if self.request.method == "POST" else {}
            answer = await self._run(function, self.served, body, self.gone.is_set)
            if isinstance(answer, dict):
                self._send(200, answer)
            else:
                await self._stream(answer)
        except StreamClosedError:
            self.gone.set()
        except Exception as error:  # whatever it is, the next client is answered
            self._send(*error_of(error))

    def _run(self, function: Callable, *arguments: Any) -> asyncio.Future:
        """Run a function when its turn comes, unless the client has gone by then."""

        def turn() -> Any:
            if self.gone.is_set():
                raise StreamClosedError
            return function(*arguments)

        return asyncio.get_running_loop().run_in_executor(self.worker, turn)

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        if self.gone.is_set():
            return
        try:
            text = json.dumps(answer, allow_nan=False)
        except ValueError:
            status, answer = error_of(ArithmeticError("the model gives no finite figures"))
            text = json.dumps(answer)
        if self._headers_written:  # a stream that breaks off: its last event is the error
            self.finish(f"data: {text}\n\n")
            return
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(text)

    async def _stream(self, chunks: Iterator[dict[str, Any]]) -> None:
        """Server-sent events, one per chunk, and the mark of the end."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache")
        while (chunk := await self._run(next, chunks, END)) is not END:
            self.write(f"data: {json.dumps(chunk, allow_nan=False)}\n\n")
            await self.flush()
        await self.finish("data: [DONE]\n\n")


class Nowhere(Endpoint):
    """Every other address."""

    async def _answer(self) -> None:
        known = ", ".join((*POST, *GET))
        self._send(*error_of(HTTPError(404, reason=f"nothing is here; known: {known}")))


def application(served: Served, **settings: Any) -> Application:
    """All addresses of a model; `settings` are tornado's."""
    shared = {"served": served, "worker": ThreadPoolExecutor(1, "answers")}
    routes = [(path, Endpoint, {**shared, "post": answer}) for path, answer in POST.items()]
    routes += [(path, Endpoint, {**shared, "get": answer}) for path, answer in GET.items()]
    elsewhere = {"default_handler_class": Nowhere, "default_handler_args": shared}
    return Application(routes, **elsewhere, **settings)


async def serve(served: Served, port: int, ready: Callable[[str], None], **settings: Any) -> None:
    """Serve on this machine only, without end; `ready` gets the address, tornado `settings`."""
    sockets = bind_sockets(port, "127.0.0.1")
    server = HTTPServer(application(served, **settings), max_body_size=4 * MOST_BYTES)
    server.add_sockets(sockets)
    ready(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1")
    try:
        await asyncio.Event().wait()
    finally:
        server.stop()
        await server.close_all_connections()
