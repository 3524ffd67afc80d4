"""Second stages (arXiv 2012.09841, section 3.2): an autoregressive transformer over the codes of a frozen VQGAN.

A sequence consists of a condition (nothing, a class, a text) and a grid of codes. `vqgan_jax.prior` and `dalle_jax` use
this package.
"""
