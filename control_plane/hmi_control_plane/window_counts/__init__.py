"""The windows that traffic looks up: recorded from reports, and read by runs under a privacy rule."""
