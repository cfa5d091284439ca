"""Calls to an unreliable server: they return checked JSON, or raise an error that names the fault.

A server may hang, refuse, break off or send wrong data. Nothing here repeats a secret, neither in
an error nor in a repr, even where a server sends it back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from random import Random
from threading import Timer
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses of refusals that may pass
LONGEST_WAIT = 60.0  # seconds: the longest Retry-After that is obeyed


class RemoteError(RuntimeError):
    """A server could not be asked, or its answer cannot be trusted.

    The message names the server and the fault.
    """


@runtime_checkable
class Authentication(Protocol):
    """Identifies the caller to a server.

    `headers` returns the headers of one request, made anew for each attempt. `secrets` are removed
    from every message.
    """

    secrets: tuple[str, ...]

    def headers(self, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]: ...


@dataclass(frozen=True)
class Bearer:
    """An API key sent as `Authorization: Bearer …`.

    Raises:
        ValueError: where the key cannot be part of a header.
    """

    key: str = field(repr=False)

    def __post_init__(self):
        if not self.key or not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise ValueError("a bearer key must be printable ASCII without spaces, and not empty")

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.key,)

    def headers(self, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@dataclass(frozen=True)
class SigV4:
    """Requests signed for AWS (Signature Version 4) by botocore.

    The defaults fit a SageMaker endpoint. `SigV4.from_environment(region)` finds the credentials as
    AWS's own tools do.
    """

    access_key: str
    secret_key: str = field(repr=False)
    region: str
    service: str = "sagemaker"
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, region: str, service: str = "sagemaker") -> SigV4:
        """Find credentials in environment variables, AWS's files or the machine's role.

        The order is botocore's.

        Raises:
            RemoteError: where there are no credentials, or botocore is missing.
        """
        _needs("botocore")
        from botocore.session import Session

        found = Session().get_credentials()
        if found is None:
            raise RemoteError(
                "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        found = found.get_frozen_credentials()
        return cls(found.access_key, found.secret_key, region, service, found.token)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.secret_key, self.session_token)))

    def headers(self, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        _needs("botocore")
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        request = AWSRequest("POST", url, headers=dict(headers), data=body)
        credentials = Credentials(self.access_key, self.secret_key, self.session_token)
        SigV4Auth(credentials, self.service, self.region).add_auth(request)
        return {name: value for name, value in request.headers.items() if name not in headers}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Posts JSON and returns JSON, with a limited number of attempts.

    Redirections are not followed: they would carry the key elsewhere.

    Args:
        auth: adds the headers that identify the caller.
        timeout: seconds that a whole attempt may take, from connecting to the last byte.
        retries: how often a call is repeated after a time-out, a broken connection or a refusal
            that may pass (429, 500 …).
        wait: seconds before the first repetition. The wait doubles each time, with jitter, or is
            what the server's Retry-After asks for.
        max_bytes: the longest answer that is read.
    """

    auth: Authentication | None = None
    timeout: float | int = 60.0
    retries: int = 4
    wait: float | int = 0.5
    max_bytes: int = 64_000_000

    def __post_init__(self):
        for name, least in (("timeout", 1e-3), ("retries", 0), ("wait", 0), ("max_bytes", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least:g}, not {getattr(self, name)!r}")

    def post(self, url: str, request: Mapping[str, Any]) -> Any:
        """The server's answer, parsed.

        Raises:
            RemoteError: where there is no answer in time, a refusal, or no JSON.
        """
        httpx, place = _needs("httpx"), place_of(url)
        body = json.dumps(request, ensure_ascii=False, allow_nan=False).encode(
            "utf-8", "surrogatepass"
        )
        jitter, problem = Random(), ""
        for attempt in range(self.retries + 1):
            pause = None
            # 1) one attempt: return its answer, or raise where repeating cannot help
            try:
                status, headers, content = self._once(httpx, url, body)
            except httpx.DecodingError as error:
                raise self._error(place, f"the answer cannot be unpacked ({error})") from None
            except httpx.InvalidURL as error:
                raise self._error(place, f"the address cannot be used ({error})") from None
            except httpx.TimeoutException:
                problem = f"no whole answer within {self.timeout:g} s"
            except httpx.TransportError as error:
                problem = f"the connection failed ({type(error).__name__}: {error})"
            else:
                if status == 200:
                    return self._parsed(place, headers, content)
                problem = f"status {status}{self._said(content)}"
                if 300 <= status < 400:
                    raise self._error(
                        place,
                        f"{problem}: it redirects, which is not followed; give the final address",
                    )
                if status not in AGAIN:
                    raise self._error(place, problem)
                pause = retry_after(headers.get("retry-after"))
                if pause is not None and pause > LONGEST_WAIT:
                    raise self._error(
                        place, f"{problem}, and asks to be left alone for {pause:.0f} s"
                    )
            # 2) wait before the next attempt
            if attempt < self.retries:
                time.sleep(
                    self.wait * 2**attempt * (0.5 + jitter.random()) if pause is None else pause
                )
        tried = f", tried {self.retries + 1} times" if self.retries else ""
        raise self._error(place, f"{problem}{tried}")

    def _once(self, httpx, url: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """One attempt: status, headers, content.

        The timeout covers the whole attempt, even if bytes keep arriving.
        """
        end = time.monotonic() + self.timeout
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        headers |= (
            self.auth.headers(url, {"Content-Type": "application/json"}, body) if self.auth else {}
        )
        content = bytearray()
        try:
            with (
                httpx.Client(timeout=self.timeout, follow_redirects=False) as client,
                self._alarm(client),
            ):
                with client.stream("POST", url, content=body, headers=headers) as response:
                    for piece in response.iter_bytes():
                        content += piece
                        if len(content) > self.max_bytes:
                            problem = (
                                f"the answer is longer than {self.max_bytes:,} bytes (max_bytes)"
                            )
                            raise self._error(place_of(url), problem)
                return response.status_code, response.headers, bytes(content)
        except (httpx.TransportError, RuntimeError) as error:
            if isinstance(error, RemoteError) or time.monotonic() < end:
                raise
            # the time is up: the error comes from the alarm, which closed the connection
            raise httpx.ReadTimeout("") from None

    @contextmanager
    def _alarm(self, client):
        """Close a client when its time is up: httpx's own time-outs start again with every byte."""
        alarm = Timer(self.timeout, client.close)
        alarm.daemon = True
        alarm.start()
        try:
            yield
        finally:
            alarm.cancel()

    def _parsed(self, place: str, headers: Mapping[str, str], content: bytes) -> Any:
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise self._error(
                place, f"the answer is {kind or 'of no stated type'}, not JSON{self._said(content)}"
            )
        try:
            return json.loads(content, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise self._error(
                place, f"the answer is no JSON ({error}){self._said(content)}"
            ) from None

    def _said(self, content: bytes) -> str:
        text = " ".join(content[:2000].decode("utf-8", "replace").split())
        return f": {self.hidden(text)[:200]!r}" if text else ""

    def hidden(self, text: str) -> str:
        """A text without this caller's secrets."""
        for secret in self.auth.secrets if self.auth else ():
            text = text.replace(secret, "***")
        return text

    def _error(self, place: str, problem: str) -> RemoteError:
        return RemoteError(f"{place}: {self.hidden(problem)}")


def place_of(url: str) -> str:
    """An address that may appear in messages: without the query, which may hold a key.

    Raises:
        ValueError: where it is no http address, or holds a name or password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in parts.netloc:
        raise ValueError("a server's address begins with http:// or https:// and names a host")
    _ = parts.port  # raises ValueError where it is no port
    if parts.username or parts.password:
        raise ValueError(
            "the address holds a name or password; give it as auth=Bearer(…) or SigV4(…)"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date.

    None where it is absent or unreadable.
    """
    if value is None:
        return None
    if value.isascii() and value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _no_number(name: str):
    raise ValueError(f"{name} is no number")


def _needs(name: str):
    try:
        return __import__(name)
    except ImportError:
        raise RemoteError(
            f'{name} is missing; pip install "softar-lab[remote]" brings it'
        ) from None
