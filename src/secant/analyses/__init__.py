"""The analyses of a run: attribution, sensitivity, lens, ablation, faithfulness, interpolation, screening and more."""
