"""Layers shared by several models, independent of mesh, config and data. Parameters have logical axis names."""
