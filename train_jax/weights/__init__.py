"""Weight files of other libraries: reading (`tensors`), and conversion of names and layouts (`layout`)."""
