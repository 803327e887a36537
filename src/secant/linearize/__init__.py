"""The mathematics of the paper: which affine map stands for each operation, and how a pass is recorded and replayed."""
