"""A first look: freeze a prompt, check that its linear system is exact, and look at its parts.

    python examples/first_look.py [FOLDER PROMPT]

Without arguments it uses Atlas, the small model that ships with the package.
"""

import sys

import torch

import secant as sc


def main(folder: str, prompt: str) -> None:
    lm = sc.load(folder, dtype="float64")
    run = sc.freeze(lm, prompt, ordinary=True)
    c = run.certificate
    print(f"{prompt} -> {run.prediction[0].token} ({run.prediction[0].probability:.1%})")
    print(f"reconstruction {c.reconstruction:.1e}, affinity {c.affinity:.1e}, ordinary Jacobian {c.ordinary:.2f}")
    assert c.forward_equal
    assert c.reconstruction < 1e-13

    # y = sum of J_t x_t + b, by hand
    op = run.operator()
    J = op.dense()  # (d_out, T, d_in)
    y = sum(J[:, t] @ op.input[t] for t in range(len(run.tokens))) + op.bias
    assert torch.allclose(y, op.output, rtol=0, atol=1e-12)

    # the tokens' contributions to the predicted logit, which add up exactly
    attribution = sc.attribute(run)
    assert abs(attribution.total - attribution.logit) < 1e-12
    leading = attribution.table.sort_values("contribution", ascending=False).iloc[0]
    print(f"most of the logit is from {leading['name']!r}: {leading['contribution']:.2f} of {attribution.logit:.2f}")

    # the top tokens that this token's block writes and reads
    block = op.block(int(leading["position"]))
    f = sc.svd(block, k=2)
    for i in range(2):
        writes, reads = sc.decode(lm, f.U[:, i], "output", top=4)[0], sc.decode(lm, f.V[:, i], "input", top=4)[0]
        print(f"  σ {f.S[i]:.2f}: reads {[w.token for w in reads]}, writes {[w.token for w in writes]}")
    assert f.residuals.max() < 1e-10


if __name__ == "__main__":
    main(*(sys.argv[1:] or ("atlas", "The bridge out of Marin is the")))
