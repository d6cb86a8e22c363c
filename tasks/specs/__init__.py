"""What is asked of the factory: frozen, typed, torch-free values read from YAML 1.2.

A spec names everything that determines an adapter's bytes.
"""

from tasks.specs.adapter import AdapterSpec, DriftSpec, EvaluationSpec, GateSpec, RetrainSpec
from tasks.specs.common import AUTO, LEFT_TO_THE_RECIPE, SIDES, AnswerGateSpec, Severity, Share, Side, Slug, Spec
from tasks.specs.data import DataSpec, ExpectationSpec, NearSpec, SplitSpec, columns_of, moment_of, render
from tasks.specs.merge import GeneralSpec, MergeGateSpec, MergeSpec, RuleSpec, SearchSpec
from tasks.specs.training import BaseSpec, MethodSpec, RepairSpec, ResourceSpec, TrainingSpec

__all__ = [
    "AUTO",
    "LEFT_TO_THE_RECIPE",
    "SIDES",
    "AdapterSpec",
    "AnswerGateSpec",
    "BaseSpec",
    "DataSpec",
    "DriftSpec",
    "EvaluationSpec",
    "ExpectationSpec",
    "GateSpec",
    "GeneralSpec",
    "MergeGateSpec",
    "MergeSpec",
    "MethodSpec",
    "NearSpec",
    "RepairSpec",
    "ResourceSpec",
    "RetrainSpec",
    "RuleSpec",
    "SearchSpec",
    "Severity",
    "Share",
    "Side",
    "Slug",
    "Spec",
    "SplitSpec",
    "TrainingSpec",
    "columns_of",
    "moment_of",
    "render",
]
