"""Steering: a concept's activation added to the residual stream, and what the model then says."""
