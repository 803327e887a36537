"""Why Golden, and not Tower? A logit as an exact sum, checked against what the model does when parts are taken away.

python examples/why.py
"""

import secant as sc

lm = sc.load("atlas", dtype="float64")
run = sc.freeze(lm, "The bridge out of Marin is the")
a = sc.attribute(run, " Golden", versus=" Tower", flow=True)

assert abs(a.total - a.logit) < 1e-12
assert abs(a.direct - a.logit) < 1e-12
tokens = a.of("token").set_index("name")["contribution"]
two = tokens[[" Marin", " the"]]
print(f"Golden over Tower by {a.logit:.2f}: {two.round(2).to_dict()}, all others {a.logit - two.sum():.2f}")

# by which parts does Marin get there? the crossing of both sums, without another remainder
of_marin = a.flow[(a.flow["path"] == "direct") & a.flow["head"].isna() & (a.flow["token"] == " Marin")]
assert abs(of_marin["contribution"].sum() - tokens[" Marin"]) < 1e-12
best = of_marin.loc[of_marin["contribution"].idxmax()]
print(f"Marin's way: {best['contribution']:.2f} of {tokens[' Marin']:.2f} through {best['name']}")
assert best["name"] == "layers.5.attn"

# taken out, in the frozen network and in the model itself
frozen, real = sc.ablate(run, best["name"]).change(" Golden")
print(f"without it Golden's logit changes by {frozen:.2f} in the frozen network, by {real:.2f} in the model")
whole = sc.attribute(run, " Golden").of("layer").set_index("name")["all_paths"]
assert abs(frozen + whole[best["name"]]) < 1e-11

# do the contributions tell what happens when tokens go?
judged = sc.faithfulness(run, methods=["secant", "gradient x input", "random"]).table
print(judged[judged["value"] == "logit"].round(2).to_string(index=False))

# the same for every token that the model goes on to say
for step in sc.follow(run, 4).steps:
    leading = step.attribution.of("token").nlargest(1, "contribution")["name"].item()
    print(f"{step.prediction.token!r}: mostly from {leading!r}, exact to {step.certificate.reconstruction:.0e}")
