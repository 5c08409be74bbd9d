"""`/openapi.json`: made from the schemas that read the bodies and describe the answers, so that it cannot drift.

A test sends what the document allows and what it forbids, and compares every answer with it.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxserve import __version__
from jaxserve.server.files import MAX_FILES, MAX_PAGE
from jaxserve.server.schemas import answers, batches
from jaxserve.server.schemas.chat import ChatBody
from jaxserve.server.schemas.completions import CompletionsBody
from jaxserve.server.schemas.generate import GenerateBody
from jaxserve.server.schemas.tokens import DetokenizeBody, TokenizeBody

_REASONS = {
    400: "cannot be served as it is: the message says what to change",
    401: "no known API key",
    403: "this key may not",
    404: "no such thing here",
    408: "the reader was too slow",
    409: "not in this state",
    413: "the body is over max_body_bytes",
    429: "too busy: try again after Retry-After",
    500: "the step that ran it failed",
    503: "loading, draining, or stopped",
    504: "not done within its timeout",
    507: "the store is full",
}
_ALWAYS = (401, 404, 503)
_WORK = (400, 413, 429, 500, 504)


@dataclass(frozen=True, slots=True)
class Operation:
    """One route and method, as the document tells it. `form`: the body is a multipart form's schema."""

    path: str
    method: str
    summary: str
    answer: type[BaseModel] | None
    body: type[BaseModel] | None = None
    streams: bool = False
    errors: tuple[int, ...] = ()
    parameters: tuple[dict[str, Any], ...] = ()
    form: dict[str, Any] | None = None


_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_UPLOAD = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"const": "batch"}},
}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _page(most: int) -> tuple[dict[str, Any], ...]:
    return _query("after", type="string"), _query("limit", type="integer", minimum=1, maximum=most)


_FILES = (_query("purpose", type="string"), _query("order", enum=["asc", "desc"]), *_page(MAX_FILES))
OPERATIONS: list[Operation] = [
    Operation("/v1/completions", "post", "Continue prompts", answers.Completion, CompletionsBody, True, _WORK),
    Operation("/v1/chat/completions", "post", "Answer a conversation", answers.ChatCompletion, ChatBody, True, _WORK),
    Operation("/generate", "post", "Continue a prompt, in the engine's words", answers.Generated, GenerateBody, True,
              _WORK),
    Operation("/tokenize", "post", "Text to token ids", answers.Tokenized, TokenizeBody, errors=_WORK),
    Operation("/detokenize", "post", "Token ids to text", answers.Detokenized, DetokenizeBody, errors=_WORK),
    Operation("/tokenizer_info", "get", "Special tokens and chat template", answers.TokenizerInfo, errors=(400,)),
    Operation("/v1/models", "get", "The served model", answers.ModelList),
    Operation("/v1/models/{model}", "get", "The model, by name", answers.ModelCard, parameters=(_path("model"),)),
    Operation("/v1/files", "post", "Keep a file for batches", batches.FileObject, errors=(*_WORK, 507), form=_UPLOAD),
    Operation("/v1/files", "get", "The files, newest first", batches.FileList, errors=(400,), parameters=_FILES),
    Operation("/v1/files/{file_id}", "get", "One file", batches.FileObject, parameters=(_path("file_id"),)),
    Operation("/v1/files/{file_id}", "delete", "Delete a file", batches.FileDeleted, errors=(409,),
              parameters=(_path("file_id"),)),
    Operation("/v1/files/{file_id}/content", "get", "What is in it", None, parameters=(_path("file_id"),)),
    Operation("/v1/batches", "post", "Start a batch", batches.BatchObject, batches.BatchBody, errors=(*_WORK, 507)),
    Operation("/v1/batches", "get", "The batches, newest first", batches.BatchList, errors=(400,),
              parameters=_page(MAX_PAGE)),
    Operation("/v1/batches/{batch_id}", "get", "One batch", batches.BatchObject, parameters=(_path("batch_id"),)),
    Operation("/v1/batches/{batch_id}/cancel", "post", "Cancel a batch", batches.BatchObject, errors=(*_WORK, 409),
              parameters=(_path("batch_id"),)),
    Operation("/health", "get", "Is the engine alive", answers.Status),
    Operation("/ready", "get", "Is every program compiled", answers.Status),
    Operation("/version", "get", "Versions", answers.Version),
]  # fmt: skip


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    models = {answers.ErrorBody, *(o.answer for o in OPERATIONS if o.answer), *(o.body for o in OPERATIONS if o.body)}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "jaxserve", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content["application/json"] = {"schema": _ref(operation.answer)}
    else:
        content["application/octet-stream"] = {}
    if operation.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": {"description": "done", "content": content}},
        "security": [{}, {"key": []}],
    }
    for status in sorted({*operation.errors, *_ALWAYS}):
        if operation.path in ("/health", "/ready"):
            if status == 503:
                described["responses"]["503"] = {"description": "not so", "content": content}
            continue
        described["responses"][str(status)] = {
            "description": _REASONS[status],
            "content": {"application/json": {"schema": _ref(answers.ErrorBody)}},
        }
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body is not None:
        schema = {"application/json": {"schema": _ref(operation.body)}}
        described["requestBody"] = {"required": True, "content": schema}
    elif operation.form is not None:
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": operation.form}}}
    return described


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


async def openapi(request: Request) -> Response:
    return JSONResponse(document())
