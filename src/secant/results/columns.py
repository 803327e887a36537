"""Units and columns that several tables have."""

from __future__ import annotations

from secant.results.schema import Column

LOGIT, RELATIVE, HIDDEN_STATE = "logit", "share of a norm", "hidden state"
"""Units that several tables share."""

POSITION = Column("position", int, "place of the token in the prompt, from 0", heading="")
BLOCK_POSITION = POSITION.but(
    meaning="place of the token whose block it is, from 0; missing: all tokens together", missing=True
)
TOKEN = Column("token", str, "the token's text", show="token")
BLOCK_TOKEN = TOKEN.but(meaning="the token's text; missing: all tokens together", missing=True)
TOKEN_ID = Column("id", int, "its id in the vocabulary")
PROBABILITY = Column("probability", float, "its probability", "probability", heading="p", show="percent")
ITS_LOGIT = Column("logit", float, "its logit", LOGIT, show="logit")
RECONSTRUCTION = Column("reconstruction", float, "‖J x + b - y‖ / ‖y‖", RELATIVE, heading="exact to", show="error")
MODEL = Column("model", str, "the model's name")
CONVENTION = Column(
    "convention", str, "which exact affine map replaces each operation (Conventions in the documentation)"
)
