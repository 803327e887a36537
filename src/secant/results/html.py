"""Results as a notebook shows them: small static HTML, no script, every text escaped.

Colours are the notebook's own, but for two of bars, which can be seen on light and on dark. The classes of results call
these functions when they are shown, so that this module imports none of them: results come as they are.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from secant.text import certified, named, visible

POSITIVE, NEGATIVE = "#3d8fd1", "#d9702b"
"""Colours of bars."""

MOST = 40
"""Rows that are shown; how many more there are is said."""

PLAIN = "tex2jax_ignore mathjax_ignore"
"""Classes in which notebooks look for no formulas between dollar signs."""

ALIGNED = {"tokens": "the same in all", "characters": "aligned by characters", "not": "not aligned"}
"""How a comparison has aligned tokens, as it is said."""

CELL = "padding:0.1em 0.6em;border:none;text-align:{};white-space:nowrap"


def run(r: Any) -> str:
    """A run: its tokens, the predictions, the certificate."""
    facts = {"tokens": " ".join(map(visible, r.tokens)), "certificate": _certified(r.certificate)}
    rows = [
        (visible(p.token), _percent(p.probability), _bar(p.probability, 1.0), _number(p.logit))
        for p in r.prediction[:10]
    ]
    return _shown(f"Run of {r.lm.name}", facts, ["next token", "probability", "", "logit"], rows, numbers=(1, 3))


def operator(op: Any) -> str:
    """An operator: from where to where, its shape, what it is of."""
    a, (d_out, n) = op.about, op.shape
    T, d_in = op.input.shape
    facts = {"shape": f"{d_out} x ({T} * {d_in}): output = J input + bias", "type": str(op.bias.dtype)}
    keys = ("source", "target", "readout", "position", "token", "convention", "precision", "model")
    facts |= {key: str(a[key]) for key in keys if a.get(key) is not None}
    if "tokens" in a:
        facts["tokens"] = " ".join(map(visible, a["tokens"]))
    return _shown(f"Operator of {n} to {d_out} numbers", facts)


def svd(f: Any) -> str:
    """A decomposition: its singular values, with how much they hold and how well they are known."""
    facts = {"stable rank": _number(f.stable_rank), "‖J‖_F": _number(f.frobenius), "solver": f.solver}
    facts["products"] = f"{f.products} in {f.passes} passes"
    top = f.S[0].item() if len(f.S) else 0.0
    rows = []
    for row in f.to_pandas().itertuples(index=False):
        known = (_percent(row.energy), _number(row.residual), str(row.block))
        rows.append((str(row.vector), _number(row.sigma), _bar(row.sigma, top), *known))
    headings = ["vector", "σ", "", "energy", "residual", "block"]
    shape = f"{len(f.U)} x {len(f.V)}"
    return _shown(
        f"{len(f.S)} singular triplets of an operator {shape}", facts, headings, rows, numbers=(0, 1, 3, 4, 5)
    )


def attribution(a: Any) -> str:
    """A logit's sum over tokens and constants, and over what writes it."""
    versus = "" if a.versus is None else f" over {visible(a.versus)}"
    facts = {"logit": _number(a.logit), "sum of tokens and constants": _number(a.total)}
    if a.direct is not None:
        facts["sum of what writes it"] = _number(a.direct)
    kinds = ("token", "constant", "embed", "layer", "outside")
    found = [row for row in a.table.itertuples(index=False) if row.kind in kinds]
    top = max((abs(row.contribution) for row in found), default=0.0)
    rows = []
    for row in found:
        share = _percent(a.share(row.contribution))
        rows.append((row.kind, visible(row.name), _number(row.contribution), _bar(row.contribution, top), share))
    headings = ["", "", "contribution", "", "share"]
    return _shown(f"Attribution of the logit of {visible(a.target)}{versus}", facts, headings, rows, numbers=(2, 4))


def explanation(e: Any) -> str:
    """An explanation: the prediction, the certificate, and a row for each token."""
    p, c = e.run.prediction[0], e.run.certificate
    facts = {"next token": f"{visible(p.token)} {p.probability:.1%}", "certificate": _certified(c)}
    constant = e.attribution.constant
    table, rows = e.to_pandas(), []
    top = max((abs(v) for v in table["contribution"]), default=0.0)
    for t, row in enumerate(table.itertuples(index=False)):
        words = [
            " ".join(visible(w.token.strip() or w.token) for w in side[t][0][:5]) for side in (e.outputs, e.inputs)
        ]
        numbers = (_number(row.norm), _number(row.sigma), _number(row.stable_rank))
        bar = _bar(row.contribution, top)
        rows.append((str(t), visible(row.token), _percent(row.share), bar, *numbers, *words))
    bar = _bar(constant, top)
    rows.append(("", "constants", _percent(e.attribution.share(constant)), bar, "", "", "", "", ""))
    headings = ["", "token", "share", "", "‖J x‖", "σ₁", "R", "writes (U₀)", "reads (V₀)"]
    return _shown(f"Explanation by {e.run.lm.name}", facts, headings, rows, numbers=(0, 2, 4, 5, 6))


def comparison(c: Any) -> str:
    """A comparison: a row for each model and convention, and how far their words are the same."""
    facts = {"tokens": ALIGNED[c.aligned]} | ({"not aligned": " ".join(c.why)} if c.why else {})
    rows = []
    for row in c.models.itertuples(index=False):
        layer = "never" if row.depth != row.depth else f"{row.first_seen} ({row.depth:.0%} of depth)"
        said = (visible(row.prediction), _percent(row.probability))
        numbers = (_number(row.reconstruction), str(row.tokens), _number(row.stable_rank), _number(row.sigma), layer)
        rows.append((row.model, row.convention, *said, *numbers))
    headings = ["model", "convention", "next token", "", "reconstruction", "tokens", "R", "σ₀", "first in U₀"]
    return _shown(f"Comparison of {len(rows)} at {c.prompt}", facts, headings, rows, numbers=(3, 4, 5, 6, 7))


def study(s: Any) -> str:
    """A study: how far it is, and how many prompts there are of each model and convention."""
    own = s.identity
    facts = {"folder": named(str(s.folder)), "analyses": ", ".join(own.analyses)}
    facts["prompts"] = f"{own.prompts} in shards of {own.shard}"
    if s.missing:
        facts["not done"] = f"{s.missing} of {len(own.names)} shards: start it again, and it goes on"
    rows: list[tuple[str, ...]] = []
    if "prompts" in s.tables:
        done = s.to_pandas()
        for (model, convention), some in done.groupby(["model", "convention"], sort=False):
            failed, worst = some["reason"].notna().sum(), some["run_reconstruction"].max()
            rows.append((model, convention, str(len(some)), str(failed), _number(worst)))
    headings = ["model", "convention", "prompts", "failed", "‖J x + b - y‖ / ‖y‖ at most"]
    return _shown(f"Study of {', '.join(own.labels)}", facts, headings, rows, numbers=(2, 3, 4))


def summary(s: Any) -> str:
    """A summary: how many prompts there were, and the measures over all of them."""
    facts = {"studies": ", ".join(s.studies)}
    facts["prompts"] = f"{s.runs['prompts'].sum()} runs, {s.runs['failed'].sum()} failed"
    rows = []
    for row in s.measures[s.measures["category"].isna()].itertuples(index=False):
        between = row.interval if math.isnan(row.low) else f"{_number(row.low)} to {_number(row.high)}"
        rows.append((row.model, row.convention, row.measure, _number(row.mean), between, str(row.n)))
    headings = ["model", "convention", "measure", "mean", "95 %", "n"]
    return _shown("Summary of " + ", ".join(s.studies), facts, headings, rows, numbers=(3, 5))


def _certified(c: Any) -> str:
    """A certificate in a line, with how it was computed."""
    return f"{certified(c)} · {c.dtype} · {c.attention} attention · convention {c.convention}"


def ablations(a: Any) -> str:
    """What the absence of each token, part or head takes from a logit, in the held network and in the model."""
    top = max((abs(change) for change in a.table["real"]), default=0.0)
    rows = [
        (row.kind, visible(row.name), _number(row.held), _number(row.real), _bar(row.real, top))
        for row in a.table.itertuples(index=False)
    ]
    title = f"Change of the logit of {visible(a.target)}, each taken out by itself (by {a.by})"
    return _shown(title, {}, ["", "", "held", "real", ""], rows, numbers=(2, 3))


def largest(f: Any) -> str:
    """The largest columns or rows of J, with their norms and words."""
    top, rows = f.table["norm"].max(), []
    for _, own in f.table.groupby("rank", sort=True):
        one = own.iloc[0]
        token = "" if one["token"] is None else visible(one["token"])
        words = " ".join(visible(word.strip() or word) for word in own["word"])
        rows.append(
            (str(one["position"]), token, str(one["unit"]), _number(one["norm"]), _bar(one["norm"], top), words)
        )
    headings = ["", "token", "unit", "norm", "", "decodes to"]
    return _shown(f"The largest {f.of} of J", {}, headings, rows, numbers=(0, 2, 3))


class _Bar(str):
    """HTML of our own making, which is not escaped."""

    __slots__ = ()


def _bar(value: float, top: float) -> _Bar:
    """A bar of up to 8 em."""
    share = min(1.0, abs(value) / top) if top and math.isfinite(value) else 0.0
    colour = POSITIVE if value >= 0 else NEGATIVE
    style = f"display:inline-block;height:0.7em;width:{8 * share:.2f}em;background:{colour}"
    return _Bar(f'<span style="{style}"></span>')


def _number(value: float) -> str:
    return f"{value:.4g}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def _shown(
    title: str,
    facts: dict[str, str],
    headings: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    numbers: Iterable[int] = (),
) -> str:
    """A title, what is said of the whole, and a table; columns with `numbers` are set to the right."""
    right = set(numbers)
    parts = [f'<div class="{PLAIN}"><strong>{_escaped(title)}</strong>']
    parts += [f"<div><small>{_escaped(name)}</small> {_escaped(value)}</div>" for name, value in facts.items()]
    if rows:
        lines = [headings, *rows[:MOST]]
        parts.append('<table style="border-collapse:collapse;border:none;color:inherit;font:inherit">')
        for n, line in enumerate(lines):
            tag = "td" if n else "th"
            cells = [
                f'<{tag} style="{CELL.format("right" if i in right else "left")}">{_escaped(cell)}</{tag}>'
                for i, cell in enumerate(line)
            ]
            parts.append(f"<tr>{''.join(cells)}</tr>")
        parts.append("</table>")
        if len(rows) > MOST:
            parts.append(f"<small>and {len(rows) - MOST} more rows: to_pandas() has all</small>")
    return "".join([*parts, "</div>"])


def _escaped(text: str) -> str:
    """Text as HTML shows it, spaces as they are and everything else so that it can be seen."""
    return text if isinstance(text, _Bar) else html.escape(" ".join(map(visible, text.split(" "))))
