"""secant: a language model's forward pass at a prompt, as the exact linear system that it is.

The public names, in the order of the pipeline; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secant.ablation import Ablation, Ablations, ablate, ablations
    from secant.attribution import Attribution, attribute
    from secant.comparison import Comparison, compare
    from secant.decoding import Largest, Null, Word, decode, largest, null
    from secant.depths import Depth, Layers, layers
    from secant.errors import NoRule, NotExact, SecantError
    from secant.evidence import Evidence
    from secant.explanation import Explanation, explain
    from secant.generation import Steps, follow
    from secant.loading import load
    from secant.model import LM
    from secant.neighbourhood import Reach, reach
    from secant.operator import Operator
    from secant.removal import Faithfulness, faithfulness
    from secant.run import Certificate, Prediction, Run, freeze
    from secant.screening import Screening, screen
    from secant.spectra import SVD, Estimate, captured, frobenius, stable_rank, svd
    from secant.steering import steer
    from secant.studies.study import Study, merge, study
    from secant.studies.summary import Summary, summarize
    from secant.tradeoff import Sweep, steering_sweep

__version__ = "0.1.0"

_WHERE = {
    "errors": ["SecantError", "NotExact", "NoRule"],
    "model": ["LM"],
    "loading": ["load"],
    "run": ["freeze", "Run", "Prediction", "Certificate"],
    "operator": ["Operator"],
    "spectra": ["svd", "SVD", "stable_rank", "captured", "frobenius", "Estimate"],
    "decoding": ["decode", "Word", "null", "Null", "largest", "Largest"],
    "attribution": ["attribute", "Attribution"],
    "generation": ["follow", "Steps"],
    "ablation": ["ablate", "ablations", "Ablation", "Ablations"],
    "removal": ["faithfulness", "Faithfulness"],
    "explanation": ["explain", "Explanation"],
    "evidence": ["Evidence"],
    "depths": ["layers", "Layers", "Depth"],
    "steering": ["steer"],
    "tradeoff": ["steering_sweep", "Sweep"],
    "neighbourhood": ["reach", "Reach"],
    "comparison": ["compare", "Comparison"],
    "studies.summary": ["summarize", "Summary"],
    "screening": ["screen", "Screening"],
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
