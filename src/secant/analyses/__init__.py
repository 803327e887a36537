"""The analyses of a run: attribution, sensitivity, lens, ablation, faithfulness, interpolation, screening, explanation and
comparison.
"""
