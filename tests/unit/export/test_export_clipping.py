"""Gradients are clipped in a tool as they were when the batch was measured."""

import json

import pytest
import yaml
from export_cases import config_of

from scaler.batch import BatchPlan
from scaler.export.targets import export


def exported(to, max_grad_norm, zero_stage=0, kind="cuda"):
    config = config_of(BatchPlan.equal(8, 2, 4, zero_stage), kind=kind)
    told = config.findings.model_copy(update={"max_grad_norm": max_grad_norm})
    return export(config.model_copy(update={"findings": told}), to)


@pytest.mark.parametrize(("max_grad_norm", "written"), [(None, 0.0), (0.5, 0.5)])
def test_tools_that_clip_by_themselves_are_told(max_grad_norm, written):
    assert json.loads(exported("deepspeed", max_grad_norm))["gradient_clipping"] == written
    assert yaml.safe_load(exported("hugging-face", max_grad_norm))["max_grad_norm"] == written
    sharded = yaml.safe_load(exported("hugging-face", max_grad_norm, zero_stage=2))
    assert sharded["deepspeed"]["gradient_clipping"] == written
    sharded = yaml.safe_load(exported("accelerate", max_grad_norm, zero_stage=2))
    assert sharded["deepspeed_config"]["gradient_clipping"] == written
    assert f"export SCALER_MAX_GRAD_NORM={written}" in exported("torchrun", max_grad_norm)


def test_tools_that_do_not_are_told_only_where_there_is_something_to_clip():
    assert yaml.safe_load(exported("lightning", 0.5))["gradient_clip_val"] == 0.5
    assert "gradient_clip_val" not in exported("lightning", None)
    assert "clip_grad_norm_(model.parameters(), 0.5)" in exported("accelerate", 0.5)
    assert "clip_grad_norm_" not in exported("accelerate", None)
