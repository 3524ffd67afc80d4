"""The loaded model: its verbs against the module applied by hand, and run directories that are right and wrong."""
