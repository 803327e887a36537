"""The tools that `secant mcp` offers to agents. Each calls one function of the package.

A tool returns what the command with its name prints with `--json`, with each table cut to its first rows. `left_out`
counts the rows that are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secant.model.lm import LM

ROWS = 20
"""How many rows of a table a tool returns by default."""


def cut(found: dict[str, Any], rows: int, tables: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns a result as JSON with short tables.

    Args:
        found: What `to_dict` of a result returns.
        rows: How many rows of each table are kept.
        tables: The names of the tables to keep; by default all.

    Raises:
        BadArgument: The result has no such table, or `rows` is not a number of rows.
    """
    from secant.errors import chosen, integer

    every = [name for name, value in found.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    wanted = every if tables is None else chosen(list(tables), every, "Tables of this result")
    rows = integer(rows, 1, 10_000, "A tool returns some rows of each table", "rows = ")
    kept = {name: value[:rows] if name in every else value for name, value in found.items()}
    left_out = {name: len(found[name]) - (rows if name in wanted else 0) for name in every}
    shown = {name: value for name, value in kept.items() if name not in every or name in wanted}
    return {**shown, "left_out": {name: count for name, count in left_out.items() if count > 0}}


class Tools:
    """The tools, which share one model.

    Attributes:
        load: Loads the model. It is called once, by the first tool that runs.
    """

    def __init__(self, load: Callable[[], LM]) -> None:
        self.load = load

    @cached_property
    def lm(self) -> LM:
        """The model."""
        return self.load()

    @property
    def every(self) -> list[Callable[..., dict[str, Any]]]:
        """All tools."""
        return [self.explain, self.attribute, self.layers, self.steer, self.study]

    def explain(
        self, prompt: str, target: str | None = None, versus: str | None = None, k: int = 4,
        tables: list[str] | None = None, rows: int = ROWS,
    ) -> dict[str, Any]:  # fmt: skip
        """Explain the next token of a prompt: what each token contributes to its logit, exactly, next to other
        conventions and to what deleting the token does, the logit lens by layer, and the top tokens of each token's
        block.

        Args:
            prompt: The prompt, as plain text.
            target: The token to explain, with its space, such as " Paris"; by default the prediction.
            versus: Another token, whose logit is subtracted.
            k: How many singular vectors of each token's block are decoded.
            tables: Return only these tables, such as tokens, by_convention, lens or words.
            rows: Return this many rows of each table.
        """
        import secant as sc

        return cut(sc.explain(self.lm, prompt, target=target, versus=versus, k=k).to_dict(), rows, tables)

    def attribute(
        self, prompt: str, target: str | None = None, versus: str | None = None, position: int = -1,
        flow: bool = False, rows: int = 100,
    ) -> dict[str, Any]:  # fmt: skip
        """Split a token's logit into exact contributions of tokens, layers, heads and constants.

        Args:
            prompt: The prompt, as plain text.
            target: The token to explain, with its space, such as " Paris"; by default the prediction.
            versus: Another token, whose logit is subtracted.
            position: The position whose output is explained; -1 is the last.
            flow: Also split each part's contribution by token.
            rows: Return this many rows of each table.
        """
        import secant as sc

        run = sc.freeze(self.lm, prompt)
        return cut(sc.attribute(run, target, versus, position=position, flow=flow).to_dict(), rows)

    def layers(self, prompt: str, k: int = 2, tables: list[str] | None = None, rows: int = ROWS) -> dict[str, Any]:
        """Decompose every layer at a prompt: stable ranks, spectra and top tokens of the residual stream, attention and
        MLP. This takes seconds on a small model and minutes on one of a hundred million parameters.

        Args:
            prompt: The prompt, as plain text.
            k: How many singular vectors of each block are decoded.
            tables: Return only these tables, such as layers, spectra or layer_words.
            rows: Return this many rows of each table.
        """
        import secant as sc

        return cut(sc.layers(sc.freeze(self.lm, prompt), k=k).to_dict(), rows, tables)

    def steer(
        self, prompt: str, concept: str, layer: int, strength: float, form: str = "activation", tokens: int = 20
    ) -> dict[str, Any]:
        """Continue a prompt while steering towards a concept, next to the continuation without steering.

        Args:
            prompt: The prompt, as plain text.
            concept: A text about the concept, such as "The capital of Japan is".
            layer: The layer to steer after, from 0.
            strength: The strength; 1 is a good first try for activation.
            form: activation, mixture or additive.
            tokens: The maximum length of a continuation.
        """
        from secant.steering.steered import side_by_side

        found = side_by_side(self.lm, prompt, concept, layer=layer, strength=strength, form=form, tokens=tokens)
        return found.to_dict()

    def study(self, prompts: list[str], out: str, analyses: list[str] | None = None) -> dict[str, Any]:
        """Run the same analyses on many prompts, and save their rows as Parquet in a folder. A study that was
        interrupted resumes.

        Args:
            prompts: The prompts, as plain texts.
            out: The study's folder on this computer.
            analyses: What to compute, such as reconstruction, spectra, attribution, parts or words.
        """
        import secant as sc
        from secant.cli.commands.study import DEFAULTS, said_of

        study = sc.study(prompts, self.lm, out=out, analyses=analyses or DEFAULTS, workers=1)
        return {**said_of(study), "measures": sc.summarize(out).to_dict().get("summary_measures", [])}
