"""Steering: adding a concept's activation to the residual stream, and the continuations that result."""
