"""The output of commands: pure functions from objects to text, without requests or decisions."""
