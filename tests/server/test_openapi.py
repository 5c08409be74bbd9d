"""The OpenAPI document is true: schemathesis sends what it allows and what it forbids, and reads every answer by it.

Over the fake device, with the embedded model's tokenizer and a folder for batches: thousands of requests in seconds.
"""

import dataclasses
from collections.abc import Iterator

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS

from jaxserve.assembly import EMBEDDED
from jaxserve.batches.store import Store
from jaxserve.core.server_sections import BatchConfig
from jaxserve.engine.limits import Limits
from jaxserve.server.app import ROUTES, create_app
from jaxserve.server.batches import Batches
from jaxserve.server.dashboard.routes import ROUTES as DASHBOARD
from jaxserve.server.front import ADMIN_PREFIXES
from jaxserve.server.openapi import OPERATIONS, Operation, document
from jaxserve.text.tokenizer import Tokenizer
from tests.engine.conftest import build_engine
from tests.server.conftest import Background, fake_service

# A request can be as the schema says and still ask for too much (tokens beyond the vocabulary, beyond the length), so
# that a 400 is a right answer to it. Whether a body is against the schema is asked of the schema itself, below: a
# mutation may turn one member of a union into another.
# A 504 is announced, for whoever asks for a timeout of nothing.
UNDECIDABLE = {"positive_data_acceptance", "negative_data_rejection", "not_a_server_error"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    engine = build_engine(max_model_len=64, blocks=400)
    engine.limits = Limits(1536, 64, 3000)
    service = dataclasses.replace(
        fake_service(engine, max_body_bytes=100_000), tokenizer=Tokenizer.from_directory(EMBEDDED)
    )
    folder = tmp_path_factory.mktemp("batches")
    kept = Batches(Store(folder, 1 << 30), BatchConfig(batch_dir=str(folder)))
    background = Background(create_app(service, kept=kept))
    yield schemathesis.openapi.from_url(f"{background.url}/openapi.json")
    background.stop()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(o, id=f"{o.method} {o.path}", marks=[] if o.path == "/v1/completions" else [pytest.mark.slow])
        for o in OPERATIONS
    ],
)
def test_every_answer_is_as_documented(
    api: schemathesis.BaseSchema, operation: Operation, mode: GenerationMode
) -> None:
    strategy = api[operation.path][operation.method.upper()].as_strategy(generation_mode=mode)

    whole = document()
    body_validator = None
    if operation.body is not None:
        reference = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
        body_validator = jsonschema_rs.Draft202012Validator(reference | {"components": whole["components"]})

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=strategy)
    def run(case: Case) -> None:
        response = case.call_and_validate(excluded_checks=[CHECKS.get_one(name) for name in UNDECIDABLE])
        asked = case.body if isinstance(case.body, dict) else {}
        assert response.status_code < 500 or (response.status_code == 504 and "timeout" in asked)
        if body_validator is not None and isinstance(case.body, dict) and not body_validator.is_valid(case.body):
            assert response.status_code in (400, 404, 413), f"{case.body} is against the schema"

    try:
        run()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE and operation.body is None, "nothing can be wrong with it"


def test_every_route_is_in_the_document() -> None:
    documented = {(o.path, o.method.upper()) for o in OPERATIONS}
    public = [route for route in ROUTES if not route.path.startswith(ADMIN_PREFIXES)]
    served = {(route.path.replace(":path", ""), method) for route in public for method in route.methods - {"HEAD"}}
    undocumented = {("/openapi.json", "GET"), ("/metrics", "GET")} | {(route.path, "GET") for route in DASHBOARD}
    assert served - undocumented == documented
    assert document()["openapi"].startswith("3.1")
