"""Results as a person reads them in a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secant.decoding import Word
from secant.explanation import Explanation
from secant.run import Certificate


def console() -> Console:
    """Standard output; 100 columns where it is no terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=100)


def visible(token: str) -> str:
    """A token so that every character of it can be seen: spaces, line ends, and what does not print."""
    shown = {" ": "·", "\n": "⏎", "\t": "⇥"}
    return "".join(
        shown.get(c) or (f"\\x{ord(c):02x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zs") else c)
        for c in token
    )


def show_explanation(out: Console, e: Explanation) -> None:
    """The prediction, the certificate, and a table by token."""
    c = e.run.certificate
    out.print()
    guesses = [Text(f" {visible(p.token)}", style="bold" if i == 0 else "") + Text(f" {p.probability:.1%}", style="dim")
               for i, p in enumerate(e.run.prediction[:5])]  # fmt: skip
    out.print(Text("next token  ", style="dim") + Text("  ").join(guesses))
    out.print(Text("certificate  ", style="dim") + Text(_certified(c)))
    out.print(Text("             " + _held(c), style="dim"))
    if c.ordinary is not None:
        out.print(Text(f"             the ordinary Jacobian is off by {c.ordinary:.0%}", style="dim"))
    out.print()
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1), expand=True)
    rows = e.to_pandas()
    widest = max(len("constants"), *(cell_len(visible(t)) for t in e.run.tokens))
    table.add_column("", justify="right", style="dim", no_wrap=True, min_width=len(str(len(rows))))
    table.add_column("token", no_wrap=True, width=min(16, widest))
    for name, width in (("share", 6), ("‖J x‖", 6), ("σ₁", 6), ("R", 5)):
        table.add_column(name, justify="right", no_wrap=True, width=width)
    table.add_column("writes (U₀)", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("reads (V₀)", ratio=1, no_wrap=True, overflow="ellipsis")
    largest = max(abs(share) for share in rows["share"])
    for t, row in enumerate(rows.itertuples()):
        table.add_row(
            str(t),
            Text(visible(e.run.tokens[t])),
            Text(f"{row.share:.1%}", style="bold" if abs(float(row.share)) == largest else ""),
            f"{row.norm:.3g}",
            f"{row.sigma:.3g}",
            f"{row.stable_rank:.1f}",
            _words(e.outputs[t][0]),
            _words(e.inputs[t][0]),
        )
    constant = e.attribution.table["contribution"].iloc[-1]
    table.add_row("", Text("constants", style="italic"), f"{constant / e.attribution.logit:.1%}")
    out.print(table)
    out.print()
    target = visible(e.attribution.target)
    remainder = abs(e.attribution.total - e.attribution.logit)
    legend = (
        f"share: of the logit of {target} ({e.attribution.logit:.4f}); the shares sum to it to {remainder:.0e}. "
        "σ₁: largest singular value of the token's block J, R: its stable rank. "
        "writes, reads: what its first left and right singular vectors decode to."
    )
    out.print(Text(legend, style="dim"))


def _certified(c: Certificate) -> str:
    parts = [
        "forward bit-equal" if c.forward_equal else "forward differs",
        f"reconstruction {c.reconstruction:.1e}",
        f"affinity {c.affinity:.1e}",
    ]
    return " · ".join(parts)


def _held(c: Certificate) -> str:
    precision = "" if c.precision == c.dtype else f", system in {c.precision}"
    live, linear = sum(c.operations.values()), c.operations.get("linear", 0)
    held = f"{live - linear} of {live} operations held"
    return f"{c.dtype}{precision} · {c.attention} attention · convention {c.convention} · {held}"


def _words(words: Sequence[Word]) -> Text:
    return Text(" ".join(visible(w.token.strip() or w.token) for w in words))


def show_certificates(out: Console, model: str, tokens: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """A line for each certificate; the reason where there is none."""
    out.print()
    out.print(Text("model   ", style="dim") + Text(model))
    out.print(Text("prompt  ", style="dim") + Text(" ".join(visible(t) for t in tokens)))
    out.print()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("dtype", "convention", "forward"):
        table.add_column(name)
    for name in ("reconstruction", "affinity", "tolerance", "ordinary J"):
        table.add_column(name, justify="right")
    for row in rows:
        if not row["exact"]:
            table.add_row(row["dtype"], row["convention"], Text("not exact", style="bold red"))
            continue
        table.add_row(
            row["dtype"], row["convention"], "equal" if row["forward_equal"] else "differs",
            f"{row['reconstruction']:.1e}", f"{row['affinity']:.1e}",
            f"{row['tolerance']:.0e}", f"{row['ordinary']:.2f}",
        )  # fmt: skip
    out.print(table)
    for why in sorted({row["why"] for row in rows if not row["exact"]}):
        out.print(Text(why, style="red"))
