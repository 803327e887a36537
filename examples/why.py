"""Why Golden and not Tower? A logit as an exact sum, compared with the model's response to ablations.

python examples/why.py
"""

import secant as sc

lm = sc.load("atlas", dtype="float64")
run = sc.freeze(lm, "The bridge out of Marin is the", convention="gate")  # that of the ablations below, too
a = sc.attribute(run, " Golden", versus=" Tower", flow=True)

assert abs(a.total - a.logit) < 1e-12
assert a.direct is not None
assert abs(a.direct - a.logit) < 1e-12
tokens = a.of("token").set_index("name")["contribution"]
two = tokens[[" Marin", " the"]]
print(f"Golden over Tower by {a.logit:.2f}: {two.round(2).to_dict()}, all others {a.logit - two.sum():.2f}")

# through which parts does Marin contribute? the crossing of both sums, which is exact too
assert a.flow is not None  # it was requested
of_marin = a.flow[(a.flow["path"] == "direct") & a.flow["head"].isna() & (a.flow["token"] == " Marin")]
assert abs(of_marin["contribution"].sum() - tokens[" Marin"]) < 1e-12
best = of_marin.loc[of_marin["contribution"].idxmax()]
print(f"Marin's way: {best['contribution']:.2f} of {tokens[' Marin']:.2f} through {best['name']}")
assert best["name"] == "layers.5.attn"

# ablate that part, in the frozen network and in the model itself
frozen, real = sc.ablate(run, best["name"]).change(" Golden")
print(f"without it Golden's logit changes by {frozen:.2f} in the frozen network, by {real:.2f} in the model")
whole = sc.attribute(run, " Golden", baseline="none").of("layer").set_index("name")["all_paths"]
assert abs(frozen + whole[best["name"]]) < 1e-11

# are the contributions faithful to what happens when tokens are deleted?
judged = sc.faithfulness(run, methods=["secant", "gradient x input", "random"]).table
print(judged[judged["value"] == "logit"].round(2).to_string(index=False))

# the same for every token of the model's own continuation
for step in sc.follow(run, 4).steps:
    leading = step.attribution.of("token").nlargest(1, "contribution")["name"].item()
    print(f"{step.prediction.token!r}: mostly from {leading!r}, exact to {step.certificate.reconstruction:.0e}")
