"""Train Atlas from scratch: `train.py OUT`. This takes about an hour on two cores; the same seed gives the same run.

Every step draws its documents from (seed, step), so that an interrupted run resumes from its last checkpoint with the
same result. Matrices are trained with Muon (K. Jordan 2024), everything else with AdamW. The loss is taken at every
token of an answer and at three in ten of the others, most of which can't be predicted.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from secant.results.paths import replacing

from corpus import SEED, documents, questions
from evaluate import answered, sampled, shares
from tokens import CONTEXT, VOCABULARY, tokenizer

STEPS = 1500
DOCUMENTS = 320  # a step
RATIO = 1.3  # of the longest to the shortest document that are padded to one length
WARM_UP, COOL_DOWN = 60, 0.5  # steps; share of the run
MUON_LR, ADAM_LR = 8e-3, 3e-3
DECAY = 0.05
OTHERS = 0.3  # share of the tokens outside answers at which the loss is taken
EVERY = 100  # steps between evaluations and checkpoints


def model() -> Qwen3ForCausalLM:
    """Atlas before training."""
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=7,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.02,
        attn_implementation="eager",
    )
    return Qwen3ForCausalLM(config)


@dataclass(frozen=True)
class Batch:
    """Documents of similar length: token ids, the next tokens, whether these are answers, and whether they count."""

    ids: Tensor  # (documents, tokens)
    targets: Tensor
    answers: Tensor
    counted: Tensor
    tokens: int


def batches(words: Any, step: int) -> Iterator[Batch]:
    """The documents of a step, in batches of similar length."""
    random = Random(f"{SEED}:{step}")
    rows, texts, spans = [], [], []
    for document in islice(documents(random), DOCUMENTS):
        text, answers = "", []
        for said in document:
            text += (" " if text else "") + said.prompt
            answers.append((len(text), len(text) + len(said.answer)))
            text += said.answer + said.end
        texts.append(text)
        spans.append(answers)
    for encoded, answers in zip(words.backend_tokenizer.encode_batch(texts), spans, strict=True):
        answer = [any(end > first + 1 and start < last for first, last in answers) for start, end in encoded.offsets]
        counted = [is_answer or random.random() < OTHERS for is_answer in (*answer, False)]
        rows.append(([*encoded.ids, words.eos_token_id], [*answer, False], counted))
    rows.sort(key=lambda row: len(row[0]))
    while rows:
        number = sum(len(row[0]) <= RATIO * len(rows[0][0]) for row in rows)
        mine, rows = rows[:number], rows[number:]
        width = len(mine[-1][0])
        ids, right, counts = (
            torch.tensor([row + [filler] * (width - len(row)) for row in column])
            for column, filler in zip(zip(*mine, strict=True), (words.pad_token_id, False, False), strict=True)
        )
        yield Batch(ids[:, :-1], ids[:, 1:], right[:, 1:], counts[:, 1:], sum(len(row[0]) for row in mine))


def losses(lm: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The sum of the cross-entropies that count, and the sum over answers only."""
    hidden = lm.model(input_ids=batch.ids).last_hidden_state
    logits = lm.lm_head(hidden[batch.counted])
    found = nn.functional.cross_entropy(logits, batch.targets[batch.counted], reduction="none")
    return found.sum(), found.detach()[batch.answers[batch.counted]].sum()


def rate(step: int, steps: int) -> float:
    """The factor of the learning rate: warm-up, plateau, and linear decay to zero."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (COOL_DOWN * steps))


def optimisers(lm: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, head and norms."""
    matrices = [p for name, p in lm.named_parameters() if p.ndim == 2 and "layers." in name]
    tables = [p for name, p in lm.named_parameters() if p.ndim == 2 and "layers." not in name]
    norms = [p for p in lm.parameters() if p.ndim == 1]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": tables, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}],
            lr=ADAM_LR,
            betas=(0.9, 0.98),
        ),
    ]


def train(out: Path, steps: int, keep: bool = False) -> list[dict[str, float]]:
    """Train, and return the log; resumes from the checkpoint next to `out` if there is one.

    With `keep`, the model at every evaluation is kept as a folder checkpoint-STEP, in a folder next to `out`.
    """
    words, lm = tokenizer(), model()
    optims = optimisers(lm)
    full = [[group["lr"] for group in optim.param_groups] for optim in optims]
    log: list[dict[str, float]] = []
    first, tokens, spent, running = 0, 0, 0.0, 0.0
    checkpoint = out.with_name(out.name + ".checkpoint")
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["steps"] != steps:
            raise SystemExit(
                f"A run is continued as it began, {state['steps']} steps; got {steps}. Delete {checkpoint}."
            )
        lm.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        log, first, tokens = state["log"], state["step"], state["tokens"]
        spent, running = state["spent"], state["running"]
    asked = sampled(questions(), 400)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    began = time.monotonic() - spent
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=steps, completed=first)
        for step in range(first, steps):
            parts = list(batches(words, step))
            total = sum(int(part.counted.sum()) for part in parts)
            answers = sum(int(part.answers.sum()) for part in parts)
            loss = answer_loss = 0.0
            for part in parts:
                part_loss, part_answers = losses(lm, part)
                (part_loss / total).backward()
                loss += float(part_loss.detach()) / total
                answer_loss += float(part_answers) / answers
                tokens += part.tokens
            nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
            for optim, lrs in zip(optims, full, strict=True):
                for group, lr in zip(optim.param_groups, lrs, strict=True):
                    group["lr"] = lr * rate(step, steps)
                optim.step()
                optim.zero_grad()
            running = answer_loss if step == 0 else 0.95 * running + 0.05 * answer_loss
            bar.update(task, advance=1, description=f"step {step + 1} loss {loss:.3f} answers {running:.3f}")
            if (step + 1) % EVERY == 0 or step + 1 == steps:
                lm.eval()
                row = {
                    "step": step + 1,
                    "tokens": tokens,
                    "loss": round(loss, 4),
                    "answer loss": round(running, 4),
                    **{name: round(share, 4) for name, share in shares(answered(lm, words, asked)).items()},
                    "minutes": round((time.monotonic() - began) / 60, 1),
                }
                lm.train()
                log.append(row)
                bar.console.print(json.dumps(row))
                if keep:
                    with replacing(out.with_name(f"{out.name}-checkpoints") / f"checkpoint-{step + 1}") as new:
                        save(copy.deepcopy(lm).eval(), words, new)
                with replacing(checkpoint) as new:
                    torch.save({
                        "steps": steps, "step": step + 1, "tokens": tokens, "spent": time.monotonic() - began,
                        "running": running, "log": log,
                        "model": lm.state_dict(), "optims": [optim.state_dict() for optim in optims],
                    }, new)  # fmt: skip
    with replacing(out) as new:
        save(lm, words, new)
        pd.DataFrame(log).to_csv(new / "training.csv", index=False)
    checkpoint.unlink()
    return log


def save(lm: Any, words: Any, out: Path) -> None:
    """Write an ordinary Hugging Face folder, with weights in half precision that are loaded in float32."""
    lm.half().save_pretrained(out)
    words.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    config["_name_or_path"] = "atlas"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = STEPS,
    threads: Annotated[int, typer.Option(help="CPU threads; the last digits depend on it.")] = 2,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Keep a folder of the model every 100 steps.")
    ] = False,
) -> None:
    """Train Atlas and write it as a Hugging Face folder."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    train(out, steps, checkpoints)


if __name__ == "__main__":
    typer.run(main)
