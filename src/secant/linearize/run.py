"""Freeze a model at a prompt: one recorded pass, its affine network, and a certificate that the network is exact.

With every input-dependent factor frozen, the network is y = Σ_t J_t x_t + b. x_t are the embeddings of the prompt's
tokens and y is the final-normed hidden state before the head. b is the frozen network's output at zero input, to which
only the model's own constants contribute (J. Golden, TMLR 2025, arXiv 2505.24293, equation 5, which leaves out b).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import nan
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from secant.errors import (
    BadArgument,
    ModelRefused,
    NoPoint,
    NotExact,
    ReplayMismatch,
    checked,
    integer,
    number,
    quoted,
    seeded,
)
from secant.foreign import explained
from secant.linearize.certificate import HIDDEN_OPERATION, TOLERANCE, Certificate, certified, not_numbers, stock_error
from secant.linearize.conventions import (
    FOR_CONTRIBUTIONS,
    FOR_OPERATORS,
    SECANT,
    Convention,
    Named,
    convention_named,
)
from secant.linearize.forecast import announce_cost
from secant.linearize.network import (
    TOGETHER,
    Network,
    Recording,
    noting_head,
    record,
    references,
    running,
    streams,
)
from secant.linearize.points import ActivationGraph
from secant.linearize.residual_stream import Layer
from secant.linearize.tape import Tape, WithoutParameters
from secant.linearize.untouched import State
from secant.memory import room
from secant.model import weights
from secant.model.lm import LM, Prompt, dtype_of, versions
from secant.numeric import relative, wide
from secant.operators.operator import Graph, Operator
from secant.results.columns import ITS_LOGIT, POSITION, PROBABILITY, TOKEN, TOKEN_ID
from secant.results.result import Described, Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Tokens, View
from secant.text import count, excerpt, named, visible

POSITIONS = Table(
    "positions",
    "a position of the prompt",
    (
        POSITION,
        TOKEN,
        TOKEN_ID,
        Column("predicted", str, "the token that the model predicts after it", show="token"),
        PROBABILITY,
        ITS_LOGIT,
    ),
)
PREDICTIONS = Table(
    "predictions",
    "a likely next token",
    (
        Column("rank", int, "place among the predictions, from 0"),
        TOKEN.but(heading="next token"),
        TOKEN_ID,
        PROBABILITY,
        ITS_LOGIT,
    ),
)


@dataclass(frozen=True)
class Prediction:
    """A predicted next token.

    Attributes:
        token: Its text.
        id: Its id in the vocabulary.
        probability: Its probability.
        logit: Its logit.
    """

    token: str
    id: int
    probability: float
    logit: float


@dataclass(frozen=True, eq=False, repr=False)
class Run(Result):
    """One recorded pass of a model at a prompt, and its frozen network.

    Attributes:
        lm: The model.
        ids: The prompt's token ids.
        tokens: The tokens' texts.
        prediction: The most probable next tokens, best first.
        certificate: The evidence that the frozen network is exact.
        input: The tokens' embeddings.
        network: The frozen network.
        tolerance: The tolerance that `freeze` was given.
        seed: The seed of the random input that affinity was measured at.
        stamp: A fingerprint of the weights, except those that the model writes itself.
        chosen: The label of the convention that `freeze` was given; None if it was left to the default.
    """

    schema = (POSITIONS, PREDICTIONS)

    lm: LM
    ids: list[int]
    tokens: list[str]
    prediction: list[Prediction]
    certificate: Certificate
    input: Float[Tensor, "T d"]
    network: Network
    tolerance: float | None = None
    seed: int = 0
    stamp: weights.WeightsState | None = None
    chosen: str | None = None
    _ordinary: Tensor | None = None  # if the certificate computed it
    _under: dict[str, Run] = field(default_factory=dict)
    _at_references: dict[tuple[str, int, bool], list[Run]] = field(default_factory=dict)

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        best, own = self.prediction[0], self.certificate
        return [
            named(self.lm.name), f"{excerpt(''.join(self.tokens))} of {count(len(self.ids), 'token')}",
            f"predicts {visible(best.token)} {best.probability:.1%}", f"convention {own.convention}",
            f"{own.precision}, reconstruction {own.reconstruction:.1e}",
        ]  # fmt: skip

    def unchanged(self) -> None:
        """Raises ReplayMismatch if the model's weights have changed since the prompt was frozen."""
        if self.stamp is not None and (changed := self.stamp.changed(self.lm.model)):
            raise ReplayMismatch(
                "A model must keep the weights that a run was frozen with",
                f"{changed[0]}, which has changed since",
                "Freeze the prompt again.",
            )

    @property
    def hidden(self) -> Float[Tensor, "T d"]:
        """The final-normed hidden states."""
        return self.network.recording.values["norm"]

    @property
    def logits(self) -> Float[Tensor, "T vocabulary"]:
        """The logits at each position."""
        return self.network.recording.values["logits"]

    @property
    def tape(self) -> Tape:
        """The frozen factors, call by call."""
        return self.network.recording.tape

    @cached_property
    def ordinary(self) -> Float[Tensor, " d"]:
        """J' x with the ordinary Jacobian J' of the final-normed hidden state, the baseline that fails."""
        if self._ordinary is not None:
            return self._ordinary
        self.unchanged()
        return ordinary_output(self.lm, self.network.recording, self.input)

    @cached_property
    def inside(self) -> ActivationGraph:
        """The frozen network with all of its named activations, computed on first use. Raises ReplayMismatch."""
        self.unchanged()
        return ActivationGraph.of(self.network)

    @property
    def points(self) -> list[str]:
        """The names of the network's activations."""
        return list(self.inside.points)

    def found_layers(self, todo: str) -> list[Layer]:
        """Returns the layers of the network, which takes no pass.

        Args:
            todo: What the user can do if there are none.

        Raises:
            NoPoint: There are none.
        """
        if not (found := self.network.recording.layers):
            raise NoPoint(
                "A network's layers must be in a module list that carries the residual stream", "none", todo,
            )  # fmt: skip
        return found

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns the prediction at each position, and the most probable next tokens after the prompt."""
        logits = wide(self.logits)
        positions = {
            "position": range(len(self.ids)),
            "token": self.tokens,
            "id": self.ids,
            "predicted": [self.lm.text(i) for i in logits.argmax(1).tolist()],
            "probability": torch.softmax(logits, 1).amax(1).numpy(),
            "logit": logits.amax(1).numpy(),
        }
        guesses = [(rank, p.token, p.id, p.probability, p.logit) for rank, p in enumerate(self.prediction)]
        return {"positions": POSITIONS.frame(pd.DataFrame(positions)), "predictions": PREDICTIONS.frame(guesses)}

    def about(self) -> dict[str, Any]:
        """Returns the model's name, the prompt's tokens and the certificate."""
        return {"model": self.lm.name, "tokens": self.tokens, "certificate": asdict(self.certificate)}

    def tensors(self) -> dict[str, Described]:
        """Returns the embeddings, the final-normed hidden states and the logits."""
        return {
            "input": Described("token, d: embeddings x", self.input),
            "hidden": Described("token, d: final-normed hidden states", self.hidden),
            "logits": Described("token, vocabulary: logits", self.logits),
        }

    def view(self) -> View:
        """Returns what to show first: the prompt, the certificate and the most probable next tokens."""
        facts = {"tokens": Tokens(self.tokens), "certificate": self.certificate.lines()}
        grid = Grid.of(PREDICTIONS, self.tables()["predictions"], ("token", "probability|bar", "logit"), most=10)
        return View(f"Run of {self.lm.name}", facts, [grid])

    @checked
    def next(self, token: str | SupportsIndex | None = None) -> Run:
        """Returns the run of the prompt with one more token, frozen with the same settings.

        Args:
            token: The token, as text or id; by default the predicted one.

        Raises:
            BadPrompt: The token is unknown, or the prompt fills the model's context.
            SecantError: Whatever else `freeze` raises.
        """
        c = self.certificate
        more = self.prediction[0].id if token is None else self.lm.token(token, "input")
        return freeze(
            self.lm,
            [*self.ids, more],
            convention=self.chosen,
            precision=c.precision,
            ordinary=c.ordinary is not None,
            tolerance=self.tolerance,
            top=len(self.prediction),
            seed=self.seed,
        )

    @checked
    def under(self, convention: Named | None = None) -> Run:
        """Returns the run of the same prompt under another convention, frozen once with the same settings.

        Args:
            convention: The convention, as in `freeze`; by default that of contributions: the one that the run was
                frozen under if it was chosen, and otherwise "secant".

        Raises:
            BadArgument: There is no such convention.
            SecantError: Whatever else `freeze` raises.
        """
        c, label = self.certificate, self._label(convention)
        if label == c.convention:
            return self
        if label not in self._under:
            self.unchanged()
            with self._exact_itself():
                self._under[label] = freeze(
                    self.lm, self.ids, convention=label, precision=c.precision, tolerance=self.tolerance,
                    top=len(self.prediction), seed=self.seed,
                )  # fmt: skip
        return self._under[label]

    def recorded(self, conventions: Sequence[Named | None]) -> Iterator[Run]:
        """Yields the runs of the same prompt under other conventions, with the certificate of this one.

        Each takes one pass; conventions that differ only in the share of gates take one pass together. The errors of
        the new runs are not measured, so check what you compute from them, as `attribute` checks that its terms sum to
        the target.

        Args:
            conventions: The conventions, as in `under`.

        Raises:
            SecantError: Whatever `freeze` raises.
        """
        known: dict[Convention, Recording] = {}
        for label in map(self._label, conventions):
            if label in (self.certificate.convention, *self._under):
                yield self.under(label)
                continue
            self.unchanged()
            chosen = convention_named(label)
            recording = self._recording_of(chosen, known)
            yield replace(
                self._of(recording), chosen=label,
                certificate=replace(self.certificate, convention=label, operations=recording.tape.operations()),
            )  # fmt: skip

    def _recording_of(self, chosen: Convention, known: dict[Convention, Recording]) -> Recording:
        """A recording of this run's prompt. Those that others can be made of are added to the known ones."""
        own = self.network.recording
        whole = chosen if chosen.gates == SECANT else replace(chosen, gates="half")
        if whole not in known:
            known[whole] = record(
                self.lm, self.ids, self.input, whole.label, self.network.precision, state=own.state, seeds=[self.seed]
            )
        found = known[whole]
        return found if whole == chosen else replace(
            found, tape=found.tape.with_share(chosen.share), convention=chosen.label
        )  # fmt: skip

    def _label(self, convention: Named | None) -> str:
        """The label of a convention; by default that of contributions."""
        return convention_named(convention or self.chosen or FOR_CONTRIBUTIONS).label

    def _of(self, recording: Recording) -> Run:
        """The run with another recording of its prompt."""
        own = Network.of(self.lm, recording, self.input, self.network.precision)
        return replace(self, network=own, seed=recording.seeds[0], _under={}, _at_references={})

    def references(self, convention: Named | None, count: int, together: bool = True) -> list[Run]:
        """Returns runs of the prompt that together have several random references of a convention.

        The first reference is drawn with this run's seed, the others with the seeds that follow. A run with several
        references holds one copy of the prompt for each. All of these runs have the certificate of the first.

        Args:
            convention: The convention, as in `under`.
            count: The number of references. A convention without a random one has one run.
            together: Whether a run may have several references.

        Raises:
            SecantError: Whatever `freeze` raises.
        """
        label = self._label(convention)
        if count == 1 or not convention_named(label).varies:
            return [self.under(label)]
        key = (label, count, together)
        if key not in self._at_references:
            # One batch of all references is certified itself. Otherwise the run at the first of them is.
            base = self if together and count * len(self.ids) <= TOGETHER else self.under(label)
            own, seeds = base.network.recording, range(self.seed, self.seed + count)
            found = references(self.lm, own, self.input, label, base.network.precision, seeds, together)
            runs = [base if each is own else base._of(each) for each in found]
            if base.certificate.convention != label:
                certificate = base._certificate_of(runs[0].network)
                runs = [replace(run, certificate=certificate, chosen=label) for run in runs]
            self._at_references[key] = runs
        return self._at_references[key]

    def _certificate_of(self, network: Network) -> Certificate:
        """The certificate of another recording of this run's prompt. The plain pass and the types are this run's."""
        recording = network.recording
        _ = network.with_constants  # contributions need it too, and it has the points of the errors
        alone = (recording.single or recording).values["logits"]
        unmeasured = replace(
            self.certificate, convention=recording.convention, operations=recording.tape.operations(),
            forward_equal=self.certificate.forward_equal and torch.equal(alone, self.logits),
        )  # fmt: skip
        with self._exact_itself():
            return certified(network, self.seed, unmeasured)

    @contextmanager
    def _exact_itself(self) -> Iterator[None]:
        """Where another convention is not exact, name the one of this run, which is."""
        try:
            yield
        except NotExact as error:
            todo = f"Choose the convention {self.certificate.convention!r}, which is exact here. {error.todo}"
            raise NotExact(error.rule, error.got, todo) from error

    @checked
    def operator(
        self,
        source: str = "embed",
        target: str = "norm",
        position: SupportsIndex | Sequence[SupportsIndex] | slice | None = -1,
        *,
        readout: str | None = None,
        tokens: Sequence[str | SupportsIndex] | None = None,
    ) -> Operator:
        """Returns the affine map from one activation, at all tokens, to another at some positions.

        Activations are embed, layers.i, layers.i.attn, layers.i.mlp, layers.i.mixer, layers.i.attn.heads.h, norm and
        logits; `run.points` lists those of this model.

        Args:
            source: The activation that is the operator's input.
            target: The activation that is its output.
            position: One position, several, which are concatenated in the output, or None for all. Negative ones count
                from the end.
            readout: "norm" or "logits": read out a target inside the network through the final norm, which is frozen at
                the target's own value.
            tokens: If the output is logits, the tokens whose logits it has, as texts or ids; by default all.

        Raises:
            NoPoint: This model has no such activation, or the target does not depend on the source.
            BadArgument: The prompt has no such position.
            BadPrompt: The vocabulary has no such token.
            NotExact: The operator does not reproduce the target within the tolerance.
        """
        rows, ids = self.rows(position), self._ids(tokens, readout or target)
        c = self.certificate
        where = {"model": self.lm.name, "tokens": self.tokens, "source": source, "target": target, "readout": readout}
        how = {"convention": c.convention, "dtype": c.dtype, "precision": c.precision, "versions": c.versions}
        alone = hasattr(position, "__index__")
        about = {**where, "position": rows[0] if alone else rows, "logits": ids, **how}
        if source == "embed" and target in self.network.points and readout is None:
            op = self.network.operator(target, rows, ids, about)
            if (target, rows) == ("norm", [len(self.ids) - 1]):
                return op  # the certificate covers it
        else:
            op = self.inside.operator(source, target, rows, ids, readout, about)
        self.certify(op.reconstruction, op.bias, op.output, f"from {source} to {target}")
        return op

    def certify(self, error: float, bias: Tensor, output: Tensor, where: str) -> None:
        """Raises NotExact if an operator does not reproduce the model; terms that may cancel widen the tolerance."""
        c = self.certificate
        if not error <= c.tolerance * (1 + 2 * bias.norm().item() / (output.norm().item() or 1)):
            raise NotExact(
                f"An operator must reproduce the model to {c.tolerance:.0e} in {c.precision}",
                f"{error:.1e} {where}", HIDDEN_OPERATION,
            )  # fmt: skip

    def rows(self, position: SupportsIndex | Sequence[SupportsIndex] | slice | None) -> list[int]:
        """Returns positions counted from 0; None stands for all. Raises BadArgument if the prompt lacks one."""
        T = len(self.ids)
        if isinstance(position, slice):
            position = range(T)[position]
        given: Sequence[SupportsIndex | str]
        if isinstance(position, Sequence) and not isinstance(position, str):
            given = position
        else:
            given = range(T) if position is None else [position]
        if not len(given):
            raise BadArgument("An operator has at least one position", "none", f"Use {-T} to {T - 1}.")
        return [integer(row, -T, T - 1, f"A position is one of the prompt's {T} tokens") % T for row in given]

    def _ids(self, tokens: Sequence[str | SupportsIndex] | None, target: str) -> list[int] | None:
        if tokens is None:
            return None
        if target != "logits":
            raise BadArgument(
                "Only logits can be selected by tokens", f"tokens for {target}", "Choose logits, or omit the tokens."
            )
        if isinstance(tokens, str) or not isinstance(tokens, Sequence) or not tokens:
            raise BadArgument("Tokens are a non-empty list", quoted(tokens), 'Give, for instance, [" the"].')
        return [self.lm.token(token) for token in tokens]


@checked
def freeze(
    lm: LM,
    prompt: Prompt,
    *,
    convention: Named | None = None,
    precision: str | torch.dtype | None = None,
    ordinary: bool = False,
    tolerance: float | None = None,
    top: int = 10,
    seed: int = 0,
) -> Run:
    """Returns a model's recorded pass at a prompt, with its frozen network and a certificate that it is exact.

    A run that is estimated to take more than a minute, or more than half of the free memory, is announced beforehand.

    Args:
        lm: The model.
        prompt: A text, token ids or chat messages.
        convention: Which exact affine map replaces each operation: "gate", "up", "half", "halves", "secant",
            "paper" (another name of "gate"), "relevance" (of "half"); parts joined by plus signs, such as
            "0.7+secant+frozen+zero"; or a `Convention`. By default "gate" for operators
            and spectra, and "secant" for contributions, for which the prompt is then frozen anew.
        precision: The type in which the frozen network is evaluated, not narrower than the model's own, which is the
            default. The recorded pass keeps the model's own type.
        ordinary: Whether to measure the error of the ordinary Jacobian, too.
        tolerance: The largest allowed error, instead of TOLERANCE.
        top: How many predictions to keep.
        seed: The seed of the random input that affinity is measured at, and of a random reference.

    Raises:
        BadPrompt: The prompt is empty, too long, or not in the vocabulary.
        BadArgument: Another argument is out of range.
        TrainingMode: A dropout is active.
        ModelRefused: The model can't be run at the prompt, or computes NaN.
        NoRule: A torch function that meets the input has no rule.
        ReplayMismatch: A replay of the model diverges from its recorded pass.
        TooLarge: The run does not fit in memory.
        NotExact: An error of the certificate exceeds its tolerance.
    """
    chosen = None if convention is None else convention_named(convention).label
    lm.ready()
    ids = lm.encode(prompt)
    system = precision_of(lm, precision)
    top = integer(top, 1, 10**9, "At least one prediction is kept", "top = ")
    if tolerance is not None:
        tolerance = number(tolerance, 1e-300, 1e300, "A tolerance is a positive number", todo="Leave it out.")
    seed = seeded(seed)
    how: dict[str, Any] = {"tolerance": tolerance, "top": top, "seed": seed}

    def frozen(tokens: Sequence[int], ordinary: bool = False) -> Run:
        return _frozen(lm, list(tokens), chosen, system, ordinary=ordinary, **how)

    with room("Freezing a prompt", "Shorten it, load a smaller dtype, or give it a device with more memory."):
        announce_cost(ids, lambda tokens: frozen(tokens).network.recording, lm.dtype)
        return frozen(ids, ordinary)


def _frozen(
    lm: LM,
    ids: list[int],
    chosen: str | None,
    system: torch.dtype,
    ordinary: bool,
    tolerance: float | None,
    top: int,
    seed: int,
) -> Run:
    """The run of these tokens. The arguments have been checked."""
    convention = chosen or FOR_OPERATORS
    odd = explained(ModelRefused, "A model must run at the prompt by itself", "Fix the model.")
    state = State(lm.model)
    with running(lm, lm.dtype, state=state) as own, odd:
        x, plain = lm.embed(ids), lm.logits(ids)
    if bad := plain.isnan().any(-1).nonzero().flatten().tolist():
        raise not_numbers(lm, f"NaN at position {bad[0]}")
    stock = stock_error(lm, ids, plain, state) if lm.dtype == torch.float64 else None
    recording = record(lm, ids, x, convention, system, state=state, seeds=[seed])
    if not recording.values["norm"][-1].any():
        raise NotExact("The final hidden state must not be zero", "one that is 0", "Check the final norm's weights.")
    network = Network.of(lm, recording, x, system)
    baseline = ordinary_output(lm, recording, x) if ordinary else None
    unmeasured = Certificate(
        forward_equal=torch.equal(plain, recording.values["logits"]),
        reconstruction=nan,
        affinity=nan,
        readout=nan,
        stock=stock,
        constants=nan,
        ordinary=None if baseline is None else relative(baseline, recording.values["norm"][-1]),
        tolerance=TOLERANCE[lm.dtype] if tolerance is None else tolerance,
        affinity_tolerance=TOLERANCE[system] if tolerance is None else tolerance,
        convention=convention,
        dtype=str(lm.dtype).removeprefix("torch."),
        precision=str(system).removeprefix("torch."),
        attention=lm.attention,
        versions=versions(),
        operations=recording.tape.operations(),
    )
    certificate = certified(network, seed, unmeasured)
    predictions = _predictions(lm, recording.values["logits"][-1], top)
    return Run(
        lm,
        ids,
        [lm.text(i) for i in ids],
        predictions,
        certificate,
        x,
        network,
        tolerance,
        seed,
        weights.WeightsState.of(lm.model, without=[tensor for tensor, _ in own.values()]),
        chosen,
        baseline,
    )


def precision_of(lm: LM, precision: str | torch.dtype | None) -> torch.dtype:
    """Returns the type in which a frozen network is evaluated, by default the model's own, or raises BadArgument."""
    system = dtype_of(precision) or lm.dtype
    if torch.promote_types(system, lm.dtype) != system:
        raise BadArgument(
            f"The precision is at least the model's own, {lm.dtype}",
            str(system),
            "Load the model in a lower dtype instead.",
        )
    return system


def ordinary_output(lm: LM, recording: Recording, x: Float[Tensor, "T d"]) -> Float[Tensor, " d"]:
    """Returns J' x with the ordinary Jacobian J' of the last hidden state, the baseline that fails."""
    return tangent(lm, recording, x).forward(x.detach().reshape(-1, 1))[:, 0]


def tangent(lm: LM, recording: Recording, x: Float[Tensor, "T d"]) -> Graph:
    """Returns products with the ordinary Jacobian J' of the last hidden state with respect to the embeddings x."""
    watch, ids = WithoutParameters(lm.head), recording.ids
    with running(lm, lm.dtype, state=recording.state), sdpa_kernel(SDPBackend.MATH):
        leaf = x.detach().clone().requires_grad_()
        moving = leaf.clone()
        with noting_head(lm, watch), watch:
            lm.forward(ids, moving)
        hidden = watch.head.uses[recording.unembedding.use].given
        assert hidden is not None, "record has found it"
        return Graph(leaf, streams(hidden, len(ids))[recording.unembedding.stream, -1])


def _predictions(lm: LM, logits: Float[Tensor, " vocabulary"], top: int) -> list[Prediction]:
    logits = wide(logits)
    probabilities = torch.softmax(logits, -1)
    best: Sequence[int] = torch.sort(logits, descending=True, stable=True).indices[:top].tolist()
    return [Prediction(lm.text(i), i, probabilities[i].item(), logits[i].item()) for i in best]
