"""Results as a person reads them in a terminal."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import IO, Any, cast

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secant.analyses.attribution import Attribution
from secant.analyses.compare import Comparison
from secant.analyses.explain import Explanation
from secant.linearize.run import Certificate
from secant.stream.decode import Word
from secant.stream.layers import Layers
from secant.studies.study import Study
from secant.studies.summary import Summary
from secant.text import certified, visible


class _Trimmed(io.TextIOBase):
    """Standard output without blanks at the ends of lines, which rich fills with them."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stdout.encoding

    def write(self, text: str) -> int:
        sys.stdout.write(re.sub(r" +(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def console(width: int = 100) -> Console:
    """Standard output, which prints what it is given: no markup, no names of emoji. So many columns, and no blanks at
    the ends of lines, where it is no terminal.
    """
    plain: Any = {"highlight": False, "markup": False, "emoji": False}
    out = Console(**plain)
    return out if out.is_terminal else Console(**plain, width=width, file=cast("IO[str]", _Trimmed()))


def show_explanation(out: Console, e: Explanation) -> None:
    """The prediction, the certificate, and a table by token."""
    c = e.run.certificate
    guesses = [
        Text.assemble((visible(p.token), "" if i else "bold"), (f" {p.probability:.1%}", "dim"))
        for i, p in enumerate(e.run.prediction[:5])
    ]
    summary = Table.grid(padding=(0, 2))
    summary.add_column(style="dim", no_wrap=True)
    summary.add_row("next token", Text("   ").join(guesses))
    summary.add_row("certificate", certified(c))
    summary.add_row("", Text(_held(c), style="dim"))
    if c.ordinary is not None:
        summary.add_row("", Text(f"the ordinary Jacobian is off by {c.ordinary:.0%}", style="dim"))
    out.print()
    out.print(summary)
    out.print()
    out.print(_token_table(e, out.width))
    out.print()
    target = visible(e.attribution.target)
    sign = "" if e.attribution.logit > 0 else " The logit is negative: a positive share lowers it."
    remainder = abs(e.attribution.total - e.attribution.logit)
    together = any(len(f.blocks[0]) > 1 for f in e.svds)
    several = " ≈: the next is near-equal, and a vector alone means nothing." if together else ""
    legend = (
        f"share: of the logit of {target} ({e.attribution.logit:.4f}); the shares sum to it to {remainder:.0e}. "
        "σ₁: largest singular value of the token's block J, R: its stable rank. "
        f"writes, reads: what its first left and right singular vectors decode to.{several}{sign}"
    )
    out.print(Text(legend, style="dim"))


def _token_table(e: Explanation, width: int) -> Table:
    """A row for each token; the words that fit whole. Narrow terminals get fewer columns."""
    numbers = [("share", "share", 6), ("‖J x‖", "norm", 6), ("σ₁", "sigma", 6), ("R", "stable_rank", 5)]
    if width < 80:
        numbers = [numbers[0], numbers[2]]
    rows = e.to_pandas()
    places = len(str(len(rows) - 1))
    widest = min(16, max(len("constants"), *(cell_len(visible(t)) for t in e.run.tokens)))
    left = max(8, width - places - widest - sum(w for *_, w in numbers) - 2 * (3 + len(numbers)))
    writes, reads = left - 3 * left // 7, 3 * left // 7
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("", justify="right", style="dim", no_wrap=True, width=places)
    table.add_column("token", no_wrap=True, width=widest)
    for heading, _, w in numbers:
        table.add_column(heading, justify="right", no_wrap=True, width=w)
    table.add_column("writes (U₀)", no_wrap=True, width=writes)
    table.add_column("reads (V₀)", no_wrap=True, width=reads)
    largest = max(rows["share"], key=abs)
    for t, row in rows.iterrows():
        bold = "bold" if row["share"] == largest else ""
        shown = {name: _number(row[name], name) for _, name, _ in numbers}
        if "sigma" in shown and len(e.svds[t].blocks[0]) > 1:
            shown["sigma"] = f"≈{shown['sigma']}"
        cells = [Text(shown[name], style=bold if name == "share" else "") for _, name, _ in numbers]
        words = (_words(e.outputs[t][0], writes), _words(e.inputs[t][0], reads))
        table.add_row(str(t), Text(visible(e.run.tokens[t])), *cells, *words)
    table.add_row("", Text("constants", style="italic"), f"{e.attribution.share(e.attribution.constant):.1%}")
    return table


def show_attribution(out: Console, a: Attribution, heads: int = 8) -> None:
    """The two sums of a logit, by tokens and constants and by what writes to the stream; the heads that matter most."""
    versus = "" if a.versus is None else f" over {visible(a.versus)}"
    out.print()
    out.print(Text.assemble(("logit   ", "dim"), (visible(a.target), "bold"), versus, f"   {a.logit:.4f}"))
    out.print()
    origin = a.table[a.table["kind"].isin(["token", "constant"])]
    _contributions(out, "where it comes from, by all paths", origin, a)
    if a.direct is None:
        return
    writers = a.table[a.table["kind"].isin(["embed", "layer", "outside"])]
    out.print()
    _contributions(out, "what writes it, straight to the logit", writers, a)
    mixed = a.of("head")
    if len(mixed):
        out.print()
        most = mixed.reindex(mixed["contribution"].abs().sort_values(ascending=False, kind="stable").index)[:heads]
        rest = f" that matter most, of {mixed['head'].notna().sum()}" if len(mixed) > heads else ""
        _contributions(out, f"heads{rest}, straight to the logit", most, a)
    remainder = max(abs(a.total - a.logit), abs(a.direct - a.logit))
    legend = (
        f"Both sums are the logit to {remainder:.0e}; heads add up to their layer's attention. All paths: what the "
        "part adds, taken through later parts too (of embed: everything); those overlap, and do not add up. Constants "
        "(biases, positions) are taken by all paths in the first sum; in the second those inside parts count with them."
    )
    out.print()
    out.print(Text(legend, style="dim"))


def _contributions(out: Console, title: str, rows: pd.DataFrame, a: Attribution) -> None:
    """A line for each row: its contribution, its share, and a bar; constants of many modules are one line."""
    direct = "straight" in title
    constants = rows[rows["kind"].isin(["constant", "outside"])]
    shown = [
        (_place(r), visible(r.name), r.contribution, r.all_paths)
        for r in rows.drop(constants.index).itertuples(index=False)
    ]
    if len(constants):
        where = f"of {len(constants)} modules" if len(constants) > 1 else f"of {visible(constants['name'].iloc[0])}"
        shown.append(("", f"constants {where}", constants["contribution"].sum(), constants["all_paths"].sum()))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1), title=title, title_justify="left")
    table.title_style = "dim"
    table.add_column("", justify="right", style="dim", no_wrap=True)
    narrow = out.width < 72
    table.add_column("", no_wrap=True, max_width=28)
    table.add_column("logit", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    if direct:
        table.add_column("all paths", justify="right", no_wrap=True)
    if not narrow:
        table.add_column("", no_wrap=True)
    largest = max((abs(row[2]) for row in shown), default=0.0)
    for place, name, contribution, through in shown:
        cells = [
            f"{contribution:.3f}",
            _number(a.share(contribution), "share"),
            *([f"{through:.3f}"] if direct else []),
        ]
        bar = round(20 * abs(contribution) / largest) if largest else 0
        style = "" if contribution >= 0 else "red"
        drawn = [] if narrow else [Text(("█" if contribution >= 0 else "▒") * bar, style=style)]
        table.add_row(place, Text(name), *cells, *drawn)
    out.print(table)


def _place(row: Any) -> str:
    """A token's position; nothing of what is named by its place."""
    return "" if pd.isna(row.position) else str(row.position)


def show_flow(out: Console, a: Attribution, tokens: Sequence[str]) -> None:
    """Part x token: what each token, and the constants, make of each part, straight to the logit, with all sums."""
    assert a.flow is not None, "it was asked for"
    rows = a.flow[(a.flow["path"] == "direct") & a.flow["head"].isna()].fillna({"position": len(tokens)})
    cells = rows.pivot_table("contribution", "name", "position", aggfunc="sum", sort=False).fillna(0.0)
    cells = cells[sorted(cells.columns)]
    cells.loc["sum"] = cells.sum()
    cells["sum"] = cells.sum(axis=1)
    shown = [*tokens, "constants", "sum"]
    names = dict(zip(cells.columns, [*(visible(token) for token in tokens), *shown[len(tokens) :]], strict=True))
    fitting = max(1, (out.width - 15) // 11)
    for start in range(0, len(names), fitting):
        places = list(names)[start : start + fitting]
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        if not start:
            table.title, table.title_justify = "what each token makes of each part, straight to the logit", "left"
            table.title_style = "dim"
        table.add_column("part", style="dim", no_wrap=True)
        for place in places:
            table.add_column(Text(names[place]), justify="right", no_wrap=True, width=9)
        for name in cells.index:
            own = [cells.loc[name, place] for place in places]
            table.add_row(
                visible(name), *(Text(f"{v:z.3f}", style="" if abs(v) >= 0.05 * abs(a.logit) else "dim") for v in own)
            )
        out.print()
        out.print(table)
    legend = (
        "Rows add up to the part's share above, columns to the token's; the last is the logit. Dim: less than a "
        "twentieth of it. outside: constants that are in no part, such as positions and the final norm's bias."
    )
    out.print()
    out.print(Text(legend, style="dim"))


def show_layers(out: Console, layers: Layers, highlight: Sequence[int] = ()) -> None:
    """Each layer's spectrum and words, then the word that each token's block writes by each depth.

    `highlight`: ids of tokens to mark; by default the predicted one.
    """
    marked = set(highlight or [layers.predicted])
    rows = layers.to_pandas()
    together = rows[rows["position"].isna()].set_index(["layer", "part", "span"])
    shown = [d for d in layers.depths if (d.part, d.span) == ("residual", "cumulative")]
    streams = replace(layers, depths=shown).words(top=6, sides=["output"])
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    parts = [part for part in dict.fromkeys(rows["part"]) if part != "residual"]
    table.add_column("layer", justify="right", style="dim", no_wrap=True)
    headings = ("R", "R alone", "σ₁", *(f"R {part}" for part in parts))
    widths = [max(5, len(heading)) for heading in headings]
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, justify="right", no_wrap=True, width=width)
    table.add_column("writes by now (U₀)", no_wrap=True, width=max(8, out.width - 7 - sum(w + 2 for w in widths)))
    for i in sorted(set(rows["layer"])):
        now, own = together.loc[(i, "residual", "cumulative")], together.loc[(i, "residual", "layerwise")]
        numbers = [(now, "stable_rank"), (own, "stable_rank"), (now, "sigma_0")]
        cells = [_number(row[name], name) for row, name in numbers]
        for part in parts:
            there = (i, part, "cumulative") in together.index
            cells.append(_number(together.loc[(i, part, "cumulative")]["stable_rank"], "stable_rank") if there else "")
        mine = streams[(streams["layer"] == i) & streams["position"].isna()]
        words_now = [_marked(word, token in marked) for word, token in zip(mine["word"], mine["id"], strict=True)]
        table.add_row(str(i), *cells, Text(" ").join(words_now))
    out.print()
    out.print(table)
    out.print()
    _word_map(out, layers, streams, marked)
    legend = (
        f"At {visible(layers.run.tokens[layers.position])}, through the final norm. R: stable rank of all tokens' "
        "blocks by this depth; alone: of the layer from its own input. Below, the first word of each token's block by "
        "this depth. ▸ marks the predicted word, or those of --highlight."
    )
    out.print(Text(legend, style="dim"))


def _word_map(out: Console, layers: Layers, streams: pd.DataFrame, marked: set[int]) -> None:
    """Layer x token: the first word of the first left singular vector; tokens that do not fit go below."""
    first = streams[(streams["rank"] == 0) & streams["position"].notna()].set_index(["layer", "position"])
    tokens = layers.run.tokens
    fitting = max(1, (out.width - 7) // 12)
    for start in range(0, len(tokens), fitting):
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        table.add_column("layer", justify="right", style="dim", no_wrap=True)
        places = range(start, min(start + fitting, len(tokens)))
        for t in places:
            table.add_column(Text(visible(tokens[t])), no_wrap=True, width=10)
        for i in sorted(set(first.index.get_level_values(0))):
            here = [first.loc[(i, t)] if (i, t) in first.index else None for t in places]  # none of a zero block
            cells = [Text("") if row is None else _marked(row["word"], row["id"] in marked) for row in here]
            table.add_row(str(i), *cells)
        out.print(table)
        out.print()


def _marked(word: str, wanted: bool) -> Text:
    """A word, marked where it is one of those looked for."""
    shown = visible(word.strip() or word)
    return Text(f"▸{shown}", style="bold") if wanted else Text(shown)


SHOWN = 12
"""Reasons why prompts failed that are shown."""


def show_study(out: Console, study: Study) -> None:
    """Of each model and convention how many prompts went well and how exact they are; what failed, and why."""
    if study.tables:
        prompts = study.to_pandas()
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        for name in ("model", "convention", "prompts", "failed", "forward", "reconstruction", "affinity"):
            table.add_column(name, justify="left" if name in ("model", "convention", "forward") else "right")
        for (model, convention), rows in prompts.groupby(["model", "convention"], sort=False):
            well = rows[rows["reason"].isna()]
            equal = "equal" if well["run_forward_equal"].astype(bool).all() else "not equal"
            worst = [f"{well[c].max():.1e}" if len(well) else "" for c in ("run_reconstruction", "run_affinity")]
            failed = len(rows) - len(well)
            table.add_row(_readable(model), convention, f"{len(rows)}", f"{failed}", equal if len(well) else "", *worst)
        out.print()
        out.print(table)
        out.print()
        for reason, rows in list(study.failed.groupby("reason"))[:SHOWN]:
            numbers = ", ".join(map(str, rows["prompt"].unique()[:5])) + (" …" if rows["prompt"].nunique() > 5 else "")
            out.print(Text(f"failed: {numbers}: {_readable(reason)}", style="red"))
        out.print(Text("reconstruction, affinity: the worst of all prompts, as certified", style="dim"))
    if study.missing:
        of = len(study.identity.names)
        out.print(Text(f"{study.missing} of {of} shards are not there yet: run it again, or merge the other parts."))
    else:
        out.print(Text(f"All rows are in {_readable(study.folder / 'tables')}: {', '.join(study.tables)}", style="dim"))


def _readable(text: Any) -> str:
    """A text with its spaces as they are, and what else does not print in sight."""
    return " ".join(visible(part) for part in str(text).split(" "))


def show_comparison(out: Console, c: Comparison) -> None:
    """A line for each model, its spectrum and words, and what each stretch of the prompt adds, model by model."""
    names = _subjects(c)
    out.print()
    out.print(Text("prompt  ", style="dim") + Text(_readable(c.prompt)))
    out.print()
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("", no_wrap=True, max_width=24)
    table.add_column("next token", no_wrap=True, max_width=18)
    narrow = out.width < 90
    for heading in ("p", "exact to", *(() if narrow else ("tokens", "σ₀")), "R", "first in U₀"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in zip(names, c.models.to_dict("records"), strict=True):
        if not pd.isna(row["first_seen"]):
            where = f"{row['first_seen']} ({row['depth']:.0%})"
        elif not pd.isna(row["among"]):
            where = f"among {row['among']} ({row['depth_among']:.0%})"
        else:
            where = "no layers" if pd.isna(row["layers"]) else "never"
        more = () if narrow else (str(row["tokens"]), _number(row["sigma"], "sigma"))
        cells = (f"{row['probability']:.1%}", f"{row['reconstruction']:.0e}", *more)
        table.add_row(Text(name), visible(row["prediction"]), *cells, _number(row["stable_rank"], "stable_rank"), where)
    out.print(table)
    out.print()
    _compared_words(out, c, names)
    if len(c.stretches):
        out.print()
        _stretches(out, c, names)
    same = c.overlaps[c.overlaps["stretch"].isna()]
    pairs = [f"{_name(r, names)}: {_shared(r['jaccard'])}" for r in same.to_dict("records")]
    apart = c.overlaps[c.overlaps["stretch"].notna()]
    legend = [
        "exact to: ‖J x + b - y‖ / ‖y‖. σ₀ and R: largest singular value and stable rank of all tokens' blocks side by "
        "side. first in U₀: the first layer at which the prediction is the first word that they write, and its share "
        "of the depth; among: is one of those decoded.",
        f"Words in common (Jaccard), of all tokens: {'; '.join(pairs)}.",
    ]
    if len(apart):
        by_side = apart.groupby("side", sort=False)[["jaccard", "elsewhere"]].mean()
        sides = [f"{'written' if side == 'output' else 'read'} {_shared(r.jaccard)}, elsewhere in the prompt "
                 f"{_shared(r.elsewhere)}" for side, r in by_side.iterrows()]  # fmt: skip
        legend.append(f"Of each stretch, on average: {'; '.join(sides)}.")
    legend += [_readable(why) for why in c.why]
    out.print()
    out.print(Text(" ".join(legend), style="dim"))


def _subjects(c: Comparison) -> list[str]:
    """The name of each model, with its convention where there are several."""
    several = c.models["convention"].nunique() > 1
    rows = c.models.to_dict("records")
    names = [f"{row['model']}, {row['convention']}" if several else row["model"] for row in rows]
    return [_readable(name) for name in names]


OTHER = ("other", "other_convention")


def _name(row: dict[Any, Any], names: Sequence[str]) -> str:
    several = f"{_readable(row['model'])}, {row['convention']}" in names
    one, other = ((_readable(row[who]), row[how]) for who, how in (("model", "convention"), OTHER))
    return " and ".join(", ".join(who) if several else who[0] for who in (one, other))


def _shared(index: float | None) -> str:
    return "none to compare" if index is None or math.isnan(index) else f"{index:.2f}"


def _compared_words(out: Console, c: Comparison, names: Sequence[str]) -> None:
    """What all tokens together write with their first vector, model by model, and the leading singular values."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("", no_wrap=True, max_width=24)
    table.add_column("σ / σ₀", no_wrap=True)
    table.add_column("writes (U₀)", no_wrap=True, width=max(8, out.width - 24 - 25))
    for name, row in zip(names, c.models.to_dict("records"), strict=True):
        own = {
            key: t[(t["model"] == row["model"]) & (t["convention"] == row["convention"]) & t["position"].isna()]
            for key, t in (("spectra", c.spectra), ("words", c.words))
        }
        values = " ".join(f"{v:.2f}" for v in own["spectra"]["normalized"][:4])
        words = own["words"][own["words"]["vector"] == 0]["word"]
        table.add_row(Text(name), values, Text(" ".join(visible(w.strip() or w) for w in words)))
    out.print(table)


def _stretches(out: Console, c: Comparison, names: Sequence[str]) -> None:
    """Stretch x model: its share of the logit, and in how many tokens, where it is not one."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("share of the logit", no_wrap=True, max_width=28)
    fitting = max(1, (out.width - 30) // 18)
    for name in names[:fitting]:
        table.add_column(Text(name), justify="right", no_wrap=True, max_width=16)
    for _, rows in c.stretches.groupby("stretch"):
        cells = [
            "" if pd.isna(row["share"]) else f"{_number(row['share'], 'share')}" +
            (f" in {row['tokens']}" if row["tokens"] > 1 else "")
            for row in rows.to_dict("records")
        ]  # fmt: skip
        table.add_row(Text(_readable(rows["text"].iloc[0])), *cells[:fitting])
    out.print(table)
    if len(names) > fitting:
        out.print(Text(f"{len(names) - fitting} more do not fit; --json and --out have all.", style="dim"))


MEASURES = {
    "reconstruction": ("reconstruction", False),
    "ordinary": ("the ordinary Jacobian's", False),
    "writes_together": ("prediction in U₀, all tokens", True),
    "writes_last": ("prediction in U₀, last token", True),
    "writes_any": ("prediction in U₀, any token", True),
    "reads_own": ("tokens' own word in V₀", True),
    "seen": ("prediction first in U₀ at a layer", True),
    "seen_depth": ("at that share of depth", True),
}
"""Measures of a summary as they are shown, and whether as percentages."""


def show_summary(out: Console, s: Summary) -> None:
    """How many prompts there were, what they say on average, with intervals, and why some failed."""
    subjects = list(dict.fromkeys(zip(s.coverage["model"], s.coverage["convention"], strict=True)))
    fitting = max(1, (out.width - 36) // 27)
    for start in range(0, len(subjects), fitting):
        out.print()
        out.print(_summary_table(s, subjects[start : start + fitting]))
    out.print()
    same = s.overlaps[s.overlaps["category"].isna() & (s.overlaps["of"] == "together")]
    for row in same.to_dict("records"):
        who = _readable(f"{row['model']}, {row['convention']} and {row['other']}, {row['other_convention']}")
        chance = "" if pd.isna(row["chance"]) else f", on other prompts {row['chance']:.2f}"
        out.print(Text(f"words in common, {who}: {_averaged(pd.DataFrame([row]), False)}{chance}"))
    for row in s.failures.to_dict("records"):
        what = _readable(f"{row['prompts']} failed with {row['model']}, {row['convention']}: {row['reason']}")
        out.print(Text(what, style="red"))
    absent = f" Not asked for: {', '.join(s.absent)}." if s.absent else ""
    legend = (
        "Means over prompts, in brackets their 95 % bootstrap interval; none where there is one prompt or all are "
        f"alike.{absent}"
    )
    out.print()
    out.print(Text(legend, style="dim"))


def _summary_table(s: Summary, subjects: Sequence[tuple[str, str]]) -> Table:
    """A line for each number, a column for each model and convention."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("", no_wrap=True, max_width=34)
    for model, convention in subjects:
        table.add_column(Text(_readable(f"{model}, {convention}")), justify="right", no_wrap=True, max_width=27)

    def own(of: pd.DataFrame, subject: tuple[str, str], /, **keys: Any) -> pd.DataFrame:
        rows = of[(of["model"] == subject[0]) & (of["convention"] == subject[1])]
        for key, value in keys.items():
            rows = rows[rows[key].isna() if value is None else rows[key] == value]
        return rows

    def line(label: str, rows: pd.DataFrame, percent: bool, /, **keys: Any) -> None:
        cells = [_averaged(own(rows, subject, category=None, **keys), percent) for subject in subjects]
        if any(cells):
            table.add_row(Text(label), *cells)

    counts = [own(s.runs, subject)[["prompts", "failed"]].sum() for subject in subjects]
    table.add_row("prompts", *(f"{c['prompts']}" + (f", {c['failed']} failed" if c["failed"] else "") for c in counts))
    for measure, (label, percent) in MEASURES.items():
        line(label, s.measures, percent, measure=measure)
    line("stable rank, first token", s.ranks, False, position=0)
    line("stable rank, all tokens", s.ranks, False, position=None)
    for kind in ("token", "constant", "embed", "layer", "outside"):
        line(f"share of the logit, {kind}", s.shares, True, kind=kind, part=None)
    for other, of in dict.fromkeys(zip(s.conventions["other"], s.conventions["of"], strict=True)):
        line(f"distance from {other}, {of}", s.conventions, True, other=other, of=of, measure="distance")
    return table


def _averaged(rows: pd.DataFrame, percent: bool) -> str:
    """A mean and its interval; nothing where there is none."""
    if rows.empty:
        return ""
    row = rows.iloc[0]
    numbers = (row["mean"], row["low"], row["high"])
    mean, low, high = (
        f"{v:.0%}" if percent else f"{v:.1e}" if 0 < abs(row["mean"]) < 1e-3 else f"{v:.3g}" for v in numbers
    )
    return mean if pd.isna(row["low"]) else f"{mean} [{low}, {high}]"


def _held(c: Certificate) -> str:
    precision = "" if c.precision == c.dtype else f", system in {c.precision}"
    live, linear = sum(c.operations.values()), c.operations.get("linear", 0)
    held = f"{live - linear} of {live} operations held"
    return f"{c.dtype}{precision} · {c.attention} attention · convention {c.convention} · {held}"


def _number(value: float, name: str) -> str:
    """A number in six places at most."""
    if name == "share":
        return f"{value:z.1%}" if abs(value) < 9.995 else f"{value:.0%}"
    line = f"{value:.1f}" if name == "stable_rank" else f"{value:.3g}"
    return line if len(line) <= 6 else f"{value:.0e}"


def _words(words: Sequence[Word], width: int) -> Text:
    """As many words as fit whole, at least a part of the first."""
    line = ""
    for word in words:
        longer = f"{line} {visible(word.token.strip() or word.token)}".strip()
        if line and cell_len(longer) > width:
            break
        line = longer
    return Text(line)


def show_certificates(out: Console, model: str, tokens: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """A line for each certificate; the reason where there is none."""
    out.print()
    out.print(Text("model   ", style="dim") + Text(_readable(model)))
    out.print(Text("prompt  ", style="dim") + Text(" ".join(visible(t) for t in tokens)))
    out.print()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("dtype", "convention", "forward"):
        table.add_column(name, no_wrap=True)
    numbers = ["reconstruction", "affinity", "tolerance", "ordinary J"][: 4 if out.width >= 80 else 2]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if not row["exact"]:
            table.add_row(row["dtype"], row["convention"], Text("not exact", style="bold red"))
            continue
        cells = (f"{row['reconstruction']:.1e}", f"{row['affinity']:.1e}", f"{row['tolerance']:.0e}")
        errors = (*cells, f"{row['ordinary']:.2f}")[: len(numbers)]
        table.add_row(row["dtype"], row["convention"], "equal" if row["forward_equal"] else "differs", *errors)
    out.print(table)
    for why in sorted({row["why"] for row in rows if not row["exact"]}):
        out.print(Text(why, style="red"))


def show_architectures(out: Console, rows: Sequence[dict[str, str]]) -> None:
    """A line for each model type, and how many there are of each result."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("type", "result"):
        table.add_column(name, no_wrap=True)
    for name in ("reconstruction", "affinity", "‖b‖/‖y‖"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("layers", no_wrap=True, overflow="ellipsis")
    for row in rows:
        numbers = (row["reconstruction"], row["affinity"], row["constants"])
        style = "" if row["result"] == "exact" else "dim" if row["result"] == "excluded" else "red"
        table.add_row(row["type"], Text(row["result"], style=style), *numbers, row["layers"])
    out.print(table)
    out.print()
    for row in rows:
        if row["reason"]:
            out.print(Text(f"{row['type']} is {row['result']}: {row['reason']}"))
    results = [row["result"] for row in rows]
    out.print(Text(" · ".join(f"{results.count(r)} {r}" for r in dict.fromkeys(results)), style="dim"))
