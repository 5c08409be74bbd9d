"""`POST /tokenize`, `POST /detokenize`, and `GET /tokenizer_info` for clients that render conversations themselves."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxserve.core.errors import TokenOutOfRange
from jaxserve.server.body import read_body
from jaxserve.server.logprobs import LogprobsFormat
from jaxserve.server.schemas.tokens import DetokenizeBody, TokenizeBody
from jaxserve.server.service import LONG_TEXT, Service


async def tokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body = TokenizeBody.parse(await read_body(request))
    service.check_model(body.model)
    body.check_one()
    tokenizer = service.need_tokenizer("tokenize")
    if body.messages is not None:
        text = tokenizer.render_chat([m.for_template() for m in body.messages], **body.template_options())
        special = bool(body.add_special_tokens)
    else:
        text, special = body.prompt or "", body.add_special_tokens is not False
    if len(text) < LONG_TEXT:
        tokens = tokenizer.encode(text, special)
    else:
        tokens = await asyncio.to_thread(tokenizer.encode, text, special)
    answer = {"count": len(tokens), "max_model_len": service.max_model_len, "tokens": tokens}
    if body.return_token_strs:
        answer["token_strs"] = [LogprobsFormat(tokenizer).name(token) for token in tokens]
    return JSONResponse(answer)


async def detokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body = DetokenizeBody.parse(await read_body(request))
    service.check_model(body.model)
    tokenizer = service.need_tokenizer("detokenize")
    vocab_size = service.facts.limits.vocab_size
    for token in body.tokens:
        if not 0 <= token < vocab_size:
            raise TokenOutOfRange(token, vocab_size, "tokens")
    if len(body.tokens) < LONG_TEXT:
        text = tokenizer.decode(body.tokens, skip_special_tokens=False)
    else:
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)
    return JSONResponse({"prompt": text})


async def tokenizer_info(request: Request) -> Response:
    service: Service = request.app.state.service
    return JSONResponse(service.need_tokenizer("tokenizer_info").info)
