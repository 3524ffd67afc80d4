"""The tabs of the page, in their order."""

from multimodal_jax.serve.tabs import classify, complete, draw, heat_map, imagine, paint, reconstruct, search

TABS = (search.TAB, classify.TAB, heat_map.TAB, reconstruct.TAB, draw.TAB, complete.TAB, paint.TAB, imagine.TAB)
