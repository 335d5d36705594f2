"""The paths of the server, and who answers each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from remoe_edge.errors import RemoeError
from remoe_edge.serve import asks
from remoe_edge.serve.conversations import Ask, Conversations, NotReady
from remoe_edge.serve.failures import Failure, failure_of
from remoe_edge.serve.fields import Fields
from remoe_edge.serve.figures import Figures
from remoe_edge.serve.guards import App, guarded
from remoe_edge.serve.http import (
    EventStream,
    Refused,
    failure_response,
    json_response,
    note,
    read_fields,
    whole_answer,
)
from remoe_edge.serve.openapi import description
from remoe_edge.serve.protocols import (
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
)
from remoe_edge.serve.protocols.reply import Reply, now
from remoe_edge.serve.protocols.responses_reply import ResponsesReply
from remoe_edge.serve.protocols.sampling import check_bias
from remoe_edge.serve.settings import ServeSettings
from remoe_edge.telemetry.exposition import page
from remoe_edge.telemetry.families import Family

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "chat.css": "text/css", "chat.js": "text/javascript", "markdown.js": "text/javascript",
    "store.js": "text/javascript",
}  # fmt: skip
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
Prepared = tuple[list[Ask], Callable[[], Reply], bool]


class Server:
    """Answer HTTP with conversations.

    model: the name that clients see. engine_figures: those of the engine, for Prometheus. power_w: the
    machine's power in watts.
    """

    def __init__(
        self,
        conversations: Conversations,
        settings: ServeSettings,
        *,
        model: str,
        figures: Figures,
        engine_figures: Callable[[], list[Family]] = list,
        power_w: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._conversations = conversations
        self._settings = settings
        self._model = model
        self._figures, self._engine_figures = figures, engine_figures
        self._power_w = power_w
        self._created = now()

    def app(self) -> App:
        """Make the ASGI application."""
        post, get = ["POST"], ["GET"]
        routes = [
            Route("/v1/chat/completions", self._answering(self._chat), methods=post),
            Route("/v1/completions", self._answering(self._completion), methods=post),
            Route("/v1/responses", self._answering(self._response), methods=post),
            Route("/v1/messages", self._answering(self._messages), methods=post),
            Route("/v1/embeddings", self._answering(self._embeddings), methods=post),
            Route("/v1/models", self._models, methods=get),
            Route("/v1/models/{name:path}", self._one_model, methods=get),
            Route("/v1/messages/count_tokens", self._catching(self._count_tokens), methods=post),
            Route("/tokenize", self._catching(self._tokenize), methods=post),
            Route("/detokenize", self._catching(self._detokenize), methods=post),
            Route("/health", self._health, methods=get),
            Route("/metrics", self._metrics, methods=get),
            Route("/slots", self._slots, methods=get),
            Route("/openapi.json", self._openapi, methods=get),
            Route("/", self._page, methods=get),
            Route("/page/{name}", self._page, methods=get),
        ]
        app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _http_failure},
        )
        return guarded(app, self._settings)

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self._conversations.close)

    # --- answers ---

    def _answering(
        self, prepare: Callable[[Fields], Prepared]
    ) -> Callable[..., Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            _ = self._conversations.engine  # not ready: said before a body is read
            fields = await self._fields(request)
            wanted, reply, is_stream = await asyncio.to_thread(prepare, fields)
            stream = self._conversations.submit(wanted)
            if is_stream:
                keep_alive_s = self._settings.keep_alive_s
                return EventStream(stream, reply(), request.url.path, keep_alive_s=keep_alive_s)
            return await whole_answer(request, stream, reply())

        return self._catching(answer)

    def _catching(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[..., Awaitable[Response]]:
        async def caught(request: Request) -> Response:
            path = request.url.path
            try:
                return await answer(request)
            except Refused as refused:
                return failure_response(refused.failure, path)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody is there to see it
            except asyncio.CancelledError:  # the grace is over, and this is all that can be said
                return failure_response(failure_of(NotReady("the server is stopping", 5)), path)
            except RemoeError as error:
                return failure_response(failure_of(error), path)
            except Exception as error:
                note(error)
                return failure_response(failure_of(error), path)

        return caught

    async def _fields(self, request: Request) -> Fields:
        settings = self._settings
        return await read_fields(
            request, most_bytes=settings.most_bytes, timeout_s=settings.body_s
        )  # fmt: skip

    def _chat(self, fields: Fields) -> Prepared:
        asked = openai_chat.read(fields)
        found = self._chat_asks(asked.chat)
        return found, lambda: openai_chat.ChatReply(asked, self._model), asked.stream

    def _completion(self, fields: Fields) -> Prepared:
        engine = self._conversations.engine
        asked = openai_completions.read(fields)
        check_bias(asked.sampling.get("logit_bias"), int(engine.llama.n_vocab()))
        found = openai_completions.asks(engine, asked)
        echoed = openai_completions.prompt_texts(engine, asked) if asked.echo else []
        return (
            found,
            lambda: openai_completions.CompletionReply(asked, self._model, echoed),
            asked.stream,
        )

    def _response(self, fields: Fields) -> Prepared:
        asked = openai_responses.read(fields)
        return self._chat_asks(asked.chat), lambda: ResponsesReply(asked, self._model), asked.stream

    def _messages(self, fields: Fields) -> Prepared:
        asked = anthropic_messages.read(fields)
        found = self._chat_asks(asked.chat)
        n_prompt = len(found[0].tokens)
        return found, lambda: anthropic_messages.MessagesReply(self._model, n_prompt), asked.stream

    def _embeddings(self, fields: Fields) -> Prepared:
        asked = openai_embeddings.read(fields)
        found = openai_embeddings.asks(self._conversations.engine, asked)
        return found, lambda: openai_embeddings.EmbeddingReply(asked, self._model), False

    def _chat_asks(self, chat: asks.Chat) -> list[Ask]:
        engine = self._conversations.engine
        check_bias(chat.sampling.get("logit_bias"), int(engine.llama.n_vocab()))
        return asks.chat_asks(engine, chat)

    # --- the rest of the protocols ---

    async def _models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._described()]})

    async def _one_model(self, request: Request) -> Response:
        if request.path_params["name"] == self._model:
            return json_response(self._described())
        failure = Failure(404, f"the model here is {self._model}", "model", "model_not_found")
        return failure_response(failure, request.url.path)

    def _described(self) -> dict[str, Any]:
        return {
            "id": self._model, "object": "model", "created": self._created, "owned_by": "remoe-edge",
        }  # fmt: skip

    async def _tokenize(self, request: Request) -> Response:
        engine = self._conversations.engine
        fields = await self._fields(request)
        name = "content" if fields.has("content") else "prompt"
        text = fields.needed_text(name)
        bos = fields.flag("add_special")
        special = fields.flag("parse_special", True)
        fields.ignore("model")
        fields.end()
        tokens = await asyncio.to_thread(engine.tokenize, text, special=special, bos=bos)
        return json_response(
            {"tokens": tokens, "count": len(tokens), "max_model_len": engine.n_ctx}
        )

    async def _detokenize(self, request: Request) -> Response:
        engine = self._conversations.engine
        fields = await self._fields(request)
        fields.required("tokens")
        tokens = fields.items("tokens")
        fields.ignore("model")
        fields.end()
        openai_completions.check_ids(engine, tokens, "tokens")
        text = await asyncio.to_thread(openai_completions.text_of, engine, tokens)
        return json_response({"content": text})

    async def _count_tokens(self, request: Request) -> Response:
        _ = self._conversations.engine
        fields = await self._fields(request)
        asked = await asyncio.to_thread(anthropic_messages.read, fields, counting=True)
        (ask,) = await asyncio.to_thread(self._chat_asks, asked.chat)
        return json_response({"input_tokens": len(ask.tokens)})

    async def _openapi(self, request: Request) -> Response:
        return json_response(description(has_key=self._settings.api_key is not None))

    # --- how it is doing ---

    async def _health(self, request: Request) -> Response:
        conversations = self._conversations
        state = conversations.state
        body: dict[str, Any] = {"status": state, "model": self._model}
        if conversations.failure is not None:
            body["error"] = failure_of(conversations.failure).message
        return json_response(body, 200 if state == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        def families() -> list[Family]:
            return [*self._engine_figures(), *self._figures.families(self._conversations.load)]

        text, kind = page(families, request.headers.get("accept"))
        return Response(text, headers={"Content-Type": kind})

    async def _slots(self, request: Request) -> Response:
        load = self._conversations.load
        slots = [
            {
                "id": s.id,
                "is_processing": s.busy,
                "n_prompt": s.n_prompt,
                "n_generated": s.n_generated,
            }
            for s in load.slots
        ]
        is_ready = self._conversations.state == "ready"
        return json_response(
            {
                "slots": slots,
                "queued": load.queued,
                "queue_limit": load.queue_limit,
                # The page shows them beside an answer: what it took of both.
                "misses_by_layer": self._conversations.engine.misses_by_layer()
                if is_ready
                else None,
                "power_w": self._power_w(),
            }
        )

    # --- the page ---

    async def _page(self, request: Request) -> Response:
        name = request.path_params.get("name")
        if name is None:
            return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS, media_type="text/html")
        if name not in _PAGE_FILES:
            raise HTTPException(404)
        return FileResponse(PAGE / name, headers=_PAGE_HEADERS, media_type=_PAGE_FILES[name])


async def _http_failure(request: Request, error: Exception) -> Response:
    """Write in our form what the framework refuses: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    said = {404: "there is nothing here: see docs/serve.md", 405: f"{path} takes another method"}
    failure = Failure(error.status_code, said.get(error.status_code, str(error.detail)))
    response = failure_response(failure, path)
    response.headers.update(error.headers or {})
    return response
