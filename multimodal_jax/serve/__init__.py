"""The page of `multimodal-jax serve`: trained models in the browser, without any other machine.

A tab (`tab.Tab`, one module each in `tabs`) is a form and a function, which knows nothing of the browser: `page` makes the
form, checks what was filled in and runs the function as a job (`jobs`). One of them computes at a time (`device`), or
several users together (`shared_models`). A tab first writes the command line that does the same, and pictures are made by
that very command, with models that are loaded already (`models`).
"""
