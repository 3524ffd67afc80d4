"""The prior (arXiv 2012.09841, section 3.2): a transformer over codes, conditioned on a class or on nothing."""
