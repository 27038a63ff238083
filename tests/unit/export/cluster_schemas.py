"""Manifests as the operator's published schema and Ray's launcher read them."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[3]
SCHEMAS = Path(os.environ.get("SCALER_DATA", ROOT.parent / "shared" / "data")) / "kuberay"


def closed(schema: Any) -> Any:
    """Close every object that lists its keys to others: Kubernetes drops unknown ones without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(part) for key, part in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def check_kuberay(text: str) -> dict[str, Any]:
    """Validate a RayJob or a RayCluster; skip where there is no schema."""
    manifest = yaml.safe_load(text)
    assert manifest["apiVersion"] == "ray.io/v1"
    file = SCHEMAS / {"RayJob": "rayjobs.v1.json", "RayCluster": "rayclusters.v1.json"}[manifest["kind"]]
    if not file.is_file():
        pytest.skip(f"no {file}: set SCALER_DATA to the folder that holds kuberay/{file.name}")
    schema = closed(json.loads(file.read_text(encoding="utf-8")))
    jsonschema.Draft202012Validator(schema).validate(manifest)
    return manifest


def check_launcher(text: str) -> dict[str, Any]:
    """Read a file as `ray up` does before it asks the provider for nodes."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config
