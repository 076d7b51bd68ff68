"""flows/deployments.py: what Prefect's run form makes of every deployment's parameters; no server is needed for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flows.deployments import DEPLOYMENTS


def unions_with_null(schema: Any, above: str = "") -> list[str]:
    """Where a JSON schema lets a value be null: the run form shows `Property is type "None"` there."""
    if isinstance(schema, list):
        return [found for each in schema for found in unions_with_null(each, above)]
    if not isinstance(schema, dict):
        return []
    kinds = schema.get("type")
    here = [above] if kinds == "null" or (isinstance(kinds, list) and "null" in kinds) else []
    return here + [found for key, each in schema.items() for found in unions_with_null(each, f"{above}/{key}")]


def test_a_union_with_null_is_seen():
    assert unions_with_null({"properties": {"keep": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}})
    assert unions_with_null({"properties": {"keep": {"type": ["integer", "null"]}}})


@pytest.mark.parametrize("deployed", DEPLOYMENTS, ids=lambda deployed: deployed.name)
def test_no_parameter_of_a_run_form_may_be_null_and_each_is_described(deployed):
    schema = json.loads(deployed.flow().parameters.model_dump_json())
    assert schema["properties"] and unions_with_null(schema) == []
    assert all(one.get("description") for one in schema["properties"].values())
