"""The commands, one file for each family; its ``register`` adds them to the command line."""
