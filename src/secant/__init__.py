"""secant: a language model's forward pass at a prompt, as the exact linear system that it is.

The public names, in the order of the pipeline; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secant.analyses.ablation import Ablation, Ablations, ablate, ablations
    from secant.analyses.attribution import Attribution, attribute
    from secant.analyses.compare import Comparison, compare
    from secant.analyses.continuation import Steps, follow
    from secant.analyses.explain import Evidence, Explanation, explain
    from secant.analyses.faithfulness import Faithfulness, faithfulness
    from secant.analyses.interpolation import Reach, reach
    from secant.analyses.screening import Screening, screen
    from secant.errors import NoRule, NotExact, SecantError
    from secant.linearize.run import Certificate, Prediction, Run, freeze
    from secant.model.lm import LM
    from secant.model.loading import load
    from secant.operators.decomposition import SVD, Estimate, captured, frobenius, stable_rank, svd
    from secant.operators.operator import Operator
    from secant.steering.steer import steer
    from secant.steering.sweep import Sweep, steering_sweep
    from secant.stream.decode import Largest, Null, Word, decode, largest, null
    from secant.stream.layers import Depth, Layers, layers
    from secant.studies.study import Study, merge, study
    from secant.studies.summary import Summary, summarize

__version__ = "0.1.0"

_WHERE = {
    "errors": ["SecantError", "NotExact", "NoRule"],
    "model.lm": ["LM"],
    "model.loading": ["load"],
    "linearize.run": ["freeze", "Run", "Prediction", "Certificate"],
    "operators.operator": ["Operator"],
    "operators.decomposition": ["svd", "SVD", "stable_rank", "captured", "frobenius", "Estimate"],
    "stream.decode": ["decode", "Word", "null", "Null", "largest", "Largest"],
    "analyses.attribution": ["attribute", "Attribution"],
    "analyses.continuation": ["follow", "Steps"],
    "analyses.ablation": ["ablate", "ablations", "Ablation", "Ablations"],
    "analyses.faithfulness": ["faithfulness", "Faithfulness"],
    "analyses.explain": ["explain", "Explanation", "Evidence"],
    "stream.layers": ["layers", "Layers", "Depth"],
    "steering.steer": ["steer"],
    "steering.sweep": ["steering_sweep", "Sweep"],
    "analyses.interpolation": ["reach", "Reach"],
    "analyses.compare": ["compare", "Comparison"],
    "studies.summary": ["summarize", "Summary"],
    "analyses.screening": ["screen", "Screening"],
    "studies.study": ["study", "Study", "merge"],
}

__all__ = [
    "LM",
    "SVD",
    "Ablation",
    "Ablations",
    "Attribution",
    "Certificate",
    "Comparison",
    "Depth",
    "Estimate",
    "Evidence",
    "Explanation",
    "Faithfulness",
    "Largest",
    "Layers",
    "NoRule",
    "NotExact",
    "Null",
    "Operator",
    "Prediction",
    "Reach",
    "Run",
    "Screening",
    "SecantError",
    "Steps",
    "Study",
    "Summary",
    "Sweep",
    "Word",
    "ablate",
    "ablations",
    "attribute",
    "captured",
    "compare",
    "decode",
    "explain",
    "faithfulness",
    "follow",
    "freeze",
    "frobenius",
    "largest",
    "layers",
    "load",
    "merge",
    "null",
    "reach",
    "screen",
    "stable_rank",
    "steer",
    "steering_sweep",
    "study",
    "summarize",
    "svd",
]


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            value = getattr(import_module(f"secant.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'secant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
