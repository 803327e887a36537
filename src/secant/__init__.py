"""secant: the forward pass of a language model at a prompt, as an exact linear system.

The public names, in the order of the pipeline; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # with `as`, which says to type checkers that a name is public
    from secant.analyses.ablation import (
        Ablation as Ablation,
        Ablations as Ablations,
        ablate as ablate,
        ablations as ablations,
    )
    from secant.analyses.attribution import Attribution as Attribution, attribute as attribute
    from secant.analyses.compare import compare as compare
    from secant.analyses.comparison import Comparison as Comparison
    from secant.analyses.continuation import Steps as Steps, follow as follow
    from secant.analyses.explain import explain as explain
    from secant.analyses.explanation import Evidence as Evidence, Explanation as Explanation
    from secant.analyses.faithfulness import Faithfulness as Faithfulness, faithfulness as faithfulness
    from secant.analyses.interpolation import Reach as Reach, reach as reach
    from secant.analyses.lens import Lens as Lens, lens as lens
    from secant.analyses.screening import Screening as Screening, screen as screen
    from secant.analyses.sensitivity import Sensitivity as Sensitivity, sensitivity as sensitivity
    from secant.analyses.sinks import sinks as sinks
    from secant.errors import NoRule as NoRule, NotExact as NotExact, SecantError as SecantError
    from secant.linearize.certificate import Certificate as Certificate
    from secant.linearize.conventions import Convention as Convention
    from secant.linearize.run import Prediction as Prediction, Run as Run, freeze as freeze
    from secant.model.lm import LM as LM
    from secant.model.loading import load as load
    from secant.operators.decomposition import (
        Estimate as Estimate,
        frobenius as frobenius,
        missed as missed,
        stable_rank as stable_rank,
        svd as svd,
    )
    from secant.operators.operator import Operator as Operator
    from secant.operators.spectrum import SVD as SVD
    from secant.steering.steer import steer as steer
    from secant.steering.sweep import Sweep as Sweep, steering_sweep as steering_sweep
    from secant.stream.decode import decode as decode, null as null
    from secant.stream.depths import Depth as Depth, Layers as Layers
    from secant.stream.largest import Largest as Largest, largest as largest
    from secant.stream.layers import layers as layers
    from secant.stream.words import Null as Null, Word as Word
    from secant.studies.study import Study as Study, merge as merge, study as study
    from secant.studies.summarize import summarize as summarize
    from secant.studies.summary import Summary as Summary

__version__ = "0.1.0"

_WHERE = {
    "errors": ["SecantError", "NotExact", "NoRule"],
    "model.lm": ["LM"],
    "model.loading": ["load"],
    "linearize.conventions": ["Convention"],
    "linearize.certificate": ["Certificate"],
    "linearize.run": ["freeze", "Run", "Prediction"],
    "operators.operator": ["Operator"],
    "operators.decomposition": ["svd", "stable_rank", "missed", "frobenius", "Estimate"],
    "operators.spectrum": ["SVD"],
    "stream.decode": ["decode", "null"],
    "stream.words": ["Word", "Null"],
    "stream.largest": ["largest", "Largest"],
    "analyses.attribution": ["attribute", "Attribution"],
    "analyses.continuation": ["follow", "Steps"],
    "analyses.ablation": ["ablate", "ablations", "Ablation", "Ablations"],
    "analyses.faithfulness": ["faithfulness", "Faithfulness"],
    "analyses.lens": ["lens", "Lens"],
    "analyses.sensitivity": ["sensitivity", "Sensitivity"],
    "analyses.sinks": ["sinks"],
    "analyses.explain": ["explain"],
    "analyses.explanation": ["Explanation", "Evidence"],
    "stream.layers": ["layers"],
    "stream.depths": ["Layers", "Depth"],
    "steering.steer": ["steer"],
    "steering.sweep": ["steering_sweep", "Sweep"],
    "analyses.interpolation": ["reach", "Reach"],
    "analyses.compare": ["compare"],
    "analyses.comparison": ["Comparison"],
    "studies.summarize": ["summarize"],
    "studies.summary": ["Summary"],
    "analyses.screening": ["screen", "Screening"],
    "studies.study": ["study", "Study", "merge"],
}

_MODULES = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'secant' has no attribute {name!r}")
    value = getattr(import_module(f"secant.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
