"""The second stage (arXiv 2012.09841, section 3.2): a transformer learns what codes follow one another, and draws more."""
