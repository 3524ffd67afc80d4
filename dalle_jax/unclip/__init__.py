"""unCLIP (DALL-E 2, arXiv 2204.06125): a prior of CLIP image embeddings, a decoder of embeddings, and upsamplers.

text -> `prior_model` -> image embedding -> `context`, `unet` -> image -> `unet` -> larger image

All three are diffusion models (`diffusion`, `samplers`), but the prior may also be autoregressive (`autoregressive_prior`).
"""
