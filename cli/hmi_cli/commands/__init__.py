"""The commands, one file for each family; ``hmi_cli.main`` adds them to the command line."""
