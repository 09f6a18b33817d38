"""One file a family of commands; each has ``register``, which adds them to the command line."""
