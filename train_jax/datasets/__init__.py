"""Embedded data sets without downloads, with recognisers that evaluate generated images."""
