"""What `/v1/responses` answers: items one after another, each told of as it begins, grows and ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from remoe_edge.serve.events import (
    Event,
    Finish,
    Reasoning,
    Text,
    ToolArguments,
    ToolBegin,
    ToolEnd,
)
from remoe_edge.serve.protocols.openai_chat import logprob
from remoe_edge.serve.protocols.openai_responses import ResponsesRequest
from remoe_edge.serve.protocols.reply import Frame, costs, new_id, now


class ResponsesReply:
    """Write events, or one response. Implements `Reply`."""

    def __init__(self, asked: ResponsesRequest, model: str) -> None:
        self._asked = asked
        self._head = {
            "id": new_id("resp_"), "object": "response", "created_at": now(), "model": model,
        }  # fmt: skip
        self._items: list[dict[str, Any]] = []
        self._is_open = False  # the last item is being written
        self._finish: Finish | None = None
        self._error: dict[str, Any] | None = None
        self._n_events = 0

    def begin(self) -> Iterable[Frame]:
        """Write the response without a content."""
        yield self._frame("response.created", response=self._response("in_progress"))
        yield self._frame("response.in_progress", response=self._response("in_progress"))

    def take(self, index: int, event: Event) -> Iterable[Frame]:
        """Write what happened."""
        if isinstance(event, Text):
            yield from self._open("message")
            yield from self._text(event)
        elif isinstance(event, Reasoning):
            yield from self._open("reasoning")
            self._part()["text"] += event.text
            yield self._frame("response.reasoning_text.delta", **self._place(), delta=event.text)
        elif isinstance(event, ToolBegin):
            yield from self._open("function_call", call_id=event.id, name=event.name, arguments="")
        elif isinstance(event, ToolArguments):
            self._items[-1]["arguments"] += event.text
            place = self._place(with_part=False)
            yield self._frame("response.function_call_arguments.delta", **place, delta=event.text)
        elif isinstance(event, ToolEnd):
            yield from self._close()
        elif isinstance(event, Finish):
            if event.rest and self._is_open and self._items[-1]["type"] == "message":
                self._part()["logprobs"] += map(logprob, event.rest)
            yield from self._close(completed=event.reason != "length")
            self._finish = event

    def end(self) -> Iterable[Frame]:
        """Write the whole response."""
        whole = self.whole()
        yield self._frame(f"response.{whole['status']}", response=whole)

    def failed(self, status: int, body: dict[str, Any]) -> Iterable[Frame]:
        """Write an error."""
        error = body["error"]
        self._error = {"code": "server_error", "message": error["message"]}
        yield self._frame("response.failed", response=self._response("failed"))

    def whole(self) -> dict[str, Any]:
        """Write the response."""
        cut = self._finish is not None and self._finish.reason == "length"
        return self._response("incomplete" if cut else "completed")

    # --- items ---

    def _open(self, kind: str, **values: Any) -> Iterable[Frame]:
        if self._is_open and self._items[-1]["type"] == kind and kind != "function_call":
            return
        yield from self._close()
        prefix = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}[kind]
        item = {"id": new_id(prefix), "type": kind, "status": "in_progress", **values}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        if kind == "reasoning":
            item |= {"summary": [], "content": []}
        self._items.append(item)
        self._is_open = True
        at = len(self._items) - 1
        yield self._frame("response.output_item.added", output_index=at, item=dict(item))
        if kind == "function_call":
            return
        part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._frame("response.content_part.added", **self._place(), part=dict(part))
        item["content"] = [part]

    def _text(self, event: Text) -> Iterable[Frame]:
        logprobs = list(map(logprob, event.tokens))
        part = self._part()
        part["text"] += event.text
        part["logprobs"] += logprobs
        place = self._place()
        yield self._frame(
            "response.output_text.delta", **place, delta=event.text, logprobs=logprobs
        )

    def _close(self, *, completed: bool = True) -> Iterable[Frame]:
        if not self._is_open:
            return
        self._is_open = False
        item, at = self._items[-1], len(self._items) - 1
        if item["type"] == "function_call":
            said = {"arguments": item["arguments"], "name": item["name"]}
            place = self._place(with_part=False)
            yield self._frame("response.function_call_arguments.done", **place, **said)
        else:
            part = self._part()
            is_text = item["type"] == "message"
            said = {"text": part["text"], **({"logprobs": part["logprobs"]} if is_text else {})}
            kind = "output_text" if is_text else "reasoning_text"
            yield self._frame(f"response.{kind}.done", **self._place(), **said)
            yield self._frame("response.content_part.done", **self._place(), part=dict(part))
        item["status"] = "completed" if completed else "incomplete"
        yield self._frame("response.output_item.done", output_index=at, item=dict(item))

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self._items[-1]["content"][0]
        return part

    def _place(self, *, with_part: bool = True) -> dict[str, Any]:
        at = len(self._items) - 1
        place = {"item_id": self._items[-1]["id"], "output_index": at}
        return {**place, "content_index": 0} if with_part else place

    # --- the whole ---

    def _frame(self, kind: str, **values: Any) -> Frame:
        self._n_events += 1
        return kind, {"type": kind, "sequence_number": self._n_events - 1, **values}

    def _response(self, status: str) -> dict[str, Any]:
        finish = self._finish
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        made = {
            **self._head, **self._asked.echoed, "status": status, "error": self._error,
            "completed_at": now() if status == "completed" else None, "incomplete_details": reason,
            "output": list(self._items), "usage": None if finish is None else _usage(finish),
        }  # fmt: skip
        return made if finish is None else {**made, "remoe_edge": costs(finish)}


def _usage(finish: Finish) -> dict[str, Any]:
    found = finish.usage
    return {
        "input_tokens": found.prompt_tokens,
        "input_tokens_details": {"cached_tokens": found.cached_tokens},
        "output_tokens": found.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": found.reasoning_tokens},
        "total_tokens": found.total_tokens,
    }
