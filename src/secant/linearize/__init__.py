"""The mathematics of the paper: which affine map replaces each operation, and how a pass is recorded and replayed."""
