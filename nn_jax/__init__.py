"""Layers that two or more models use. They know no mesh, no config and no data; parameters carry logical axis names."""
