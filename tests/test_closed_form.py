"""One block of each kind with its Jacobian written out as matrices, from the weights alone."""

from __future__ import annotations

import pytest
import torch
from families import LENGTH, model_of, prompt
from torch import Tensor

import secant as sc


def rotated(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary position embedding of x: (T, heads, d)."""
    half = x.shape[-1] // 2
    frequency = 1.0 / theta ** (torch.arange(half, dtype=torch.float32) * 2 / x.shape[-1])  # as the model stores it
    angle = (positions[:, None].double() * frequency.double())[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def causal_pattern(q: Tensor, k: Tensor) -> Tensor:
    """(heads, T, T) from q, k: (T, heads, d)."""
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    return torch.softmax(scores + torch.full(scores.shape[1:], -torch.inf).triu(1), -1)


def rms(x: Tensor, eps: float) -> Tensor:
    return (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


@pytest.mark.parametrize("convention", ["gate", "up", "half"])
def test_llama_block(convention: str) -> None:
    """J_t = N (I + W_d D W_u N₂) (δ_t + Σ_h P_h[last, t] O_h V_h N₁), with biases in b."""
    lm = model_of("llama", "sdpa", num_hidden_layers=1)
    run = sc.freeze(lm, prompt(), convention=convention)
    x, config = run.input, lm.model.config
    layer = lm.model.model.layers[0]
    attn, mlp, eps = layer.self_attn, layer.mlp, config.rms_norm_eps
    T, last, heads, groups = LENGTH, LENGTH - 1, 4, 2
    size = config.hidden_size // heads
    with torch.no_grad():
        N1 = [torch.diag(layer.input_layernorm.weight * rms(x[t], eps)) for t in range(T)]
        n = torch.stack([N1[t] @ x[t] for t in range(T)])
        q, k = (f(n).reshape(T, -1, size) for f in (attn.q_proj, attn.k_proj))
        theta, at = config.rope_parameters["rope_theta"], torch.arange(T)
        q, k = rotated(q, at, theta), rotated(k, at, theta).repeat_interleave(groups, 1)
        P = causal_pattern(q, k)
        V = attn.v_proj.weight.reshape(-1, size, 32).repeat_interleave(groups, 0)  # (heads, size, d)
        v = attn.v_proj.bias.reshape(-1, size).repeat_interleave(groups, 0)
        Out = attn.o_proj.weight.reshape(32, heads, size)
        reads = [sum(P[h, last, t] * Out[:, h] @ V[h] @ N1[t] for h in range(heads)) for t in range(T)]
        reads[last] = reads[last] + torch.eye(32)
        constant = sum(Out[:, h] @ v[h] for h in range(heads)) + attn.o_proj.bias
        middle = sum(reads[t] @ x[t] for t in range(T)) + constant
        N2 = torch.diag(layer.post_attention_layernorm.weight * rms(middle, eps))
        g, u = mlp.gate_proj(N2 @ middle), mlp.up_proj(N2 @ middle)
        a = torch.nn.functional.silu(g)
        gate = torch.diag(a) @ mlp.up_proj.weight  # the activation held, the other factor live
        up = torch.diag(u * a / g) @ mlp.gate_proj.weight  # the other way round
        gate0, up0 = a * mlp.up_proj.bias, u * a / g * mlp.gate_proj.bias
        share = {"gate": (1, 0), "up": (0, 1), "half": (0.5, 0.5)}[convention]
        inner, inner0 = share[0] * gate + share[1] * up, share[0] * gate0 + share[1] * up0
        block = torch.eye(32) + mlp.down_proj.weight @ inner @ N2
        out = block @ middle + mlp.down_proj.weight @ inner0 + mlp.down_proj.bias
        N = torch.diag(lm.model.model.norm.weight * rms(out, eps))
        J = torch.stack([N @ block @ reads[t] for t in range(T)], 1)
        b = N @ (block @ constant + mlp.down_proj.weight @ inner0 + mlp.down_proj.bias)
    op = run.operator()
    torch.testing.assert_close(N @ out, op.output, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(op.dense(), J, rtol=0, atol=1e-12 * float(J.norm()))
    torch.testing.assert_close(op.bias, b, rtol=0, atol=1e-12 * float(b.norm()))


def test_gpt2_block() -> None:
    """LayerNorm subtracts the mean, which stays live: C = I - 1 1ᵀ / d; biases and positions are in b."""
    lm = model_of("gpt2", "sdpa", num_hidden_layers=1)
    run = sc.freeze(lm, prompt())
    base = lm.model.transformer
    block = base.h[0]
    T, last, heads, d = LENGTH, LENGTH - 1, 4, 32
    size = d // heads
    C = torch.eye(d, dtype=torch.float64) - 1 / d

    def norm(layer: torch.nn.LayerNorm, x: Tensor) -> Tensor:
        """The matrix of a LayerNorm held at x; its bias comes on top."""
        return torch.diag(layer.weight) @ C / ((C @ x).pow(2).mean() + layer.eps).sqrt()

    with torch.no_grad():
        p = base.wpe.weight[:T]
        x = run.input + p
        N1 = [norm(block.ln_1, x[t]) for t in range(T)]
        n = torch.stack([N1[t] @ x[t] + block.ln_1.bias for t in range(T)])
        q, k, _ = block.attn.c_attn(n).chunk(3, -1)
        P = causal_pattern(q.reshape(T, heads, size), k.reshape(T, heads, size))
        V = block.attn.c_attn.weight[:, 2 * d :].T.reshape(heads, size, d)
        v = block.attn.c_attn.bias[2 * d :].reshape(heads, size)
        Out = block.attn.c_proj.weight.T.reshape(d, heads, size)
        reads = [sum(P[h, last, t] * Out[:, h] @ V[h] for h in range(heads)) for t in range(T)]
        live = [reads[t] @ N1[t] + (t == last) * torch.eye(d) for t in range(T)]
        constant = sum(live[t] @ p[t] + reads[t] @ block.ln_1.bias for t in range(T))
        constant = constant + sum(Out[:, h] @ v[h] for h in range(heads)) + block.attn.c_proj.bias
        middle = sum(live[t] @ run.input[t] for t in range(T)) + constant
        N2 = norm(block.ln_2, middle)
        W, w, Z, z = block.mlp.c_fc.weight.T, block.mlp.c_fc.bias, block.mlp.c_proj.weight.T, block.mlp.c_proj.bias
        h = W @ (N2 @ middle + block.ln_2.bias) + w
        D = torch.diag(0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3))))
        outer = torch.eye(d) + Z @ D @ W @ N2
        out0 = outer @ constant + Z @ D @ (W @ block.ln_2.bias + w) + z
        out = outer @ (middle - constant) + out0
        N = norm(base.ln_f, out)
        J = torch.stack([N @ outer @ live[t] for t in range(T)], 1)
        b = N @ out0 + base.ln_f.bias
    op = run.operator()
    torch.testing.assert_close(op.output, N @ out + base.ln_f.bias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(op.dense(), J, rtol=0, atol=1e-12 * float(J.norm()))
    torch.testing.assert_close(op.bias, b, rtol=0, atol=1e-12 * float(b.norm()))


def test_mamba_block() -> None:
    """J_s = N (δ_s + W_o G Σ_t (Σ_n C_n A_n(T..t) Δ_t B_n(t) + D δ_tT) a(t) k(t - s) W_x N₁).

    Decays A, steps Δ, B, C, the gate G and the activation's ratio a are held; k is the kernel of the convolution.
    """
    lm = model_of("mamba", num_hidden_layers=1)
    run = sc.freeze(lm, prompt())
    x, backbone = run.input, lm.model.backbone
    mixer, norm = backbone.layers[0].mixer, backbone.layers[0].norm
    T, last, eps = LENGTH, LENGTH - 1, norm.variance_epsilon
    N1 = rms(x, eps) * norm.weight  # (T, d), each the diagonal of a matrix
    W_x, W_z = mixer.in_proj.weight.chunk(2)
    inside, z = N1 * x @ W_x.T, (N1 * x)[last] @ W_z.T
    kernel, width = mixer.conv1d.weight[:, 0], mixer.conv1d.weight.shape[-1]

    def convolved(values: Tensor) -> Tensor:
        padded = torch.cat([values.new_zeros(width - 1, values.shape[1]), values])
        return sum(padded[k : k + T] * kernel[:, k] for k in range(width))

    before = convolved(inside) + mixer.conv1d.bias
    ratio = torch.sigmoid(before)  # silu(v) / v
    u = ratio * before
    rank, size = mixer.time_step_rank, mixer.ssm_state_size
    step, B, C = (u @ mixer.x_proj.weight.T).split([rank, size, size], 1)
    step = torch.nn.functional.softplus(step @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)  # (T, inner)
    decay = torch.exp(-torch.exp(mixer.A_log) * step[..., None])  # (T, inner, n)
    reach = torch.stack([decay[t + 1 :].prod(0) for t in range(T)])  # from t to the last
    read = torch.einsum("n,tin,ti,tn->ti", C[last], reach, step, B)
    read[last] += mixer.D
    gate = torch.nn.functional.silu(z)
    out = mixer.out_proj.weight * gate  # (d, inner)
    blocks = []
    for s in range(T):
        inner = sum(
            torch.diag(read[t] * ratio[t] * kernel[:, width - 1 - (t - s)]) for t in range(s, min(T, s + width))
        )
        blocks.append(out @ inner @ W_x * N1[s] + (torch.eye(len(out)) if s == last else 0))
    b = out @ (read * ratio * mixer.conv1d.bias).sum(0)
    y = sum(block @ x[s] for s, block in enumerate(blocks)) + b
    N = rms(y, eps) * backbone.norm_f.weight
    J = torch.stack([N[:, None] * block for block in blocks], dim=1)
    op = run.operator()
    torch.testing.assert_close(op.dense(), J, rtol=1e-12, atol=1e-12 * J.abs().max().item())
    torch.testing.assert_close(op.bias, N * b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(N * y, op.output, rtol=1e-12, atol=1e-12)
