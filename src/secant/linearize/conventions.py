"""Conventions: which factor of a gated product is frozen.

A gated product multiplies an activation's output (the gate) by another tensor of its size (up). Each convention freezes
one factor or averages several such maps. All are exact, and their Jacobians differ.

The module does not import torch, so that the command line can name conventions in its help.
"""

from __future__ import annotations

CONVENTIONS = {
    "gate": ("gate",),
    "up": ("up",),
    "half": ("gate", "up"),
}
"""The frozen factor of each convention; if there are two, the map is the mean of both.

`gate` is the paper's choice for Llama, Qwen, Gemma, Mistral and OLMo, and `up` its code's for Phi.
"""
