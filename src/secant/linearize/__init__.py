"""The mathematics of the paper: which factors are frozen, and how a pass is recorded and replayed."""
