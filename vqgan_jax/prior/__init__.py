"""Class-conditional or unconditional priors: transformers over codes (arXiv 2012.09841, section 3.2)."""
