"""One file a family of models: the names of its weights, its configuration to our specs and back."""
