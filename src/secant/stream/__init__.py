"""The residual stream: what it decodes to, and the operators and spectra of every layer."""
